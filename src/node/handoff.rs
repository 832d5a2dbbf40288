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
use super::parts::Parts;
use super::reach::Ask;
use super::views::EventKind;
use crate::metrics;
use crate::ports::{
    Answer, Hint, HintTotals, PeerError, Refusal, ReplicaCall, ReplicaReply, ReplicaRequest, StoreError,
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
            tracing::debug!(target: "a3::events", "{} hints delivered to {target}", ended.delivered);
            self.note(format!("delivered {} to {target}", hints(ended.delivered)));
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
            let call = ReplicaCall { epoch, request, deadline, behind: true, trace: None };
            self.parts.peers.send(target, call, answers.reply_to(tag));
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
            Ok(dropped) => {
                tracing::info!(dropped, "hints dropped: older than the hint window; reads repair what they find");
                self.note(format!("dropped {} undelivered: older than the hint window", hints(dropped)));
            }
            Err(error) => tracing::warn!(%error, "old hints could not be dropped"),
        }
    }

    fn note(&self, text: String) {
        self.parts.journal.note(self.parts.me, EventKind::Hints, text);
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// So many hints, in words.
fn hints(count: u64) -> String {
    format!("{count} hint{}", if count == 1 { "" } else { "s" })
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
    oldest_age: Option<Gauge>,
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
        let oldest_age = self.oldest_age.get_or_insert_with(|| metrics::gauge(metrics::HINTS_OLDEST, &[]));
        let oldest_ms = totals.iter().filter(|(_, t)| t.count > 0).map(|(_, t)| t.oldest_ms).min();
        oldest_age.set(oldest_ms.map_or(0.0, |ms| wall_ms.saturating_sub(ms) as f64 / 1000.0));
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
