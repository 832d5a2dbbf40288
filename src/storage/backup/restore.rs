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
//! way its stamps carry a writer number that no instance had, so that none is issued twice: others give the next one; an only member
//! draws it, as the file may have been restored before. The clock's reservation stays, so that they lie above those in the file.
//!
//! Invariants:
//! - Nothing is made of a file that was not verified from end to end, and what was verified is the very copy that is served.
//! - A directory that has data is refused untouched, and so is everything where the file is none, or lies in the directory.
//! - The lists beside the records (ends, tombstones) have no checksums: they are made anew of the records.
//! - What is made in a directory of somebody else's is given to them, where this process may: restored as root, served as a user.
//! - Until all is on disk there is a file `restoring` in the directory: with it no node starts, and a restore begins again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};

use super::described;
use super::verify::{self, Wrong};
use crate::ports::Entropy;
use crate::protocol::succession;
use crate::storage::data_dir::{DATABASE, DataDir, RESTORING};
use crate::storage::migrations::{self, KNOWN, MigrationError};
use crate::storage::{OpenError, ends, examine, facts};
use crate::types::{
    Announcement, BackupAbout, BackupRows, Identity, InstanceId, Key, NodeNum, TokenSeed, Topology, Writer,
};

/// Out of so many numbers above all that were given an only member draws its writer number. Few enough for it to be drawn some
/// hundred times in a row before there are none, and for versions to stay short.
const WRITERS: u32 = 1 << 24;

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
    #[error("{}: this is no file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{}: the backup lies in the directory that it would be restored into; move it elsewhere", path.display())]
    Inside { path: PathBuf },
    #[error("{} cannot be used: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The backup may be sound.
    #[error("{} cannot be used: {reason}", path.display())]
    Sqlite { path: PathBuf, reason: String },
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
    let mut source = opened(file, data_dir)?;
    let dir = DataDir::open(data_dir)?;
    empty(data_dir)?;
    let (database, marker) = (dir.database(), data_dir.join(RESTORING));
    File::create(&marker).and_then(|marker| marker.sync_all()).map_err(at(&marker))?;
    sync(data_dir).map_err(at(data_dir))?;
    let made = copy(&mut source, &database)
        .map_err(at(&database))
        .and_then(|()| check(options, &database))
        .and_then(|checked| make(options, &database, checked, entropy));
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
    dir.save(&identity).map_err(at(data_dir))?;
    give(data_dir)?;
    File::open(&database).and_then(|file| file.sync_all()).map_err(at(&database))?;
    fs::remove_file(&marker).map_err(at(&marker))?;
    sync(data_dir).map_err(at(data_dir))?;
    Ok(restored)
}

/// The backup, before anything is made.
fn opened(file: &Path, data_dir: &Path) -> Result<File, RestoreError> {
    let failed = |source| RestoreError::Io { path: file.to_owned(), source };
    if !fs::metadata(file).map_err(failed)?.is_file() {
        return Err(RestoreError::NotAFile { path: file.to_owned() });
    }
    // A directory that is not there yet has nothing in it.
    let real = fs::canonicalize(file).map_err(failed)?;
    if fs::canonicalize(data_dir).is_ok_and(|dir| real.starts_with(dir)) {
        return Err(RestoreError::Inside { path: file.to_owned() });
    }
    File::open(file).map_err(failed)
}

/// The bytes and not the mode: a backup may be kept read-only.
fn copy(source: &mut File, database: &Path) -> io::Result<()> {
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(database)?;
    io::copy(source, &mut target).map(drop)
}

/// Gives what was made to the owner of the directory. On disk when it returns.
fn give(dir: &Path) -> Result<(), RestoreError> {
    let of = |path: &Path| -> Result<(u32, u32), RestoreError> {
        let meta = fs::metadata(path).map_err(|source| RestoreError::Io { path: path.to_owned(), source })?;
        Ok((meta.uid(), meta.gid()))
    };
    let owner = of(dir)?;
    let entries = fs::read_dir(dir).map_err(|source| RestoreError::Io { path: dir.to_owned(), source })?;
    for entry in entries {
        let entry = entry.map_err(|source| RestoreError::Io { path: dir.to_owned(), source })?;
        let name = entry.file_name();
        let (path, name) = (entry.path(), name.to_string_lossy());
        if !is_ours(&name) && name != "lock" {
            continue;
        }
        if let Some((user, group)) = new_owner(owner, of(&path)?) {
            let given = chown(&path, Some(user), Some(group)).and_then(|()| File::open(&path)?.sync_all());
            given.map_err(|source| RestoreError::Io { path, source })?;
        }
    }
    Ok(())
}

