//! Driving a read: ask, compare, fetch, and write the newest back before it is told.
//!
//! A value whose time is up is told as the tombstone of its end, and by then that is written to a majority like anything
//! else that is told. Not here at `linearizable`: an end must go through the key's register before it is told there
//! (`conditional`), as a conditional write upon the value may be under way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use tokio::time::Instant;

use crate::node::answers::Answers;
use crate::node::request::{Failure, FailureKind, Found, Get};
use crate::ports::{ReplicaReply, ReplicaRequest};
use crate::protocol::quorum::{ReadAsk, ReadFold, ReadState, WriteFold};
use crate::protocol::ring::Ring;
use crate::types::{Epoch, Key, Level, NodeNum, Topology};

use super::Coordinator;
use super::flight::{Arrival, Flight, Tag};
use super::meters::Operation;

/// One read under way.
struct Reading {
    fold: ReadFold,
    key: Key,
    epoch: Epoch,
    deadline: Instant,
    answers: Arc<Answers>,
}

enum End {
    State(ReadState),
    TimedOut,
    Stale(Arc<Topology>),
}

impl Coordinator {
    /// Reads a key, not at `linearizable`.
    ///
    /// # Errors
    /// When fewer replicas answered than the level needs, or what they disagreed on could not be settled in time.
    pub async fn get(&self, get: Get) -> Result<Found, Failure> {
        self.measured_read(get.level, self.read(get)).await
    }

    /// A client's read, with its place in the metrics.
    pub(in crate::node) async fn measured_read(
        &self,
        level: Level,
        read: impl Future<Output = Result<Found, Failure>>,
    ) -> Result<Found, Failure> {
        let began = Instant::now();
        self.requests.fetch_add(1, Ordering::Relaxed);
        let result = read.await;
        self.meters.done(Operation::Get, level, began.elapsed(), result.is_err());
        result
    }

    /// As [`Self::get`], at any level. An end that it finds at `linearizable` is not fit to be told yet.
    pub(in crate::node) async fn read(&self, get: Get) -> Result<Found, Failure> {
        let mut ring = self.ring(get.level)?;
        loop {
            let placement = ring.placement(ring.token(&get.key).slot());
            let mut reading = Reading {
                fold: ReadFold::new(Arc::clone(placement), get.level, self.clock.now(), get.every_copy),
                key: get.key.clone(),
                epoch: ring.epoch(),
                deadline: get.deadline,
                answers: Answers::new(),
            };
            let asks = reading.fold.start(self.me, &|n| self.reach.ask_unprobed(n));
            match self.drive_read(&mut reading, asks).await {
                End::State(ReadState::Met) => match self.found(reading, &ring).await {
                    Err(_) if self.routing.epoch() > ring.epoch() => ring = self.ring(get.level)?,
                    found => return found,
                },
                End::Stale(topology) => ring = self.adopt(topology, get.level, get.deadline).await?,
                End::State(_) => return Err(read_failure(&reading, FailureKind::Unavailable)),
                End::TimedOut => return Err(read_failure(&reading, FailureKind::TimedOut)),
            }
        }
    }

    async fn drive_read(&self, reading: &mut Reading, asks: SmallVec<[ReadAsk; 4]>) -> End {
        let mut flight = Flight::default();
        self.send_reads(reading, &mut flight, asks);
        let stand_in = |n| self.reach.ask_unprobed(n);
        loop {
            match reading.fold.state() {
                ReadState::Waiting => {}
                state => return End::State(state),
            }
            let asks = match flight.arrival(&reading.answers, reading.deadline, &self.reach).await {
                Arrival::Answer(_, Ok(ReplicaReply::WrongEpoch { topology })) => return End::Stale(topology),
                Arrival::Answer(tag, answer) => reading.fold.on_answer(tag.from(), answer, &stand_in),
                Arrival::Silence(silent) => reading.fold.on_silence(&silent, &stand_in),
                Arrival::Deadline if reading.fold.on_deadline() == ReadState::Met => return End::State(ReadState::Met),
                Arrival::Deadline => return End::TimedOut,
            };
            self.send_reads(reading, &mut flight, asks);
        }
    }

    fn send_reads(&self, reading: &Reading, flight: &mut Flight, asks: SmallVec<[ReadAsk; 4]>) {
        if asks.is_empty() {
            return;
        }
        let now = Instant::now();
        for ReadAsk { to, part, hints } in asks {
            if hints {
                self.meters.stand_ins.increment(1);
            }
            flight.sent(to, now, self.reach.patience(to));
            let request = ReplicaRequest::Read { key: reading.key.clone(), part, hints };
            let reply_to = reading.answers.reply_to(Tag::Query { from: to }.pack());
            self.send(to, reading.epoch, reading.deadline, request, reply_to);
        }
    }

    /// Enough answers are in: where they disagree, the newest record goes to a majority before anyone is told. So does the
    /// end of a value.
    async fn found(&self, reading: Reading, ring: &Ring) -> Result<Found, Failure> {
        let placement = ring.placement(ring.token(&reading.key).slot());
        let (mut strict, copies) = (reading.fold.is_strict(), reading.fold.copies());
        let end = reading.fold.record().and_then(|record| self.clock.end_of(&reading.key, record));
        let ends = end.as_ref().or(reading.fold.record()).is_some_and(|record| record.version.is_end());
        let settles = match reading.fold.level() {
            Level::One => false,
            Level::Linearizable if ends => false,
            _ => end.is_some() || reading.fold.disagree(),
        };
        if let Some(record) = end.as_ref().or(reading.fold.record()).filter(|_| settles) {
            if reading.fold.disagree() {
                self.meters.read_repairs.increment(1);
            }
            let level = if reading.fold.level() == Level::Quorum { Level::Quorum } else { Level::Linearizable };
            // Nobody is known to have the end of what was read as a value.
            let have = if end.is_some() { SmallVec::new() } else { reading.fold.have() };
            let fold = WriteFold::write_back(Arc::clone(placement), level, record, &have);
            let written = self.write_back(fold, reading.key.clone(), record.clone(), reading.epoch, reading.deadline);
            let holders = written.await.map_err(|f| Failure { outcome: None, ..f })?;
            // Where a stand-in keeps it for a home replica, the next strict read may miss what this one tells.
            strict &= placement.is_majority(&holders);
        }
        let replicas = placement.home_replicas().to_vec();
        let record = end.or(reading.fold.into_record());
        let live = record.as_ref().is_some_and(|record| !record.is_tombstone());
        Ok(Found { record, live, strict, replicas, copies })
    }
}

fn read_failure(reading: &Reading, kind: FailureKind) -> Failure {
    let acked: Vec<NodeNum> = reading.fold.copies().into_iter().map(|(n, _)| n).collect();
    Failure {
        kind,
        outcome: None,
        level: reading.fold.level(),
        required: reading.fold.required(),
        sets: reading.fold.placement().answers(reading.fold.level(), &acked),
        acked,
        failed: reading.fold.failed(),
        met: None,
    }
}
