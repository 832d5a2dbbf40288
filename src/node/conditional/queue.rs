//! The line in which operations on one key wait for each other at their proposer.
//!
//! Whoever had the turn leaves behind what it found or made of the key. Those who stood in line already when that was
//! so need not ask the replicas whether their condition is false of it: it was the key's value at a moment in their own
//! time. So of many that wait for one version the first one pays for all that lose against it.
//!
//! Invariants: one has the turn at a key at a time, the others follow in the order they came; a key that nobody waits for
//! takes no room.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Line, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::types::{Key, Record};

/// Operations that may be under way or wait at one proposer, over all keys.
const OPERATIONS_MAX: usize = 4096;

/// A place in the order of everything that happens in the queue.
type Tick = u64;

#[derive(Default)]
struct Keys {
    lines: BTreeMap<Key, Held>,
    operations: usize,
    ticks: Tick,
}

#[derive(Default)]
struct Held {
    line: Arc<Line<()>>,
    /// Who has the turn, and who waits.
    operations: usize,
    settled: Option<Settled>,
}

/// What stood under the key at some moment after that tick.
struct Settled {
    after: Tick,
    /// A tombstone, too. `None`: nothing.
    current: Option<Record>,
}

#[derive(Default)]
pub(super) struct Queue {
    keys: Mutex<Keys>,
}

/// A place in the line, given up when it is dropped.
struct Place<'a> {
    queue: &'a Queue,
    key: Key,
    came: Tick,
}

/// The right to propose for a key. Dropped, it goes to the next in line.
pub(super) struct Turn<'a> {
    /// When its last ballot began.
    ballot: Tick,
    // In this order: the line moves on before the place is given up.
    _guard: OwnedMutexGuard<()>,
    place: Place<'a>,
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
        Ok(Turn { ballot: place.came, _guard: guard, place })
    }

    fn line_up(&self, key: &Key) -> Option<(Place<'_>, Arc<Line<()>>)> {
        let mut keys = self.keys.lock();
        if keys.operations >= OPERATIONS_MAX {
            return None;
        }
        keys.operations += 1;
        let came = keys.tick();
        let held = keys.lines.entry(key.clone()).or_default();
        held.operations += 1;
        Some((Place { queue: self, key: key.clone(), came }, Arc::clone(&held.line)))
    }
}

impl Turn<'_> {
    /// The replicas are about to be asked for a promise. What the ballot finds, or makes of it, is the key's value at some
    /// moment after this; not after any later one: a plain write may overtake it as soon as the replicas have answered.
    pub(super) fn begins_ballot(&mut self) {
        self.ballot = self.place.queue.keys.lock().tick();
    }

    /// Leaves behind what the last ballot found or made of the key.
    pub(super) fn settle(&self, current: Option<Record>) {
        if let Some(held) = self.place.queue.keys.lock().lines.get_mut(&self.place.key) {
            held.settled = Some(Settled { after: self.ballot, current });
        }
    }

    /// What stood under the key at some moment since this operation came, where one before it has found out.
    pub(super) fn known(&self) -> Option<Option<Record>> {
        let keys = self.place.queue.keys.lock();
        let settled = keys.lines.get(&self.place.key)?.settled.as_ref()?;
        (settled.after > self.place.came).then(|| settled.current.clone())
    }
}

impl Keys {
    fn tick(&mut self) -> Tick {
        self.ticks += 1;
        self.ticks
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
    use crate::types::{Content, Hlc, Version, Writer};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    fn key() -> Key {
        Key::new("k").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn operations_on_a_key_take_turns_in_order_and_leave_nothing() {
        let (queue, key) = (Queue::default(), key());
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
    async fn what_was_so_while_one_waited_is_known_to_it_and_to_nobody_later() {
        let (queue, key) = (Queue::default(), key());
        let version = Version::plain(Hlc(1), Writer(1));
        let record = Record::seal(&key, version, version.hlc, Content::value("v"));
        let mut first = queue.turn(&key, soon()).await.unwrap();
        assert_eq!(first.known(), None);
        let waits = queue.turn(&key, soon());
        tokio::pin!(waits);
        assert!(futures_util::poll!(&mut waits).is_pending());
        first.begins_ballot();
        let late = queue.turn(&key, soon());
        tokio::pin!(late);
        assert!(futures_util::poll!(&mut late).is_pending());
        first.settle(Some(record.clone()));
        drop(first);
        let second = waits.await.unwrap();
        assert_eq!(second.known(), Some(Some(record)));
        drop(second);
        assert_eq!(late.await.unwrap().known(), None, "it came after the ballot began");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_leaves_the_line() {
        let (queue, key) = (Queue::default(), key());
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
        assert_eq!(queue.turn(&key(), soon()).await.err(), Some(NoTurn::Full));
        turns.pop();
        assert!(queue.turn(&key(), soon()).await.is_ok());
    }
}
