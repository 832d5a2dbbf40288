//! What a node finds on its machine, except for disk and network: a wall clock that may be wrong, seeded randomness,
//! and tasks that die with the node. And the trace, to which everything that happens is told.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use a3::ports::{Clock, Entropy, Spawn};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// When the simulated world begins, wall milliseconds.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Everything that happened, in order, one line each. Nobody reads it of a seed that holds, so it is kept only where
/// that was asked for: a seed that fails is run once more.
pub(crate) struct Trace {
    kept: bool,
    began: Instant,
    lines: Mutex<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(kept: bool) -> Arc<Self> {
        Arc::new(Self { kept, began: Instant::now(), lines: Mutex::default() })
    }

    pub(crate) fn note(&self, what: impl Display) {
        if !self.kept {
            return;
        }
        let at = self.began.elapsed();
        self.lines.lock().push(format!("{:3}.{:03} {what}", at.as_secs(), at.subsec_millis()));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }
}

/// A wall clock: virtual time, how far this machine is off it, and how much faster or slower it runs.
pub(crate) struct SimClock {
    began: Instant,
    error: Mutex<ClockError>,
}

struct ClockError {
    off_ms: i64,
    /// Milliseconds gained in a second, since then.
    gains_ms: i64,
    since: Instant,
}

impl ClockError {
    fn now_ms(&self) -> i64 {
        self.off_ms + self.gains_ms * self.since.elapsed().as_millis() as i64 / 1000
    }
}

impl SimClock {
    pub(crate) fn new(off_ms: i64) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self { began: now, error: Mutex::new(ClockError { off_ms, gains_ms: 0, since: now }) })
    }

    /// Somebody sets the clock.
    pub(crate) fn step(&self, by_ms: i64) {
        self.error.lock().off_ms += by_ms;
    }

    /// Somebody sets it right for good.
    pub(crate) fn set_right(&self) {
        *self.error.lock() = ClockError { off_ms: 0, gains_ms: 0, since: Instant::now() };
    }

    /// From now on it gains so much in each second.
    pub(crate) fn drift(&self, gains_ms: i64) {
        let mut error = self.error.lock();
        *error = ClockError { off_ms: error.now_ms(), gains_ms, since: Instant::now() };
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        let now_ms = EPOCH_MS + self.began.elapsed().as_millis() as u64;
        now_ms.saturating_add_signed(self.error.lock().now_ms())
    }
}

/// Randomness from the seed.
pub(crate) struct Seeded(Mutex<StdRng>);

impl Seeded {
    /// `stream` tells apart what shares a seed.
    pub(crate) fn new(seed: u64, stream: u64) -> Arc<Self> {
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Arc::new(Self(Mutex::new(StdRng::seed_from_u64(mixed))))
    }

    pub(crate) fn per_mille(&self, chance: u64) -> bool {
        self.below(1000) < chance
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(crate) fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

impl Entropy for Seeded {
    fn u64(&self) -> u64 {
        self.0.lock().next_u64()
    }
}

/// Tasks that end together: one life of a node, or the world itself.
pub(crate) struct Life {
    alive: AtomicBool,
    tasks: Mutex<JoinSet<()>>,
}

impl Life {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { alive: AtomicBool::new(true), tasks: Mutex::default() })
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }

    /// Nothing of it runs after this.
    pub(crate) fn end(&self) {
        self.alive.store(false, Ordering::SeqCst);
        self.tasks.lock().abort_all();
    }
}

impl Spawn for Life {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        if self.is_alive() {
            let mut tasks = self.tasks.lock();
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }
}
