//! Writing a record under the version that it has already. What the replicas' answers mean, and why no purged key comes back,
//! is `protocol::quorum::import`'s.
//!
//! Invariants:
//! - A quorum read comes before every attempt: nothing is sent where a majority knows something as new, and where that is
//!   another content under the same version, the record is refused. A tombstone that is not there yet is stored as one that was
//!   written now: see there.
//! - What some replicas took and others never will is taken back before anything is answered, also what an earlier attempt left, whose
//!   answers were lost. So an attempt is a task of its own, which goes on until its deadline where its client goes away.
//!
//! Caveats: a node that stops between the two leaves it there, and so does an import of which no attempt came to an answer; a take-back
//! that cannot be written by its attempt's deadline is tried again only while the client is there. A
//! conditional write on the key between the read and the write may take the same version (`protocol::quorum::import`).

use std::cmp::Ordering;
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;

use crate::node::answers::Answers;
use crate::node::request::{Failure, FailureKind, Get};
use crate::node::trace;
use crate::ports::{Refusal, ReplicaReply, ReplicaRequest, Spawn};
use crate::protocol::quorum::{ImportFold, ImportState, ImportTerms, Imported, WriteAsk, WriteFold};
use crate::protocol::ring::Ring;
use crate::types::{Content, Epoch, Hlc, Key, Level, Record};

use super::Coordinator;
use super::flight::{Arrival, Flight, Tag};

/// What an import came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum Import {
    Done(Imported),
    /// The replicas will not have it.
    Refused(Refusal),
    /// Its version stands there with another content.
    Differs,
}

/// A record that is being imported, through as many attempts as it takes.
#[derive(Debug)]
pub(in crate::node) struct Importing {
    key: Key,
    record: Record,
    /// The home replicas have been asked to store it.
    tried: bool,
    /// Before that no majority had anything there, but perhaps a tombstone.
    absent: bool,
    /// An attempt has stored it somewhere.
    has_stored: bool,
    /// Replicas have it that must not: this is written over it before anything is answered.
    pub(super) over: Option<Record>,
}

impl Importing {
    pub(in crate::node) fn new(key: Key, record: Record) -> Self {
        Self { key, record, tried: false, absent: false, has_stored: false, over: None }
    }
}

impl Coordinator {
    /// One attempt to write the record where nothing as new is. It may be made again. It comes to its end, or its deadline, also
    /// where whoever asked goes away: what some replicas took is taken back then, too.
    ///
    /// # Errors
    /// As [`Self::import_attended`].
    pub(in crate::node) async fn import(
        self: &Arc<Self>,
        spawn: &dyn Spawn,
        of: &Arc<Mutex<Importing>>,
        deadline: Instant,
    ) -> Result<Import, Failure> {
        let (tell, told) = oneshot::channel();
        let (coordinator, of) = (Arc::clone(self), Arc::clone(of));
        let attempt = async move {
            let result = coordinator.import_attended(&mut *of.lock().await, deadline).await;
            // Who does not listen any more needs no answer.
            let _ = tell.send(result);
        };
        spawn.spawn(Box::pin(trace::carried(trace::current(), attempt)));
        // A task that ends without a word was ended with the node.
        told.await.unwrap_or_else(|_| Err(Failure::before(FailureKind::NotReady, Level::Quorum)))
    }

    /// # Errors
    /// Where a majority of the home replicas does not answer in time, this node's clock is off, or it is not ready. The record
    /// may be on some replicas.
    pub(super) async fn import_attended(&self, of: &mut Importing, deadline: Instant) -> Result<Import, Failure> {
        let ring = self.ring(Level::Quorum)?;
        if let Some(by_ms) = self.clock.skewed_by_ms() {
            return Err(Failure::before(FailureKind::ClockSkew { by_ms }, Level::Quorum));
        }
        if of.over.is_none() {
            let imported = match self.there_already(of, deadline).await? {
                Some(imported) => imported,
                None => self.import_once(of, Arc::clone(&ring), deadline).await?,
            };
            match imported {
                Import::Done(Imported::Older { take_back: true }) => {
                    let written = of.record.written.max(self.now());
                    of.over = Some(Record::seal(&of.key, of.record.version.ended(), written, Content::Tombstone));
                }
                Import::Done(Imported::Unchanged) if of.has_stored => return Ok(Import::Done(Imported::Stored)),
                imported => return Ok(imported),
            }
        }
        if let Some(over) = of.over.clone() {
            let placement = ring.placement(ring.token(&of.key).slot());
            let fold = WriteFold::write_back(Arc::clone(placement), Level::Quorum, &over, &[]);
            self.write_back(fold, of.key.clone(), over, ring.epoch(), deadline).await?;
        }
        Ok(Import::Done(Imported::Older { take_back: true }))
    }

