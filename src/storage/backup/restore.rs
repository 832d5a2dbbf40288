//! Making a data directory of a backup, for a node that is not running.
//!
//! What it makes is a **new instance** of the node, of the same cluster: the old one has acknowledged and promised things since
//! that are not in the file, and may even be alive. So where others have copies the new instance is marked as to be rebuilt,
//! and the file only saves it bytes: its *records* are kept, and nothing else. Not
//!
//! - the topology: who the members are, others say; and they decide whether this one may take its place;
//! - votes, proposals, registers, floors, seals: what the old instance promised binds nobody any more once another has its place,
//!   and what it helped to decide the sources of the rebuild hold (docs/decisions/0007); a value accepted long ago could bring
//!   back a key that was purged since;
//! - hints: they were delivered since, or are lost as with any disk. An old one would be told to readers where it stands in.
//!
//! With one copy of each key the file is all there is of this node's slots, so registers and floors stay, too. And where the node
//! is its cluster's only member nobody else can let it in: the restored database holds the next epoch, which lists it. Either
//! way its stamps carry a writer number that no instance had, so that none is issued twice; the clock's reservation stays, so
//! that they lie above those in the file.
//!
//! Invariants:
//! - Nothing is made of a file that was not verified from end to end, and what was verified is the very copy that is served.
//! - A directory that has data is refused untouched.
//! - Until all is on disk there is a file `restoring` in the directory: with it no node starts, and a restore begins again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::described;
use super::verify::{self, Wrong};
use crate::ports::Entropy;
use crate::protocol::succession;
use crate::storage::data_dir::{DATABASE, DataDir, RESTORING};
use crate::storage::migrations::{self, KNOWN, MigrationError};
use crate::storage::{OpenError, examine, facts};
use crate::types::{Announcement, BackupAbout, BackupRows, Identity, InstanceId, NodeNum, TokenSeed, Topology};

/// What is made of which file.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    pub file: PathBuf,
    pub data_dir: PathBuf,
    pub node: NodeNum,
    /// Where others and clients reach the node, for a topology that it writes itself.
    pub mesh_address: String,
    pub http_address: String,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Restored {
    pub about: BackupAbout,
    pub instance: InstanceId,
    /// Members of the cluster as of the backup.
    pub members: usize,
    /// Whether it has to be rebuilt from others before it serves.
    pub rebuilding: bool,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{}: this directory has data ({found}); restore into an empty one", path.display())]
    NotEmpty { path: PathBuf, found: String },
    #[error("{}: the backup is of {found}, and this node is {wanted}; check NODE_NUM", path.display())]
    OtherNode { path: PathBuf, found: NodeNum, wanted: NodeNum },
    #[error("{}: written by a newer program (schema {found}, this one knows {KNOWN}); use that one", path.display())]
    NewerSchema { path: PathBuf, found: u32 },
    #[error("{}: this is no sound backup: {reason}", path.display())]
    Unsound { path: PathBuf, reason: String },
    #[error("{} cannot be used: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Makes a data directory. On disk when it returns.
///
/// # Errors
/// See [`RestoreError`]. What was made of the directory by then is begun anew by the next restore, and no node starts from it.
pub fn restore(options: &RestoreOptions, entropy: &dyn Entropy) -> Result<Restored, RestoreError> {
    let RestoreOptions { file, data_dir, .. } = options;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::Io { path, source }
    };
    // Before anything is made: a name that was mistyped.
    File::open(file).map_err(at(file))?;
    let dir = DataDir::open(data_dir)?;
    empty(data_dir)?;
    let (database, marker) = (dir.database(), data_dir.join(RESTORING));
    File::create(&marker).and_then(|marker| marker.sync_all()).map_err(at(&marker))?;
    sync(data_dir).map_err(at(data_dir))?;
    fs::copy(file, &database).map_err(at(&database))?;
    let checked = check(options, &database);
    let made = checked.and_then(|checked| make(options, &database, checked, InstanceId(entropy.uuid())));
    let (restored, identity) = match made {
        Ok(made) => made,
        Err(error) => {
            // Nothing is to be taken for data; where that fails, the marker stays.
            if clear(data_dir).is_ok() {
                let _ = fs::remove_file(&marker);
            }
            return Err(error);
        }
    };
    File::open(&database).and_then(|file| file.sync_all()).map_err(at(&database))?;
    dir.save(&identity).map_err(at(data_dir))?;
    fs::remove_file(&marker).map_err(at(&marker))?;
    sync(data_dir).map_err(at(data_dir))?;
    Ok(restored)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What a restore makes, beside its marker.
fn is_ours(name: &str) -> bool {
    name.starts_with(DATABASE) || name.starts_with("identity")
}

/// Whether the directory is empty; what an unfinished restore left is taken away.
fn empty(dir: &Path) -> Result<(), RestoreError> {
    let failed = |source| RestoreError::Io { path: dir.to_owned(), source };
    if dir.join(RESTORING).try_exists().map_err(failed)? {
        return clear(dir).map_err(failed);
    }
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // The lock is ours, and a file system of its own may have the other.
        if name != "lock" && name != "lost+found" {
            let (path, found) = (dir.to_owned(), name.to_string_lossy().into_owned());
            return Err(RestoreError::NotEmpty { path, found });
        }
    }
    Ok(())
}

