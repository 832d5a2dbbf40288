//! What a simulated disk does for purging, and dropping slots. Changes keep their place among the requests of the hot path.

use a3::ports::{Purging, StoreError};
use a3::types::{Dropped, Floor, Hlc, Sealed, Slot, SlotDrop, SlotFloor, SlotSet, Survey, Version};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Content, SimStore};

impl SimStore {
    /// A sync for each half of them.
    pub(super) fn drop_each(&self, slots: SlotSet) -> BoxFuture<'static, Result<u64, StoreError>> {
        let Self { disk, life, queue, changes } = self;
        let (disk, life, queue, changes) = (disk.clone(), life.clone(), queue.clone(), changes.clone());
        let store = Self { disk, life, queue, changes };
        async move {
            let mut all = 0;
            let slots: Vec<Slot> = slots.iter().collect();
            // A crash may fall between the halves.
            for half in slots.chunks(slots.len().div_ceil(2).max(1)) {
                let (disk, half) = (store.disk.clone(), half.to_vec());
                let drop_half = move |content: &mut Content| {
                    let Some(seed) = content.seed() else { return 0 };
                    let gone: Vec<(Slot, u64)> =
                        half.into_iter().map(|slot| (slot, content.rows.drop_slot(seed, slot))).collect();
                    for (slot, gone) in gone.iter().filter(|(_, gone)| *gone > 0) {
                        disk.trace.note(format_args!("{} drops {gone} of slot {slot}", disk.at));
                    }
                    gone.iter().map(|(_, gone)| gone).sum()
                };
                all += store.ordered(drop_half).await?;
            }
            Ok(all)
        }
        .boxed()
    }
}

impl Purging for SimStore {
    fn survey(&self, slots: SlotSet) -> BoxFuture<'static, Result<Vec<Survey>, StoreError>> {
        self.look(|content| {
            let Some(seed) = content.seed() else { return Vec::new() };
            slots.iter().map(|slot| content.rows.survey(seed, slot)).collect()
        })
    }

    fn greatest_tombstone(&self, slot: Slot, up_to: Hlc) -> BoxFuture<'static, Result<Version, StoreError>> {
        let found = |content: &Content| content.seed().map(|seed| content.rows.greatest_tombstone(seed, slot, up_to));
        self.look(|content| found(content).unwrap_or_default())
    }

    fn hinted(&self, up_to: Hlc) -> BoxFuture<'static, Result<SlotSet, StoreError>> {
        self.look(|content| content.rows.hinted(up_to))
    }

    fn seal(&self, slots: SlotSet, up_to: Hlc) -> BoxFuture<'static, Result<Vec<Sealed>, StoreError>> {
        let disk = self.disk.clone();
        self.ordered(move |content| {
            let seal = |slot| (slot, SlotFloor { sealed: up_to, ..SlotFloor::default() });
            content.rows.raise(&slots.iter().map(seal).collect::<Vec<_>>());
            let Some(seed) = content.seed() else { return Vec::new() };
            let sealed: Vec<Sealed> = slots.iter().map(|slot| content.rows.unsettled(seed, slot)).collect();
            let open: Vec<&Sealed> = sealed.iter().filter(|s| !s.unsettled.is_empty()).collect();
            disk.trace.note(format_args!("{} seals up to {up_to:?}: to be settled {open:?}", disk.at));
            sealed
        })
    }

    fn raise(&self, floors: Vec<(Slot, Floor)>) -> BoxFuture<'static, Result<(), StoreError>> {
        let (disk, slots) = (self.disk.clone(), self.disk.watched.lock().clone());
        self.ordered(move |content| {
            for (slot, floor) in floors.iter().filter(|(slot, _)| slots.contains(slot)) {
                disk.trace.note(format_args!("{} raises the floor of {slot} to {floor:?}", disk.at));
            }
            let kept = |(slot, floor)| (slot, SlotFloor { floor, ..SlotFloor::default() });
            content.rows.raise(&floors.into_iter().map(kept).collect::<Vec<_>>());
        })
    }

    fn purge(&self, drops: Vec<SlotDrop>) -> BoxFuture<'static, Result<Dropped, StoreError>> {
        let disk = self.disk.clone();
        self.ordered(move |content| {
            let Some(seed) = content.seed() else { return Dropped::default() };
            let mut dropped = Dropped::default();
            for drop in drops {
                let before = content.rows.slot(seed, drop.slot);
                dropped += content.rows.purge(seed, &drop);
                let after = content.rows.slot(seed, drop.slot);
                for (key, record, register) in
                    before.into_iter().filter(|(k, ..)| !after.iter().any(|(key, ..)| key == k))
                {
                    let version = record.as_ref().map(|r| r.version);
                    disk.trace.note(format_args!("{} purges {key:?} {version:?}, {register:?}", disk.at));
                    disk.witness.purged(&key, record.as_ref(), register.is_some());
                }
            }
            dropped
        })
    }
}
