//! What the checks see of a disk, without its node.

use a3::ports::{ReadPart, ReplicaReply};
use a3::types::{Epoch, InstanceId, Key, Leaf, Slot, Sum, Version};

use super::Disk;

impl Disk {
    /// Whose it is.
    pub(crate) fn instance(&self) -> InstanceId {
        self.content.lock().identity.instance
    }

    /// Whether its node may answer for what is on it.
    pub(crate) fn is_whole(&self) -> bool {
        let content = self.content.lock();
        content.identity.cluster.is_some() && !content.identity.rebuilding
    }

    /// Whether it accepted a proposal for an epoch after that one, which may still be decided.
    pub(crate) fn may_go_on(&self, epoch: Epoch) -> bool {
        let content = self.content.lock();
        content.vote.as_ref().is_some_and(|vote| vote.epoch > epoch && vote.accepted.is_some())
    }

    /// The version it holds of a key: its own copy, or the newest among that and its hints. Where there is nothing, that of
    /// the tombstone that was purged, if its floor says that it knew it.
    pub(crate) fn version(&self, slot: Slot, key: &Key, hints: bool) -> Option<Version> {
        match self.content.lock().rows.read(slot, key, ReadPart::Version, hints) {
            ReplicaReply::Version { seen: Some(seen), .. } => Some(seen.version),
            ReplicaReply::Version { seen: None, floor } => {
                let buried = self.witness.buried(key).filter(|(version, written)| floor.covers(version, *written));
                buried.map(|(version, _)| version)
            }
            _ => None,
        }
    }

    /// The greatest version that was purged in that slot.
    pub(crate) fn floor(&self, slot: Slot) -> Version {
        self.content.lock().rows.kept(slot).floor.version
    }

    /// Tombstones and registers of absent keys in that slot.
    pub(crate) fn to_be_purged(&self, slot: Slot) -> u64 {
        let content = self.content.lock();
        content.seed().map(|seed| content.rows.survey(seed, slot)).map_or(0, |s| s.tombstones + s.orphans)
    }

    /// Hints it keeps.
    pub(crate) fn hints(&self) -> u64 {
        self.content.lock().rows.hint_totals().iter().map(|(_, totals)| totals.count).sum()
    }

    /// Whether the sums by which a slot is compared with others are those of its rows, each leaf and the whole.
    pub(crate) fn sums_are_of_rows(&self, slot: Slot) -> bool {
        let content = self.content.lock();
        let Some(seed) = content.seed() else { return true };
        let mut leaves = vec![Sum::default(); Leaf::IN_SLOT];
        let mut whole = Sum::default();
        for (key, record, _) in content.rows.slot(seed, slot) {
            let Some(record) = record else { continue };
            let token = key.token(seed);
            let sum = Sum::of(token, &record.version, record.checksum);
            leaves[Leaf::of(token).index() % Leaf::IN_SLOT].add(sum);
            whole.add(sum);
        }
        content.rows.leaf_sums(seed, slot) == Some(leaves) && content.rows.slot_sums(seed)[slot.index()] == Some(whole)
    }
}
