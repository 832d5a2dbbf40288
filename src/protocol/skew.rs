//! Whether this node's wall clock can be trusted, judged by the clocks of the other nodes.
//!
//! A clock heard is kept as its distance from our monotonic time, so our own wall clock is compared at the moment of
//! the question: a clock that was just set is noticed at once, not with the next message.
//!
//! The rule: our clock is off when it is further than the allowed skew from the median of the clocks heard in the
//! last 30 s, our own not among them. Of an even number the middle one nearer to ours counts, so it takes a majority
//! of the others to say that we are wrong:
//! - three nodes, one an hour ahead: the two good ones each hear one that agrees and coordinate; the bad one hears
//!   two that do not and refuses;
//! - two nodes an hour apart: nobody can tell which is right, and the stamps of the one ahead would be refused by the
//!   other, so both refuse until one is set right;
//! - nobody heard (a node alone, or cut off): there is nothing to judge by, and the clock is taken for right.
//!
//! Caveat: a message that was long on its way makes its sender look as much behind. The newest one counts, so this
//! lasts no longer than the delay.

use std::collections::BTreeMap;

use crate::types::NodeNum;

/// A clock counts for this long after it was heard, in milliseconds.
const HEARD_FOR_MS: u64 = 30_000;
/// A node's clock is taken note of this often at most, in milliseconds: it is heard with every message.
const NOTE_EVERY_MS: u64 = 100;
/// Readings are cut here, so that arithmetic on what a peer claims cannot overflow (about the year 10,900).
const WALL_MS_CEILING: u64 = 1 << 48;

#[derive(Clone, Copy, Debug)]
struct Heard {
    /// Its wall clock minus our monotonic time.
    base_ms: i64,
    at_ms: u64,
}

/// The clocks heard lately. Times named `now_ms` are of one monotonic clock.
#[derive(Clone, Debug)]
pub struct Skew {
    skew_max_ms: u64,
    heard: BTreeMap<NodeNum, Heard>,
    /// The one or two middle ones of the clocks heard; current until the oldest of them is too old.
    middle: Option<(i64, i64)>,
    current_until_ms: u64,
}

impl Skew {
    pub fn new(skew_max_ms: u64) -> Self {
        Self { skew_max_ms, heard: BTreeMap::new(), middle: None, current_until_ms: 0 }
    }

    /// Takes note of another node's wall clock. False when that node's was noted a moment ago; nothing changed then.
    pub fn heard(&mut self, node: NodeNum, their_wall_ms: u64, now_ms: u64) -> bool {
        if self.heard.get(&node).is_some_and(|h| now_ms < h.at_ms + NOTE_EVERY_MS) {
            return false;
        }
        let base_ms = difference(their_wall_ms, now_ms);
        self.heard.insert(node, Heard { base_ms, at_ms: now_ms });
        self.settle(now_ms);
        true
    }

    /// Our wall clock minus the median of the others, in milliseconds. `None` where no clock was heard lately.
    pub fn off_by_ms(&mut self, our_wall_ms: u64, now_ms: u64) -> Option<i64> {
        if now_ms > self.current_until_ms {
            self.settle(now_ms);
        }
        let (low, high) = self.middle?;
        let ours = difference(our_wall_ms, now_ms);
        let (below, above) = (ours - low, ours - high);
        Some(if below.abs() <= above.abs() { below } else { above })
    }

    /// By how much our wall clock is off, where that is more than it may be.
    pub fn skewed_by_ms(&mut self, our_wall_ms: u64, now_ms: u64) -> Option<i64> {
        self.off_by_ms(our_wall_ms, now_ms).filter(|by| by.unsigned_abs() > self.skew_max_ms)
    }

    fn settle(&mut self, now_ms: u64) {
        self.heard.retain(|_, h| now_ms <= h.at_ms + HEARD_FOR_MS);
        let mut bases: Vec<i64> = self.heard.values().map(|h| h.base_ms).collect();
        bases.sort_unstable();
        let middle = |i: usize| bases.get(i).copied();
        self.middle = bases.len().checked_sub(1).and_then(|last| Some((middle(last / 2)?, middle(bases.len() / 2)?)));
        self.current_until_ms = self.heard.values().map(|h| h.at_ms + HEARD_FOR_MS).min().unwrap_or(u64::MAX);
    }
}

