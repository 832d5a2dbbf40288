//! Purging tombstones: the driver of `protocol::purge`. It asks the home replicas, step by step, and begins again where a step
//! fails; what each replica does is in `answer`.
//!
//! Invariants:
//! - This node raises floors only of slots it is the lowest-numbered home replica of, one attempt at a time, all of it under
//!   one epoch.
//! - A step is taken for a slot only once every home replica of it has done the one before, on disk; that there are no hints,
//!   every member must have said.
//! - What is dropped is dropped everywhere up to the same time, which is chosen once. A replica that was not told is told
//!   again, so that copies do not differ for long.
//!
//! Caveat: a raiser that starts anew forgets what it had still to be dropped; the next floor, which any tombstone brings about,
//! drops it.

mod answer;
mod attempt;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::Mutex as TurnLock;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::anti_entropy::AntiEntropy;
use super::conditional::Conditional;
use super::parts::Parts;
use super::replica::Replica;
use crate::metrics;
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest};
use crate::protocol::purge::Complete;
use crate::protocol::ring::Ring;
use crate::types::{Epoch, NodeNum, PurgeReply, PurgeStatus, PurgeStep, Slot, SlotDrop};

/// How often floors are looked after, at least and at most; between them an eighth of `GC_GRACE`.
const LOOK_EVERY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(600)];
/// How long a replica may take for a step.
const ASK_DEADLINE: Duration = Duration::from_secs(20);
/// A look is taken so long after a member came back that was waited for: handoff goes first.
const AFTER_RETURN: Duration = Duration::from_secs(10);
/// Why a member is waited for that this node does not reach.
const UNREACHABLE: &str = "unreachable";
/// How long a member is waited for when a person asks how purging stands.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);

/// How often each node came back.
type Returns = watch::Receiver<BTreeMap<NodeNum, u64>>;

/// How purging is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `GC_GRACE`: tombstones are kept at least so long.
    pub grace: Duration,
    /// `CLOCK_SKEW_MAX`
    pub clock_skew_max: Duration,
}

impl Options {
    fn grace_ms(&self) -> u64 {
        u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX)
    }

    fn look_every(&self) -> Duration {
        let [least, most] = LOOK_EVERY;
        (self.grace / 8).clamp(least, most)
    }
}

/// The driver.
pub struct Purge {
    options: Options,
    parts: Parts,
    replica: Arc<Replica>,
    conditional: Arc<Conditional>,
    anti_entropy: Arc<AntiEntropy>,
    turn: TurnLock<()>,
    complete: Mutex<Complete>,
    /// What has to be dropped by replicas that were not heard to have done so, and under which epoch.
    owed: Mutex<(Epoch, BTreeMap<Slot, SlotDrop>)>,
    status: Mutex<PurgeStatus>,
    meters: Meters,
}

impl Purge {
    pub fn new(
        options: Options,
        parts: Parts,
        replica: &Arc<Replica>,
        conditional: &Arc<Conditional>,
        anti_entropy: &Arc<AntiEntropy>,
    ) -> Arc<Self> {
        Arc::new(Self {
            options,
            parts,
            replica: Arc::clone(replica),
            conditional: Arc::clone(conditional),
            anti_entropy: Arc::clone(anti_entropy),
            turn: TurnLock::new(()),
            complete: Mutex::default(),
            owed: Mutex::default(),
            status: Mutex::default(),
            meters: Meters::new(),
        })
    }

    /// Runs for the node's life.
    pub async fn run(self: Arc<Self>) {
        let mut returns = self.parts.reach.returns();
        loop {
            let every_ms = self.options.look_every().as_millis() as u64;
            let jitter = self.parts.entropy.below(every_ms * 2 / 5);
            let next = Instant::now() + Duration::from_millis(every_ms * 4 / 5 + jitter);
            tokio::select! {
                biased;
                () = sleep_until(next) => {}
                () = self.returned(&mut returns) => sleep_until(next.min(Instant::now() + AFTER_RETURN)).await,
            }
            self.look().await;
        }
    }

    /// Waits until a member that could not be reached can be.
    async fn returned(&self, returns: &mut Returns) {
        loop {
            if returns.changed().await.is_err() {
                // The sender lives in `reach`, which we hold.
                std::future::pending::<()>().await;
            }
            let status = self.status.lock();
            if status.waiting_for.iter().any(|(node, why)| why == UNREACHABLE && self.parts.reach.is_reachable(*node)) {
                return;
            }
        }
    }

