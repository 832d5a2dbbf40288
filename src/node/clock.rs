//! The node's clock: hybrid readings, stamps that are never issued twice, and whether the wall clock can be trusted.
//!
//! Invariants:
//! - **No stamp is ever issued twice**, through crashes, restarts and a clock set back: a stamp is issued only up to
//!   the reservation that is on disk, and a started node issues only above the reservation it found there.
//! - A stamp is above everything this clock issued, or saw and believed, before.
//! - A reading more than the allowed skew ahead of the wall is not believed, so no peer can drag this clock away.
//! - What the wall shows moves the clock for good only when a stamp is issued. A coordinator asks
//!   [`NodeClock::skewed_by_ms`] first and nothing is reserved while it says so: a wrong wall clock leaves no trace
//!   once it is set right.
//!
//! - A value that was told to have ended has ended for good: whoever tells an end goes by [`NodeClock::end_of`], which
//!   takes note of it. A wall clock that is off by more than is allowed, or was not compared yet, ends no values.
//!
//! The reservation grows on use: a node that stamped nothing for ten seconds does not write. It reaches 2 s ahead of the
//! wall, as by so much a value may end too early or too late after a crash (docs/decisions/0009); where the clock runs ahead
//! of the wall already, it reaches only 1 s further, so that a node restarted over and over does not run away from its
//! peers. A clean stop gives the rest of it back ([`NodeClock::close`]).
//!
//! Caveat: [`NodeClock::now`] goes back with a wall clock that is set back, to the last reading issued or seen.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::metrics;
use crate::ports::{Clock, Store, StoreError};
use crate::protocol::replica::too_far_ahead;
use crate::protocol::skew::Skew;
use crate::types::{Hlc, HybridClock, Key, NodeNum, Record};

/// The reservation reaches this far ahead of the wall clock, in milliseconds.
const RESERVE_MS: u64 = 2_000;
/// And at least this far ahead of the hybrid clock.
const RESERVE_BEYOND_MS: u64 = 1_000;
/// In use, it is extended when it could grow by this much: when 1 s is left.
const EXTEND_AT_MS: u64 = 1_000;
/// It is in use for so long after a stamp, so that one every few seconds does not wait for the disk.
const IN_USE_FOR: Duration = Duration::from_secs(10);
/// How often the driver looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Shared by everything in the node that reads or moves the clock.
pub struct NodeClock {
    wall: Arc<dyn Clock>,
    skew_max_ms: u64,
    started: Instant,
    state: Mutex<State>,
    skew: Mutex<Skew>,
    skew_seconds: Gauge,
    /// Whether the wall clock was compared with others', or nobody was there to compare it with.
    compared: AtomicBool,
    /// Wakes the driver: a stamp had to wait.
    demand: Notify,
    /// Wakes those that wait, in the order they came. (A `watch` would wake them in an order of its own, so that no seed
    /// would replay.)
    outcome: Notify,
}

struct State {
    hybrid: HybridClock,
    /// On disk: stamps may be issued up to it.
    reserved: Hlc,
    /// When the last stamp was issued; `None` where none was, or the last attempt to reserve failed since.
    used: Option<Instant>,
    /// The greatest stamp that had to wait.
    wanted: Hlc,
    /// How many of the driver's attempts failed.
    failures: u64,
    /// The latest end that was told.
    told: Hlc,
    /// No stamp is issued any more.
    closed: bool,
}

impl NodeClock {
    /// `reserved` is what the store's reservation says at start: stamps up to it may have been issued in an earlier
    /// life. No stamp is issued before [`Self::keep_reserved`] runs.
    pub fn new(wall: Arc<dyn Clock>, skew_max: Duration, reserved: Hlc) -> Arc<Self> {
        let skew_max_ms = u64::try_from(skew_max.as_millis()).unwrap_or(u64::MAX);
        Arc::new(Self {
            wall,
            skew_max_ms,
            started: Instant::now(),
            state: Mutex::new(State {
                hybrid: HybridClock::above(reserved),
                reserved,
                used: None,
                wanted: Hlc::ZERO,
                failures: 0,
                told: Hlc::ZERO,
                closed: false,
            }),
            skew: Mutex::new(Skew::new(skew_max_ms)),
            skew_seconds: metrics::gauge(metrics::CLOCK_SKEW, &[]),
            compared: AtomicBool::new(false),
            demand: Notify::new(),
            outcome: Notify::new(),
        })
    }

    /// The machine's clock, milliseconds since 1970.
    pub fn wall_ms(&self) -> u64 {
        self.wall.wall_ms()
    }

