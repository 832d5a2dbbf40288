//! What a fake disk keeps for purging.

use futures_util::future::BoxFuture;

use super::FakeStore;
use crate::ports::{Purging, StoreError};
use crate::protocol::purge;
use crate::types::{
    Dropped, Floor, Hlc, Key, Record, Register, Sealed, Slot, SlotDrop, SlotFloor, SlotSet, Survey, Token, Version,
};

impl FakeStore {
    /// A slot's floor and seal.
    pub(crate) fn kept(&self, slot: Slot) -> SlotFloor {
        let all = SlotFloor { floor: *self.floor.lock(), ..SlotFloor::default() };
        self.kept.lock().get(&slot).map_or(all, |kept| kept.merge(&all))
    }

    pub(crate) fn has_register(&self, key: &Key) -> bool {
        self.registers.lock().contains_key(key)
    }

    fn keep(&self, slot: Slot, more: &SlotFloor) {
        let mut kept = self.kept.lock();
        let of_slot = kept.entry(slot).or_default();
        *of_slot = of_slot.merge(more);
    }

    fn tombstones(&self, slot: Slot) -> Vec<Record> {
        let records = self.records.lock();
        let here = records.values().filter(|(token, record)| token.slot() == slot && record.is_tombstone());
        here.map(|(_, record)| record.clone()).collect()
    }

    /// The registers of a slot, with the record of each key.
    fn with_registers(&self, slot: Slot) -> Vec<(Key, Register, Option<Record>)> {
        let registers = self.registers.lock();
        let here = registers.iter().filter(|(_, (token, _))| token.slot() == slot);
        here.map(|(key, (_, register))| (key.clone(), register.clone(), self.record(key))).collect()
    }

    fn survey_slot(&self, slot: Slot) -> Survey {
        let mut survey = Survey::empty(slot, self.kept(slot).floor);
        for (_, register, record) in self.with_registers(slot) {
            survey.promised = survey.promised.max(register.promised.hlc);
            if record.is_none() {
                survey.orphans += 1;
                survey.oldest_orphan = survey.oldest_orphan.into_iter().chain([register.promised.hlc]).min();
            }
        }
        let tombstones = self.tombstones(slot);
        let oldest = tombstones.iter().map(|record| record.written).min();
        Survey { tombstones: tombstones.len() as u64, oldest, ..survey }
    }

    fn seal_slot(&self, slot: Slot, up_to: Hlc) -> Sealed {
        self.keep(slot, &SlotFloor { sealed: up_to, ..SlotFloor::default() });
        let (kept, mut sealed) = (self.kept(slot), Sealed::empty(slot));
        sealed.damaged =
            self.records.lock().iter().any(|(key, (t, _))| t.slot() == slot && self.lost.lock().contains(key));
        for (key, register, record) in self.with_registers(slot) {
            if purge::is_unsettled(&register, record.as_ref().map(|r| &r.version), &kept) {
                sealed.unsettled.push(key);
            }
        }
        sealed
    }

    fn purge_slot(&self, drop: &SlotDrop) -> Dropped {
        let (floor, mut dropped) = (self.kept(drop.slot).floor, Dropped::default());
        if floor.merge(&drop.floor) != floor {
            return dropped;
        }
        let mut registers = self.registers.lock();
        let mut records = self.records.lock();
        let bare = |key: &Key, token: &Token| token.slot() == drop.slot && !records.contains_key(key);
        let orphans: Vec<Key> = registers
            .iter()
            .filter(|(key, (token, held))| {
                bare(key, token) && purge::may_drop_orphan(&floor, drop.up_to, held.promised)
            })
            .map(|(key, _)| key.clone())
            .collect();
        records.retain(|key, (token, record)| {
            if token.slot() != drop.slot || !record.is_tombstone() {
                return true;
            }
            let promised = registers.get(key).map(|(_, register)| register.promised);
            match purge::may_drop(&floor, drop.up_to, (&record.version, record.written), promised) {
                Ok(true) => {
                    dropped.tombstones += 1;
                    dropped.registers += u64::from(registers.remove(key).is_some());
                    false
                }
                Ok(false) => true,
                Err(_) => {
                    dropped.kept += 1;
                    true
                }
            }
        });
        dropped.registers += orphans.len() as u64;
        registers.retain(|key, _| !orphans.contains(key));
        dropped
    }
}

impl Purging for FakeStore {
    fn survey(&self, slots: SlotSet) -> BoxFuture<'static, Result<Vec<Survey>, StoreError>> {
        self.rare(slots.iter().map(|slot| self.survey_slot(slot)).collect())
    }

    fn greatest_tombstone(&self, slot: Slot, up_to: Hlc) -> BoxFuture<'static, Result<Version, StoreError>> {
        let old = self.tombstones(slot).into_iter().filter(|record| record.written <= up_to);
        self.rare(old.map(|record| record.version).max().unwrap_or_default())
    }

    fn hinted(&self, up_to: Hlc) -> BoxFuture<'static, Result<SlotSet, StoreError>> {
        let hints = self.hints.lock();
        let slots = hints.values().filter(|hint| hint.record.written <= up_to).map(|hint| hint.slot).collect();
        self.rare(slots)
    }

    fn seal(&self, slots: SlotSet, up_to: Hlc) -> BoxFuture<'static, Result<Vec<Sealed>, StoreError>> {
        self.rare(slots.iter().map(|slot| self.seal_slot(slot, up_to)).collect())
    }

    fn raise(&self, floors: Vec<(Slot, Floor)>) -> BoxFuture<'static, Result<(), StoreError>> {
        for (slot, floor) in floors {
            self.keep(slot, &SlotFloor { floor, ..SlotFloor::default() });
        }
        self.rare(())
    }

    fn purge(&self, drops: Vec<SlotDrop>) -> BoxFuture<'static, Result<Dropped, StoreError>> {
        let mut dropped = Dropped::default();
        drops.iter().for_each(|drop| dropped += self.purge_slot(drop));
        self.rare(dropped)
    }
}
