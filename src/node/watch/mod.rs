//! Watches: what changes, told as it does, by any member.
//!
//! The driver of [`protocol::watch`](crate::protocol::watch): it asks each member that holds what is watched for what it stored
//! behind a place, again and again, and the members wait with their answers until there is something.
//!
//! Invariants:
//! - A watch pulls: of each member one page is under way, and none is asked for while whoever watches takes nothing, or before
//!   the watch is in force. So it holds a page of each member and what it told lately, two mebibytes at most, however slowly it is
//!   read; one that falls behind what the members remember has gone.
//! - What is told was on a disk before.

mod answer;
mod hub;
mod one;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::Ports;
use super::request::FailureKind;
use super::routing::Routing;
use super::succession::Succession;
use crate::metrics::{self, Counter};
use crate::ports::{ChangeLog, Destination, PeerError, PeerReply, PeerRequest, Peers, Spawn};
use crate::protocol::watch::Watch;
pub use crate::protocol::watch::{Cursor, Gone};
use crate::types::{ChangesAsk, KeyChange, NodeNum, Slot, SlotSet, Watched};

use hub::Hub;

/// How long a member waits for a change before it answers that there is none.
const WAIT: Duration = Duration::from_secs(5);
/// How much longer its answer is waited for.
const WITHIN: Duration = Duration::from_secs(5);
/// Before a member that could not be asked is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a watch that could begin waits for members that have not answered: it begins with those that do, and the others
/// only count later.
const GRACE: Duration = Duration::from_millis(250);
/// Questions of members that wait here at a time.
const ANSWERING_MAX: usize = 16_384;

/// Why there is no watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoWatch {
    Gone(Gone),
    /// Too few members can be had for it to miss nothing.
    Failed {
        kind: FailureKind,
        slots: SlotSet,
        /// Who did not answer, and why.
        failed: Vec<(NodeNum, String)>,
    },
}

/// What changed, and from where to go on behind it.
#[derive(Clone, Debug)]
pub struct News {
    pub changes: Vec<KeyChange>,
    pub cursor: Cursor,
}

/// What a node watches with, and answers others' watches.
pub struct Watches {
    me: NodeNum,
    peers: Arc<dyn Peers>,
    routing: Arc<Routing>,
    succession: Arc<Succession>,
    log: Arc<ChangeLog>,
    hub: Arc<Hub>,
    answering: Semaphore,
    told: Counter,
    gone: Counter,
}

/// A watch that is in force.
pub struct Watching {
    watches: Arc<Watches>,
    watched: Watched,
    fold: Watch,
    asks: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Times are counted from here.
    since: Instant,
    /// What was told before it was in force: a page of each member at most.
    first: Vec<KeyChange>,
    /// Members that told something before it was in force, and are asked on when it is; `None` once it is.
    resting: Option<Vec<NodeNum>>,
}

/// Who answered, when it was asked (in milliseconds), and what it said.
type Answered = (NodeNum, u64, Result<PeerReply, PeerError>);

impl Watches {
    pub(super) fn new(me: NodeNum, ports: &Ports, routing: &Arc<Routing>, succession: &Arc<Succession>) -> Arc<Self> {
        Arc::new(Self {
            me,
            peers: Arc::clone(&ports.peers),
            routing: Arc::clone(routing),
            succession: Arc::clone(succession),
            log: ports.store.changes(),
            hub: Arc::default(),
            answering: Semaphore::new(ANSWERING_MAX),
            told: metrics::counter(metrics::WATCH_CHANGES, &[]),
            gone: metrics::counter(metrics::WATCH_GONE, &[]),
        })
    }

    pub(super) fn start(&self, spawn: &dyn Spawn) {
        spawn.spawn(Box::pin(Arc::clone(&self.hub).run(Arc::clone(&self.log))));
    }

    /// A watch from now on, or from a cursor on. Once it is given, of every write that begins from then on and is acknowledged
    /// that version or a later one is told.
    ///
    /// # Errors
    /// Where the cursor is good for nothing any more, or too few members answered in time.
    pub async fn begin(
        self: &Arc<Self>,
        watched: Watched,
        cursor: Option<&Cursor>,
        deadline: Instant,
    ) -> Result<Watching, NoWatch> {
        let nobody = |kind| NoWatch::Failed { kind, slots: SlotSet::NONE, failed: Vec::new() };
        let ring = self.routing.ring().ok_or_else(|| nobody(FailureKind::NotReady))?;
        let slots = match &watched {
            Watched::One(key) => [ring.token(key).slot()].into_iter().collect(),
            Watched::Prefix(_) => Slot::all().collect(),
        };
        let fold = Watch::new(ring, slots, cursor).map_err(|gone| self.has_gone(gone))?;
        let (asks, since) = (FuturesUnordered::new(), Instant::now());
        let mut watching = Watching {
            watches: Arc::clone(self),
            watched,
            fold,
            asks,
            since,
            first: Vec::new(),
            resting: Some(Vec::new()),
        };
        let members: Vec<NodeNum> = watching.fold.members().collect();
        members.into_iter().for_each(|node| watching.ask(node, Duration::ZERO, Duration::ZERO));
        watching.come_into_force(deadline).await?;
        Ok(watching)
    }

