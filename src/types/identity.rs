//! Who this node is: the life of its data directory.

use serde::{Deserialize, Serialize};

use super::id::{ClusterId, InstanceId, NodeNum};

/// Kept as a file beside the database, and also when the database is set aside. Once it names a cluster, this
/// directory never founds another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub node: NodeNum,
    pub instance: InstanceId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// How often this instance has been started; gossip orders its lives by it.
    #[serde(default)]
    pub generation: u64,
    /// Mesh addresses of members, as last known: where to look when `SEEDS` are of no use.
    #[serde(default)]
    pub known_addresses: Vec<String>,
    /// Instances that this directory held before its database was moved aside, oldest first. None of them can be alive:
    /// the directory is locked by whoever holds it now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub succeeds: Vec<InstanceId>,
    /// Its slots are not all fetched from the others yet: it must not answer for them.
    #[serde(default)]
    pub rebuilding: bool,
}

impl Identity {
    /// A new instance under that number, which belongs to no cluster and has not been started.
    pub fn fresh(node: NodeNum, instance: InstanceId) -> Self {
        Self {
            node,
            instance,
            cluster: None,
            generation: 0,
            known_addresses: Vec::new(),
            succeeds: Vec::new(),
            rebuilding: false,
        }
    }
}
