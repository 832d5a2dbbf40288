//! Handoff: hints go to their home replicas as soon as those can be reached, and are forgotten once they are there.
//!
//! Where the target of a hint is no home replica any more, or this node leaves and cannot reach it, the hint goes *around* it, to
//! the home replicas of the slot (`protocol::hints`).
//!
//! Invariants:
//! - A hint is forgotten only after its home replica, or around it a majority of every write set, answered that the record, or
//!   something newer, is on disk, and only if it still holds the version that was delivered.
//! - Per target at most [`PAGES_UNDER_WAY`] pages are under way, so that handoff never crowds out clients.
//! - One hint that is refused does not keep the others from going.
//!
//! Delivering twice is harmless: a crash between an answer and the forgetting only repeats a write that is dominated.

mod delivery;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::parts::Parts;
use super::reach::Ask;
use super::views::EventKind;
use crate::metrics;
use crate::ports::{Answer, HintTotals, PeerError, Refusal, ReplicaReply};
use crate::protocol::hints::{Schedule, Way};
use crate::protocol::ring::Ring;
use crate::types::{Epoch, NodeNum};

use delivery::{Delivery, Ended};

/// Hints read and sent together.
const PAGE: usize = 256;
/// While one page is being stored over there, the next is read here.
const PAGES_UNDER_WAY: usize = 2;
/// How long one delivery may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often the driver looks for hints, beside being woken by a node that comes back.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often the hints of a target that is out of reach are looked through for those that go around it; and once in each epoch.
const AROUND_EVERY: Duration = Duration::from_secs(600);
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

/// A delivery to be made.
struct Trip {
    target: NodeNum,
    /// The target is tried with one hint first.
    probe: bool,
    way: Way,
}

/// When all hints of a target had gone around it that could, in the epoch in force.
#[derive(Default)]
struct Swept {
    epoch: Epoch,
    targets: BTreeMap<NodeNum, Instant>,
}

type Running = FuturesUnordered<BoxFuture<'static, (NodeNum, Epoch, Ended)>>;

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
        let (mut running, mut swept) = (Running::new(), Swept::default());
        let mut returns = self.parts.reach.returns();
        let mut next_drop = Instant::now() + DROP_EVERY;
        loop {
            self.look(&mut schedule, &mut running, &mut swept);
            let regular = Instant::now() + LOOK_EVERY;
            // Without a ring nothing is started, however long it is due.
            let next_ms = schedule.next_ms().filter(|_| self.parts.routing.ring().is_some());
            let look_at = next_ms.map_or(regular, |ms| regular.min(self.started + Duration::from_millis(ms)));
            tokio::select! {
                biased;
                Some((target, epoch, ended)) = running.next(), if !running.is_empty() => {
                    if ended.is_clean() && epoch == swept.epoch {
                        swept.targets.insert(target, Instant::now());
                    }
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
    fn look(self: &Arc<Self>, schedule: &mut Schedule, running: &mut Running, swept: &mut Swept) {
        let totals = self.parts.store.hint_totals();
        self.meters.lock().show(&totals, self.parts.clock.wall_ms());
        let Some(ring) = self.parts.routing.ring() else { return };
        let now = Instant::now();
        swept.targets.retain(|_, at| now < *at + AROUND_EVERY);
        if swept.epoch != ring.epoch() {
            *swept = Swept { epoch: ring.epoch(), targets: BTreeMap::new() };
            schedule.afresh();
        }
        let leaving = ring.topology().leaver() == Some(self.parts.me);
        let mut probes = Vec::new();
        let mut owed = Vec::new();
        for (target, _) in totals.into_iter().filter(|(_, t)| t.count > 0) {
            let is_member = ring.topology().member(target).is_some();
            let mut straight = is_member && self.parts.reach.is_reachable(target);
            // A probe is taken only to be used: the target was out of reach, so it will be tried at once.
            if is_member && !straight && !schedule.is_running(target) && self.parts.reach.ask(target) == Ask::Probe {
                probes.push(target);
                straight = true;
            }
            let way = match straight {
                true => Way::Straight,
                false if leaving || !is_member || !swept.targets.contains_key(&target) => Way::Around,
                false => Way::Shut,
            };
            owed.push((target, way));
        }
        for target in schedule.start(&owed, self.now_ms()) {
            let way = owed.iter().find(|(node, _)| *node == target).map_or(Way::Shut, |(_, way)| *way);
            let trip = Trip { target, probe: probes.contains(&target), way };
            let (this, ring) = (Arc::clone(self), Arc::clone(&ring));
            running.push(Box::pin(async move { (target, ring.epoch(), this.deliver(trip, ring).await) }));
        }
    }

    /// Delivers all hints of one target that can go, page after page.
    async fn deliver(&self, Trip { target, probe, way }: Trip, ring: Arc<Ring>) -> Ended {
        let mut delivery = Delivery::new(&self.parts, ring, target, way == Way::Straight);
        if probe {
            let sent_at = Instant::now();
            match delivery.pages(1, 1).await {
                Ok(()) if delivery.ended.answered() => self.parts.reach.answered(target, sent_at.elapsed()),
                // What goes around it was not looked at.
                _ => return Ended { barred: true, ..delivery.ended },
            }
        }
        delivery.around = true;
        if let Err(error) = delivery.pages(PAGE, usize::MAX).await {
            tracing::warn!(%target, %error, "hints could not be read or forgotten");
            delivery.ended.stopped = true;
        }
        let ended = delivery.ended;
        self.delivered.increment(ended.delivered + ended.around);
        if ended.delivered > 0 {
            tracing::debug!(target: "a3::events", "{} hints delivered to {target}", ended.delivered);
            self.note(format!("delivered {} to {target}", hints(ended.delivered)));
        }
        if ended.around > 0 {
            tracing::debug!(target: "a3::events", "{} hints for {target} delivered to home replicas", ended.around);
            self.note(format!(
                "delivered {} kept for {target} to the home replicas of their keys",
                hints(ended.around)
            ));
        }
        ended
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

/// What an answer means for the hint that was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The replica has it, or something newer, or has purged it.
    Delivered,
    /// Not this one, not now; the others may still go.
    Kept,
    /// The replica takes nothing at the moment.
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
