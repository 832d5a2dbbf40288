//! From a data directory to a database that can be believed: the one it has, or an empty one in its place.

use std::io;
use std::path::{Path, PathBuf};

use super::data_dir::{DataDir, has_peers};
use super::engine::Engine;
use super::examine;
use super::migrations::{self, KNOWN};
use super::store::Options;
use crate::ports::Entropy;
use crate::types::{ClusterId, Identity, NodeNum};

/// Why a store could not be opened. Nothing in the directory was changed, except as `Io` and `Sqlite` may say.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{}: another process ({holder}) has this data directory; stop it, or choose another DATA_DIR", path.display())]
    Locked {
        path: PathBuf,
        /// Its process id, as it wrote it.
        holder: String,
    },
    #[error("{}: this data directory belongs to {found}, and this node is {wanted}; check NODE_NUM and DATA_DIR", path.display())]
    OtherNode { path: PathBuf, found: NodeNum, wanted: NodeNum },
    #[error("{}: written by a newer program (schema {found}, this one knows {known}); use that one", path.display(), known = migrations::KNOWN)]
    NewerSchema { path: PathBuf, found: u32 },
    #[error("{}: the identity of this data directory cannot be used: {reason}", path.display())]
    Identity { path: PathBuf, reason: String },
    #[error(
        "{}: the database is gone, this data directory belongs to cluster {cluster}, and no other member has its records; \
         put the database back, or leave the node down", path.display()
    )]
    DatabaseLost { path: PathBuf, cluster: ClusterId },
    #[error(
        "{}: the database is damaged ({reason}), and no other member has its records: put a sound copy in its place, or \
         move the whole directory aside to start anew", path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("{}: {reason}", path.display())]
    Sqlite { path: PathBuf, reason: String },
    #[error("{} cannot be used: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl OpenError {
    pub(super) fn damaged(path: &Path, error: &crate::ports::StoreError) -> Self {
        OpenError::Damaged { path: path.to_owned(), reason: error.to_string() }
    }

    pub(super) fn sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        let (path, reason) = (path.to_owned(), error.to_string());
        if examine::is_unsound(error) {
            OpenError::Damaged { path, reason }
        } else {
            OpenError::Sqlite { path, reason }
        }
    }
}

/// Opens what the directory holds, moves it aside where it is damaged, and marks the directory as in use. On disk when it
/// returns: nothing that is written later can be missed without being noticed. Says whether all pages were walked that are
/// to be.
pub(super) fn open(
    dir: &DataDir,
    options: &Options,
    now_ms: u64,
    entropy: &dyn Entropy,
) -> Result<(Identity, Engine, bool), OpenError> {
    let identity = dir.start(options.node, now_ms, entropy)?;
    let (identity, (engine, walked)) = match sound(dir, options, has_peers(&identity)) {
        Ok(sound) => (identity, sound),
        Err(OpenError::Damaged { reason, .. }) => {
            let identity = dir.set_aside(identity, &reason, now_ms, entropy)?;
            (identity, sound(dir, options, true)?)
        }
        Err(error) => return Err(error),
    };
    dir.opened(&identity, KNOWN).map_err(|source| OpenError::Io { path: options.data_dir.clone(), source })?;
    Ok((identity, engine, walked))
}

/// A database of which nobody else has the records is not walked: what can be read of it is all there is.
///
/// # Errors
/// [`OpenError::Damaged`] where the database is not as it was written, and the others as they say.
fn sound(dir: &DataDir, options: &Options, replaceable: bool) -> Result<(Engine, bool), OpenError> {
    let path = dir.database();
    let damaged = |reason: String| OpenError::Damaged { path: path.clone(), reason };
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let marks = dir.marks();
    let bytes = match std::fs::metadata(&path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(failed(e)),
    };
    if bytes > 0
        && let Some(what) = examine::header(&path).map_err(failed)?
    {
        return Err(damaged(what.to_owned()));
    }
    let engine = match Engine::open(&path, options.node, options.durability, options.hint_bytes_max) {
        Err(OpenError::NewerSchema { found, .. }) if marks.schema.is_some_and(|written| written != found) => {
            return Err(damaged(format!("it calls itself schema {found}, and was written with another")));
        }
        opened => opened?,
    };
    let walk = replaceable && bytes > 0 && examine::is_worth_walking(bytes, marks.running);
    match examine::contents(&engine.conn, walk) {
        Ok(None) => Ok((engine, walk || !replaceable || bytes == 0)),
        Ok(Some(what)) => Err(damaged(what)),
        Err(error) => Err(OpenError::sqlite(&path, &error)),
    }
}
