//! The rare requests and their answers: one message each, without the header.

use std::sync::Arc;

use bytes::Bytes;

use super::proto::{self, info};
use super::{Malformed, read_node, read_uuid, register, uuid_bytes};
use crate::ports::{Announcement, InfoStamp, NodeInfo, NodeState, PeerReply, PeerRequest};
use crate::types::limits::{ADDRESS_BYTES_MAX, GOSSIP_PACKET_BYTES_MAX, WEIGHT_MAX, ZONE_BYTES_MAX};
use crate::types::{Ballot, CatchUp, Epoch, InstanceId, Slot, Topology, Vote};

/// The longest program version a node may tell, in bytes.
const PROGRAM_BYTES_MAX: usize = 64;
/// The longest text about a slot that does not get on, in bytes.
const STUCK_BYTES_MAX: usize = 1024;

// ------------------------------------------------------------------------------------------------------- requests

pub(in crate::mesh) fn read_gossip(request: proto::GossipRequest) -> Result<PeerRequest, Malformed> {
    if request.packet.len() > GOSSIP_PACKET_BYTES_MAX {
        return Err("a gossip packet over its limit".into());
    }
    Ok(PeerRequest::Gossip(request.packet))
}

pub(in crate::mesh) fn read_node_info(request: proto::NodeInfoRequest) -> Result<PeerRequest, Malformed> {
    Ok(PeerRequest::NodeInfo { digest: read_stamps(request.digest)? })
}

pub(in crate::mesh) fn read_announce(request: proto::AnnounceRequest) -> Result<PeerRequest, Malformed> {
    Ok(PeerRequest::Announce(read_announcement(request.announcement.ok_or("an announcement is missing")?)?))
}

pub(in crate::mesh) fn read_found(request: proto::FoundRequest) -> Result<PeerRequest, Malformed> {
    let topology = read_topology(&request.topology)?;
    Ok(if request.committed { PeerRequest::Founded { topology } } else { PeerRequest::Found { topology } })
}

pub(in crate::mesh) fn found_request(
    header: Option<proto::Header>,
    about: &Topology,
    committed: bool,
) -> proto::FoundRequest {
    proto::FoundRequest { header, topology: topology(about), committed }
}

pub(in crate::mesh) fn replace_request(
    header: Option<proto::Header>,
    epoch: Epoch,
    newcomer: Announcement,
    succeeds: &[InstanceId],
) -> proto::ReplaceRequest {
    let succeeds = succeeds.iter().map(|instance| uuid_bytes(instance.0)).collect();
    proto::ReplaceRequest { header, newcomer: Some(announcement(newcomer)), succeeds, epoch: epoch.0 }
}

pub(in crate::mesh) fn read_replace(request: proto::ReplaceRequest) -> Result<PeerRequest, Malformed> {
    let newcomer = read_announcement(request.newcomer.ok_or("an announcement is missing")?)?;
    let succeeds = request.succeeds.iter().map(|bytes| read_uuid(bytes).map(InstanceId)).collect::<Result<_, _>>()?;
    Ok(PeerRequest::Replace { epoch: Epoch(request.epoch), newcomer, succeeds })
}

pub(in crate::mesh) fn vote_request(
    header: Option<proto::Header>,
    epoch: Epoch,
    ballot: Ballot,
    proposal: Option<Arc<Topology>>,
) -> proto::VoteRequest {
    let ballot = Some(register::ballot(ballot));
    proto::VoteRequest { header, epoch: epoch.0, ballot, proposal: topology_or_none(proposal) }
}

pub(in crate::mesh) fn read_vote(request: proto::VoteRequest) -> Result<PeerRequest, Malformed> {
    let ballot = register::read_ballot(request.ballot.ok_or("a ballot is missing")?);
    let proposal = read_topology_or_none(&request.proposal)?;
    Ok(PeerRequest::Vote { epoch: Epoch(request.epoch), ballot, proposal })
}

// -------------------------------------------------------------------------------------------------------- answers

/// The top of an answer, and the rest of it.
type Split = (Option<proto::Header>, Result<PeerReply, Malformed>);

pub(in crate::mesh) fn split_replace_reply(reply: proto::ReplaceReply) -> Split {
    let topology = read_topology_or_none(&reply.topology);
    (reply.header, topology.map(|topology| PeerReply::Replaced { topology }))
}

