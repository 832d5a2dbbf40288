//! The batch former: a queue that gives away one message's worth at a time.
//!
//! Batches form by themselves: whatever was queued while the last message was on its way travels in the next one.
//! Nobody waits for one to fill, and an item that comes alone travels alone. It is synchronous and knows no wire, so
//! that a simulation can run the very same code.

use std::collections::VecDeque;
use std::collections::vec_deque::Drain;

use crate::types::limits::MESH_MESSAGE_BYTES_MAX;

/// A queue of items, each with its weight in bytes. First in, first out.
#[derive(Debug)]
pub struct Former<T> {
    queue: VecDeque<(usize, T)>,
    bytes: usize,
}

impl<T> Default for Former<T> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), bytes: 0 }
    }
}

impl<T> Former<T> {
    /// Queues an item that will add about that many bytes to a message.
    pub fn push(&mut self, bytes: usize, item: T) {
        self.bytes += bytes;
        self.queue.push_back((bytes, item));
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes of all queued items.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the next message: as many items as [`MESH_MESSAGE_BYTES_MAX`] holds, or one that is larger. Empty when
    /// nothing is queued.
    pub fn message(&mut self) -> Drain<'_, (usize, T)> {
        let (mut items, mut bytes) = (0, 0);
        for (weight, _) in &self.queue {
            if items > 0 && bytes + weight > MESH_MESSAGE_BYTES_MAX {
                break;
            }
            items += 1;
            bytes += weight;
        }
        self.bytes -= bytes;
        self.queue.drain(..items)
    }

    /// Takes out the items that are picked, and keeps the others in their order.
    pub fn remove(&mut self, mut picked: impl FnMut(&T) -> bool) -> Vec<(usize, T)> {
        if !self.queue.iter().any(|(_, item)| picked(item)) {
            return Vec::new();
        }
        let (out, kept): (Vec<_>, Vec<_>) = self.queue.drain(..).partition(|(_, item)| picked(item));
        self.bytes = kept.iter().map(|(bytes, _)| bytes).sum();
        self.queue = kept.into();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn next(former: &mut Former<u32>) -> Vec<u32> {
        former.message().map(|(_, item)| item).collect()
    }

    #[test]
    fn a_large_item_travels_alone_and_keeps_its_place() {
        let mut former = Former::default();
        for (item, bytes) in [(1, 10), (2, 3 * MESH_MESSAGE_BYTES_MAX), (3, 10), (4, 10)] {
            former.push(bytes, item);
        }
        assert_eq!(next(&mut former), [1]);
        assert_eq!(next(&mut former), [2]);
        assert_eq!(next(&mut former), [3, 4]);
        assert!(former.is_empty() && next(&mut former).is_empty());
    }

    #[test]
    fn removing_keeps_the_order_and_the_sum() {
        let mut former = Former::default();
        (1..=5).for_each(|n| former.push(n as usize, n));
        assert_eq!(former.remove(|n| n % 2 == 0), [(2, 2), (4, 4)]);
        assert_eq!(former.bytes(), 9);
        assert_eq!(next(&mut former), [1, 3, 5]);
        assert_eq!(former.bytes(), 0);
    }

    proptest! {
        /// Nothing is lost or reordered, no message is over the limit unless it is one item, and none is split early.
        #[test]
        fn messages_are_full_and_in_order(weights in prop::collection::vec(0usize..2 * MESH_MESSAGE_BYTES_MAX, 0..40)) {
            let mut former = Former::default();
            weights.iter().enumerate().for_each(|(n, w)| former.push(*w, n));
            let mut seen = 0;
            while !former.is_empty() {
                let message: Vec<_> = former.message().collect();
                let bytes: usize = message.iter().map(|(w, _)| w).sum();
                prop_assert!(bytes <= MESH_MESSAGE_BYTES_MAX || message.len() == 1);
                for (_, n) in message {
                    prop_assert_eq!(n, seen);
                    seen += 1;
                }
                if let Some(next) = weights.get(seen) {
                    prop_assert!(bytes + next > MESH_MESSAGE_BYTES_MAX);
                }
            }
            prop_assert_eq!((seen, former.bytes()), (weights.len(), 0));
        }
    }
}