    fn has_gone(&self, gone: Gone) -> NoWatch {
        self.gone.increment(1);
        NoWatch::Gone(gone)
    }
}

impl Watching {
    /// What changed since it was last asked; nothing where there is nothing until then. It may be dropped at any time, and
    /// called again.
    ///
    /// # Errors
    /// Where the watch cannot go on: it may have missed something.
    pub async fn next(&mut self, until: Instant) -> Result<News, Gone> {
        let mut changes = std::mem::take(&mut self.first);
        while changes.is_empty() {
            let Ok(Some(answered)) = timeout_at(until, self.asks.next()).await else { break };
            changes = self.take(answered).inspect_err(|_| self.watches.gone.increment(1))?;
        }
        self.watches.told.increment(changes.len() as u64);
        Ok(News { changes, cursor: self.fold.cursor() })
    }

    /// Waits until enough members answered, and a moment for the others.
    async fn come_into_force(&mut self, deadline: Instant) -> Result<(), NoWatch> {
        let (mut failed, mut until) = (BTreeMap::new(), deadline);
        while self.fold.awaits() {
            if self.fold.is_covered() {
                until = until.min(Instant::now() + GRACE);
            }
            let Ok(Some(answered)) = timeout_at(until, self.asks.next()).await else { break };
            if let (node, _, Err(error)) = &answered {
                failed.insert(*node, error.to_string());
            }
            let told = self.take(answered).map_err(|gone| self.watches.has_gone(gone))?;
            self.first.extend(told);
        }
        if !self.fold.is_covered() {
            let kind = if failed.is_empty() { FailureKind::TimedOut } else { FailureKind::Unavailable };
            let slots = self.fold.uncovered();
            return Err(NoWatch::Failed { kind, slots, failed: failed.into_iter().collect() });
        }
        self.fold.begin();
        for node in self.resting.take().unwrap_or_default() {
            self.ask(node, Duration::ZERO, WAIT);
        }
        Ok(())
    }

    /// Takes an answer in, and asks the member again.
    fn take(&mut self, (node, asked_ms, answer): Answered) -> Result<Vec<KeyChange>, Gone> {
        let (told, pause) = match answer {
            Ok(PeerReply::Changed(page)) => (self.fold.on_page(node, page, (asked_ms, self.now_ms()))?, Duration::ZERO),
            _ => (Vec::new(), PAUSE),
        };
        if let Some(ring) = self.watches.routing.ring().filter(|ring| ring.epoch() != self.fold.epoch()) {
            self.fold.move_to(ring)?;
        }
        match &mut self.resting {
            Some(resting) if !told.is_empty() => resting.push(node),
            _ => self.ask(node, pause, WAIT),
        }
        Ok(told)
    }

    /// Asks a member, after a pause, for what is behind its place; it may wait for so long.
    fn ask(&self, node: NodeNum, pause: Duration, wait: Duration) {
        let (watches, epoch, since) = (Arc::clone(&self.watches), self.fold.epoch(), self.since);
        // At most ten seconds.
        let wait_ms = wait.as_millis() as u32;
        let ask = ChangesAsk { watched: self.watched.clone(), from: self.fold.place(node), wait_ms };
        self.asks.push(Box::pin(async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            let asked_ms = since.elapsed().as_millis() as u64;
            let deadline = Instant::now() + wait + WITHIN;
            let answer = if node == watches.me {
                // Its own log is at hand, whomever it can reach.
                timeout_at(deadline, watches.answer(node, epoch, ask)).await.unwrap_or(Err(PeerError::TimedOut))
            } else {
                let request = PeerRequest::Changes { epoch, ask };
                watches.peers.ask(Destination::Member(node), request, deadline).await
            };
            if let Ok(PeerReply::WrongEpoch { .. }) = answer {
                watches.succession.fetch_from(node).await;
            }
            (node, asked_ms, answer)
        }));
    }

    fn now_ms(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").field("me", &self.me).finish_non_exhaustive()
    }
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watching").field("watched", &self.watched).finish_non_exhaustive()
    }
}
