//! The data directory: one process at a time, one node for ever.
//!
//! ```text
//! lock                 held locked while a process has the directory; holds that process's id, for people
//! identity             who this node is, and how its last life ended (JSON); outlives the database
//! a3.db                the database, with a3.db-wal and a3.db-shm while it is open
//! backup.tmp           a backup that is being taken; one that a crash left is removed at the next start
//! restoring            a backup is being restored: no node starts until that is done
//! a3.db.damaged-<ms>   one that was moved aside, with its -wal; never read again, never deleted
//! ```
//!
//! Invariants:
//! - The identity is replaced whole: written beside, synced, renamed, and the directory synced.
//! - The lock belongs to the open file, so the kernel lets go of it however the process ends.
//! - A database without an identity is refused: its records were acknowledged under an instance nobody knows now.
//! - An instance never starts without its database, nor with one that lost its log or is damaged: its promises and what it
//!   reserved of its clock would be forgotten, and stamps issued twice. What is left is moved aside, and the directory
//!   becomes a *new* instance's, which fetches its slots from the others before it answers for them
//!   (docs/decisions/0007-damage-makes-a-new-instance.md). Where there are no others the start is refused instead.
//! - A log never meets another database than its own: it is moved before a new one is created.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{OpenError, backup};
use crate::metrics;
use crate::ports::Entropy;
use crate::types::{Identity, InstanceId, NodeNum};

pub(super) const DATABASE: &str = "a3.db";
const IDENTITY: &str = "identity";
const WAL: &str = "a3.db-wal";
const SHM: &str = "a3.db-shm";
/// There while a backup is being restored into the directory.
pub(super) const RESTORING: &str = "restoring";
/// A copy that is being made; swept at the next start.
const BACKUP: &str = "backup.tmp";

/// How the last life of the directory ended, and what it left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marks {
    /// A process opened the database and has not closed it in order: the log belongs to it.
    #[serde(default)]
    pub(super) running: bool,
    /// The schema it had when it was last opened. Another one was not written by this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) schema: Option<u32>,
    /// It was found damaged while it was served, and so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) damage: Option<String>,
}

/// The identity file.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    identity: Identity,
    #[serde(flatten)]
    marks: Marks,
}