fn clear(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_ours(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A copy that was verified, of the known schema, without what a backup says of itself.
struct Checked {
    conn: Connection,
    about: BackupAbout,
    topology: Topology,
}

fn check(options: &RestoreOptions, database: &Path) -> Result<Checked, RestoreError> {
    let path = || options.file.clone();
    let unsound = |reason: String| RestoreError::Unsound { path: path(), reason };
    let sqlite = |error: rusqlite::Error| unsound(error.to_string());
    let failed = |source| RestoreError::Io { path: path(), source };
    if fs::metadata(database).map_err(failed)?.len() == 0 {
        return Err(unsound("it is empty".into()));
    }
    if let Some(what) = examine::header(database).map_err(failed)? {
        return Err(unsound(what.to_owned()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(database, flags).map_err(sqlite)?;
    conn.pragma_update(None, "trusted_schema", false).map_err(sqlite)?;
    let found: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
    let about = described(&conn).map_err(unsound)?;
    if found > KNOWN {
        return Err(RestoreError::NewerSchema { path: path(), found });
    }
    if about.node != options.node {
        return Err(RestoreError::OtherNode { path: path(), found: about.node, wanted: options.node });
    }
    if found != about.schema {
        return Err(unsound(format!("it has schema {found}, and says {}", about.schema)));
    }
    if let Some(what) = examine::walk_pages(&conn).map_err(sqlite)? {
        return Err(unsound(what));
    }
    conn.execute_batch("DROP TABLE backup").map_err(sqlite)?;
    migrations::migrate(&mut conn).map_err(|e| match e {
        MigrationError::Newer { found } => RestoreError::NewerSchema { path: path(), found },
        MigrationError::Sqlite(error) => sqlite(error),
    })?;
    if let Some(what) = examine::contents(&conn, false).map_err(sqlite)? {
        return Err(unsound(what));
    }
    let rows = verify::rows(&conn, TokenSeed::of(about.cluster)).map_err(|wrong| match wrong {
        Wrong::Damaged(what) => unsound(what),
        Wrong::Sqlite(error) => sqlite(error),
    })?;
    if rows != about.rows {
        let BackupRows { records, registers, hints } = about.rows;
        return Err(unsound(format!(
            "it should have {records} records, {registers} registers and {hints} hints, and has {rows:?}"
        )));
    }
    let topology = facts::topology(&conn).map_err(|e| unsound(e.to_string()))?;
    let topology = topology.filter(|t| t.cluster_id == about.cluster && t.epoch == about.epoch);
    let topology = topology.ok_or_else(|| unsound("it has no topology of its cluster".into()))?;
    Ok(Checked { conn, about, topology })
}

/// The database of the new instance, and who that is.
fn make(
    options: &RestoreOptions,
    database: &Path,
    checked: Checked,
    instance: InstanceId,
) -> Result<(Restored, Identity), RestoreError> {
    let Checked { conn, about, topology } = checked;
    let unsound = |reason: String| RestoreError::Unsound { path: options.file.clone(), reason };
    let sqlite = |source: rusqlite::Error| OpenError::Sqlite { path: database.to_owned(), reason: source.to_string() };
    let others: Vec<String> =
        topology.members.iter().filter(|m| m.node != about.node).map(|m| m.mesh_address.clone()).collect();
    let next = if others.is_empty() {
        let next = succession::replaced(&topology, &newcomer(options, &topology, instance));
        Some(next.ok_or_else(|| unsound("its topology does not list the node".into()))?)
    } else {
        None
    };
    strip(&conn, topology.rf > 1, next.as_ref()).map_err(sqlite)?;
    conn.close().map_err(|(_, error)| sqlite(error))?;
    let rebuilding = next.is_none();
    let identity = Identity {
        cluster: Some(about.cluster),
        known_addresses: others,
        rebuilding,
        ..Identity::fresh(about.node, instance)
    };
    Ok((Restored { members: topology.members.len(), about, instance, rebuilding }, identity))
}

fn newcomer(options: &RestoreOptions, topology: &Topology, instance: InstanceId) -> Announcement {
    let member = topology.member(options.node);
    Announcement {
        node: options.node,
        instance,
        zone: member.and_then(|m| m.zone.clone()),
        weight: member.map_or(1, |m| m.weight),
        mesh_address: options.mesh_address.clone(),
        http_address: options.http_address.clone(),
        cluster_size: 1,
        rf: topology.rf,
    }
}

/// Takes away what the old instance alone could stand for; `copied`: others hold what it decided and purged.
fn strip(conn: &Connection, copied: bool, next: Option<&Topology>) -> rusqlite::Result<()> {
    conn.pragma_update(None, "synchronous", "FULL")?;
    let transaction = conn.unchecked_transaction()?;
    let clear = |table: &str| {
        transaction.execute_batch(&format!(
            "DELETE FROM large_values WHERE id IN (SELECT large FROM {table}); DELETE FROM {table};"
        ))
    };
    clear("hints")?;
    // Where the node is the only member, it holds everything that was ever decided.
    if copied && next.is_none() {
        clear("registers")?;
        transaction.execute_batch("DELETE FROM floors")?;
    }
    transaction.execute_batch("DELETE FROM sums")?;
    facts::forget_all_but_clock(&transaction)?;
    if let Some(next) = next {
        facts::save_topology(&transaction, next)?;
    }
    transaction.commit()
}
