//! Driving a write: stamp, send, wait, perhaps stamp once more, and say what happened.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use crate::node::answers::Answers;
use crate::node::request::{Failure, FailureKind, NewContent, Outcome, Put, Receipt};
use crate::node::{events, trace};
use crate::ports::{ReplicaReply, ReplicaRequest};
use crate::protocol::quorum::{WriteAsk, WriteFold, WriteState};
use crate::protocol::ring::Ring;
use crate::protocol::succession;
use crate::types::{Epoch, Hlc, Key, Level, NodeNum, Record, Topology, Trace, Version};

use super::Coordinator;
use super::before::Before;
use super::flight::{Arrival, Flight, Tag};
use super::meters::Operation;

/// One write under way: the fold that decides, and what is needed to send what it asks for.
pub(super) struct Writing {
    pub(super) fold: WriteFold,
    pub(super) key: Key,
    pub(super) record: Record,
    pub(super) epoch: Epoch,
    pub(super) deadline: Instant,
    pub(super) answers: Arc<Answers>,
    pub(super) round: u8,
    /// Whose request it is, also for what is sent when its own task has ended.
    pub(super) trace: Option<Arc<Trace>>,
}

/// How waiting for a write ended.
enum End {
    State(WriteState),
    TimedOut,
    /// Some replica holds this newer topology.
    Stale(Arc<Topology>),
}

impl Coordinator {
    /// Writes a value or a tombstone.
    ///
    /// # Errors
    /// The failure says what became of the write: `applied`, `not_applied` or `unknown`.
    pub async fn put(&self, put: Put) -> Result<Receipt, Failure> {
        let (level, deletes) = (put.level, matches!(put.content, NewContent::Tombstone));
        self.measured(deletes, level, self.write(put)).await
    }

    /// A client's write, with its place in the metrics.
    pub(in crate::node) async fn measured(
        &self,
        deletes: bool,
        level: Level,
        write: impl Future<Output = Result<Receipt, Failure>>,
    ) -> Result<Receipt, Failure> {
        let began = Instant::now();
        self.requests.fetch_add(1, Ordering::Relaxed);
        let result = write.await;
        let operation = if deletes { Operation::Delete } else { Operation::Put };
        let failed = result.as_ref().err().filter(|failure| !failure.kind.is_answer());
        self.meters.done(operation, level, began.elapsed(), failed.is_some());
        match (&result, failed) {
            (Ok(receipt), _) if !receipt.strict => self.meters.weak_writes.increment(1),
            (Ok(_), _) | (Err(_), None) => {}
            (Err(_), Some(failure)) => self.meters.write_failed(failure.outcome.unwrap_or(Outcome::NotApplied)),
        }
        result
    }

    async fn write(&self, put: Put) -> Result<Receipt, Failure> {
        let not_applied = |kind| Failure { outcome: Some(Outcome::NotApplied), ..Failure::before(kind, put.level) };
        let mut ring = self.ring(put.level).map_err(|f| not_applied(f.kind))?;
        if let Some(by_ms) = self.clock.skewed_by_ms() {
            return Err(not_applied(FailureKind::ClockSkew { by_ms }));
        }
        let mut before = Before::default();
        if put.level == Level::Linearizable {
            // Its own allocation, so that the writes that do without do not carry its room.
            (ring, before) = Box::pin(self.look_before(ring, &put)).await?;
        }
        let version = self.stamp(&ring, before.newest.hlc, put.deadline).await.map_err(not_applied)?;
        let placement = ring.placement(ring.token(&put.key).slot());
        let mut writing = self.stragglers.attend(Writing {
            fold: match put.level {
                Level::Linearizable => WriteFold::ordered(Arc::clone(placement), version, before.live),
                level => WriteFold::plain(Arc::clone(placement), level, version),
            },
            record: Record::seal(&put.key, version, version.hlc, put.content.written_at(version.hlc)),
            key: put.key,
            epoch: ring.epoch(),
            deadline: put.deadline,
            answers: Answers::new(),
            round: 0,
            trace: trace::current(),
        });
        if events::shown() {
            events::write(self.me, &writing.key, version, &writing.fold.replicas());
        }
        let asks = writing.fold.start(&self.asking(placement));
        let mut end = self.drive(&mut writing, asks).await;
        loop {
            match end {
                End::Stale(topology) => {
                    let older = ring;
                    ring = self
                        .adopt(topology, put.level, put.deadline)
                        .await
                        .map_err(|f| self.failure(&writing, f.kind))?;
                    end = self.write_again(&mut writing, &older, &ring).await;
                }
                End::State(WriteState::Restamp { above }) => {
                    self.meters.restamps.increment(1);
                    let stamped = self.stamp(&ring, above, writing.deadline).await;
                    let version = stamped.map_err(|kind| self.failure(&writing, kind))?;
                    writing.record = writing.record.stamped_again(&writing.key, version);
                    writing.round += 1;
                    let placement = ring.placement(ring.token(&writing.key).slot());
                    let asks = writing.fold.restart(version, &self.asking(placement));
                    end = self.drive(&mut writing, asks).await;
                }
                End::State(WriteState::Met) => return Ok(receipt(&writing, put.level)),
                End::State(_) | End::TimedOut => return Err(self.gave_up(&mut writing, matches!(end, End::TimedOut))),
            }
        }
    }