    /// `CLOCK_SKEW_MAX`, in milliseconds.
    pub fn skew_max_ms(&self) -> u64 {
        self.skew_max_ms
    }

    /// The hybrid time. Issues nothing.
    pub fn now(&self) -> Hlc {
        let wall_ms = self.wall_ms();
        self.state.lock().hybrid.now(wall_ms)
    }

    /// The greatest reading issued, or seen and believed. What the wall shows is not in it, so that a wrong one leaves
    /// no trace in what is told of it.
    pub fn seen(&self) -> Hlc {
        self.state.lock().hybrid.now(0)
    }

    /// Takes note of a reading that came from elsewhere; one too far ahead of the wall is ignored.
    pub fn observe(&self, seen: Hlc) {
        if too_far_ahead(seen, self.wall_ms(), self.skew_max_ms).is_none() {
            self.state.lock().hybrid.observe(seen);
        }
    }

    /// The wall clock was compared with others', or there is nobody to compare it with: from now on it ends values.
    pub fn trust(&self) {
        self.compared.store(true, Ordering::Relaxed);
    }

    /// By this reading values end: the hybrid time, without the wall where that is off or was not compared yet, and
    /// without what was stamped far ahead of it: a clock that is wrong must not end values for everybody. What was told to
    /// have ended has.
    pub fn ends_by(&self) -> Hlc {
        let wall_ms = self.wall_ms();
        let off = self.skew.lock().skewed_by_ms(wall_ms, self.monotonic_ms()).is_some();
        let (seen, told) = {
            let state = self.state.lock();
            (state.hybrid.now(0), state.told)
        };
        let ends_by =
            match (off || !self.compared.load(Ordering::Relaxed), too_far_ahead(seen, wall_ms, self.skew_max_ms)) {
                (true, _) => seen,
                (false, None) => seen.max(Hlc::from_ms(wall_ms)),
                (false, Some(_)) => Hlc::from_ms(wall_ms),
            };
        ends_by.max(told)
    }

    /// The tombstone to be told in place of a value whose time is up. From then on it is up for good: the wall clock may be
    /// set back, and another replica may not have the tombstone yet. `None` where its time is not up, and where this is the
    /// tombstone already.
    pub fn end_of(&self, key: &Key, record: &Record) -> Option<Record> {
        if record.version.is_end() {
            self.tell(record.written);
            return None;
        }
        // A record without an end costs no look at the clocks.
        let end = record.expires_at_ms().filter(|_| record.has_ended(self.ends_by())).and_then(|_| record.end(key))?;
        self.tell(end.written);
        Some(end)
    }

    /// Another node has told an end of that time, and asks this one to go by it.
    ///
    /// # Errors
    /// By how many milliseconds it lies too far ahead of the wall. Nothing is noted then.
    pub fn take_for_past(&self, end: Hlc) -> Result<(), u64> {
        match too_far_ahead(end, self.wall_ms(), self.skew_max_ms) {
            Some(ms) => Err(ms),
            None => {
                self.tell(end);
                Ok(())
            }
        }
    }

    /// A stamp must not follow an end that lies too far ahead for this clock; what ends here does.
    fn tell(&self, end: Hlc) {
        {
            let mut state = self.state.lock();
            state.told = state.told.max(end);
        }
        self.observe(end);
    }

    /// Ends the issue of stamps, for a stop in good order: nothing above what is returned was issued or seen.
    pub fn close(&self) -> Hlc {
        let mut state = self.state.lock();
        state.closed = true;
        let last = state.hybrid.now(0);
        drop(state);
        self.outcome.notify_waiters();
        last
    }

    /// Takes note of another node's wall clock, as it stood on a message. Cheap: most calls note nothing.
    pub fn heard(&self, node: NodeNum, wall_ms: u64) {
        let now_ms = self.monotonic_ms();
        let mut skew = self.skew.lock();
        if skew.heard(node, wall_ms, now_ms) {
            let off_ms = skew.off_by_ms(self.wall_ms(), now_ms).unwrap_or(0);
            self.skew_seconds.set(off_ms as f64 / 1000.0);
        }
    }

    /// `Some` where this node must not coordinate writes: by how many milliseconds its clock is off (positive: ahead),
    /// against the median of its peers' clocks, or, where it issued stamps far ahead before the clock was set back,
    /// against its own wall clock.
    pub fn skewed_by_ms(&self) -> Option<i64> {
        let wall_ms = self.wall_ms();
        let by_peers = self.skew.lock().skewed_by_ms(wall_ms, self.monotonic_ms());
        by_peers.or_else(|| {
            let hybrid = self.state.lock().hybrid.now(wall_ms);
            too_far_ahead(hybrid, wall_ms, self.skew_max_ms).map(|ms| i64::try_from(ms).unwrap_or(i64::MAX))
        })
    }