pub(in crate::mesh) fn split_vote_reply(reply: proto::VoteReply) -> Split {
    let vote = Vote::decode(&reply.vote).map_err(|e| Malformed::from(e.to_string()));
    (reply.header, vote.map(|vote| PeerReply::Voted(Box::new(vote))))
}

pub(in crate::mesh) fn catch_up_reply(
    header: Option<proto::Header>,
    reply: PeerReply,
) -> Result<proto::CatchUpReply, PeerReply> {
    match reply {
        PeerReply::CaughtUp(CatchUp { slots, done, caught_up, keys, bytes, hints, stuck }) => {
            let mut stuck = stuck.unwrap_or_default();
            while stuck.len() > STUCK_BYTES_MAX {
                stuck.pop();
            }
            Ok(proto::CatchUpReply { header, wrong_epoch: None, slots, done, caught_up, keys, bytes, hints, stuck })
        }
        PeerReply::WrongEpoch { epoch } => {
            Ok(proto::CatchUpReply { header, wrong_epoch: Some(epoch.0), ..Default::default() })
        }
        other => Err(other),
    }
}

pub(in crate::mesh) fn read_catch_up_reply(reply: proto::CatchUpReply) -> Result<PeerReply, Malformed> {
    let proto::CatchUpReply { header: _, wrong_epoch, slots, done, caught_up, keys, bytes, hints, stuck } = reply;
    if let Some(epoch) = wrong_epoch {
        return Ok(PeerReply::WrongEpoch { epoch: Epoch(epoch) });
    }
    if stuck.len() > STUCK_BYTES_MAX || slots > Slot::COUNT as u64 || done > slots {
        return Err("a catch-up over its limits".into());
    }
    let stuck = (!stuck.is_empty()).then_some(stuck);
    Ok(PeerReply::CaughtUp(CatchUp { slots, done, caught_up, keys, bytes, hints, stuck }))
}

pub(in crate::mesh) fn read_node_info_reply(reply: proto::NodeInfoReply) -> Result<PeerReply, Malformed> {
    let infos = reply.infos.into_iter().map(read_info).collect::<Result<_, _>>()?;
    Ok(PeerReply::NodeInfo { infos, digest: read_stamps(reply.digest)? })
}

pub(in crate::mesh) fn read_topology_reply(reply: proto::TopologyReply) -> Result<PeerReply, Malformed> {
    Ok(PeerReply::Topology { topology: read_topology_or_none(&reply.topology)? })
}

pub(in crate::mesh) fn read_announce_reply(reply: proto::AnnounceReply) -> Result<PeerReply, Malformed> {
    let heard = reply.heard.into_iter().map(read_announcement).collect::<Result<_, _>>()?;
    Ok(PeerReply::Announced { topology: read_topology_or_none(&reply.topology)?, heard })
}

// --------------------------------------------------------------------------------------------------------- values

fn topology(topology: &Topology) -> Bytes {
    topology.encode().into()
}

pub(in crate::mesh) fn topology_or_none(held: Option<Arc<Topology>>) -> Bytes {
    held.map(|t| topology(&t)).unwrap_or_default()
}

fn read_topology(json: &[u8]) -> Result<Arc<Topology>, Malformed> {
    Topology::decode(json).map(Arc::new).map_err(|e| Malformed::from(e.to_string()))
}

fn read_topology_or_none(json: &[u8]) -> Result<Option<Arc<Topology>>, Malformed> {
    if json.is_empty() { Ok(None) } else { read_topology(json).map(Some) }
}

pub(in crate::mesh) fn stamps(stamps: Vec<InfoStamp>) -> Vec<proto::InfoStamp> {
    stamps.into_iter().map(stamp).collect()
}

fn stamp(stamp: InfoStamp) -> proto::InfoStamp {
    proto::InfoStamp {
        node: stamp.node.0.into(),
        instance: uuid_bytes(stamp.instance.0),
        generation: stamp.generation,
        info: stamp.info,
    }
}

fn read_stamps(stamps: Vec<proto::InfoStamp>) -> Result<Vec<InfoStamp>, Malformed> {
    stamps.into_iter().map(read_stamp).collect()
}

