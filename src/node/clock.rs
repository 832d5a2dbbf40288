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
//! The reservation grows on use: an idle node does not write. It reaches 10 s ahead of the wall; where the clock runs
//! ahead of the wall already, it reaches only 1 s further, so that a node restarted over and over does not run away
//! from its peers.
//!
//! Caveat: [`NodeClock::now`] goes back with a wall clock that is set back, to the last stamp issued or seen.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::metrics;
use crate::ports::{Clock, Store, StoreError};
use crate::protocol::replica::too_far_ahead;
use crate::protocol::skew::Skew;
use crate::types::{Hlc, HybridClock, NodeNum};

/// The reservation reaches this far ahead of the wall clock, in milliseconds.
const RESERVE_MS: u64 = 10_000;
/// And at least this far ahead of the hybrid clock.
const RESERVE_BEYOND_MS: u64 = 1_000;
/// In use, it is extended when it could grow by this much: when 7 s are left.
const EXTEND_AT_MS: u64 = 3_000;
/// How often the driver looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Shared by everything in the node that reads or moves the clock.
pub struct NodeClock {
    wall: Arc<dyn Clock>,
    skew_max_ms: u64,
    started: Instant,
    state: Mutex<State>,
    skew: Mutex<Skew>,
    skew_seconds: Gauge,
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
    /// Whether a stamp was issued since the reservation last grew.
    used: bool,
    /// The greatest stamp that had to wait.
    wanted: Hlc,
    /// How many of the driver's attempts failed.
    failures: u64,
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
                used: false,
                wanted: Hlc::ZERO,
                failures: 0,
            }),
            skew: Mutex::new(Skew::new(skew_max_ms)),
            skew_seconds: metrics::gauge(metrics::CLOCK_SKEW, &[]),
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
        if stamp > state.reserved {
            state.wanted = state.wanted.max(stamp);
            return None;
        }
        state.hybrid = clock;
        state.used = true;
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
            if too_far_ahead(above, self.wall_ms(), self.skew_max_ms).is_some() {
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
        let ahead_ms = state.hybrid.now(wall_ms).max(state.wanted).ms() + RESERVE_BEYOND_MS;
        let target = Hlc::from_ms(ahead_ms.max(wall_ms + RESERVE_MS));
        let waited_for = state.wanted > state.reserved;
        let running_out = state.used && target.ms() >= state.reserved.ms() + EXTEND_AT_MS;
        (waited_for || running_out).then_some(target)
    }

    fn grant(&self, until: Hlc) {
        let mut state = self.state.lock();
        state.reserved = state.reserved.max(until);
        state.used = false;
        state.wanted = Hlc::ZERO;
        drop(state);
        self.outcome.notify_waiters();
    }

    fn refuse(&self) {
        let mut state = self.state.lock();
        state.used = false;
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
mod tests {
    use super::*;
    use crate::node::fakes::{FakeClock, FakeStore};
    use tokio::task::JoinHandle;

    const WALL: u64 = 1_700_000_000_000;
    const MAX: Duration = Duration::from_secs(300);

    struct World {
        wall: Arc<FakeClock>,
        store: Arc<FakeStore>,
    }

    impl World {
        fn new() -> Self {
            Self { wall: FakeClock::at(WALL), store: FakeStore::new() }
        }

        /// A node's life, from the reservation it finds on disk.
        async fn start(&self) -> (Arc<NodeClock>, JoinHandle<()>) {
            let reserved = self.store.clock_reservation().await.unwrap();
            let clock = NodeClock::new(Arc::clone(&self.wall) as Arc<dyn Clock>, MAX, reserved);
            let driver = Arc::clone(&clock).keep_reserved(Arc::clone(&self.store) as Arc<dyn Store>);
            #[expect(clippy::disallowed_methods, reason = "a test is its own node")]
            let driver = tokio::spawn(driver);
            (clock, driver)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_stamp_is_issued_twice_through_crashes_and_clocks_set_back() {
        let world = World::new();
        let mut last = Hlc::ZERO;
        for life in 0..6 {
            let (clock, driver) = world.start().await;
            assert_eq!(clock.stamp(Hlc::ZERO), None, "nothing is reserved yet");
            for _ in 0..50 {
                let stamp = clock.stamp_reserved(Hlc::ZERO).await.unwrap();
                assert!(stamp > last, "life {life}: {stamp:?} after {last:?}");
                assert!(stamp <= world.store.clock_reservation().await.unwrap(), "on disk before use");
                last = stamp;
                tokio::time::sleep(Duration::from_millis(300)).await;
                world.wall.advance(300);
            }
            driver.abort();
            world.wall.set(if life % 2 == 0 { WALL - 60_000 } else { WALL + 60_000 });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn in_use_no_stamp_waits_and_an_idle_node_does_not_write() {
        let world = World::new();
        let (clock, _driver) = world.start().await;
        assert!(clock.stamp_reserved(Hlc::ZERO).await.is_some());
        let writes = world.store.reservations();
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            world.wall.advance(100);
            assert!(clock.stamp(Hlc::ZERO).is_some());
        }
        let in_use = world.store.reservations() - writes;
        assert!((5..=11).contains(&in_use), "{in_use} in 30 s");
        let writes = world.store.reservations();
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.wall.advance(1_000);
        }
        assert!(world.store.reservations() - writes <= 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_seen_far_ahead_is_outbid_after_a_wait_and_an_absurd_one_ignored() {
        let world = World::new();
        let (clock, _driver) = world.start().await;
        clock.stamp_reserved(Hlc::ZERO).await.unwrap();
        let ahead = Hlc::from_ms(WALL + 299_000);
        clock.observe(ahead);
        assert_eq!(clock.stamp(Hlc::ZERO), None, "beyond the reservation");
        assert!(clock.stamp_reserved(Hlc::ZERO).await.unwrap() > ahead);
        clock.observe(Hlc::from_ms(WALL + 301_000));
        assert!(clock.now() < Hlc::from_ms(WALL + 300_000));
        assert_eq!(clock.stamp_reserved(Hlc::from_ms(WALL + 301_000)).await, None);
        assert_eq!(clock.skewed_by_ms(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_are_served_in_the_order_they_came() {
        let world = World::new();
        let (clock, _driver) = world.start().await;
        let waiting = (0..40).map(|_| clock.stamp_reserved(Hlc::ZERO));
        let mut served: futures_util::stream::FuturesUnordered<_> = waiting.collect();
        let mut last = Hlc::ZERO;
        while let Some(stamp) = futures_util::StreamExt::next(&mut served).await {
            assert!(stamp > Some(last), "{stamp:?} after {last:?}");
            last = stamp.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_ends_the_wait_and_is_tried_again() {
        let world = World::new();
        let (clock, _driver) = world.start().await;
        world.store.fail_with(Some(StoreError::DiskFull));
        for _ in 0..2 {
            let waited = tokio::time::timeout(Duration::from_secs(5), clock.stamp_reserved(Hlc::ZERO)).await;
            assert_eq!(waited, Ok(None));
        }
        world.store.fail_with(None);
        assert!(clock.stamp_reserved(Hlc::ZERO).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_an_hour_ahead_reserves_nothing_and_leaves_no_trace() {
        let world = World::new();
        world.wall.set(WALL + 3_600_000);
        let (clock, _driver) = world.start().await;
        assert!(!clock.is_compared());
        clock.heard(NodeNum(2), WALL);
        clock.heard(NodeNum(3), WALL + 20);
        assert!(clock.is_compared());
        assert_eq!(clock.skewed_by_ms(), Some(3_600_000 - 20));
        assert_eq!(clock.stamp_reserved(Hlc::ZERO).await, None);
        world.wall.set(WALL);
        assert_eq!(clock.skewed_by_ms(), None);
        let stamp = clock.stamp_reserved(Hlc::ZERO).await.unwrap();
        assert!(stamp.ms() < WALL + 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stamped_an_hour_ahead_says_so_after_the_clock_is_set_right() {
        let world = World::new();
        world.wall.set(WALL + 3_600_000);
        let (clock, _driver) = world.start().await;
        clock.stamp_reserved(Hlc::ZERO).await.unwrap();
        world.wall.set(WALL);
        assert!(clock.skewed_by_ms().is_some_and(|by| by >= 3_600_000));
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_in_quick_succession_do_not_run_away() {
        let world = World::new();
        for _ in 0..30 {
            let (clock, driver) = world.start().await;
            clock.stamp_reserved(Hlc::ZERO).await.unwrap();
            driver.abort();
        }
        assert!(world.store.clock_reservation().await.unwrap().ms() <= WALL + 10_000 + 30 * 1_001);
    }
}
