//! Slots that this replica is to keep are fetched from those that have them: by a new instance under a known number, before it
//! answers for any, and by whoever gets slots in a change of the topology (`catch_up`), before it counts alone.
//!
//! What must be known of a slot is whatever was decided about it: records and registers that a majority of home replicas had.
//! `protocol::catch_up` says who holds all of that together, one of them at least each piece; it is merged here: the greater
//! record, the higher promise, the state accepted under the higher ballot.
//!
//! Invariants:
//! - Until every slot is fetched a new instance refuses every request, so that it counts towards no level, votes in no register
//!   and answers no read. Stand-ins keep hints for it meanwhile. (`identity.rebuilding` outlives restarts.)
//! - It is fetched from a replica that has the same epoch in force. From then on that replica refuses what was computed under
//!   an older one, and so under the old instance; what it had let in before is on its disk before it tells.
//! - A replica that is being rebuilt is no source. A slot whose sources do not all tell is left for later, and the others go on: what
//!   can be fetched is, whoever else is missing.
//! - A new epoch begins it anew: whoever was a source may have been replaced.
//! - What is here already (a backup that was restored, a rebuild that was broken off) only ever saves bytes: see
//!   [`head_start`].
//!
//! Caveats: with one copy there is nobody to fetch from. The slots then hold what a backup had of them, or nothing, and the log
//! says so. And where so many are rebuilt at once that a slot has no majority of other sources, they wait for each other
//! until a person decides otherwise (docs/operations.md): `waiting` and the log name such a slot.

mod answer;
mod catch_up;
mod head_start;
mod pending;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::Ports;
use super::pace::Pace;
use super::replica::Replica;
use super::routing::Routing;
use super::succession::Succession;
use crate::metrics;
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest, SlotEntry, StoreError};
use crate::protocol::catch_up::Sources;
use crate::protocol::ring::Ring;
use crate::types::{Epoch, Floor, Key, NodeNum, Record, Slot, Token};
use head_start::Start;
use pending::{Fetching, Part, Pending};

/// How long a page is waited for.
const WITHIN: Duration = Duration::from_secs(5);
/// After so long without a slot more the log says what is waited for, and how often it does.
const WARN_AFTER: Duration = Duration::from_secs(60);
const WARN_EVERY: Duration = Duration::from_secs(600);
/// Between two rounds over the slots whose sources do not all answer, in milliseconds: at least, and with how much jitter.
const PAUSE_MS: u64 = 200;
const PAUSE_JITTER_MS: u64 = 300;

/// Fetches slots, and gives them.
pub struct Rebuild {
    me: NodeNum,
    ports: Ports,
    routing: Arc<Routing>,
    replica: Arc<Replica>,
    succession: Arc<Succession>,
    fetching: Mutex<Fetching>,
    meters: Meters,
}

struct Meters {
    slots: Gauge,
    sent: Counter,
    received: Counter,
    dropped: Counter,
}

impl Meters {
    fn new() -> Self {
        let keys = |direction| metrics::counter(metrics::TRANSFER_KEYS, &[("direction", direction)]);
        let slots = metrics::gauge(metrics::TRANSFER_SLOTS, &[]);
        let dropped = metrics::counter(metrics::TRANSFER_DROPPED, &[]);
        Self { slots, sent: keys("sent"), received: keys("received"), dropped }
    }
}

/// Why a slot was not fetched from a source.
enum Unfetched {
    /// It has another epoch in force.
    Epoch(Epoch),
    Peer(PeerError),
    Store(StoreError),
}

impl Rebuild {
    pub fn new(
        me: NodeNum,
        ports: &Ports,
        routing: &Arc<Routing>,
        replica: &Arc<Replica>,
        succession: &Arc<Succession>,
    ) -> Arc<Self> {
        Arc::new(Self {
            me,
            ports: ports.clone(),
            routing: Arc::clone(routing),
            replica: Arc::clone(replica),
            succession: Arc::clone(succession),
            fetching: Mutex::default(),
            meters: Meters::new(),
        })
    }

    /// What it waits for, for a person to read; `None` where nothing has to be fetched.
    pub fn waiting(&self) -> Option<String> {
        self.routing.is_rebuilding().then(|| {
            let Fetching { slots, done, stuck, .. } = &*self.fetching.lock();
            let stuck = stuck.as_ref().map_or_else(String::new, |stuck| format!("; {stuck}"));
            format!("is a new instance and fetches its slots from the others: {done} of {slots} are here{stuck}")
        })
    }

