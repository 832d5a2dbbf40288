//! What a fake disk does where a slot is handed over.

use std::collections::BTreeSet;

use super::FakeStore;
use crate::ports::{SlotEntry, SlotPage};
use crate::types::{Floor, Key, Record, Register, Slot, SlotSet, Token};

impl FakeStore {
    pub(crate) fn put(&self, token: Token, key: &Key, record: Record) {
        self.records.lock().insert(key.clone(), (token, record));
    }

    pub(crate) fn put_register(&self, token: Token, key: &Key, register: Register) {
        self.registers.lock().insert(key.clone(), (token, register));
    }

    pub(crate) fn register(&self, key: &Key) -> Option<Register> {
        self.registers.lock().get(key).map(|(_, register)| register.clone())
    }

    /// All of a slot in one page.
    pub(super) fn page_of(&self, slot: Slot) -> SlotPage {
        let (records, registers) = (self.records.lock(), self.registers.lock());
        let tokens = records.iter().map(|(key, (token, _))| (key, token));
        let tokens = tokens.chain(registers.iter().map(|(key, (token, _))| (key, token)));
        let keys: BTreeSet<&Key> = tokens.filter(|(_, token)| token.slot() == slot).map(|(key, _)| key).collect();
        let entry = |key: &Key| {
            let record = records.get(key).map(|(_, record)| record.clone());
            (key.clone(), record, registers.get(key).map(|(_, register)| register.clone()))
        };
        let entries = keys.into_iter().map(entry).collect();
        SlotPage { entries, floor: self.kept(slot).floor, next: None }
    }

    pub(super) fn take_over(&self, token: Token, (key, record, register): SlotEntry) {
        if let Some(record) = record
            && self.record(&key).is_none_or(|own| record.beats(&own))
        {
            self.put(token, &key, record);
        }
        if let Some(theirs) = register {
            let own = self.register(&key).unwrap_or_default();
            let ballot = |register: &Register| register.accepted.as_ref().map(|accepted| accepted.ballot);
            let promised = own.promised.max(theirs.promised);
            let accepted = if ballot(&own) < ballot(&theirs) { theirs.accepted } else { own.accepted };
            self.put_register(token, &key, Register { promised, accepted });
        }
    }

    /// As if it had never kept them.
    pub(super) fn forget_slots(&self, slots: &SlotSet) -> u64 {
        let (mut records, mut registers) = (self.records.lock(), self.registers.lock());
        let before = records.len() + registers.len();
        let dropped = |token: &Token| slots.contains(token.slot());
        for (key, _) in records.iter().filter(|(_, (token, _))| dropped(token)) {
            self.damaged.lock().remove(key);
            self.lost.lock().remove(key);
        }
        records.retain(|_, (token, _)| !dropped(token));
        registers.retain(|_, (token, _)| !dropped(token));
        self.strays.lock().retain(|(slot, _)| !slots.contains(*slot));
        (before - records.len() - registers.len()) as u64
    }

    pub(super) fn forget_covered(&self, floor: &Floor, keys: &[(Token, Key)]) -> u64 {
        let mut records = self.records.lock();
        let before = records.len();
        let named = |key: &Key| keys.iter().any(|(_, named)| named == key);
        records.retain(|key, (_, r)| !(named(key) && floor.covers(&r.version, r.written)));
        (before - records.len()) as u64
    }
}
