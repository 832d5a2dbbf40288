//! The store of the world that speaks rarely has nothing to purge.

use futures_util::future::BoxFuture;

use super::DiskStore;
use crate::ports::{Purging, StoreError};
use crate::types::{Dropped, Floor, Hlc, Sealed, Slot, SlotDrop, SlotSet, Survey, Version};

impl Purging for DiskStore {
    fn survey(&self, slots: SlotSet) -> BoxFuture<'static, Result<Vec<Survey>, StoreError>> {
        let surveys = slots.iter().map(|slot| Survey::empty(slot, Floor::default())).collect();
        Box::pin(async move { Ok(surveys) })
    }

    fn greatest_tombstone(&self, _: Slot, _: Hlc) -> BoxFuture<'static, Result<Version, StoreError>> {
        Box::pin(async { Ok(Version::default()) })
    }

    fn hinted(&self, _: Hlc) -> BoxFuture<'static, Result<SlotSet, StoreError>> {
        Box::pin(async { Ok(SlotSet::NONE) })
    }

    fn seal(&self, _: SlotSet, _: Hlc) -> BoxFuture<'static, Result<Vec<Sealed>, StoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn raise(&self, _: Vec<(Slot, Floor)>) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn purge(&self, _: Vec<SlotDrop>) -> BoxFuture<'static, Result<Dropped, StoreError>> {
        Box::pin(async { Ok(Dropped::default()) })
    }
}
