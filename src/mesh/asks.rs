//! Rare requests: one call each, over connections of their own, so that gossip never waits behind a batch of values.
//!
//! Comparing and repairing copies can move a lot for a long time, and has connections of its own, too. So have listings, and
//! watches, whose calls wait.
//!
//! A proposal is less rare and can be large: proposals have a connection of their own again. It is sent once and never
//! repeated, by us or by a layer below (tonic and hyper do not send a call again), and once it was answered nothing is
//! said that sounds like "not done", whatever is wrong with the answer.

use std::sync::Arc;

use prost::Message;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::channels::Channels;
use super::client::Shared;
use super::endpoint;
use super::weight;
use super::wire::proto::mesh_client::MeshClient;
use super::wire::{self, Malformed, changes, propose, proto, purge, rare, scan, status, tree};
use crate::ports::{PeerError, PeerReply, PeerRequest};
use crate::types::{ChangesAsk, Epoch, InstanceId, Key};

/// Makes the calls.
pub(super) struct Asks {
    shared: Arc<Shared>,
    talk: Channels,
    proposals: Channels,
    healing: Channels,
    listings: Channels,
    watches: Channels,
}

impl Asks {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let channels = Channels::default;
        let [talk, proposals, healing, listings, watches] = std::array::from_fn(|_| channels());
        Self { shared, talk, proposals, healing, listings, watches }
    }

    /// Asks whoever listens at that address, or only that instance.
    pub(super) async fn call(
        &self,
        address: &str,
        instance: Option<InstanceId>,
        request: PeerRequest,
    ) -> Result<PeerReply, PeerError> {
        let (channels, bytes) = self.way_of(&request);
        let handler = self.shared.handler().ok_or(PeerError::Unreachable)?;
        let line = channels.to(address, &self.shared)?;
        let _room = line.enter(bytes)?;
        let mut client = endpoint::client(line.channel.clone());
        let header = Some(wire::header(&handler.header(), instance));
        let (header, reply) = match request {
            PeerRequest::Gossip(packet) => {
                (answer(client.gossip(proto::GossipRequest { header, packet }).await)?.header, Ok(PeerReply::Done))
            }
            PeerRequest::NodeInfo { digest } => {
                let request = proto::NodeInfoRequest { header, digest: rare::stamps(digest) };
                let mut reply = answer(client.node_info(request).await)?;
                (reply.header.take(), rare::read_node_info_reply(reply))
            }
            PeerRequest::Topology => {
                let mut reply = answer(client.topology(proto::TopologyRequest { header }).await)?;
                (reply.header.take(), rare::read_topology_reply(reply))
            }
            PeerRequest::Announce(announcement) => {
                let announcement = Some(rare::announcement(announcement));
                let mut reply = answer(client.announce(proto::AnnounceRequest { header, announcement }).await)?;
                (reply.header.take(), rare::read_announce_reply(reply))
            }
            PeerRequest::Found { ref topology } | PeerRequest::Founded { ref topology } => {
                let committed = matches!(request, PeerRequest::Founded { .. });
                let request = rare::found_request(header, topology, committed);
                (answer(client.found(request).await)?.header, Ok(PeerReply::Done))
            }
            PeerRequest::Replace { epoch, newcomer, succeeds } => {
                let request = rare::replace_request(header, epoch, newcomer, &succeeds);
                rare::split_replace_reply(answer(client.replace(request).await)?)
            }
            PeerRequest::CatchUp { epoch } => caught_up(client, header, epoch).await?,
            PeerRequest::Vote { epoch, ballot, proposal } => {
                let request = rare::vote_request(header, epoch, ballot, proposal);
                rare::split_vote_reply(answer(client.vote(request).await)?)
            }
            PeerRequest::Propose { proposal, timeout_ms, trace } => {
                let request = propose::request(header, *proposal, timeout_ms, trace.as_deref());
                return self.verdict(answer(client.propose(request).await)?, instance);
            }
            PeerRequest::GetChunkHash { epoch, left_out, spans } => {
                let request = self.told(tree::chunk_hash_request(header, epoch, left_out, &spans));
                let mut reply = self.heard(answer(client.get_chunk_hash(request).await)?);
                (reply.header.take(), tree::read_chunk_hash_reply(reply, spans.len()))
            }
            PeerRequest::FetchRange(exchange) => {
                let request = self.told(tree::range_request(header, &exchange));
                let mut reply = self.heard(answer(client.fetch_range(request).await)?);
                (reply.header.take(), tree::read_range_reply(reply, &exchange))
            }
            PeerRequest::CompareSlot { epoch, slot, digests } => {
                self.of_slot(client, tree::compare_request(header, epoch, slot, &digests), None).await?
            }
            PeerRequest::FetchSlot { epoch, slot, leaves, after } => {
                let request = tree::slot_request(header, epoch, slot, leaves, after.as_ref());
                self.of_slot(client, request, after.as_ref()).await?
            }
            PeerRequest::Purge { epoch, step } => purged(client, purge::request(header, epoch, step)).await?,
            PeerRequest::Scan { epoch, scan } => scanned(client, scan::request(header, epoch, scan)).await?,
            PeerRequest::Changes { epoch, ask } => changed(client, header, epoch, ask).await?,
            PeerRequest::Converge { with, look } => {
                self.converged(client, tree::converge_request(header, with, look)).await?
            }
        };
        self.shared.admit(header, instance)?;
        reply.map_err(|malformed: Malformed| malformed.into())
    }

    /// A page, or a comparison.
    async fn of_slot(
        &self,
        mut client: MeshClient<Channel>,
        request: proto::SlotRequest,
        after: Option<&Key>,
    ) -> Result<Split, PeerError> {
        let request = self.told(request);
        let mut reply = self.heard(answer(client.fetch_slot(request).await)?);
        Ok((reply.header.take(), tree::read_slot_reply(reply, after)))
    }

    /// The connections that a request travels on, and what it weighs there.
    fn way_of(&self, request: &PeerRequest) -> (&Channels, usize) {
        match request {
            PeerRequest::Propose { proposal, trace, .. } => {
                (&self.proposals, weight::of_proposal(proposal, trace.as_deref()))
            }
            PeerRequest::GetChunkHash { .. }
            | PeerRequest::FetchRange(_)
            | PeerRequest::CompareSlot { .. }
            | PeerRequest::FetchSlot { .. }
            | PeerRequest::Purge { .. }
            | PeerRequest::Converge { .. } => (&self.healing, weight::of_healing(request)),
            PeerRequest::Scan { .. } => (&self.listings, weight::SCAN_BYTES),
            PeerRequest::Changes { ask, .. } => (&self.watches, weight::of_changes(ask)),
            _ => (&self.talk, 0),
        }
    }

    async fn converged(
        &self,
        mut client: MeshClient<Channel>,
        request: proto::ConvergeRequest,
    ) -> Result<Split, PeerError> {
        let mut reply = self.heard(answer(client.converge(self.told(request)).await)?);
        Ok((reply.header.take(), tree::read_converge_reply(reply)))
    }

    /// Counts a message of healing that is sent.
    fn told<M: Message>(&self, message: M) -> M {
        self.shared.meters.healing_sent(&message);
        message
    }

    /// Counts a message of healing that came.
    fn heard<M: Message>(&self, message: M) -> M {
        self.shared.meters.healing_received(&message);
        message
    }

    /// What became of a proposal. It was answered, so it was handled: an answer that is from somebody else, or makes no
    /// sense, leaves that in doubt.
    fn verdict(&self, mut reply: proto::ProposeReply, instance: Option<InstanceId>) -> Result<PeerReply, PeerError> {
        let admitted = self.shared.admit(reply.header.take(), instance);
        admitted.and_then(|_| Ok(propose::read_reply(reply)?)).map_err(|error| {
            tracing::warn!(%error, "the answer to a proposal was not understood");
            PeerError::Lost
        })
    }
}