    /// The same write under the same version, to the replicas of a newer topology.
    async fn write_again(&self, writing: &mut Writing, older: &Ring, ring: &Ring) -> End {
        writing.epoch = ring.epoch();
        writing.round += 1;
        let slot = ring.token(&writing.key).slot();
        let placement = ring.placement(slot);
        let void = succession::void(older.topology(), ring.topology(), slot);
        let asks = writing.fold.move_to(Arc::clone(placement), &void, &self.asking(placement));
        self.drive(writing, asks).await
    }

    /// Writes a record where it is missing, until a majority of home replicas has it; answers which of them are known to.
    ///
    /// # Errors
    /// When no majority could be had in time; whether it was written is not known then.
    pub(in crate::node) async fn write_back(
        &self,
        fold: WriteFold,
        key: Key,
        record: Record,
        epoch: Epoch,
        deadline: Instant,
    ) -> Result<Vec<NodeNum>, Failure> {
        let writing =
            Writing { fold, key, record, epoch, deadline, answers: Answers::new(), round: 0, trace: trace::current() };
        let mut writing = self.stragglers.attend(writing);
        let placement = Arc::clone(writing.fold.placement());
        let asks = writing.fold.start(&self.asking(&placement));
        match self.drive(&mut writing, asks).await {
            End::State(WriteState::Met) => Ok(writing.fold.acked().collect()),
            End::TimedOut => Err(self.failure(&writing, FailureKind::TimedOut)),
            End::State(_) => Err(self.failure(&writing, FailureKind::Unavailable)),
            End::Stale(topology) => {
                // Whoever asked for it begins again under that one.
                self.adopt(topology, writing.fold.level(), deadline).await?;
                Err(self.failure(&writing, FailureKind::Unavailable))
            }
        }
    }

    /// A stamp of this node's, above that reading. It may have to wait for the disk, but not longer than the client.
    pub(in crate::node) async fn stamp(
        &self,
        ring: &Ring,
        above: Hlc,
        deadline: Instant,
    ) -> Result<Version, FailureKind> {
        let writer = ring.topology().member(self.me).ok_or(FailureKind::NotReady)?.writer;
        let hlc = match self.clock.stamp(above) {
            Some(hlc) => hlc,
            None => {
                let reserved = timeout_at(deadline, self.clock.stamp_reserved(above)).await;
                reserved.map_err(|_| FailureKind::TimedOut)?.ok_or(FailureKind::NotReady)?
            }
        };
        Ok(Version::plain(hlc, writer))
    }

    async fn drive(&self, writing: &mut Writing, asks: SmallVec<[WriteAsk; 4]>) -> End {
        let mut flight = Flight::default();
        self.send_write(writing, &mut flight, asks);
        let stand_in = |n| self.reach.ask_unprobed(n);
        loop {
            match writing.fold.state() {
                WriteState::Waiting => {}
                state => return End::State(state),
            }
            let asks = match flight.arrival(&writing.answers, writing.deadline, &self.reach).await {
                Arrival::Answer(_, Ok(ReplicaReply::WrongEpoch { topology })) => return End::Stale(topology),
                Arrival::Answer(tag, answer) => writing.on_answer(tag, &answer, &stand_in),
                Arrival::Silence(silent) => writing.fold.on_silence(&silent, &stand_in),
                Arrival::Deadline => return End::TimedOut,
            };
            self.send_write(writing, &mut flight, asks);
        }
    }

