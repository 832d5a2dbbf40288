//! Anti-entropy: replicas compare what they hold and give each other what is newer, so that copies become equal whatever was
//! lost on the way: hints that were dropped, writes at `one`, a disk that came back from a backup.
//!
//! Every [`Options::interval`], with jitter, this node holds a *round* with each peer of a higher number that it shares slots
//! with; so each pair holds one. A moment after a peer came back it holds one with that peer. A round descends the hash trees
//! ([`crate::protocol::hashtree`]), exchanges lists of the leaves that differ, and moves the records. It goes on until
//! everything it saw at its start is settled, lot by lot, and rests in between while clients are served ([`pace`]).
//!
//! Invariants:
//! - One round at a time changes anything; those that only look ([`Look`]) may run beside it, a few at a time.
//! - What is moved is an ordinary `Write`, judged by the replica's rule wherever it arrives.
//! - A round begun under one epoch ends with it: the other side refuses what comes under another.
//! - A slot that moves is left out: its new replicas catch up by another way, and it is compared again when the change ended.

mod answer;
mod exchange;
mod fate;
mod memory;
mod round;
mod scrub;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use futures_util::stream::{self, StreamExt};
use tokio::sync::{Mutex as TurnLock, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::operations::Progress;
use super::parts::Parts;
use super::views::{ConvergenceView, EventKind};
use crate::metrics;
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest, Spawn, StoreError};
use crate::protocol::hashtree;
use crate::protocol::ring::Ring;
use crate::types::limits::{NAMES_BYTES_MAX, NAMES_MAX};
use crate::types::{Convergence, Epoch, Key, Look, NodeNum};

use memory::Memory;
use round::Task;

/// How long after a peer came back a round is held with it, at least and at most: handoff goes first, and not all of its
/// peers send it the same at once.
const AFTER_RETURN: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(15)];
/// How long a comparison may take, here or at a peer.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);
/// The same where it looks at every key.
const LOOK_KEYS_PATIENCE: Duration = Duration::from_secs(300);
/// Pairs asked at a time for how they agree.
const PAIRS_AT_ONCE: usize = 4;
/// Comparisons that others asked for, at a time.
const LOOKS_AT_ONCE: usize = 4;

/// How anti-entropy is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// `ANTI_ENTROPY_INTERVAL`: from one round to the next, give or take a fifth.
    pub interval: Duration,
}

/// Why a round, or a comparison, ended early. What it did stays done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    #[error("{0}")]
    Peer(#[from] PeerError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the peer holds epoch {theirs}, this node {ours}")]
    OtherEpoch { ours: Epoch, theirs: Epoch },
    #[error("a replica took no more: {0}")]
    Refused(String),
    #[error("aborted")]
    Aborted,
    #[error("the node has no cluster yet")]
    NoCluster,
    #[error("this node is being rebuilt")]
    Rebuilding,
}

/// The driver.
pub struct AntiEntropy {
    options: Options,
    parts: Parts,
    /// Whoever changes something holds it.
    turn: TurnLock<()>,
    looks: Semaphore,
    /// When the last scrub ended; 0 before that.
    scrubbed_ms: AtomicU64,
    memory: Memory,
    meters: Meters,
    /// What was served when a peer's list was last answered.
    served_then: AtomicU64,
}

