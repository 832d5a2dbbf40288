//! Listings: keys in order over the whole cluster, page by page.
//!
//! The driver of `protocol::listing`: it sends scans and waits. Nothing is kept between pages, so a client that reads slowly
//! holds nothing here.
//!
//! Invariants:
//! - A page is told only as far as the fold settled it. Where time is up, what is settled by then is a page, if a short one.
//! - At most [`PAGES_AT_ONCE`] pages are in the making; others wait for their turn.

mod answer;
mod meters;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::Ports;
use super::clock::NodeClock;
use super::coordinator::Coordinator;
use super::reach::Reach;
use super::request::{FailureKind, Get};
use super::routing::Routing;
use super::succession::Succession;
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest, Peers, Store};
pub use crate::protocol::listing::{Item, Page, Question};
use crate::protocol::listing::{Listing, ListingState, ScanAsk};
use crate::types::{Key, Level, NodeNum, Outline, SlotSet};

use meters::Meters;

/// Pages in the making at a time: what they hold of answers together stays below some ten mebibytes a member.
const PAGES_AT_ONCE: usize = 32;
/// A scan reads many rows: its silence is usual for longer than a read's.
const PATIENCE_MIN: Duration = Duration::from_millis(250);

/// Why there is no page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListingFailure {
    pub kind: FailureKind,
    /// Slots that cannot be had.
    pub slots: SlotSet,
    /// Who did not answer, and why.
    pub failed: Vec<(NodeNum, String)>,
}

/// What a node lists with.
pub struct Lister {
    me: NodeNum,
    peers: Arc<dyn Peers>,
    store: Arc<dyn Store>,
    routing: Arc<Routing>,
    clock: Arc<NodeClock>,
    reach: Arc<Reach>,
    coordinator: Arc<Coordinator>,
    succession: Arc<Succession>,
    places: Semaphore,
    meters: Meters,
}

impl fmt::Debug for Lister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lister").field("me", &self.me).finish_non_exhaustive()
    }
}

/// An answer and which scan it is to; who was asked.
type Answered = (usize, NodeNum, Result<PeerReply, PeerError>);

/// The scans under way.
#[derive(Default)]
struct Flight {
    scans: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// When the silence of each stops being usual.
    until: BTreeMap<usize, Instant>,
}

enum Arrival {
    Answer(Answered),
    Silence(usize),
    Deadline,
}

impl Flight {
    async fn arrival(&mut self, deadline: Instant) -> Arrival {
        let patient = self.until.iter().min_by_key(|(_, until)| **until).map(|(number, until)| (*number, *until));
        let wake = patient.map_or(deadline, |(_, until)| until.min(deadline));
        match (timeout_at(wake, self.scans.next()).await, patient) {
            (Ok(Some(answered)), _) => {
                self.until.remove(&answered.0);
                Arrival::Answer(answered)
            }
            (Err(_), Some((number, until))) if until < deadline => {
                self.until.remove(&number);
                Arrival::Silence(number)
            }
            // Nobody is left to wait for: the fold never comes here, as it says then that it failed.
            (Ok(None) | Err(_), _) => Arrival::Deadline,
        }
    }
}

impl Lister {
    pub(super) fn new(
        ports: &Ports,
        (routing, clock, reach): (&Arc<Routing>, &Arc<NodeClock>, &Arc<Reach>),
        coordinator: &Arc<Coordinator>,
        succession: &Arc<Succession>,
    ) -> Self {
        Self {
            me: ports.store.identity().node,
            peers: Arc::clone(&ports.peers),
            store: Arc::clone(&ports.store),
            routing: Arc::clone(routing),
            clock: Arc::clone(clock),
            reach: Arc::clone(reach),
            coordinator: Arc::clone(coordinator),
            succession: Arc::clone(succession),
            places: Semaphore::new(PAGES_AT_ONCE),
            meters: Meters::new(),
        }
    }

