//! How a node is set up, and what each of its drivers is told of that.

use std::time::Duration;

use super::founding::FoundingOptions;
use super::gossip::GossipOptions;
use super::{anti_entropy, handoff, purge, replica};
use crate::types::NodeNum;

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Mesh addresses (`host:port`) of any members; none: the node founds a cluster of its own.
    pub seeds: Vec<String>,
    /// Instances that found the cluster together.
    pub cluster_size: u16,
    /// Copies of each key; counts when the cluster is founded.
    pub rf: u8,
    /// Where this node stands; the copies of a key are spread over zones.
    pub zone: Option<String>,
    /// This node's share of the slots, relative to the others'.
    pub weight: u32,
    /// Where peers and clients reach this node, `host:port`.
    pub mesh_address: String,
    pub http_address: String,
    /// How often a member is probed.
    pub gossip_interval: Duration,
    /// A stamp further ahead of the wall clock than this is refused.
    pub clock_skew_max: Duration,
    /// The longest value this replica takes, in bytes.
    pub value_bytes_max: usize,
    /// Uncounted hints older than this are dropped.
    pub hint_window: Duration,
    /// How often copies are compared with each peer.
    pub anti_entropy_interval: Duration,
    /// Tombstones are kept at least so long.
    pub gc_grace: Duration,
}

impl Options {
    pub(super) fn founding(&self) -> FoundingOptions {
        FoundingOptions {
            seeds: self.seeds.clone(),
            cluster_size: self.cluster_size,
            rf: self.rf,
            zone: self.zone.clone(),
            weight: self.weight,
            mesh_address: self.mesh_address.clone(),
            http_address: self.http_address.clone(),
        }
    }

    pub(super) fn replica(&self, node: NodeNum) -> replica::Options {
        replica::Options { node, value_bytes_max: self.value_bytes_max }
    }

    pub(super) fn handoff(&self) -> handoff::Options {
        handoff::Options { hint_window: self.hint_window }
    }

    pub(super) fn anti_entropy(&self) -> anti_entropy::Options {
        anti_entropy::Options { interval: self.anti_entropy_interval }
    }

    pub(super) fn purge(&self) -> purge::Options {
        purge::Options { grace: self.gc_grace, clock_skew_max: self.clock_skew_max }
    }

    pub(super) fn gossip(&self) -> GossipOptions {
        GossipOptions {
            interval: self.gossip_interval,
            seeds: self.seeds.clone(),
            mesh_address: self.mesh_address.clone(),
        }
    }
}