fn difference(wall_ms: u64, now_ms: u64) -> i64 {
    wall_ms.min(WALL_MS_CEILING) as i64 - now_ms.min(WALL_MS_CEILING) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const MAX: u64 = 300_000;
    const WALL: u64 = 1_700_000_000_000;

    /// What a node whose clock shows WALL + `own` says after hearing clocks that show WALL + each of `others`.
    fn judged(own: i64, others: &[i64]) -> Option<i64> {
        let mut skew = Skew::new(MAX);
        for (n, other) in others.iter().enumerate() {
            assert!(skew.heard(NodeNum(n as u16 + 2), WALL.saturating_add_signed(*other), 0));
        }
        skew.skewed_by_ms(WALL.saturating_add_signed(own), 0)
    }

    #[test]
    fn of_three_only_the_bad_clock_refuses() {
        let hour = HOUR as i64;
        assert_eq!(judged(0, &[40, hour]), None);
        assert_eq!(judged(40, &[hour, 0]), None);
        assert_eq!(judged(hour, &[0, 40]), Some(hour - 40));
        assert_eq!(judged(0, &[40, -hour]), None);
        assert_eq!(judged(-hour, &[0, 40]), Some(-hour));
        assert_eq!(judged(0, &[-hour, hour]), Some(hour), "all three disagree");
    }

    #[test]
    fn of_two_both_refuse_and_alone_nobody_does() {
        let hour = HOUR as i64;
        assert_eq!(judged(0, &[hour]), Some(-hour));
        assert_eq!(judged(hour, &[0]), Some(hour));
        assert_eq!(judged(hour, &[]), None);
    }

    #[test]
    fn of_five_two_bad_ones_harm_nobody_else() {
        let hour = HOUR as i64;
        assert_eq!(judged(0, &[0, 0, hour, hour]), None);
        assert_eq!(judged(hour, &[0, 0, 0, hour]), Some(hour));
        assert_eq!(judged(0, &[0, hour, hour]), Some(-hour), "two against two");
    }

    #[test]
    fn the_allowed_skew_is_allowed() {
        let max = MAX as i64;
        assert_eq!(judged(max, &[0]), None);
        assert_eq!(judged(max + 1, &[0]), Some(max + 1));
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_at_once_both_ways() {
        let mut skew = Skew::new(MAX);
        skew.heard(NodeNum(2), WALL, 1_000);
        assert_eq!(skew.skewed_by_ms(WALL + 500, 1_500), None);
        assert_eq!(skew.skewed_by_ms(WALL + 500 + HOUR, 1_500), Some(HOUR as i64));
        assert_eq!(skew.skewed_by_ms(WALL + 600, 1_600), None);
    }

    #[test]
    fn a_clock_counts_for_thirty_seconds_and_is_noted_ten_times_a_second() {
        let mut skew = Skew::new(MAX);
        assert!(skew.heard(NodeNum(2), WALL + HOUR, 0));
        assert!(!skew.heard(NodeNum(2), WALL, 99), "too soon");
        assert!(skew.skewed_by_ms(WALL + 30_000, 30_000).is_some());
        assert_eq!(skew.skewed_by_ms(WALL + 30_001, 30_001), None);
        assert!(skew.heard(NodeNum(2), WALL + 40_000, 40_000));
        assert_eq!(skew.off_by_ms(WALL + 40_000, 40_000), Some(0));
    }

    #[test]
    fn whatever_a_peer_claims_is_survived() {
        let mut skew = Skew::new(u64::MAX);
        skew.heard(NodeNum(2), u64::MAX, 0);
        skew.heard(NodeNum(3), 0, 0);
        assert!(skew.off_by_ms(u64::MAX, 0).is_some());
    }
}
