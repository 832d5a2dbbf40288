//! The data directory: one process at a time, one node for ever.
//!
//! ```text
//! lock        held locked while a process has the directory; holds that process's id, for people
//! identity    who this node is (JSON); outlives the database
//! a3.db       the database, with a3.db-wal and a3.db-shm while it is open
//! ```
//!
//! Invariants:
//! - The identity is replaced whole: written beside, synced, renamed, and the directory synced.
//! - The lock belongs to the open file, so the kernel lets go of it however the process ends.
//! - A database without an identity is refused: its records were acknowledged under an instance nobody knows now.
//! - An instance never starts without its database: its promises and what it reserved of its clock would be forgotten,
//!   and stamps issued twice. One that belongs to a cluster is refused; one that does not yet makes room for a new one, as
//!   it may have accepted a proposal to found a cluster.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::OpenError;
use crate::ports::Entropy;
use crate::types::{Identity, InstanceId, NodeNum};

const DATABASE: &str = "a3.db";
const WAL: &str = "a3.db-wal";

/// A directory this process holds. Dropping it lets go.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory where there is none, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        if let Some(parent) = path.canonicalize().map_err(failed)?.parent() {
            // Else a power cut could take the new directory with everything acknowledged in it. A parent that may not
            // be opened is one this process did not create anything in.
            let _ = File::open(parent).and_then(|parent| parent.sync_all());
        }
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&lock_path).unwrap_or_default().trim().to_owned();
                return Err(OpenError::Locked { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // The id is for people only, so a full disk must not keep the node from starting.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    pub(super) fn wal(&self) -> PathBuf {
        self.path.join(WAL)
    }

    /// The identity of this directory, one generation further than at its last start; a fresh directory gets a new
    /// instance. On disk when it returns. The database must be created only after it.
    pub(super) fn start(&self, node: NodeNum, entropy: &dyn Entropy) -> Result<Identity, OpenError> {
        let path = self.identity_path();
        let failed = |source| OpenError::Io { path: path.clone(), source };
        let has_database = self.has_database().map_err(failed)?;
        let mut identity = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Identity>(&bytes)
                .map_err(|e| OpenError::Identity { path: path.clone(), reason: e.to_string() })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !has_database => fresh(node, entropy),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let reason = "missing, though there is a database; move the whole directory aside to start anew";
                return Err(OpenError::Identity { path, reason: reason.to_owned() });
            }
            Err(e) => return Err(failed(e)),
        };
        if identity.node != node {
            return Err(OpenError::OtherNode { path: self.path.clone(), found: identity.node, wanted: node });
        }
        if !has_database {
            if let Some(cluster) = identity.cluster {
                return Err(OpenError::DatabaseLost { path: self.database(), cluster });
            }
            if identity.generation > 0 {
                tracing::warn!(instance = %identity.instance, "there is no database; {node} starts as a new instance");
                identity = fresh(node, entropy);
            }
        }
        identity.generation += 1;
        self.save(&identity).map_err(failed)?;
        Ok(identity)
    }

    /// Replaces the identity. On disk when it returns; after an error the old one stands.
    pub(super) fn save(&self, identity: &Identity) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(identity)?;
        text.push(b'\n');
        let new = self.path.join("identity.new");
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, self.identity_path())?;
        File::open(&self.path)?.sync_all()
    }

    /// Whether anything was ever stored there: an empty file is as good as none.
    fn has_database(&self) -> io::Result<bool> {
        match fs::metadata(self.database()) {
            Ok(meta) => Ok(meta.len() > 0),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn identity_path(&self) -> PathBuf {
        self.path.join("identity")
    }
}

fn fresh(node: NodeNum, entropy: &dyn Entropy) -> Identity {
    let instance = InstanceId(entropy.uuid());
    Identity { node, instance, cluster: None, generation: 0, known_addresses: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::SystemEntropy;
    use crate::types::ClusterId;
    use uuid::Uuid;

    #[test]
    fn a_second_holder_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let refused = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        drop(held);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn an_identity_lasts_and_counts_its_starts() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let entropy = SystemEntropy::default();
        let mut first = held.start(NodeNum(3), &entropy).unwrap();
        fs::write(held.database(), "rows").unwrap();
        assert_eq!((first.node, first.cluster, first.generation), (NodeNum(3), None, 1));
        first.cluster = Some(ClusterId(Uuid::from_u128(7)));
        held.save(&first).unwrap();
        let second = held.start(NodeNum(3), &entropy).unwrap();
        assert_eq!(second, Identity { generation: 2, ..first });
    }

    #[test]
    fn another_node_and_a_lost_identity_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let entropy = SystemEntropy::default();
        let identity = held.start(NodeNum(3), &entropy).unwrap();
        fs::write(held.database(), "rows").unwrap();
        assert!(matches!(held.start(NodeNum(4), &entropy), Err(OpenError::OtherNode { found: NodeNum(3), .. })));
        assert_eq!(held.start(NodeNum(3), &entropy).unwrap().instance, identity.instance);
        fs::remove_file(held.identity_path()).unwrap();
        assert!(matches!(held.start(NodeNum(3), &entropy), Err(OpenError::Identity { .. })));
    }

    #[test]
    fn an_instance_never_starts_without_its_database() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let entropy = SystemEntropy::default();
        let first = held.start(NodeNum(3), &entropy).unwrap();
        // It may have accepted a proposal: others must not take it for the one that did.
        let second = held.start(NodeNum(3), &entropy).unwrap();
        assert_ne!(first.instance, second.instance);
        assert_eq!(second.generation, 1);
        let cluster = ClusterId(Uuid::from_u128(7));
        let member = Identity { cluster: Some(cluster), ..second };
        held.save(&member).unwrap();
        for _ in 0..2 {
            let refused = held.start(NodeNum(3), &entropy).unwrap_err();
            assert!(matches!(&refused, OpenError::DatabaseLost { cluster: c, .. } if *c == cluster), "{refused}");
            // What a power cut may leave of it.
            File::create(held.database()).unwrap();
        }
        fs::write(held.database(), "rows").unwrap();
        assert_eq!(held.start(NodeNum(3), &entropy).unwrap(), Identity { generation: 2, ..member });
    }
}