    /// Ends when this replica may answer for its slots.
    ///
    /// # Errors
    /// When the store failed. What was fetched stays, and the next start goes on.
    pub async fn run(&self) -> Result<(), StoreError> {
        if !self.routing.is_rebuilding() {
            return Ok(());
        }
        tracing::info!("{} fetches its slots from the other members", self.me);
        while !self.fetch_all().await? {}
        // It is no news, and nobody has a place in that log: a replica that is rebuilt answers no watch.
        self.ports.store.changes().forget();
        let mut identity = self.ports.store.identity();
        identity.rebuilding = false;
        self.ports.store.save_identity(identity).await?;
        self.routing.set_rebuilding(false);
        self.meters.slots.set(0.0);
        tracing::info!("{} has its slots again", self.me);
        Ok(())
    }

    /// Every slot once; `false` where the epoch changed meanwhile.
    async fn fetch_all(&self) -> Result<bool, StoreError> {
        let mut epoch = self.routing.subscribe();
        let Some(ring) = self.routing.ring() else {
            // Another instance has the place by now: nothing is fetched any more, and the node is about to stop.
            let _ = epoch.changed().await;
            return Ok(false);
        };
        let sources = |slot: Slot| Sources::to_rebuild(ring.placement(slot), self.me);
        self.fetch(&ring, Slot::all().map(|slot| Pending::new(slot, sources(slot))).collect()).await
    }