fn read_stamp(stamp: proto::InfoStamp) -> Result<InfoStamp, Malformed> {
    Ok(InfoStamp {
        node: read_node(stamp.node)?,
        instance: InstanceId(read_uuid(&stamp.instance)?),
        generation: stamp.generation,
        info: stamp.info,
    })
}

pub(in crate::mesh) fn info(info: NodeInfo) -> proto::Info {
    let state = match info.state {
        NodeState::Starting => info::State::Starting,
        NodeState::Serving => info::State::Serving,
        NodeState::Draining => info::State::Draining,
        NodeState::Failed => info::State::Failed,
    };
    let owed = |(target, count, bytes): (crate::types::NodeNum, u64, u64)| proto::HintsOwed {
        target: target.0.into(),
        count,
        bytes,
    };
    proto::Info {
        stamp: Some(stamp(info.stamp)),
        mesh_address: info.mesh_address,
        http_address: info.http_address,
        zone: info.zone,
        weight: info.weight,
        state: state.into(),
        program: info.program,
        epoch: info.epoch.0,
        keys: info.keys,
        bytes: info.bytes,
        hints: info.hints.into_iter().map(owed).collect(),
        requests_per_second: info.requests_per_second,
        p99_us: info.p99_us,
    }
}

fn read_info(info: proto::Info) -> Result<NodeInfo, Malformed> {
    let state = match info.state() {
        info::State::Unspecified => return Err("a node in an unknown state".into()),
        info::State::Starting => NodeState::Starting,
        info::State::Serving => NodeState::Serving,
        info::State::Draining => NodeState::Draining,
        info::State::Failed => NodeState::Failed,
    };
    let owed = |h: proto::HintsOwed| Ok::<_, Malformed>((read_node(h.target)?, h.count, h.bytes));
    if info.program.len() > PROGRAM_BYTES_MAX {
        return Err("a program version over its limit".into());
    }
    Ok(NodeInfo {
        stamp: read_stamp(info.stamp.ok_or("a stamp is missing")?)?,
        mesh_address: read_address(info.mesh_address)?,
        http_address: read_address(info.http_address)?,
        zone: read_zone(info.zone)?,
        weight: read_weight(info.weight)?,
        state,
        program: info.program,
        epoch: Epoch(info.epoch),
        keys: info.keys,
        bytes: info.bytes,
        hints: info.hints.into_iter().map(owed).collect::<Result<_, _>>()?,
        requests_per_second: info.requests_per_second,
        p99_us: info.p99_us,
    })
}

pub(in crate::mesh) fn announcement(announcement: Announcement) -> proto::Announcement {
    proto::Announcement {
        node: announcement.node.0.into(),
        instance: uuid_bytes(announcement.instance.0),
        zone: announcement.zone,
        weight: announcement.weight,
        mesh_address: announcement.mesh_address,
        http_address: announcement.http_address,
        cluster_size: announcement.cluster_size.into(),
        rf: announcement.rf.into(),
    }
}

fn read_announcement(announcement: proto::Announcement) -> Result<Announcement, Malformed> {
    Ok(Announcement {
        node: read_node(announcement.node)?,
        instance: InstanceId(read_uuid(&announcement.instance)?),
        zone: read_zone(announcement.zone)?,
        weight: read_weight(announcement.weight)?,
        mesh_address: read_address(announcement.mesh_address)?,
        http_address: read_address(announcement.http_address)?,
        cluster_size: announcement.cluster_size.try_into().map_err(|_| "a cluster size over its limit")?,
        rf: announcement.rf.try_into().map_err(|_| "a replication factor over its limit")?,
    })
}

fn read_address(address: String) -> Result<String, Malformed> {
    if address.len() > ADDRESS_BYTES_MAX { Err("an address over its limit".into()) } else { Ok(address) }
}

fn read_zone(zone: Option<String>) -> Result<Option<String>, Malformed> {
    let long = zone.as_ref().is_some_and(|z| z.len() > ZONE_BYTES_MAX);
    if long { Err("a zone over its limit".into()) } else { Ok(zone) }
}

fn read_weight(weight: u32) -> Result<u32, Malformed> {
    if weight > WEIGHT_MAX { Err("a weight over its limit".into()) } else { Ok(weight) }
}
