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
}