    /// One page, at quorum.
    ///
    /// # Errors
    /// Where a slot cannot be had (unless `partial` says to go on), or time is up before anything is settled.
    pub async fn page(&self, question: Question, deadline: Instant) -> Result<Page, ListingFailure> {
        let began = Instant::now();
        let page = self.make(question, deadline).await;
        self.meters.done(began.elapsed(), page.is_err());
        page
    }

    async fn make(&self, question: Question, deadline: Instant) -> Result<Page, ListingFailure> {
        let failure = |kind| ListingFailure { kind, slots: SlotSet::NONE, failed: Vec::new() };
        // The semaphore is never closed.
        let Ok(Ok(_place)) = timeout_at(deadline, self.places.acquire()).await else {
            return Err(failure(FailureKind::TimedOut));
        };
        let ring = self.routing.ring().ok_or_else(|| failure(FailureKind::NotReady))?;
        let mut epoch = ring.epoch();
        let mut fold = Listing::new(question, self.me, ring, self.clock.now());
        let asking = |node| self.reach.ask_unprobed(node);
        let mut flight = Flight::default();
        let mut asks = fold.start(&asking);
        loop {
            self.send(&mut flight, std::mem::take(&mut asks), epoch, deadline);
            match fold.state() {
                ListingState::Met => return Ok(fold.into_page()),
                // What was to come by then came as time-outs.
                ListingState::Failed if Instant::now() >= deadline => return in_time(fold),
                ListingState::Failed => return Err(failed(&fold, FailureKind::Unavailable)),
                ListingState::Unsure(key) => {
                    asks = fold.on_read(self.read(key, deadline).await);
                    continue;
                }
                ListingState::Waiting => {}
            }
            asks = match flight.arrival(deadline).await {
                Arrival::Answer((_, node, Ok(PeerReply::WrongEpoch { epoch: theirs }))) if theirs > epoch => {
                    self.succession.fetch_from(node).await;
                    let ring = self.routing.ring().filter(|ring| ring.epoch() > epoch);
                    let ring = ring.ok_or_else(|| failed(&fold, FailureKind::NotReady))?;
                    epoch = ring.epoch();
                    flight = Flight::default();
                    fold.restart(ring, &asking)
                }
                Arrival::Answer((number, _, answer)) => {
                    let answer = match answer {
                        Ok(PeerReply::Scanned(page)) => Ok(page),
                        Ok(_) => Err("answered another question".to_owned()),
                        Err(error) => Err(error.to_string()),
                    };
                    fold.on_answer(number, answer, &asking)
                }
                Arrival::Silence(number) => fold.on_silence(number, &asking),
                Arrival::Deadline => return in_time(fold),
            };
        }
    }

    fn send(&self, flight: &mut Flight, asks: Vec<ScanAsk>, epoch: crate::types::Epoch, deadline: Instant) {
        for ScanAsk { number, to, scan } in asks {
            let patience = self.reach.patience(to).max(PATIENCE_MIN);
            flight.until.insert(number, Instant::now() + patience);
            let answer = self.peers.ask(Destination::Member(to), PeerRequest::Scan { epoch, scan }, deadline);
            flight.scans.push(Box::pin(async move { (number, to, answer.await) }));
        }
    }

    /// A key of which a copy is damaged: the read mends it.
    async fn read(&self, key: Key, deadline: Instant) -> Result<Option<Outline>, ()> {
        let get = Get { key, level: Level::Quorum, deadline, every_copy: false };
        let found = self.coordinator.read(get).await.map_err(|_| ())?;
        Ok(found.record.map(|record| Outline::of(&record, true)))
    }
}

/// Time is up: what is settled by then is a page.
fn in_time(fold: Listing) -> Result<Page, ListingFailure> {
    let failure = ListingFailure { slots: SlotSet::NONE, ..failed(&fold, FailureKind::TimedOut) };
    if fold.has_advanced() { Ok(fold.into_page()) } else { Err(failure) }
}

fn failed(fold: &Listing, kind: FailureKind) -> ListingFailure {
    ListingFailure { kind, slots: fold.missing(), failed: fold.failed() }
}