impl AntiEntropy {
    pub fn new(options: Options, parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            options,
            parts,
            turn: TurnLock::new(()),
            looks: Semaphore::new(LOOKS_AT_ONCE),
            scrubbed_ms: AtomicU64::new(0),
            memory: Memory::default(),
            meters: Meters::new(),
            served_then: AtomicU64::new(0),
        })
    }

    /// Starts its tasks.
    pub fn start(self: &Arc<Self>, spawn: &dyn Spawn) {
        let (rounds, scrub) = (Arc::clone(self), Arc::clone(self));
        spawn.spawn(Box::pin(async move { rounds.keep_comparing().await }));
        spawn.spawn(Box::pin(async move { scrub.keep_scrubbing().await }));
    }

    async fn keep_comparing(&self) {
        let mut returns = self.parts.reach.returns();
        let mut seen = returns.borrow_and_update().clone();
        let mut next = Instant::now() + self.until_next();
        loop {
            tokio::select! {
                biased;
                () = sleep_until(next) => {
                    self.hold_rounds(|peer| peer > self.parts.me).await;
                    next = Instant::now() + self.until_next();
                }
                // The sender lives in `reach`, which we hold.
                _ = returns.changed() => {
                    sleep(self.after_return()).await;
                    let now = returns.borrow_and_update().clone();
                    // Whoever of the two sees it holds the round: one that was started anew saw nobody return.
                    self.hold_rounds(|peer| now.get(&peer) != seen.get(&peer)).await;
                    seen = now;
                }
            }
        }
    }

    /// One round with each of these that can be had.
    async fn hold_rounds(&self, with: impl Fn(NodeNum) -> bool) {
        let Some(ring) = self.parts.routing.ring() else { return };
        for peer in self.partners(&ring).into_iter().filter(|peer| with(*peer)) {
            if self.check(peer).is_ok() {
                // Told and counted; the next round tries again.
                let _ = self.repair(peer, &[], &Progress::default()).await;
            }
        }
    }

    /// Whether this node and that peer can be compared now, as far as is known here.
    fn check(&self, peer: NodeNum) -> Result<(), Stop> {
        if self.parts.routing.is_rebuilding() {
            return Err(Stop::Rebuilding);
        }
        if !self.parts.reach.is_reachable(peer) {
            return Err(PeerError::Unreachable.into());
        }
        Ok(())
    }

    fn after_return(&self) -> Duration {
        let [least, most] = AFTER_RETURN;
        least + Duration::from_millis(self.parts.entropy.below((most - least).as_millis() as u64))
    }

    fn until_next(&self) -> Duration {
        let interval_ms = self.options.interval.as_millis() as u64;
        Duration::from_millis(interval_ms * 4 / 5 + self.parts.entropy.below(interval_ms * 2 / 5))
    }

    /// The members that share a slot with this node, in order.
    pub(super) fn partners(&self, ring: &Ring) -> Vec<NodeNum> {
        let others = ring.topology().members.iter().map(|m| m.node).filter(|node| *node != self.parts.me);
        others.filter(|node| !hashtree::shared(ring, self.parts.me, *node).is_empty()).collect()
    }

    /// One round with that peer, of these chunks (none: all). Waits until rounds that run have ended.
    ///
    /// # Errors
    /// See [`Stop`]. What was moved until then stays.
    pub(super) async fn repair(&self, peer: NodeNum, chunks: &[u8], progress: &Progress) -> Result<(), Stop> {
        let (sent, received) = progress.moved();
        let task = Task { peer, look: Look::Keys, repair: true, chunks, up_to: None, mends: false, progress };
        let ended = progress.unless_aborted(self.in_turn(&task)).await.unwrap_or(Err(Stop::Aborted));
        let (sent, received) = (progress.moved().0 - sent, progress.moved().1 - received);
        self.meters.ended(&ended, sent + received, self.parts.clock.wall_ms());
        match ended {
            Ok(_) if sent + received == 0 => {
                tracing::debug!(target: "a3::events", "anti-entropy with {peer}: in step");
                Ok(())
            }
            Ok(_) => {
                tracing::debug!(target: "a3::events", "anti-entropy with {peer}: {sent} records sent, {received} received");
                let (given, taken) = (records(sent), records(received));
                self.note(format!("and {peer} were not equal: it gave {given} and took {taken}"));
                Ok(())
            }
            Err(stop) => {
                tracing::debug!(target: "a3::events", "anti-entropy with {peer} ended early: {stop}");
                if stop != Stop::Aborted {
                    self.note(format!("could not compare itself with {peer}: {stop}"));
                }
                Err(stop)
            }
        }
    }

    fn note(&self, text: String) {
        self.parts.journal.note(self.parts.me, EventKind::Repair, text);
    }

    async fn in_turn(&self, task: &Task<'_>) -> Result<Convergence, Stop> {
        let _turn = self.turn.lock().await;
        self.check(task.peer)?;
        self.round(task).await
    }

    /// How this node and that peer agree, compared anew; nothing is changed. With itself it only tells of its scrub.
    ///
    /// # Errors
    /// See [`Stop`].
    pub(super) async fn look(
        &self,
        peer: NodeNum,
        look: Look,
        chunks: &[u8],
        progress: &Progress,
    ) -> Result<Convergence, Stop> {
        if peer == self.parts.me {
            return Ok(Convergence { scrubbed_ms: self.scrubbed_ms.load(Ordering::Relaxed), ..Convergence::default() });
        }
        let looked = async {
            // Never closed, and the permit is given back at the end.
            let _permit = self.looks.acquire().await;
            self.check(peer)?;
            self.round(&Task { peer, look, repair: false, chunks, up_to: None, mends: false, progress }).await
        };
        progress.unless_aborted(looked).await.unwrap_or(Err(Stop::Aborted))
    }

    /// The same, for somebody who waits only so long.
    async fn look_in_time(&self, peer: NodeNum, look: Look) -> Result<Convergence, Stop> {
        let progress = Progress::default();
        let looked = timeout(patience(look), self.look(peer, look, &[], &progress));
        looked.await.unwrap_or(Err(PeerError::TimedOut.into()))
    }

    /// How the copies on each pair of members agree, asked of one of the two, anew. `None` before there is a cluster.
    pub(super) async fn convergence(&self, look: Look) -> Option<ConvergenceView> {
        let ring = self.parts.routing.ring()?;
        let members: Vec<NodeNum> = ring.topology().members.iter().map(|m| m.node).collect();
        let scrubs = stream::iter(members).map(|node| self.scrub_of(node));
        let scrubs = scrubs.buffered(PAIRS_AT_ONCE).collect().await;
        let asked = stream::iter(pairs(&ring))
            .map(|(one, other)| async move { (one, other, self.pair(one, other, look).await) });
        let mut asked = std::pin::pin!(asked.buffered(PAIRS_AT_ONCE));
        let (mut pairs, mut room) = (Vec::new(), Room::default());
        while let Some((one, other, mut agreed)) = asked.next().await {
            if let Ok(agreed) = &mut agreed {
                // `differing` tells that there are more.
                agreed.keys.retain(|key| room.takes(key));
            }
            pairs.push((one, other, agreed));
        }
        let moving = ring.topology().moving_slots().count();
        Some(ConvergenceView { asked: self.parts.me, pairs, moving, scrubs })
    }

    /// The one with the lower number holds their rounds, and knows since when they agree.
    async fn pair(&self, one: NodeNum, other: NodeNum, look: Look) -> Result<Convergence, String> {
        match self.asked(one, other, look).await {
            Ok(convergence) => Ok(convergence),
            Err(first) if one == self.parts.me => Err(first),
            Err(first) => {
                self.asked(other, one, look).await.map_err(|second| format!("{one}: {first}; {other}: {second}"))
            }
        }
    }

    async fn asked(&self, node: NodeNum, with: NodeNum, look: Look) -> Result<Convergence, String> {
        if node == self.parts.me {
            return self.look_in_time(with, look).await.map_err(|stop| stop.to_string());
        }
        if !self.parts.reach.is_reachable(node) {
            return Err(PeerError::Unreachable.to_string());
        }
        let request = PeerRequest::Converge { with, look };
        match self.parts.peers.ask(Destination::Member(node), request, Instant::now() + patience(look)).await {
            Ok(PeerReply::Convergence(convergence)) => Ok(*convergence),
            Ok(_) => Err("an answer of the wrong kind".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// So many records, in words.
fn records(count: u64) -> String {
    format!("{count} record{}", if count == 1 { "" } else { "s" })
}

/// How long a comparison may take.
fn patience(look: Look) -> Duration {
    if look == Look::Chunks { LOOK_PATIENCE } else { LOOK_KEYS_PATIENCE }
}

/// How many more keys one answer may name.
struct Room {
    names: usize,
    bytes: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { names: NAMES_MAX, bytes: NAMES_BYTES_MAX }
    }
}

impl Room {
    /// Whether there is room for this one, which it has then taken. Once there was none there is none.
    fn takes(&mut self, key: &Key) -> bool {
        let bytes = key.as_bytes().len();
        if self.names == 0 || self.bytes < bytes {
            self.names = 0;
            return false;
        }
        self.names -= 1;
        self.bytes -= bytes;
        true
    }
}

/// The pairs of members that share slots, each once, in order.
fn pairs(ring: &Ring) -> Vec<(NodeNum, NodeNum)> {
    let mut pairs = Vec::new();
    for one in ring.topology().members.iter().map(|m| m.node) {
        let others = ring.topology().members.iter().map(|m| m.node).filter(|other| *other > one);
        pairs.extend(others.filter(|other| !hashtree::shared(ring, one, *other).is_empty()).map(|other| (one, other)));
    }
    pairs
}

impl fmt::Debug for AntiEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AntiEntropy").field("options", &self.options).finish_non_exhaustive()
    }
}

struct Meters {
    in_step: Counter,
    repaired: Counter,
    failed: Counter,
    sent: Counter,
    received: Counter,
    last_success: Gauge,
    scrubbed: Gauge,
}

impl Meters {
    fn new() -> Self {
        let rounds = |result| metrics::counter(metrics::ROUNDS, &[("result", result)]);
        let keys = |direction| metrics::counter(metrics::ROUND_KEYS, &[("direction", direction)]);
        Self {
            in_step: rounds("in_step"),
            repaired: rounds("repaired"),
            failed: rounds("failed"),
            sent: keys("sent"),
            received: keys("received"),
            last_success: metrics::gauge(metrics::ROUND_LAST, &[]),
            scrubbed: metrics::gauge(metrics::SCRUB_LAST, &[]),
        }
    }

    fn ended(&self, ended: &Result<Convergence, Stop>, moved: u64, wall_ms: u64) {
        match ended {
            Ok(_) => {
                let rounds = if moved == 0 { &self.in_step } else { &self.repaired };
                rounds.increment(1);
                self.last_success.set(wall_ms as f64 / 1000.0);
            }
            Err(_) => self.failed.increment(1),
        }
    }
}

#[cfg(test)]
mod tests;