/// Whose a file becomes in a directory of that owner's. Who is not root can give nothing away, and serves what is its own.
fn new_owner(dir: (u32, u32), file: (u32, u32)) -> Option<(u32, u32)> {
    (file.0 == 0 && dir.0 != 0).then_some(dir)
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
    let sqlite = |error: rusqlite::Error| match error.to_string() {
        reason if examine::is_unsound(&error) => unsound(reason),
        reason => RestoreError::Sqlite { path: database.to_owned(), reason },
    };
    let wrong = |wrong| match wrong {
        Wrong::Damaged(what) => unsound(what),
        Wrong::Sqlite(error) => sqlite(error),
    };
    let failed = |source| RestoreError::Io { path: database.to_owned(), source };
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
    let about = described(&conn).map_err(wrong)?;
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
    let rows = verify::rows(&conn, TokenSeed::of(about.cluster)).map_err(wrong)?;
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
    entropy: &dyn Entropy,
) -> Result<(Restored, Identity), RestoreError> {
    let Checked { conn, about, mut topology } = checked;
    let instance = InstanceId(entropy.uuid());
    let unsound = |reason: String| RestoreError::Unsound { path: options.file.clone(), reason };
    let sqlite = |error: rusqlite::Error| RestoreError::Sqlite { path: database.to_owned(), reason: error.to_string() };
    let others: Vec<String> =
        topology.members.iter().filter(|m| m.node != about.node).map(|m| m.mesh_address.clone()).collect();
    let next = if others.is_empty() {
        topology.next_writer = drawn(topology.next_writer, entropy);
        let next = succession::replaced(&topology, &newcomer(options, &topology, instance));
        Some(next.ok_or_else(|| unsound("its topology does not list the node".into()))?)
    } else {
        None
    };
    strip(&conn, topology.rf > 1, next.as_ref()).map_err(sqlite)?;
    list(&conn, TokenSeed::of(about.cluster)).map_err(sqlite)?;
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

/// The writer number of an only member: other than that of whatever else may be restored of this file.
fn drawn(next: Writer, entropy: &dyn Entropy) -> Writer {
    // The greatest one is nobody's, and one above it is the next.
    let room = (u32::MAX - 1).saturating_sub(next.0).min(WRITERS);
    Writer(next.0 + entropy.below(room.into()) as u32)
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

/// Makes the lists beside the records of the records, in one transaction: nothing else tells whether they are whole.
fn list(conn: &Connection, seed: TokenSeed) -> rusqlite::Result<()> {
    let transaction = conn.unchecked_transaction()?;
    transaction.execute_batch(
        "DELETE FROM ends; DELETE FROM tombstones; INSERT INTO tombstones \
         SELECT slot, ifnull(written, hlc), key FROM records WHERE value IS NULL AND large IS NULL;",
    )?;
    {
        let mut select = transaction.prepare(
            "SELECT expires_at_ms, key FROM records \
             WHERE expires_at_ms IS NOT NULL AND (value IS NOT NULL OR large IS NOT NULL)",
        )?;
        let mut put = transaction.prepare(ends::PUT)?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (at, name): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            // Each row was verified, and so is of a key.
            if let Ok(key) = Key::new(name) {
                put.execute(params![at, key.token(seed).0 as i64, key.as_bytes()])?;
            }
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::SystemEntropy;

    #[test]
    fn only_root_gives_away_and_only_what_is_its_own() {
        assert_eq!(new_owner((998, 997), (0, 0)), Some((998, 997)));
        assert_eq!(new_owner((998, 997), (998, 998)), None, "served by who made it");
        assert_eq!(new_owner((998, 997), (1000, 1000)), None, "it could not");
        assert_eq!(new_owner((0, 0), (0, 7)), None);
    }

    #[test]
    fn a_writer_number_is_drawn_above_all_that_were_given() {
        let entropy = SystemEntropy::default();
        for (next, last) in [(2, 1 + WRITERS), (u32::MAX - 9, u32::MAX - 2), (u32::MAX - 1, u32::MAX - 1)] {
            for _ in 0..100 {
                let drawn = drawn(Writer(next), &entropy).0;
                assert!((next..=last).contains(&drawn), "{drawn}");
            }
        }
    }
}
