//! Replacing the identity of a store that is open.
//!
//! Invariants:
//! - Node and instance never change, and a cluster that is named stays: whoever asks for a replacement read them before.
//! - What is in memory is on disk.

use std::io;

use parking_lot::Mutex;

use super::data_dir::{DataDir, has_peers};
use super::status::Status;
use crate::ports::StoreError;
use crate::types::Identity;

/// Runs on the writer thread, so that replacements keep their order.
pub(super) fn replace(
    dir: &DataDir,
    held: &Mutex<Identity>,
    status: &Status,
    identity: Identity,
) -> Result<(), StoreError> {
    if let Some(error) = status.failure() {
        return Err(error);
    }
    let now = held.lock().clone();
    let cluster = now.cluster.or(identity.cluster);
    let identity = Identity { node: now.node, instance: now.instance, generation: now.generation, cluster, ..identity };
    match dir.save(&identity) {
        Ok(()) => {
            status.set_replaceable(has_peers(&identity));
            *held.lock() = identity;
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::StorageFull => Err(StoreError::DiskFull),
        Err(e) => Err(status.fail(format!("identity: {e}"))),
    }
}
