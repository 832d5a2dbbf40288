//! Handoff: hints go to their home replicas as soon as those can be reached, and are forgotten once they are there.
//!
//! Invariants:
//! - A hint is forgotten only after its home replica answered that the record, or something newer, is on its disk, and
//!   only if it still holds the version that was delivered.
//! - Per target at most [`PAGES_UNDER_WAY`] pages are under way, so that handoff never crowds out clients.
//! - One hint that is refused does not keep the others from going.
//!
//! Delivering twice is harmless: a crash between an answer and the forgetting only repeats a write that is dominated.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::answers::Answers;
use super::clock::NodeClock;
use super::reach::{Ask, Reach};
use super::routing::Routing;
use crate::metrics;
use crate::ports::{
    Answer, Entropy, Hint, HintTotals, PeerError, Peers, Refusal, ReplicaCall, ReplicaReply, ReplicaRequest, Store,
    StoreError,
};
use crate::protocol::hints::Schedule;
use crate::types::NodeNum;

/// Hints read and sent together.
const PAGE: usize = 256;
/// While one page is being stored over there, the next is read here.
const PAGES_UNDER_WAY: usize = 2;
/// How long one delivery may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often the driver looks for hints, beside being woken by a node that comes back.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often hints that are too old are dropped.
const DROP_EVERY: Duration = Duration::from_secs(60);

/// How handoff is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// `HINT_WINDOW`: hints that count towards no level are dropped when they are older.
    pub hint_window: Duration,
}

/// The ports and shared parts handoff works with.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub peers: Arc<dyn Peers>,
    pub entropy: Arc<dyn Entropy>,
    pub reach: Arc<Reach>,
    pub routing: Arc<Routing>,
    pub clock: Arc<NodeClock>,
}

/// The driver.
pub struct Handoff {
    options: Options,
    parts: Parts,
    started: Instant,
    meters: Mutex<Meters>,
    delivered: Counter,
}

/// How one delivery ended.
#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    delivered: u64,
    /// Hints that were refused, each for a reason of its own.
    kept: u64,
    /// The target, or our store, takes no more.
    stopped: bool,
}

impl Ended {
    /// Whether the target said something about a hint, and would take more.
    fn answered(&self) -> bool {
        self.delivered + self.kept > 0 && !self.stopped
    }

    /// Whether to go on without a wait. A delivery that moved nothing waits, whatever the reason.
    fn ok(&self) -> bool {
        self.delivered > 0 && self.kept == 0 && !self.stopped
    }
}

type Running = FuturesUnordered<BoxFuture<'static, (NodeNum, Ended)>>;