    /// These slots once each; `false` where the epoch changed meanwhile.
    async fn fetch(&self, ring: &Ring, mut left: Vec<Pending>) -> Result<bool, StoreError> {
        *self.fetching.lock() = Fetching::begin(ring.epoch(), left.len());
        let mut warn_at = Instant::now() + WARN_AFTER;
        loop {
            let before = left.len();
            left = match self.round(ring, left).await? {
                Some(left) => left,
                None => return Ok(false),
            };
            let stuck = left.iter().find_map(Pending::stuck);
            self.fetching.lock().stuck.clone_from(&stuck);
            if left.is_empty() {
                return Ok(self.routing.epoch() == ring.epoch());
            }
            let now = Instant::now();
            if left.len() < before {
                warn_at = warn_at.max(now + WARN_AFTER);
            }
            if now >= warn_at {
                warn_at = now + WARN_EVERY;
                let stuck = stuck.unwrap_or_default();
                tracing::warn!(slots = left.len(), %stuck, "slots to be fetched wait for sources (docs/operations.md)");
            }
            let pause = PAUSE_MS + self.ports.entropy.below(PAUSE_JITTER_MS);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Tries each of these slots once: those that are left; `None` where the epoch changed meanwhile.
    async fn round(&self, ring: &Ring, mut slots: Vec<Pending>) -> Result<Option<Vec<Pending>>, StoreError> {
        // Who failed is not asked again in this round, so that one who is gone costs a deadline a round and not one a slot. So that
        // a slot that alone fails keeps nobody else from being asked, those that failed less often come first.
        let mut failed = BTreeSet::new();
        slots.sort_by_key(|pending| pending.failures);
        let mut left = Vec::new();
        for mut pending in slots {
            self.meters.slots.set(self.fetching.lock().left() as f64);
            if self.fetch_slot(ring, &mut pending, &mut failed).await? {
                self.fetching.lock().done += 1;
            } else {
                left.push(pending);
            }
            if self.routing.epoch() != ring.epoch() {
                return Ok(None);
            }
        }
        Ok(Some(left))
    }

    /// One slot from as many sources as it takes; `false` where it is not here yet.
    async fn fetch_slot(
        &self,
        ring: &Ring,
        pending: &mut Pending,
        failed: &mut BTreeSet<NodeNum>,
    ) -> Result<bool, StoreError> {
        let slot = pending.slot;
        if !ring.placement(slot).is_home(self.me) {
            return Ok(true);
        }
        if pending.sources.are_heard(&BTreeSet::new(), self.gone(ring)) {
            if self.routing.is_rebuilding() {
                let keys = self.ports.store.leaf_sums(slot).map_or(0, |sums| sums.iter().map(|sum| sum.records).sum());
                tracing::error!(%slot, keys, "this was the only copy of the slot; it has what is here, and nothing else");
            }
            return Ok(true);
        }
        let mut start = match pending.start.take() {
            Some(start) => start,
            None => {
                let start = self.begin(ring, slot, pending.floor).await;
                pending.part = if start.may_drop() { Part::Compare } else { Part::Fetch };
                start
            }
        };
        loop {
            if !self.of_sources(ring, pending, &mut start, failed).await? {
                pending.start = Some(start);
                return Ok(false);
            }
            pending.done.clear();
            match pending.part {
                Part::Compare => {
                    self.drop_covered(ring, slot, &mut start).await?;
                    pending.part = Part::Fetch;
                }
                Part::Fetch if start.is_settled(!self.routing.is_rebuilding()) => return Ok(true),
                // A floor that rose meanwhile may cover more of what was here: once more under that floor, whoever is asked then.
                // It finds the rest in place.
                Part::Fetch => {
                    pending.floor = start.floor();
                    self.ports.store.raise(vec![(slot, pending.floor)]).await?;
                    return Ok(false);
                }
            }
        }
    }

    /// Does the slot's next part with those of the sources that have not done it; whether enough have by now.
    async fn of_sources(
        &self,
        ring: &Ring,
        pending: &mut Pending,
        start: &mut Start,
        failed: &mut BTreeSet<NodeNum>,
    ) -> Result<bool, StoreError> {
        let slot = pending.slot;
        for source in pending.sources.all().to_vec() {
            if pending.sources.are_heard(&pending.done, self.gone(ring)) {
                return Ok(true);
            }
            if pending.done.contains(&source) || failed.contains(&source) {
                continue;
            }
            let asked = match pending.part {
                Part::Compare => self.compare_with(ring, slot, source, start).await,
                Part::Fetch => self.fetch_from(ring, slot, source, start).await,
            };
            let why = match asked {
                Ok(()) => {
                    pending.done.insert(source);
                    continue;
                }
                Err(Unfetched::Store(error)) => return Err(error),
                Err(Unfetched::Epoch(theirs)) if theirs > ring.epoch() => {
                    self.succession.fetch_from(source).await;
                    format!("it is at epoch {theirs}")
                }
                Err(Unfetched::Epoch(theirs)) => {
                    self.succession.tell(std::iter::once(source)).await;
                    format!("it is at epoch {theirs}")
                }
                Err(Unfetched::Peer(error)) => error.to_string(),
            };
            tracing::debug!(%slot, %source, %why, "a slot was not fetched");
            failed.insert(source);
            pending.failures = pending.failures.saturating_add(1);
            pending.waits_for = Some((source, why));
            if self.routing.epoch() != ring.epoch() {
                return Ok(false);
            }
        }
        Ok(pending.sources.are_heard(&pending.done, self.gone(ring)))
    }

    fn count(&self, fetched: &[(Token, SlotEntry)]) {
        self.meters.received.increment(fetched.len() as u64);
        let bytes = |(_, (key, record, _)): &(Token, SlotEntry)| {
            key.as_bytes().len() + record.as_ref().map_or(0, Record::content_bytes)
        };
        let mut fetching = self.fetching.lock();
        fetching.keys += fetched.len() as u64;
        fetching.bytes += fetched.iter().map(bytes).sum::<usize>() as u64;
    }

    /// All pages of a slot from one source.
    async fn fetch_from(&self, ring: &Ring, slot: Slot, source: NodeNum, start: &mut Start) -> Result<(), Unfetched> {
        let protocol = |what: &str| Unfetched::Peer(PeerError::Protocol(what.to_owned()));
        let leaves = self.wanted_of(ring, slot, source, start).await?;
        let mut pace = Pace::of(self.replica.served());
        let mut after: Option<Key> = None;
        let mut floors = Floor::default();
        loop {
            let request = PeerRequest::FetchSlot { epoch: ring.epoch(), slot, leaves, after };
            let reply = self.ports.peers.ask(Destination::Member(source), request, Instant::now() + WITHIN).await;
            let (entries, floor, next) = match reply.map_err(Unfetched::Peer)? {
                PeerReply::SlotPage { entries, floor, next } => (entries, floor, next),
                PeerReply::WrongEpoch { epoch } => return Err(Unfetched::Epoch(epoch)),
                _ => return Err(protocol("not a page of a slot")),
            };
            floors = floors.merge(&floor);
            let mut checked = Vec::with_capacity(entries.len());
            for entry in entries {
                let token = ring.token(&entry.0);
                let accepted = entry.2.as_ref().and_then(|r| r.accepted.as_ref()).and_then(|a| a.record.as_ref());
                let intact = entry.1.iter().chain(accepted).all(|record| record.is_intact(&entry.0));
                if token.slot() != slot || !intact {
                    return Err(protocol("a page with a key of another slot, or a damaged record"));
                }
                checked.push((token, entry));
            }
            if !checked.is_empty() {
                self.count(&checked);
                self.ports.store.absorb(checked).await.map_err(Unfetched::Store)?;
            }
            pace.rest().await;
            match next {
                Some(key) => after = Some(key),
                None => break,
            }
        }
        // After the rows: what the source holds is not below its own floor, and what it has purged is not in its rows.
        start.told(&floors);
        start.heard();
        if floors != Floor::default() {
            self.ports.store.raise(vec![(slot, floors)]).await.map_err(Unfetched::Store)?;
        }
        Ok(())
    }
}

fn refused(why: String) -> PeerError {
    PeerError::Refused(why)
}

impl fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rebuild").field("me", &self.me).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
