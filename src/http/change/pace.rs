//! How fast a change goes: from how far it was when this node was first asked about it.
//!
//! Caveats: it is this node's memory alone, and begins with the first question. Slots differ in size, and clients may be
//! busier later: what is left is a guess.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::node::views::ChangeView;
use crate::types::Epoch;

/// Slots caught up on, and when what is left will be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    /// Unknown while a member does not say how far it is, and where nothing is left.
    pub(super) left: Option<Duration>,
}

/// The first that was told of a change.
#[derive(Clone, Copy, Debug)]
struct First {
    since: Epoch,
    at: Instant,
    done: u64,
}

#[derive(Debug, Default)]
pub(in crate::http) struct Pace(Mutex<Option<First>>);

impl Pace {
    /// Remembers the first look at a change. `None` until something was caught up on after it.
    pub(super) fn look(&self, view: &ChangeView, now: Instant) -> Option<Rate> {
        let sum = |of: fn(&crate::node::views::MemberProgress) -> u64| view.members.iter().map(of).sum::<u64>();
        let (done, total) = (sum(|m| m.done), sum(|m| m.slots));
        let mut first = self.0.lock();
        // A member that stopped to say how far it is took what it had done with it: it is begun anew.
        let then = first.filter(|first| first.since == view.since && first.done <= done);
        let then = *first.insert(then.unwrap_or(First { since: view.since, at: now, done }));
        drop(first);
        let (fresh, seconds) = (done - then.done, now.duration_since(then.at).as_secs_f64());
        if fresh == 0 || seconds <= 0.0 {
            return None;
        }
        let per_second = fresh as f64 / seconds;
        let told = view.members.iter().all(|m| m.error.is_none());
        let left = Duration::try_from_secs_f64(total.saturating_sub(done) as f64 / per_second).ok();
        Some(Rate { per_second, left: left.filter(|left| told && !left.is_zero()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::views::MemberProgress;
    use crate::types::{NodeNum, TopologyChange};

    fn at(since: u64, done: u64, error: Option<&str>) -> ChangeView {
        let node = NodeNum(4);
        let error = error.map(str::to_owned);
        ChangeView {
            since: Epoch(since),
            epoch: Epoch(since),
            change: TopologyChange::Join { node },
            slots: 100,
            members: vec![MemberProgress { node, slots: 100, done, keys: 0, bytes: 0, error }],
            waiting_for: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_follows_from_what_was_done_since_the_first_look() {
        let (pace, begun) = (Pace::default(), Instant::now());
        let look = |view: ChangeView, seconds| pace.look(&view, begun + Duration::from_secs(seconds));
        assert_eq!(look(at(2, 10, None), 0), None);
        assert_eq!(look(at(2, 10, None), 5), None, "nothing was done since");
        let rate = look(at(2, 30, None), 10).unwrap();
        assert_eq!((rate.per_second, rate.left), (2.0, Some(Duration::from_secs(35))));
        assert_eq!(look(at(2, 30, Some("it is down")), 10).unwrap().left, None);
        assert_eq!(look(at(3, 40, None), 20), None, "another change");
        assert_eq!(look(at(3, 20, None), 30), None, "it went back: begun anew");
        assert_eq!(look(at(3, 100, None), 40).unwrap(), Rate { per_second: 8.0, left: None }, "nothing is left");
    }
}
