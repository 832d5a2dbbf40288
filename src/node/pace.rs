//! How much of a node's time healing takes, and the transfer of slots: all that is there while nobody else wants it, and a share beside clients.
//!
//! After each *step* (a list exchanged, a window of records written) the round rests for half as long as the step took, where
//! either side served clients meanwhile. A step takes longer the busier the two are, and so do the rests. What is written
//! goes behind what clients write, besides (`ReplicaCall::behind`).

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::node::parts::Served;

/// What the step took is so many times its rest.
const WORK_FACTOR: u32 = 2;
/// The longest rest.
const REST_MAX: Duration = Duration::from_millis(500);

pub(in crate::node) struct Pace<'a> {
    served: &'a Served,
    /// At the end of the step before.
    served_then: u64,
    began: Instant,
    /// The peer said so with its last list.
    pub(in crate::node) peer_serves: bool,
}

impl<'a> Pace<'a> {
    pub(in crate::node) fn of(served: &'a Served) -> Self {
        Self { served, served_then: served.so_far(), began: Instant::now(), peer_serves: false }
    }

    /// A step begins: what went before is not held against it.
    pub(in crate::node) fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// A step has ended; the next one begins after this.
    pub(in crate::node) async fn rest(&mut self) {
        let served = self.served.so_far();
        if self.peer_serves || served != self.served_then {
            sleep((self.began.elapsed() / WORK_FACTOR).min(REST_MAX)).await;
        }
        // What came during the rest counts for the next step: a few requests a second are clients, too.
        self.served_then = served;
        self.begin();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn rest(pace: &mut Pace<'_>, work_ms: u64) -> u128 {
        sleep(Duration::from_millis(work_ms)).await;
        let began = Instant::now();
        pace.rest().await;
        began.elapsed().as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn it_rests_for_half_as_long_as_it_worked_while_clients_are_served_on_either_side() {
        let served = Served::default();
        let mut pace = Pace::of(&served);
        assert_eq!(rest(&mut pace, 20).await, 0);
        served.add(1);
        assert_eq!(rest(&mut pace, 20).await, 10);
        assert_eq!(rest(&mut pace, 20).await, 0);
        pace.peer_serves = true;
        assert_eq!(rest(&mut pace, 30).await, 15);
        assert_eq!(rest(&mut pace, 5_000).await, REST_MAX.as_millis());
    }
}
