//! The reaper: writes the tombstones of values whose time is up, each node in its own rows.
//!
//! It is not what makes a value end: whoever reads one judges by its clock. It makes room, and the copies equal: every
//! replica writes the same tombstone by itself, so that nothing has to be sent for it. It looks at each full second of the
//! wall clock, which is the same moment everywhere, so that replicas hardly ever differ when they compare themselves.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::clock::NodeClock;
use super::own::Own;
use crate::metrics::{self, Counter};
use crate::ports::Store;

/// Between two looks, in milliseconds.
const LOOK_EVERY_MS: u64 = 1_000;
/// Ends written in one transaction, so that writes get in between.
const STEP: usize = 500;

pub(super) struct Reaper {
    store: Arc<dyn Store>,
    clock: Arc<NodeClock>,
    own: Arc<Own>,
    expired: Counter,
}

impl Reaper {
    pub(super) fn new(store: Arc<dyn Store>, clock: Arc<NodeClock>, own: Arc<Own>) -> Self {
        Self { store, clock, own, expired: metrics::counter(metrics::EXPIRED, &[]) }
    }

    /// Runs for the node's life.
    pub(super) async fn run(self) {
        let mut failing = false;
        loop {
            sleep(Duration::from_millis(LOOK_EVERY_MS - self.clock.wall_ms() % LOOK_EVERY_MS)).await;
            // Before, its clock was not compared with the others'.
            if self.own.has_joined() {
                failing = self.reap(failing).await;
            }
        }
    }

    /// Everything that is due; rests for as long as each step took. Whether the store failed.
    async fn reap(&self, failing: bool) -> bool {
        loop {
            let began = Instant::now();
            match self.store.end_due(self.clock.ends_by(), STEP).await {
                Ok(ended) => {
                    self.expired.increment(ended.len() as u64);
                    ended.iter().for_each(|(_, end)| self.clock.observe(end.written));
                    if ended.len() < STEP {
                        return false;
                    }
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "values whose time is up could not be removed; they are not told");
                    }
                    return true;
                }
            }
            sleep(began.elapsed()).await;
        }
    }
}
