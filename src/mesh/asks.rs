//! Rare requests: one call each, over connections of their own, so that gossip never waits behind a batch of values.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::client::Shared;
use super::endpoint;
use super::wire::{self, Malformed, proto, rare, status};
use crate::ports::{PeerError, PeerReply, PeerRequest};
use crate::types::InstanceId;

/// Makes the calls.
pub(super) struct Asks {
    shared: Arc<Shared>,
    channels: Mutex<Channels>,
}

/// Connections by address; each reconnects by itself when it is used.
#[derive(Default)]
struct Channels {
    open: BTreeMap<String, (u64, Channel)>,
    /// Counts uses, to tell which channel went unused for longest.
    uses: u64,
}

impl Asks {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, channels: Mutex::default() }
    }

    fn channel(&self, address: &str) -> Result<Channel, PeerError> {
        let mut channels = self.channels.lock();
        channels.uses += 1;
        let now = channels.uses;
        if let Some((used, channel)) = channels.open.get_mut(address) {
            *used = now;
            return Ok(channel.clone());
        }
        let channel = endpoint::endpoint(address, &self.shared.options, &self.shared.spawn)?.connect_lazy();
        if channels.open.len() >= self.shared.options.channels_max {
            let oldest = channels.open.iter().min_by_key(|(_, (used, _))| *used).map(|(address, _)| address.clone());
            oldest.map(|address| channels.open.remove(&address));
        }
        channels.open.insert(address.to_owned(), (now, channel.clone()));
        Ok(channel)
    }

    /// Asks whoever listens at that address, or only that instance.
    pub(super) async fn call(
        &self,
        address: &str,
        instance: Option<InstanceId>,
        request: PeerRequest,
    ) -> Result<PeerReply, PeerError> {
        let handler = self.shared.handler().ok_or(PeerError::Unreachable)?;
        let mut client = endpoint::client(self.channel(address)?);
        let header = Some(wire::header(&handler.header(), instance));
        let (header, reply) = match request {
            PeerRequest::Gossip(packet) => {
                let reply = answer(client.gossip(proto::GossipRequest { header, packet }).await)?;
                (reply.header, Ok(PeerReply::Done))
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
            PeerRequest::Found { topology } => {
                let topology = rare::topology(&topology);
                let reply = answer(client.found(proto::FoundRequest { header, topology, committed: false }).await)?;
                (reply.header, Ok(PeerReply::Done))
            }
            PeerRequest::Founded { topology } => {
                let topology = rare::topology(&topology);
                let reply = answer(client.found(proto::FoundRequest { header, topology, committed: true }).await)?;
                (reply.header, Ok(PeerReply::Done))
            }
            PeerRequest::Propose { .. } => todo!(),
        };
        self.shared.admit(header, instance)?;
        reply.map_err(|malformed: Malformed| malformed.into())
    }
}

fn answer<T>(result: Result<Response<T>, Status>) -> Result<T, PeerError> {
    result.map(Response::into_inner).map_err(|status| status::error(&status))
}