/// Whose a directory is; `None` where it is nobody's yet. It may be held by another process.
///
/// # Errors
/// When there is an identity that cannot be read.
pub fn identity_of(dir: &Path) -> Result<Option<Identity>, OpenError> {
    let path = dir.join(IDENTITY);
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice::<Kept>(&bytes) {
            Ok(kept) => Ok(Some(kept.identity)),
            Err(e) => Err(OpenError::Identity { path, reason: e.to_string() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenError::Io { path, source }),
    }
}

/// A directory this process holds. Dropping it lets go.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    marks: Mutex<Marks>,
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
        Ok(Self { path: path.to_owned(), marks: Mutex::default(), _lock: lock })
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    pub(super) fn wal(&self) -> PathBuf {
        self.path.join(WAL)
    }

    /// Where a backup is made before it is handed out.
    pub(super) fn backup(&self) -> PathBuf {
        self.path.join(BACKUP)
    }

    pub(super) fn marks(&self) -> Marks {
        self.marks.lock().clone()
    }

    /// The identity of this directory, one generation further than at its last start; a fresh directory gets a new
    /// instance, and so does one whose database is known to be lost or damaged, which is moved aside. On disk when it
    /// returns. The database must be created only after it. `now_ms` names what is moved aside.
    pub(super) fn start(&self, node: NodeNum, now_ms: u64, entropy: &dyn Entropy) -> Result<Identity, OpenError> {
        let path = self.identity_path();
        let failed = |source| OpenError::Io { path: path.clone(), source };
        if self.path.join(RESTORING).try_exists().map_err(failed)? {
            let reason =
                "a backup was being restored into this directory; run a3 restore again, or empty the directory";
            return Err(OpenError::Identity { path, reason: reason.to_owned() });
        }
        backup::sweep(&self.backup());
        let has_database = has_bytes(&self.database()).map_err(failed)?;
        let Kept { mut identity, marks } = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| OpenError::Identity { path: path.clone(), reason: e.to_string() })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !has_database => {
                Kept { identity: fresh(node, entropy), marks: Marks::default() }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let reason = "missing, though there is a database; move the whole directory aside to start anew";
                return Err(OpenError::Identity { path, reason: reason.to_owned() });
            }
            Err(e) => return Err(failed(e)),
        };
        if identity.node != node {
            return Err(OpenError::OtherNode { path: self.path.clone(), found: identity.node, wanted: node });
        }
        let damage = self.known_damage(&identity, &marks, has_database).map_err(failed)?;
        *self.marks.lock() = marks;
        if let Some(damage) = damage {
            return self.set_aside(identity, &damage, now_ms, entropy);
        }
        identity.generation += 1;
        self.save(&identity).map_err(failed)?;
        Ok(identity)
    }

    /// What is wrong with the database, as far as it shows without opening it.
    fn known_damage(&self, identity: &Identity, marks: &Marks, has_database: bool) -> io::Result<Option<String>> {
        if identity.generation == 0 {
            return Ok(None);
        }
        if !has_database {
            return Ok(Some("it is gone".into()));
        }
        if let Some(damage) = &marks.damage {
            return Ok(Some(damage.clone()));
        }
        let log_lost = marks.running && !self.wal().try_exists()?;
        Ok(log_lost.then(|| "its log is gone, and it was not closed in order".into()))
    }

    /// Moves the database aside and makes the directory a new instance's, at its first start. On disk when it returns.
    ///
    /// # Errors
    /// [`OpenError::DatabaseLost`] and [`OpenError::Damaged`] where nobody else could give the records back; nothing was
    /// moved. A directory that belongs to no cluster holds no records.
    pub(super) fn set_aside(
        &self,
        old: Identity,
        damage: &str,
        now_ms: u64,
        entropy: &dyn Entropy,
    ) -> Result<Identity, OpenError> {
        let failed = |source| OpenError::Io { path: self.path.clone(), source };
        let has_database = has_bytes(&self.database()).map_err(failed)?;
        if let Some(cluster) = old.cluster.filter(|_| !has_peers(&old)) {
            return Err(if has_database {
                OpenError::Damaged { path: self.database(), reason: damage.to_owned() }
            } else {
                OpenError::DatabaseLost { path: self.database(), cluster }
            });
        }
        let aside = format!("{DATABASE}.damaged-{now_ms}");
        self.rename(DATABASE, &aside).map_err(failed)?;
        self.rename(WAL, &format!("{aside}-wal")).map_err(failed)?;
        // An index of the log, which SQLite makes anew.
        self.rename(SHM, &format!("{aside}-shm")).map_err(failed)?;
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(failed)?;
        let mut identity = fresh(old.node, entropy);
        identity.generation = 1;
        if old.cluster.is_some() {
            identity.cluster = old.cluster;
            identity.known_addresses = old.known_addresses;
            identity.succeeds = old.succeeds;
            identity.succeeds.push(old.instance);
            identity.rebuilding = true;
            metrics::counter(metrics::STORE_SET_ASIDE, &[]).increment(1);
        }
        tracing::error!(
            database = %self.database().display(), kept = %aside, damage, was = %old.instance, instance = %identity.instance,
            "the database cannot be used and was moved aside; {} comes back as a new instance", old.node
        );
        *self.marks.lock() = Marks::default();
        self.save(&identity).map_err(failed)?;
        Ok(identity)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match fs::rename(self.path.join(from), self.path.join(to)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// The database is open, with that schema: from now on its log belongs to it. On disk when it returns.
    pub(super) fn opened(&self, identity: &Identity, schema: u32) -> io::Result<()> {
        *self.marks.lock() = Marks { running: true, schema: Some(schema), damage: None };
        self.save(identity)
    }

    /// The database is closed: in order, or it was found damaged. A log that was left over still belongs to it.
    pub(super) fn closed(&self, identity: &Identity, damage: Option<String>) -> io::Result<()> {
        {
            let mut marks = self.marks.lock();
            marks.running = damage.is_some() || has_bytes(&self.wal())?;
            marks.damage = damage;
        }
        self.save(identity)
    }

    /// Replaces the identity. On disk when it returns; after an error the old one stands.
    pub(super) fn save(&self, identity: &Identity) -> io::Result<()> {
        let kept = Kept { identity: identity.clone(), marks: self.marks() };
        let mut text = serde_json::to_vec_pretty(&kept)?;
        text.push(b'\n');
        let new = self.path.join("identity.new");
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, self.identity_path())?;
        File::open(&self.path)?.sync_all()
    }

    fn identity_path(&self) -> PathBuf {
        self.path.join(IDENTITY)
    }
}

/// Whether others have its records.
pub(super) fn has_peers(identity: &Identity) -> bool {
    identity.cluster.is_some() && !identity.known_addresses.is_empty()
}

