//! What a backup says of itself, in the file.

use serde::{Deserialize, Serialize};

use super::id::{ClusterId, Epoch, InstanceId, NodeNum};

/// Whose copy it is, of when, and how much is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupAbout {
    pub node: NodeNum,
    /// Which has acknowledged what is in it. Whoever starts from it is another one.
    pub instance: InstanceId,
    pub cluster: ClusterId,
    pub epoch: Epoch,
    /// When it was begun, wall milliseconds: what was acknowledged before is in it.
    pub taken_ms: u64,
    /// The program that took it, e.g. `0.1.0`.
    pub program: String,
    pub schema: u32,
    pub rows: BackupRows,
}

/// Rows in a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRows {
    /// Tombstones too.
    pub records: u64,
    pub registers: u64,
    pub hints: u64,
}
