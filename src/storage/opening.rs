//! From a data directory to a database that can be believed: the one it has, or an empty one in its place.

use super::data_dir::{DataDir, has_peers};
use super::engine::Engine;
use super::examine;
use super::migrations::KNOWN;
use super::store::{OpenError, Options};
use crate::ports::Entropy;
use crate::types::Identity;

/// Opens what the directory holds, moves it aside where it is damaged, and marks the directory as in use. On disk when it
/// returns: nothing that is written later can be missed without being noticed.
pub(super) fn open(
    dir: &DataDir,
    options: &Options,
    now_ms: u64,
    entropy: &dyn Entropy,
) -> Result<(Identity, Engine), OpenError> {
    let identity = dir.start(options.node, now_ms, entropy)?;
    let (identity, engine) = match sound(dir, options, has_peers(&identity)) {
        Ok(engine) => (identity, engine),
        Err(OpenError::Damaged { reason, .. }) => {
            let identity = dir.set_aside(identity, &reason, now_ms, entropy)?;
            (identity, sound(dir, options, true)?)
        }
        Err(error) => return Err(error),
    };
    dir.opened(&identity, KNOWN).map_err(|source| OpenError::Io { path: options.data_dir.clone(), source })?;
    Ok((identity, engine))
}

/// A database of which nobody else has the records is not walked: what can be read of it is all there is.
///
/// # Errors
/// [`OpenError::Damaged`] where the database is not as it was written, and the others as they say.
fn sound(dir: &DataDir, options: &Options, replaceable: bool) -> Result<Engine, OpenError> {
    let path = dir.database();
    let damaged = |reason: String| OpenError::Damaged { path: path.clone(), reason };
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let marks = dir.marks();
    let bytes = match std::fs::metadata(&path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
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
        Ok(None) => Ok(engine),
        Ok(Some(what)) => Err(damaged(what)),
        Err(error) => Err(OpenError::sqlite(&path, &error)),
    }
}
