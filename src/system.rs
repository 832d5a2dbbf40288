//! The system behind the ports: the wall clock, the operating system's randomness, tokio's tasks.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ports::{Clock, Entropy, Spawn};

/// The machine's wall clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this file owns the wall clock")]
    fn wall_ms(&self) -> u64 {
        // A clock before 1970 reads as 1970, and the skew rule then keeps the node from coordinating.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

/// A generator seeded by the operating system.
#[derive(Debug)]
pub struct SystemEntropy(Mutex<StdRng>);

impl Default for SystemEntropy {
    fn default() -> Self {
        Self(Mutex::new(StdRng::from_os_rng()))
    }
}

impl Entropy for SystemEntropy {
    fn u64(&self) -> u64 {
        self.0.lock().next_u64()
    }
}

/// Tasks on tokio's runtime, which end when the node is stopped.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Cancels every task at its next await, and waits for all to be gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Spawn for Tasks {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }
}