    /// Without the part of the clock that ran ahead of the wall: an end that is told moves what ends by it.
    fn now(&self) -> Hlc {
        Hlc::from_ms(self.clock.wall_ms())
    }

    /// Whether a majority has the record already, another one under its version, or something greater. A tombstone that is not
    /// there becomes one that is written now, and stays that one, whichever attempt writes it.
    async fn there_already(&self, of: &mut Importing, deadline: Instant) -> Result<Option<Import>, Failure> {
        let get = Get { key: of.key.clone(), level: Level::Quorum, deadline, every_copy: false };
        let there = self.read(get).await?.record;
        Ok(match there.as_ref().map(|there| (there.version.cmp(&of.record.version), there)) {
            Some((Ordering::Greater, _)) => Some(Import::Done(Imported::Older { take_back: false })),
            Some((Ordering::Equal, there)) if there.content != of.record.content => Some(Import::Differs),
            // It may be there since an attempt, and below the floor of who was not heard.
            Some((Ordering::Equal, _)) => (!of.tried).then_some(Import::Done(Imported::Unchanged)),
            Some((Ordering::Less, _)) | None if of.tried => None,
            Some((Ordering::Less, _)) | None => {
                of.absent = there.is_none_or(|there| there.is_tombstone());
                if of.record.is_tombstone() {
                    let written = of.record.written.max(self.now());
                    of.record = Record::seal(&of.key, of.record.version, written, Content::Tombstone);
                }
                None
            }
        })
    }

    async fn import_once(&self, of: &mut Importing, mut ring: Arc<Ring>, deadline: Instant) -> Result<Import, Failure> {
        loop {
            let placement = ring.placement(ring.token(&of.key).slot());
            let planted = std::mem::replace(&mut of.tried, true) && of.absent;
            let terms = ImportTerms::at(of.record.written, self.clock.wall_ms(), planted);
            let mut fold = ImportFold::new(Arc::clone(placement), &of.record, terms);
            let (answers, mut flight) = (Answers::new(), Flight::default());
            let stand_in = |n| self.reach.ask_unprobed(n);
            let mut asks = fold.start(&self.asking(placement));
            let newer = loop {
                self.send_import(of, &answers, &mut flight, (ring.epoch(), deadline), &asks);
                of.has_stored |= fold.has_stored();
                match fold.state() {
                    ImportState::Waiting => {}
                    ImportState::Decided(imported) => return Ok(Import::Done(imported)),
                    ImportState::Refused(refusal) => return Ok(Import::Refused(refusal)),
                    ImportState::Differs => return Ok(Import::Differs),
                    ImportState::Failed if fold.disks_full() => return Err(failure(&fold, FailureKind::DiskFull)),
                    ImportState::Failed => return Err(failure(&fold, FailureKind::Unavailable)),
                }
                asks = match flight.arrival(&answers, deadline, &self.reach).await {
                    Arrival::Answer(_, Ok(ReplicaReply::WrongEpoch { topology })) => break topology,
                    Arrival::Answer(Tag::Hint { from, target, .. }, answer) => {
                        fold.on_hint(from, target, &answer, &stand_in)
                    }
                    Arrival::Answer(tag, answer) => fold.on_write(tag.from(), &answer, &stand_in),
                    Arrival::Silence(silent) => fold.on_silence(&silent, &stand_in),
                    Arrival::Deadline => return Err(failure(&fold, FailureKind::TimedOut)),
                };
            };
            ring = self.adopt(newer, Level::Quorum, deadline).await?;
        }
    }

    fn send_import(
        &self,
        of: &Importing,
        answers: &Arc<Answers>,
        flight: &mut Flight,
        (epoch, deadline): (Epoch, Instant),
        asks: &[WriteAsk],
    ) {
        let now = Instant::now();
        for ask in asks {
            let (key, record) = (of.key.clone(), of.record.clone());
            let (to, request, tag) = match *ask {
                WriteAsk::Write { to } => {
                    (to, ReplicaRequest::Write { key, record }, Tag::Write { from: to, round: 0 })
                }
                WriteAsk::Hint { to, target, counted } => {
                    self.meters.stand_ins.increment(1);
                    let tag = Tag::Hint { from: to, target, counted, round: 0 };
                    (to, ReplicaRequest::Hint { target, key, record, counted }, tag)
                }
            };
            flight.sent(to, now, self.reach.patience(to));
            self.send(to, epoch, deadline, request, answers.reply_to(tag.pack()));
        }
    }
}

fn failure(fold: &ImportFold, kind: FailureKind) -> Failure {
    let acked = fold.acked();
    Failure {
        kind,
        outcome: None,
        level: Level::Quorum,
        required: fold.required(),
        sets: fold.placement().answers(Level::Quorum, &acked),
        acked,
        failed: fold.failed(),
        met: None,
    }
}
