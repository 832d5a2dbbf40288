//! The schedule of handoff: to which node hints are delivered now, and how long a failed delivery waits.
//!
//! Invariants:
//! - One delivery per target is under way at a time.
//! - A target that comes back is tried at once, whatever it waited for before.
//! - A target that can be reached but keeps failing is tried after 100 ms, then twice as long each time, up to 30 s;
//!   half of each wait is drawn, so that the nodes that owe one target do not come together.

use std::collections::BTreeMap;

use crate::types::NodeNum;

/// The first wait after a failure, in milliseconds.
const BACKOFF_MIN_MS: u64 = 100;
/// The longest.
const BACKOFF_MAX_MS: u64 = 30_000;

#[derive(Clone, Copy, Debug, Default)]
struct Target {
    running: bool,
    reachable: bool,
    failures: u32,
    not_before_ms: u64,
}

/// What every target waits for. Times are milliseconds of one monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    targets: BTreeMap<NodeNum, Target>,
}

impl Schedule {
    /// Which of the nodes that hints are kept for are to be delivered to now; each is under way from here on, until
    /// [`Self::ended`]. `owed` says of each whether it can be reached. Targets without hints are forgotten.
    pub fn start(&mut self, owed: &[(NodeNum, bool)], now_ms: u64) -> Vec<NodeNum> {
        self.targets.retain(|node, target| target.running || owed.iter().any(|(n, _)| n == node));
        let mut started = Vec::new();
        for &(node, reachable) in owed {
            let target = self.targets.entry(node).or_default();
            if reachable && !target.reachable {
                target.failures = 0;
                target.not_before_ms = 0;
            }
            target.reachable = reachable;
            if reachable && !target.running && now_ms >= target.not_before_ms {
                target.running = true;
                started.push(node);
            }
        }
        started
    }

    /// A delivery has ended. After a failure the target waits; `draw` is any random number.
    pub fn ended(&mut self, node: NodeNum, ok: bool, now_ms: u64, draw: u64) {
        let Some(target) = self.targets.get_mut(&node) else { return };
        target.running = false;
        if ok {
            target.failures = 0;
            target.not_before_ms = 0;
        } else {
            let wait_ms = BACKOFF_MAX_MS.min(BACKOFF_MIN_MS << target.failures.min(16));
            target.failures = target.failures.saturating_add(1);
            target.not_before_ms = now_ms + wait_ms / 2 + draw % (wait_ms / 2 + 1);
        }
    }

    pub fn is_running(&self, node: NodeNum) -> bool {
        self.targets.get(&node).is_some_and(|t| t.running)
    }

    /// When the next wait ends of a target that can be reached.
    pub fn next_ms(&self) -> Option<u64> {
        self.targets.values().filter(|t| t.reachable && !t.running).map(|t| t.not_before_ms).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeNum = NodeNum(1);
    const B: NodeNum = NodeNum(2);

    #[test]
    fn one_delivery_at_a_time_to_each() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.start(&[(A, true), (B, false)], 0), [A]);
        assert_eq!(schedule.start(&[(A, true), (B, true)], 1), [B]);
        assert_eq!(schedule.start(&[(A, true), (B, true)], 2), []);
        schedule.ended(A, true, 3, 0);
        assert_eq!(schedule.start(&[(A, true), (B, true)], 3), [A]);
    }

    #[test]
    fn a_failing_target_waits_longer_each_time_up_to_a_limit() {
        for draw in [0, u64::MAX] {
            let mut schedule = Schedule::default();
            let mut now = 0;
            let mut waits = Vec::new();
            for _ in 0..12 {
                assert_eq!(schedule.start(&[(A, true)], now), [A]);
                assert_eq!(schedule.next_ms(), None);
                schedule.ended(A, false, now, draw);
                let next = schedule.next_ms().unwrap();
                assert_eq!(schedule.start(&[(A, true)], next - 1), []);
                waits.push(next - now);
                now = next;
            }
            assert!(waits.iter().zip([100, 200, 400]).all(|(w, full)| (full / 2..=full).contains(w)), "{waits:?}");
            assert!((15_000..=30_000).contains(&waits[11]), "{waits:?}");
            assert!(waits.is_sorted() || draw != 0, "{waits:?}");
        }
    }

    #[test]
    fn a_target_that_comes_back_is_tried_at_once() {
        let mut schedule = Schedule::default();
        for _ in 0..10 {
            let at = schedule.next_ms().unwrap_or(0);
            schedule.start(&[(A, true)], at);
            schedule.ended(A, false, at, 0);
        }
        let now = schedule.next_ms().unwrap() - 1_000;
        assert_eq!(schedule.start(&[(A, false)], now), []);
        assert_eq!(schedule.next_ms(), None, "waits for its return, not for a time");
        assert_eq!(schedule.start(&[(A, true)], now), [A]);
    }

    #[test]
    fn a_target_that_is_owed_nothing_is_forgotten() {
        let mut schedule = Schedule::default();
        schedule.start(&[(A, true)], 0);
        schedule.start(&[], 0);
        schedule.ended(A, false, 0, 0);
        schedule.start(&[], 0);
        assert_eq!(schedule.next_ms(), None);
        schedule.ended(A, true, 0, 0);
    }
}