    fn send_write(&self, writing: &Writing, flight: &mut Flight, asks: SmallVec<[WriteAsk; 4]>) {
        if asks.is_empty() {
            return;
        }
        let now = Instant::now();
        for ask in asks {
            let (to, target) = match ask {
                WriteAsk::Write { to } => (to, None),
                WriteAsk::Hint { to, target, .. } => {
                    self.meters.stand_ins.increment(1);
                    (to, Some(target))
                }
            };
            flight.sent(to, now, self.reach.patience(to));
            events::sent(to, target, &writing.key, writing.fold.version());
            writing.send(&*self.peers, ask, Some(writing.deadline));
        }
    }

    fn gave_up(&self, writing: &mut Writing, timed_out: bool) -> Failure {
        // An answer that is there already may make what became of it definite.
        self.stragglers.drain(writing);
        let kind = match (timed_out, writing.fold.disks_full()) {
            (_, true) => FailureKind::DiskFull,
            (true, false) => FailureKind::TimedOut,
            (false, false) => FailureKind::Unavailable,
        };
        self.failure(writing, kind)
    }

    fn failure(&self, writing: &Writing, kind: FailureKind) -> Failure {
        let fold = &writing.fold;
        let outcome = match (fold.majority_acked(), fold.maybe_stored()) {
            (true, _) => Outcome::Applied,
            (false, true) => Outcome::Unknown,
            (false, false) => Outcome::NotApplied,
        };
        let acked: Vec<NodeNum> = fold.acked().collect();
        Failure {
            kind,
            outcome: Some(outcome),
            level: fold.level(),
            required: fold.required(),
            sets: fold.placement().answers(fold.level(), &acked),
            acked,
            failed: fold.failed(),
            met: None,
        }
    }
}

impl Writing {
    pub(super) fn send(&self, peers: &dyn crate::ports::Peers, ask: WriteAsk, deadline: Option<Instant>) {
        let (key, record, round) = (self.key.clone(), self.record.clone(), self.round);
        let (to, request, tag) = match ask {
            WriteAsk::Write { to } => (to, ReplicaRequest::Write { key, record }, Tag::Write { from: to, round }),
            WriteAsk::Hint { to, target, counted } => {
                let tag = Tag::Hint { from: to, target, counted, round };
                (to, ReplicaRequest::Hint { target, key, record, counted }, tag)
            }
        };
        let trace = self.trace.clone();
        let call = crate::ports::ReplicaCall { epoch: self.epoch, request, deadline, behind: false, trace };
        peers.send(to, call, self.answers.reply_to(tag.pack()));
    }

    /// Tells the fold of an answer; one to an earlier stamp is not about this one.
    pub(super) fn on_answer(
        &mut self,
        tag: Tag,
        answer: &crate::ports::Answer,
        asking: crate::protocol::quorum::Asking<'_>,
    ) -> SmallVec<[WriteAsk; 4]> {
        events::answered(tag.from(), tag.target(), &self.key, self.fold.version(), answer);
        match tag {
            Tag::Write { from, round } if round == self.round => self.fold.on_write(from, answer, asking),
            Tag::Hint { from, target, counted, round } if round == self.round => {
                self.fold.on_hint(from, target, counted, answer, asking)
            }
            _ => SmallVec::new(),
        }
    }
}

fn receipt(writing: &Writing, level: Level) -> Receipt {
    let fold = &writing.fold;
    let acked: Vec<NodeNum> = fold.acked().collect();
    Receipt {
        version: fold.version(),
        level,
        replicas: fold.replicas(),
        hinted: fold.hinted().collect(),
        strict: fold.is_strict(),
        created: fold.is_new(),
        expires_at_ms: writing.record.expires_at_ms(),
        acked,
    }
}