    /// One attempt, as far as it comes.
    async fn look(&self) {
        let _turn = self.turn.lock().await;
        let waiting_for = match (self.unfit(), self.parts.routing.ring()) {
            (_, None) => return,
            (unfit, Some(ring)) => match unfit.or_else(|| moving(&ring)) {
                Some(_) if self.parts.store.totals().tombstones == 0 => BTreeMap::new(),
                Some(why) => BTreeMap::from([(self.parts.me, why)]),
                None => self.attempt(ring).await,
            },
        };
        for (node, why) in &waiting_for {
            tracing::debug!(target: "a3::events", "tombstones wait for {node}: {why}");
        }
        self.meters.waiting.set(waiting_for.len() as f64);
        self.status.lock().waiting_for = waiting_for.into_iter().collect();
    }

    /// Why this node can raise nothing now.
    fn unfit(&self) -> Option<String> {
        if self.parts.clock.skewed_by_ms().is_some() {
            // It would seal what is still to come.
            return Some("its clock is off".to_owned());
        }
        self.parts.routing.is_rebuilding().then(|| "it is being rebuilt".to_owned())
    }

    /// How purging stands here. The last look may be a while ago: who can be reached by now is not named as out of reach.
    fn status(&self) -> PurgeStatus {
        let mut status = self.status.lock().clone();
        status.tombstones = self.parts.store.totals().tombstones;
        status.waiting_for.retain(|(node, why)| why != UNREACHABLE || !self.parts.reach.is_reachable(*node));
        status
    }

    /// How purging stands at every member that answers, and why the others do not.
    pub async fn statuses(&self) -> Option<Vec<(NodeNum, Result<PurgeStatus, String>)>> {
        let ring = self.parts.routing.ring()?;
        let mut all = Vec::new();
        let members = ring.topology().members.iter().map(|m| m.node);
        let asked = members.map(|node| async move {
            (node, self.ask(node, self.parts.routing.epoch(), PurgeStep::Status, STATUS_DEADLINE).await)
        });
        for (node, said) in futures_util::future::join_all(asked).await {
            all.push((
                node,
                match said {
                    Ok(PurgeReply::Status(status)) => Ok(status),
                    Ok(_) => Err("an answer of the wrong kind".to_owned()),
                    Err(why) => Err(why),
                },
            ));
        }
        Some(all)
    }

    /// Asks a replica, this node too.
    async fn ask(
        &self,
        node: NodeNum,
        epoch: Epoch,
        step: PurgeStep,
        patience: Duration,
    ) -> Result<PurgeReply, String> {
        let reply = if node == self.parts.me {
            self.answer(self.parts.me, epoch, step).await
        } else if !self.parts.reach.is_reachable(node) {
            return Err(UNREACHABLE.to_owned());
        } else {
            let deadline = Instant::now() + patience;
            let request = PeerRequest::Purge { epoch, step };
            self.parts.peers.ask(Destination::Member(node), request, deadline).await
        };
        match reply {
            Ok(PeerReply::Purge(PurgeReply::WrongEpoch { epoch: theirs })) => Err(format!("holds epoch {theirs}")),
            Ok(PeerReply::Purge(reply)) => Ok(reply),
            Ok(_) => Err("an answer of the wrong kind".to_owned()),
            Err(PeerError::Unreachable) => Err(UNREACHABLE.to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Why nothing can be raised under that topology.
fn moving(ring: &Ring) -> Option<String> {
    let moving = ring.topology().moving.as_ref()?;
    Some(format!("the topology is changing: {}", moving.change))
}

impl fmt::Debug for Purge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Purge").field("options", &self.options).finish_non_exhaustive()
    }
}

struct Meters {
    purged: Counter,
    registers: Counter,
    oldest: Gauge,
    raised: Gauge,
    waiting: Gauge,
}

impl Meters {
    fn new() -> Self {
        Self {
            purged: metrics::counter(metrics::PURGED, &[]),
            registers: metrics::counter(metrics::PURGED_REGISTERS, &[]),
            oldest: metrics::gauge(metrics::TOMBSTONES_OLDEST, &[]),
            raised: metrics::gauge(metrics::FLOOR_LAST, &[]),
            waiting: metrics::gauge(metrics::TOMBSTONES_WAITING, &[]),
        }
    }
}