/// Whether anything was ever stored there: an empty file is as good as none.
fn has_bytes(path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.len() > 0),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn fresh(node: NodeNum, entropy: &dyn Entropy) -> Identity {
    Identity::fresh(node, InstanceId(entropy.uuid()))
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
        let mut first = held.start(NodeNum(3), 0, &entropy).unwrap();
        fs::write(held.database(), "rows").unwrap();
        assert_eq!((first.node, first.cluster, first.generation), (NodeNum(3), None, 1));
        first.cluster = Some(ClusterId(Uuid::from_u128(7)));
        held.save(&first).unwrap();
        let second = held.start(NodeNum(3), 0, &entropy).unwrap();
        assert_eq!(second, Identity { generation: 2, ..first });
    }

    #[test]
    fn another_node_and_a_lost_identity_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let entropy = SystemEntropy::default();
        let identity = held.start(NodeNum(3), 0, &entropy).unwrap();
        fs::write(held.database(), "rows").unwrap();
        assert!(matches!(held.start(NodeNum(4), 0, &entropy), Err(OpenError::OtherNode { found: NodeNum(3), .. })));
        assert_eq!(held.start(NodeNum(3), 0, &entropy).unwrap().instance, identity.instance);
        fs::remove_file(held.identity_path()).unwrap();
        assert!(matches!(held.start(NodeNum(3), 0, &entropy), Err(OpenError::Identity { .. })));
    }

    #[test]
    fn an_instance_never_starts_without_its_database() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let entropy = SystemEntropy::default();
        let first = held.start(NodeNum(3), 0, &entropy).unwrap();
        // It may have accepted a proposal: others must not take it for the one that did.
        let second = held.start(NodeNum(3), 0, &entropy).unwrap();
        assert_ne!(first.instance, second.instance);
        assert_eq!((second.generation, second.rebuilding), (1, false));
        let cluster = ClusterId(Uuid::from_u128(7));
        let alone = Identity { cluster: Some(cluster), ..second };
        held.save(&alone).unwrap();
        for _ in 0..2 {
            let refused = held.start(NodeNum(3), 0, &entropy).unwrap_err();
            assert!(matches!(&refused, OpenError::DatabaseLost { cluster: c, .. } if *c == cluster), "{refused}");
            // What a power cut may leave of it.
            File::create(held.database()).unwrap();
        }
        fs::write(held.database(), "rows").unwrap();
        assert_eq!(held.start(NodeNum(3), 0, &entropy).unwrap(), Identity { generation: 2, ..alone });
    }

    /// A member among others, whose database is open.
    fn member(held: &DataDir) -> Identity {
        let identity = held.start(NodeNum(3), 0, &SystemEntropy::default()).unwrap();
        let known_addresses = vec!["127.0.0.1:1".to_owned()];
        let member = Identity { cluster: Some(ClusterId(Uuid::from_u128(7))), known_addresses, ..identity };
        fs::write(held.database(), "rows").unwrap();
        fs::write(held.wal(), "log").unwrap();
        held.opened(&member, 2).unwrap();
        member
    }

    #[test]
    fn among_others_what_is_left_is_moved_aside_for_a_new_instance() {
        let losses: [(&str, &[&str]); 2] = [(DATABASE, &["a3.db.damaged-5-wal"]), (WAL, &["a3.db.damaged-5"])];
        for (lost, kept) in losses {
            let dir = tempfile::tempdir().unwrap();
            let held = DataDir::open(dir.path()).unwrap();
            let member = member(&held);
            fs::remove_file(dir.path().join(lost)).unwrap();
            let new = held.start(NodeNum(3), 5, &SystemEntropy::default()).unwrap();
            assert_ne!(new.instance, member.instance);
            assert_eq!((new.succeeds.as_slice(), new.rebuilding, new.generation), (&[member.instance][..], true, 1));
            assert_eq!((new.cluster, &new.known_addresses), (member.cluster, &member.known_addresses));
            let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.retain(|name| name != "lock" && name != "identity");
            assert_eq!(names, kept, "{lost} was lost");
            // It died before it had a database: another instance again, which knows of both.
            let newer = held.start(NodeNum(3), 6, &SystemEntropy::default()).unwrap();
            assert_eq!(newer.succeeds, [member.instance, new.instance]);
        }
    }

    #[test]
    fn a_log_may_be_gone_after_a_stop_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let member = member(&held);
        fs::remove_file(held.wal()).unwrap();
        held.closed(&member, None).unwrap();
        assert_eq!(held.start(NodeNum(3), 0, &SystemEntropy::default()).unwrap().instance, member.instance);
        fs::write(held.wal(), "log").unwrap();
        held.closed(&member, None).unwrap();
        fs::remove_file(held.wal()).unwrap();
        let new = held.start(NodeNum(3), 0, &SystemEntropy::default()).unwrap();
        assert_ne!(new.instance, member.instance, "a log that could not be carried over belongs to the database");
    }

    #[test]
    fn damage_met_while_it_was_served_moves_it_aside_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let member = member(&held);
        held.closed(&member, Some("page 7".into())).unwrap();
        let new = held.start(NodeNum(3), 9, &SystemEntropy::default()).unwrap();
        assert_ne!(new.instance, member.instance);
        assert_eq!(held.marks(), Marks::default());
        assert_eq!(fs::read_to_string(dir.path().join("a3.db.damaged-9")).unwrap(), "rows");
    }
}
