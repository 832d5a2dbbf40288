//! A backup of this node, for whoever asks it.
//!
//! Invariant: a node that lacks what it should hold gives none: one that is being rebuilt, or has no cluster yet.

use super::Node;
use crate::ports::{Backup, BackupError};

impl Node {
    /// This node's whole store, copied and verified.
    ///
    /// # Errors
    /// See [`BackupError`]; nothing is left of it then.
    pub async fn backup(&self) -> Result<Backup, BackupError> {
        if !self.own.has_joined() {
            let why = self.rebuild.waiting().unwrap_or_else(|| "has not joined its cluster yet".into());
            return Err(BackupError::NotReady(format!("the node {why}")));
        }
        self.store.backup().await
    }
}