/// The top of an answer, and the rest of it.
type Split = (Option<proto::Header>, Result<PeerReply, Malformed>);

async fn purged(mut client: MeshClient<Channel>, request: proto::PurgeRequest) -> Result<Split, PeerError> {
    let mut reply = answer(client.purge(request).await)?;
    Ok((reply.header.take(), purge::read_reply(reply)))
}

async fn caught_up(
    mut client: MeshClient<Channel>,
    header: Option<proto::Header>,
    epoch: Epoch,
) -> Result<Split, PeerError> {
    let mut reply = answer(client.catch_up(proto::CatchUpRequest { header, epoch: epoch.0 }).await)?;
    Ok((reply.header.take(), rare::read_catch_up_reply(reply)))
}

async fn scanned(mut client: MeshClient<Channel>, request: proto::ScanRequest) -> Result<Split, PeerError> {
    let from = request.from.clone();
    let mut reply = answer(client.scan(request).await)?;
    Ok((reply.header.take(), scan::read_reply(reply, &from)))
}

async fn changed(
    mut client: MeshClient<Channel>,
    header: Option<proto::Header>,
    epoch: Epoch,
    ask: ChangesAsk,
) -> Result<Split, PeerError> {
    let from = ask.from;
    let mut reply = answer(client.changes(changes::request(header, epoch, ask)).await)?;
    Ok((reply.header.take(), changes::read_reply(reply, from)))
}

fn answer<T>(result: Result<Response<T>, Status>) -> Result<T, PeerError> {
    result.map(Response::into_inner).map_err(|status| status::error(&status))
}
