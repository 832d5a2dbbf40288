//! A copy of this node's store, for keeping elsewhere.

use std::fmt;
use std::io;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::types::BackupAbout;

/// One database file that was verified, on its way out. Dropped early, it is forgotten.
pub struct Backup {
    pub about: BackupAbout,
    pub bytes: u64,
    pub sha256: [u8; 32],
    /// All of it, in order.
    pub chunks: mpsc::Receiver<io::Result<Bytes>>,
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup").field("about", &self.about).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Why there is none. Nothing is left of it, and the store is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    #[error("another backup of this node is being taken or sent")]
    Busy,
    #[error("{0}")]
    NotReady(String),
    #[error("{0}")]
    DiskFull(String),
    /// What is stored is not what was written: a copy of it would be none.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    #[error("{0}")]
    Failed(String),
}