impl Handoff {
    pub fn new(options: Options, parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            options,
            parts,
            started: Instant::now(),
            meters: Mutex::new(Meters::default()),
            delivered: metrics::counter(metrics::HINTS_DELIVERED, &[]),
        })
    }

    /// Runs for the node's life.
    pub async fn run(self: Arc<Self>) {
        let mut schedule = Schedule::default();
        let mut running = Running::new();
        let mut returns = self.parts.reach.returns();
        let mut next_drop = Instant::now() + DROP_EVERY;
        loop {
            self.look(&mut schedule, &mut running);
            let regular = Instant::now() + LOOK_EVERY;
            let look_at =
                schedule.next_ms().map_or(regular, |ms| regular.min(self.started + Duration::from_millis(ms)));
            tokio::select! {
                biased;
                Some((target, ended)) = running.next(), if !running.is_empty() => {
                    schedule.ended(target, ended.ok(), self.now_ms(), self.parts.entropy.u64());
                }
                // The sender lives in `reach`, which we hold.
                _ = returns.changed() => {}
                () = sleep_until(next_drop) => {
                    next_drop = Instant::now() + DROP_EVERY;
                    self.drop_old().await;
                }
                () = sleep_until(look_at) => {}
            }
        }
    }

    /// Starts what is due.
    fn look(self: &Arc<Self>, schedule: &mut Schedule, running: &mut Running) {
        let totals = self.parts.store.hint_totals();
        self.meters.lock().show(&totals, self.parts.clock.wall_ms());
        if self.parts.routing.ring().is_none() {
            return;
        }
        let mut probes = Vec::new();
        let mut owed = Vec::new();
        for (target, _) in totals.into_iter().filter(|(_, t)| t.count > 0) {
            let mut reachable = self.parts.reach.is_reachable(target);
            // A probe is taken only to be used: the target was out of reach, so it will be tried at once.
            if !reachable && !schedule.is_running(target) && self.parts.reach.ask(target) == Ask::Probe {
                probes.push(target);
                reachable = true;
            }
            owed.push((target, reachable));
        }
        for target in schedule.start(&owed, self.now_ms()) {
            let this = Arc::clone(self);
            let probe = probes.contains(&target);
            running.push(Box::pin(async move { (target, this.deliver(target, probe).await) }));
        }
    }

    /// Delivers all hints for one node, page after page.
    async fn deliver(&self, target: NodeNum, probe: bool) -> Ended {
        let mut ended = Ended::default();
        if probe {
            let sent_at = Instant::now();
            match self.pages(target, 1, 1, &mut ended).await {
                Ok(()) if ended.answered() => self.parts.reach.answered(target, sent_at.elapsed()),
                _ => return ended,
            }
        }
        if let Err(error) = self.pages(target, PAGE, usize::MAX, &mut ended).await {
            tracing::warn!(%target, %error, "hints could not be read or forgotten");
            ended.stopped = true;
        }
        if ended.delivered > 0 {
            self.delivered.increment(ended.delivered);
            tracing::debug!(target: "a3::events", "hints delivered to {target}: {}", ended.delivered);
        }
        ended
    }

    async fn pages(&self, target: NodeNum, size: usize, most: usize, ended: &mut Ended) -> Result<(), StoreError> {
        let mut under_way: VecDeque<SentPage> = VecDeque::new();
        let mut after = None;
        let mut left = most;
        loop {
            while left > 0 && !ended.stopped && under_way.len() < PAGES_UNDER_WAY {
                let page = self.parts.store.hints(target, after.clone(), size).await?;
                let Some(last) = page.last() else {
                    left = 0;
                    break;
                };
                after = Some((last.slot, last.key.clone()));
                left -= 1;
                under_way.push_back(self.send(target, page));
            }
            let Some(page) = under_way.pop_front() else { return Ok(()) };
            self.settle(page, ended).await?;
        }
    }

    fn send(&self, target: NodeNum, page: Vec<Hint>) -> SentPage {
        let answers = Answers::new();
        let epoch = self.parts.routing.epoch();
        let deadline = Some(Instant::now() + DEADLINE);
        for (tag, hint) in (0..).zip(&page) {
            let request = ReplicaRequest::Write { key: hint.key.clone(), record: hint.record.clone() };
            self.parts.peers.send(target, ReplicaCall { epoch, request, deadline }, answers.reply_to(tag));
        }
        SentPage { page, answers }
    }

    /// Waits for every answer to a page, then forgets what is delivered.
    async fn settle(&self, SentPage { page, answers }: SentPage, ended: &mut Ended) -> Result<(), StoreError> {
        let mut delivered = Vec::with_capacity(page.len());
        for _ in 0..page.len() {
            let (tag, answer) = answers.next().await;
            match fate(&answer) {
                Fate::Delivered => {
                    if let Some(hint) = usize::try_from(tag).ok().and_then(|tag| page.get(tag)) {
                        delivered.push((hint.target, hint.slot, hint.key.clone(), hint.record.version));
                    }
                }
                Fate::Kept => ended.kept += 1,
                Fate::Stop => ended.stopped = true,
            }
        }
        if !delivered.is_empty() {
            let count = delivered.len() as u64;
            self.parts.store.forget_hints(delivered).await?;
            ended.delivered += count;
        }
        Ok(())
    }

    /// Drops uncounted hints older than the window. Not while the clock is off: it would say that all are.
    async fn drop_old(&self) {
        if self.parts.clock.skewed_by_ms().is_some() {
            return;
        }
        let window_ms = u64::try_from(self.options.hint_window.as_millis()).unwrap_or(u64::MAX);
        let before_ms = self.parts.clock.wall_ms().saturating_sub(window_ms);
        match self.parts.store.drop_hints_before(before_ms).await {
            Ok(0) => {}
            Ok(dropped) => tracing::info!(dropped, "hints dropped: older than the hint window; anti-entropy repairs"),
            Err(error) => tracing::warn!(%error, "old hints could not be dropped"),
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

struct SentPage {
    page: Vec<Hint>,
    answers: Arc<Answers>,
}

/// What an answer means for the hint that was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its home replica has it, or something newer, or has purged it: forget it.
    Delivered,
    /// Not this one, not now; the others may still go.
    Kept,
    /// The target takes nothing at the moment.
    Stop,
}

fn fate(answer: &Answer) -> Fate {
    match answer {
        Ok(ReplicaReply::Stored { .. } | ReplicaReply::Dominated { .. } | ReplicaReply::BelowFloor { .. }) => {
            Fate::Delivered
        }
        // A home replica by our ring that says it is none has another ring: a newer epoch is on its way.
        Ok(ReplicaReply::Refused(
            Refusal::ClockSkew { .. }
            | Refusal::Damaged
            | Refusal::TooLarge { .. }
            | Refusal::Corrupt
            | Refusal::NotMember,
        ))
        | Err(PeerError::Protocol(_) | PeerError::Refused(_)) => Fate::Kept,
        Ok(_) | Err(_) => Fate::Stop,
    }
}

/// The gauges, by target once there was a hint for it.
#[derive(Default)]
struct Meters {
    targets: BTreeMap<NodeNum, (Gauge, Gauge)>,
    common: Option<(Gauge, Counter)>,
}

impl Meters {
    fn show(&mut self, totals: &[(NodeNum, HintTotals)], wall_ms: u64) {
        for (target, _) in totals {
            self.targets.entry(*target).or_insert_with(|| {
                let name = target.to_string();
                let label = [("target", name.as_str())];
                (metrics::gauge(metrics::HINTS_PENDING, &label), metrics::gauge(metrics::HINTS_BYTES, &label))
            });
        }
        for (target, (pending, bytes)) in &self.targets {
            let of_target = totals.iter().find(|(t, _)| t == target).map_or_else(HintTotals::default, |(_, t)| *t);
            pending.set(of_target.count as f64);
            bytes.set(of_target.bytes as f64);
        }
        let (oldest_age, dropped) = self.common.get_or_insert_with(|| {
            (metrics::gauge(metrics::HINTS_OLDEST, &[]), metrics::counter(metrics::HINTS_DROPPED, &[]))
        });
        let oldest_ms = totals.iter().filter(|(_, t)| t.count > 0).map(|(_, t)| t.oldest_ms).min();
        oldest_age.set(oldest_ms.map_or(0.0, |ms| wall_ms.saturating_sub(ms) as f64 / 1000.0));
        dropped.absolute(totals.iter().map(|(_, t)| t.dropped).sum());
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff").field("options", &self.options).finish_non_exhaustive()
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fakes::{FakeClock, FakeEntropy, FakePeers, FakeStore, topology};
    use crate::node::views::Liveness;
    use crate::types::{Content, Hlc, Key, Record, Slot, Version, Writer};

    const ME: NodeNum = NodeNum(1);
    const TARGET: NodeNum = NodeNum(2);
    const WALL: u64 = 1_700_000_000_000;

    struct World {
        store: Arc<FakeStore>,
        peers: Arc<FakePeers>,
        /// The target's disk.
        theirs: Arc<FakeStore>,
        reach: Arc<Reach>,
    }

    impl World {
        /// A node whose handoff runs, and a target that takes everything.
        fn start() -> Self {
            let (store, peers, theirs) = (FakeStore::new(), FakePeers::new(), FakeStore::new());
            let reach = Reach::new(Arc::clone(&peers) as Arc<dyn Peers>, ME);
            let routing = Arc::new(Routing::default());
            routing.install(topology(1, 3, 2));
            let parts = Parts {
                store: Arc::clone(&store) as Arc<dyn Store>,
                peers: Arc::clone(&peers) as Arc<dyn Peers>,
                entropy: Arc::new(FakeEntropy::default()),
                reach: Arc::clone(&reach),
                routing,
                clock: NodeClock::new(FakeClock::at(WALL), Duration::from_secs(300), Hlc::ZERO),
            };
            let handoff = Handoff::new(Options { hint_window: Duration::from_secs(3 * 3600) }, parts);
            #[expect(clippy::disallowed_methods, reason = "a test is its own node")]
            tokio::spawn(handoff.run());
            let world = Self { store, peers, theirs, reach };
            world.target_takes_all();
            world
        }

        fn target_takes_all(&self) {
            let theirs = Arc::clone(&self.theirs);
            self.peers.set(TARGET, move |call| Ok(take(&theirs, call.request)));
        }

        fn keep(&self, count: u32) {
            (0..count).for_each(|n| self.store.put_hint(hint(&format!("k{n}"), 1)));
        }

        /// How long it takes in virtual time until that many hints are left.
        async fn left(&self, count: usize) -> Duration {
            let start = Instant::now();
            while self.store.hint_count() != count {
                assert!(start.elapsed() < Duration::from_secs(120), "{} hints left", self.store.hint_count());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            start.elapsed()
        }
    }

    fn take(disk: &FakeStore, request: ReplicaRequest) -> ReplicaReply {
        disk.apply(request.key().token(Default::default()), request)
    }

    fn hint(name: &str, hlc: u64) -> Hint {
        let key = Key::new(name.to_owned()).unwrap();
        let record = Record::seal(&key, Version::plain(Hlc(hlc), Writer(1)), Hlc(hlc), Content::value("v"));
        let slot = Slot(name.len() as u8);
        Hint { target: TARGET, slot, key, record, counted: false, kept_at_ms: WALL }
    }

    #[tokio::test(start_paused = true)]
    async fn all_hints_are_delivered_once_and_forgotten() {
        let world = World::start();
        world.keep(1_000);
        assert!(world.left(0).await <= LOOK_EVERY + Duration::from_millis(10));
        assert_eq!(world.peers.sent(), 1_000);
        assert!(world.theirs.record(&Key::new("k999").unwrap()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_is_down_is_left_alone_and_tried_as_soon_as_it_is_back() {
        let world = World::start();
        world.reach.gossip(TARGET, Liveness::Down);
        world.keep(10);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(world.peers.sent(), 0);
        world.reach.gossip(TARGET, Liveness::Alive);
        assert!(world.left(0).await <= Duration::from_millis(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_hangs_is_probed_with_one_hint() {
        let world = World::start();
        for _ in 0..3 {
            world.reach.hung(TARGET);
            tokio::time::sleep(world.reach.patience(TARGET)).await;
        }
        world.peers.set(TARGET, |_| Err(PeerError::TimedOut));
        world.keep(300);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!((3..=6).contains(&world.peers.sent()), "{} sent", world.peers.sent());
        world.target_takes_all();
        assert!(world.left(0).await <= Duration::from_secs(2));
        assert!(world.reach.is_reachable(TARGET));
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_fails_is_tried_less_and_less_and_loses_nothing() {
        let world = World::start();
        world.peers.set(TARGET, |_| Ok(ReplicaReply::Refused(Refusal::DiskFull)));
        world.keep(1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!((7..=14).contains(&world.peers.sent()), "{} sent", world.peers.sent());
        assert_eq!(world.store.hint_count(), 1);
        world.target_takes_all();
        assert!(world.left(0).await <= Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn one_refused_hint_does_not_keep_the_others() {
        let world = World::start();
        let theirs = Arc::clone(&world.theirs);
        world.peers.set(TARGET, move |call| match call.request.key().as_bytes() {
            b"k7" => Ok(ReplicaReply::Refused(Refusal::Corrupt)),
            _ => Ok(take(&theirs, call.request)),
        });
        world.keep(600);
        assert!(world.left(1).await <= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_hint_kept_meanwhile_is_delivered_too() {
        let world = World::start();
        let (ours, theirs) = (Arc::clone(&world.store), Arc::clone(&world.theirs));
        world.peers.set(TARGET, move |call| {
            let first = matches!(&call.request, ReplicaRequest::Write { record, .. } if record.version.hlc == Hlc(1));
            if first {
                ours.put_hint(hint("k0", 2));
            }
            Ok(take(&theirs, call.request))
        });
        world.keep(1);
        world.left(0).await;
        assert_eq!(world.theirs.record(&Key::new("k0").unwrap()).unwrap().version.hlc, Hlc(2));
    }

    #[tokio::test(start_paused = true)]
    async fn uncounted_hints_are_dropped_when_they_are_too_old_and_counted_ones_stay() {
        let world = World::start();
        world.reach.gossip(TARGET, Liveness::Down);
        let old = WALL - 3 * 3_600_000 - 1;
        world.store.put_hint(Hint { kept_at_ms: old, ..hint("a", 1) });
        world.store.put_hint(Hint { kept_at_ms: old, counted: true, ..hint("b", 1) });
        world.store.put_hint(hint("c", 1));
        assert!(world.left(2).await <= DROP_EVERY + Duration::from_millis(5));
        tokio::time::sleep(2 * DROP_EVERY).await;
        assert_eq!(world.store.hint_count(), 2);
    }

    #[test]
    fn only_what_is_on_the_home_replicas_disk_is_forgotten() {
        let stop = [PeerError::Lost, PeerError::TimedOut, PeerError::Unreachable, PeerError::Overloaded];
        assert!(stop.into_iter().all(|e| fate(&Err(e)) == Fate::Stop));
        assert_eq!(fate(&Ok(ReplicaReply::Stored { replaced: None })), Fate::Delivered);
        assert_eq!(fate(&Ok(ReplicaReply::Hinted)), Fate::Stop);
        assert_eq!(fate(&Ok(ReplicaReply::Refused(Refusal::DiskFull))), Fate::Stop);
        assert_eq!(fate(&Ok(ReplicaReply::Refused(Refusal::Corrupt))), Fate::Kept);
    }
}