    /// Whether another node's clock was heard in the last 30 s: before, a node that has peers cannot know that its own
    /// is right.
    pub fn is_compared(&self) -> bool {
        self.skew.lock().off_by_ms(self.wall_ms(), self.monotonic_ms()).is_some()
    }

    /// A new stamp above `above` and everything issued or seen. `None` where the reservation is used up, and where
    /// `above` is too far ahead of the wall to be honoured. Nothing changed then.
    pub fn stamp(&self, above: Hlc) -> Option<Hlc> {
        let wall_ms = self.wall_ms();
        if too_far_ahead(above, wall_ms, self.skew_max_ms).is_some() {
            return None;
        }
        let mut state = self.state.lock();
        let mut clock = state.hybrid;
        clock.observe(above);
        let stamp = clock.tick(wall_ms);
        if state.closed {
            return None;
        }
        if stamp > state.reserved {
            state.wanted = state.wanted.max(stamp);
            return None;
        }
        state.hybrid = clock;
        state.used = Some(Instant::now());
        Some(stamp)
    }

    /// As [`Self::stamp`], but waits for the reservation to grow. `None` where the store could not extend it, this
    /// clock must not be used ([`Self::skewed_by_ms`]), or `above` is too far ahead of the wall.
    pub async fn stamp_reserved(&self, above: Hlc) -> Option<Hlc> {
        if let Some(stamp) = self.stamp(above) {
            return Some(stamp);
        }
        let failures = self.state.lock().failures;
        loop {
            // Waits from here on: what is granted before it tries again wakes it too.
            let outcome = self.outcome.notified();
            if let Some(stamp) = self.stamp(above) {
                return Some(stamp);
            }
            if too_far_ahead(above, self.wall_ms(), self.skew_max_ms).is_some() || self.state.lock().closed {
                return None;
            }
            self.demand.notify_one();
            outcome.await;
            if self.state.lock().failures != failures {
                return None;
            }
        }
    }

    /// The driver: keeps the reservation ahead of the clock while stamps are issued. Runs for the node's life; a store
    /// that fails is tried again when the next stamp is wanted.
    pub async fn keep_reserved(self: Arc<Self>, store: Arc<dyn Store>) {
        let mut next_look = Instant::now();
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = self.demand.notified() => {}
                () = sleep_until(next_look) => next_look = Instant::now() + LOOK_EVERY,
            }
            let Some(until) = self.due() else { continue };
            if let Some(by_ms) = self.skewed_by_ms() {
                tracing::debug!(by_ms, "no stamps are reserved while the clock is off");
                self.refuse();
                continue;
            }
            match store.reserve_clock(until).await {
                Ok(()) => {
                    self.grant(until);
                    failing = false;
                }
                Err(error) => {
                    self.refuse();
                    complain(&error, &mut failing);
                }
            }
        }
    }

    /// Up to where to reserve now, if it is time to.
    fn due(&self) -> Option<Hlc> {
        let wall_ms = self.wall_ms();
        let state = self.state.lock();
        if state.closed {
            return None;
        }
        let ahead_ms = state.hybrid.now(wall_ms).max(state.wanted).ms() + RESERVE_BEYOND_MS;
        let target = Hlc::from_ms(ahead_ms.max(wall_ms + RESERVE_MS));
        let waited_for = state.wanted > state.reserved;
        let in_use = state.used.is_some_and(|at| at.elapsed() < IN_USE_FOR);
        let running_out = in_use && target.ms() >= state.reserved.ms() + EXTEND_AT_MS;
        (waited_for || running_out).then_some(target)
    }

    fn grant(&self, until: Hlc) {
        let mut state = self.state.lock();
        state.reserved = state.reserved.max(until);
        state.wanted = Hlc::ZERO;
        drop(state);
        self.outcome.notify_waiters();
    }

    fn refuse(&self) {
        let mut state = self.state.lock();
        state.used = None;
        state.wanted = Hlc::ZERO;
        state.failures += 1;
        drop(state);
        self.outcome.notify_waiters();
    }

    fn monotonic_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// Once per series of failures: every write that waits for a stamp would repeat it.
fn complain(error: &StoreError, failing: &mut bool) {
    if !*failing {
        tracing::warn!(%error, "the clock could not be reserved: this node coordinates no writes");
    }
    *failing = true;
}

impl fmt::Debug for NodeClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("NodeClock").field("hybrid", &state.hybrid).field("reserved", &state.reserved).finish()
    }
}

#[cfg(test)]
mod tests;
