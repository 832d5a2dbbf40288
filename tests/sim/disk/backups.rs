//! Losing a disk, and restoring a backup of it: the records of some time ago, as `a3 restore` leaves them.

use super::{Content, Disk};

/// Batches between two backups.
const BACKUP_EVERY: u64 = 16;

impl Disk {
    /// Everything on it is gone; who it was too, or only the database, and the identity tells whose directory it was. Then a
    /// backup may be restored: records of some time ago, and nothing else.
    pub(crate) fn wipe(&self, identity_too: bool, restored: Option<u64>) {
        let mut content = self.content.lock();
        let node = content.identity.node;
        let old = std::mem::replace(&mut *content, Content::blank(node, self.sql, &self.random)).identity;
        if !identity_too && old.cluster.is_some() {
            let identity = &mut content.identity;
            (identity.cluster, identity.known_addresses) = (old.cluster, old.known_addresses);
            identity.succeeds = old.succeeds;
            identity.succeeds.push(old.instance);
            identity.rebuilding = true;
            let backups = self.backups.lock();
            let chosen = restored.filter(|_| !backups.is_empty()).map(|which| which % backups.len() as u64);
            if let Some(backup) = chosen.and_then(|which| backups.get(which as usize)) {
                self.trace.note(format_args!("{} restores a backup of {} records", self.at, backup.len()));
                content.rows.absorb(backup);
            }
        }
    }

    /// Each so many batches a backup is taken.
    pub(super) fn back_up(&self) {
        let mut batches = self.batches.lock();
        *batches += 1;
        if batches.is_multiple_of(BACKUP_EVERY) {
            let content = self.content.lock();
            let Some(seed) = content.seed() else { return };
            let slots = self.watched.lock().clone();
            let records = slots.into_iter().flat_map(|slot| content.rows.slot(seed, slot));
            let records = records.filter_map(|(key, record, _)| Some((key.token(seed), (key, Some(record?), None))));
            self.backups.lock().push(records.collect());
        }
    }
}
