//! The line in which operations on one key wait for each other at their proposer.
//!
//! Invariants: one holds the key at a time, the others follow in the order they came; a key that nobody waits for takes
//! no room.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Line, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::types::Key;

/// Operations that may be under way or wait at one proposer, over all keys.
pub(super) const OPERATIONS_MAX: usize = 4096;

#[derive(Default)]
struct Keys {
    lines: BTreeMap<Key, Held>,
    operations: usize,
}

struct Held {
    line: Arc<Line<()>>,
    /// Who holds it, and who waits.
    operations: usize,
}

#[derive(Default)]
pub(super) struct Queue {
    keys: Mutex<Keys>,
}

/// A place in the line, given up when it is dropped.
struct Place<'a> {
    queue: &'a Queue,
    key: Key,
}

/// The right to propose for a key. Dropped, it goes to the next in line.
pub(super) struct Turn<'a> {
    // In this order: the line moves on before the place is given up.
    _guard: OwnedMutexGuard<()>,
    _place: Place<'a>,
}

/// Why there is no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// [`OPERATIONS_MAX`] are there already.
    Full,
    /// The deadline came first.
    TooLate,
}

impl Queue {
    /// Waits for a turn at the key.
    pub(super) async fn turn(&self, key: &Key, deadline: Instant) -> Result<Turn<'_>, NoTurn> {
        let (place, line) = self.line_up(key).ok_or(NoTurn::Full)?;
        let guard = timeout_at(deadline, line.lock_owned()).await.map_err(|_| NoTurn::TooLate)?;
        Ok(Turn { _guard: guard, _place: place })
    }

    fn line_up(&self, key: &Key) -> Option<(Place<'_>, Arc<Line<()>>)> {
        let mut keys = self.keys.lock();
        if keys.operations >= OPERATIONS_MAX {
            return None;
        }
        keys.operations += 1;
        let held = keys.lines.entry(key.clone()).or_insert_with(|| Held { line: Arc::default(), operations: 0 });
        held.operations += 1;
        Some((Place { queue: self, key: key.clone() }, Arc::clone(&held.line)))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut keys = self.queue.keys.lock();
        keys.operations -= 1;
        if let Some(held) = keys.lines.get_mut(&self.key) {
            held.operations -= 1;
            if held.operations == 0 {
                keys.lines.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn operations_on_a_key_take_turns_in_order_and_leave_nothing() {
        let (queue, key) = (Queue::default(), Key::new("k").unwrap());
        let first = queue.turn(&key, soon()).await.unwrap();
        let other = queue.turn(&Key::new("l").unwrap(), soon()).await.unwrap();
        let order = Mutex::new(Vec::new());
        let wait = |n| {
            let (queue, key, order) = (&queue, &key, &order);
            async move {
                let turn = queue.turn(key, soon()).await;
                order.lock().push((n, turn.is_ok()));
            }
        };
        let late = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            drop(first);
        };
        tokio::join!(wait(1), wait(2), wait(3), late);
        assert_eq!(*order.lock(), [(1, true), (2, true), (3, true)]);
        drop(other);
        let keys = queue.keys.lock();
        assert_eq!((keys.lines.len(), keys.operations), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_leaves_the_line() {
        let (queue, key) = (Queue::default(), Key::new("k").unwrap());
        let first = queue.turn(&key, soon()).await.unwrap();
        assert_eq!(queue.turn(&key, soon()).await.err(), Some(NoTurn::TooLate));
        drop(first);
        assert!(queue.turn(&key, soon()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_is_bounded() {
        let queue = Queue::default();
        let mut turns = Vec::new();
        for n in 0..OPERATIONS_MAX {
            turns.push(queue.turn(&Key::new(format!("k{n}")).unwrap(), soon()).await.unwrap());
        }
        let key = Key::new("k").unwrap();
        assert_eq!(queue.turn(&key, soon()).await.err(), Some(NoTurn::Full));
        turns.pop();
        assert!(queue.turn(&key, soon()).await.is_ok());
    }
}
