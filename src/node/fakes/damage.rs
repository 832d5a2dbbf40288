//! What can be wrong with a fake disk.

use std::sync::atomic::Ordering;

use super::FakeStore;
use crate::types::{Floor, Key};

impl FakeStore {
    /// The record of that key is damaged on disk, and its register where `register` says so.
    pub(crate) fn damage(&self, key: &Key, register: bool) {
        self.damaged.lock().insert(key.clone());
        if register {
            self.lost.lock().insert(key.clone());
        }
    }

    /// The row of that key has lost its name.
    pub(crate) fn misname(&self, key: &Key) {
        if let Some((token, _)) = self.records.lock().remove(key) {
            self.strays.lock().push((token.slot(), b"?".to_vec()));
        }
    }

    /// Of all slots.
    pub(crate) fn raise_floor(&self, floor: Floor) {
        *self.floor.lock() = floor;
    }

    /// The keys whose records are damaged.
    pub(crate) fn damaged(&self) -> Vec<Key> {
        self.damaged.lock().iter().cloned().collect()
    }

    /// Whether the database was given up.
    pub(crate) fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::SeqCst)
    }
}
