//! What happened to the cluster, as this node saw it: members, topology, repairs, hints, damage. It is told to people;
//! nothing decides by it.
//!
//! Invariants:
//! - It is bounded: the last [`EVENTS_MAX`] events, each of at most [`TEXT_BYTES_MAX`] bytes. A restart begins anew.
//! - Events are numbered from 1 without gaps, so that whoever follows knows which it has.
//! - What is said of a node again, with nothing else of that kind in between, is kept once in [`SAID_AGAIN_MS`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::views::{Event, EventKind};
use crate::ports::Clock;
use crate::types::NodeNum;

/// Events that are kept.
pub const EVENTS_MAX: usize = 1_000;
/// Longest text of an event, in bytes; the rest is cut.
const TEXT_BYTES_MAX: usize = 512;
/// How long the same is not said of a node again, in milliseconds.
const SAID_AGAIN_MS: u64 = 600_000;

/// The events of this node's life.
pub struct Journal {
    clock: Arc<dyn Clock>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The number of the last event; 0 before the first.
    last: u64,
    events: VecDeque<Event>,
}

impl Journal {
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, kept: Mutex::default() })
    }

    /// Notes what `node` did or suffered. The text goes on from the node's name: "is down".
    pub fn note(&self, node: NodeNum, kind: EventKind, text: impl Into<String>) {
        let (at_ms, text) = (self.clock.wall_ms(), cut(text.into()));
        let mut kept = self.kept.lock();
        let before = kept.events.iter().rev().find(|event| event.node == node && event.kind == kind);
        if before.is_some_and(|event| event.text == text && at_ms.saturating_sub(event.at_ms) < SAID_AGAIN_MS) {
            return;
        }
        kept.last += 1;
        let number = kept.last;
        if kept.events.len() == EVENTS_MAX {
            kept.events.pop_front();
        }
        kept.events.push_back(Event { number, at_ms, node, kind, text });
    }

    /// The events after that number, oldest first; those that are no longer kept are missing. 0: all.
    pub fn after(&self, number: u64) -> Vec<Event> {
        let kept = self.kept.lock();
        let first = kept.events.partition_point(|event| event.number <= number);
        kept.events.range(first..).cloned().collect()
    }
}

/// At most [`TEXT_BYTES_MAX`] bytes of it, whole characters.
fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let ends = text.char_indices().map(|(at, _)| at);
        text.truncate(ends.take_while(|at| *at <= TEXT_BYTES_MAX - '…'.len_utf8()).last().unwrap_or(0));
        text.push('…');
    }
    text
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("last", &self.kept.lock().last).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fakes::FakeClock;

    const N1: NodeNum = NodeNum(1);
    const N2: NodeNum = NodeNum(2);

    #[test]
    fn the_last_thousand_are_kept_and_numbered() {
        let journal = Journal::new(FakeClock::at(0));
        for n in 1..=1_200 {
            journal.note(N1, EventKind::Repair, format!("did {n}"));
        }
        let all = journal.after(0);
        assert_eq!((all.len(), all[0].number, all[999].number), (EVENTS_MAX, 201, 1_200));
        assert_eq!(all[0].text, "did 201");
        assert_eq!(journal.after(1_198).iter().map(|e| e.number).collect::<Vec<_>>(), [1_199, 1_200]);
        assert!(journal.after(1_200).is_empty() && journal.after(u64::MAX).is_empty());
    }

    #[test]
    fn the_same_is_not_said_over_and_over_but_a_change_and_back_is() {
        let wall = FakeClock::at(0);
        let journal = Journal::new(wall.clone());
        let told = || journal.after(0).len();
        for _ in 0..3 {
            journal.note(N2, EventKind::Membership, "is down");
        }
        assert_eq!(told(), 1);
        journal.note(N1, EventKind::Membership, "is down");
        journal.note(N2, EventKind::Repair, "is down");
        assert_eq!(told(), 3, "of another node, or another kind");
        journal.note(N2, EventKind::Membership, "answers again");
        journal.note(N2, EventKind::Membership, "is down");
        assert_eq!(told(), 5);
        wall.set(SAID_AGAIN_MS);
        journal.note(N2, EventKind::Membership, "is down");
        assert_eq!(journal.after(5).last().map(|e| e.at_ms), Some(SAID_AGAIN_MS));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("é".repeat(256)).len(), TEXT_BYTES_MAX);
        let long = cut("é".repeat(400));
        assert!(long.len() <= TEXT_BYTES_MAX && long.ends_with("é…"), "{long}");
    }
}
