//! A client with its coordinator: the drivers of the production folds, reduced to what they send and hear.

use std::sync::Arc;

use a3::protocol::quorum::{Ask, ReadAsk, ReadFold, ReadState, WriteAsk, WriteFold, WriteState};
use a3::protocol::register::{ProposerFold, Step};
use a3::protocol::ring::Placement;
use a3::types::{
    Answer, Ballot, Condition, Content, Edit, Hlc, Idempotency, Key, Level, NewContent, NodeNum, OpId, Proposal,
    Record, ReplicaRequest, Tags, Verdict, Version, Writer,
};
use uuid::Uuid;

use crate::spec::{Asks, Op, Said};

/// Expiry plays no part here.
const NOW: Hlc = Hlc(1);

/// On its way to a replica.
pub(crate) type Message = (NodeNum, ReplicaRequest);

/// Where a client stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Doing {
    /// Nothing (left, once all its operations are over).
    Nothing,
    Proposing(Box<ProposerFold>),
    /// The write that makes its state visible.
    Committing(Box<ProposerFold>, Box<WriteFold>),
    /// Between two ballots.
    Pausing(Box<ProposerFold>),
    /// A read, or the first round of a write.
    Reading(Box<ReadFold>, Op),
    /// A write-back, or the second round of a write; then this is said.
    Writing(Box<WriteFold>, Said),
}

/// What came of a step.
#[derive(Debug)]
pub(crate) enum Came {
    Nothing,
    Said(Said),
    /// Nobody knows: it stays in flight for ever.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    me: u16,
    placement: Arc<Placement>,
    /// Operations begun.
    pub(crate) begun: usize,
    doing: Doing,
    ballots_left: u32,
    /// The operation under way, until its first message arrives: nobody can tell when it began before that.
    pub(crate) unheard: Option<Op>,
    /// Nothing arrived yet of what was sent in the round under way.
    fresh: bool,
    /// Sent in the round under way; its answer is still waited for.
    pub(crate) open: Vec<Message>,
    /// Sent in rounds that are over; it may arrive all the same.
    pub(crate) late: Vec<Message>,
    /// The last record that it was told of, as its next condition may name it.
    seen: Option<(u8, Version)>,
    /// The version that it was told is written.
    pub(crate) applied: Option<Version>,
    /// The version with which it was told that it created the key.
    pub(crate) created: Option<Version>,
}

pub(crate) fn key() -> Key {
    Key::new("k").unwrap()
}

pub(crate) fn record(version: Version, value: Option<u8>) -> Record {
    let content = value.map_or(Content::Tombstone, |v| Content::value(vec![v]));
    Record::seal(&key(), version, version.hlc, content)
}

pub(crate) fn value_of(record: Option<&Record>) -> Option<u8> {
    match &record?.content {
        Content::Value { bytes, .. } => bytes.first().copied(),
        Content::Tombstone => None,
    }
}

/// Never the same twice, for anybody.
fn tick(clock: &mut Hlc) -> Hlc {
    *clock = clock.next();
    *clock
}

impl Client {
    pub(crate) fn new(me: u16, placement: Arc<Placement>, seen: Option<(u8, Version)>) -> Self {
        let doing = Doing::Nothing;
        let (open, late) = (Vec::new(), Vec::new());
        Self {
            me,
            placement,
            begun: 0,
            doing,
            ballots_left: 0,
            unheard: None,
            fresh: false,
            open,
            late,
            seen,
            applied: None,
            created: None,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.doing == Doing::Nothing
    }

    pub(crate) fn is_pausing(&self) -> bool {
        matches!(self.doing, Doing::Pausing(_))
    }

    pub(crate) fn has_ballots_left(&self) -> bool {
        self.ballots_left > 0
    }

    /// Whether silence would change what it does.
    pub(crate) fn may_lose_patience(&self) -> bool {
        match &self.doing {
            Doing::Proposing(_) | Doing::Committing(..) => true,
            Doing::Reading(fold, _) => fold.copies().len() + fold.failed().len() < self.placement.home_replicas().len(),
            _ => false,
        }
    }

    /// As [`Client::may_lose_patience`], but only where something new may come of it. To lose it before anything arrived is
    /// as good as later, since what was sent may arrive all the same; and a ballot that nobody promised need not have begun.
    pub(crate) fn may_lose_patience_at_once(&self) -> bool {
        let prepares = self.open.iter().any(|(_, m)| matches!(m, ReplicaRequest::Prepare { .. }));
        self.fresh && !prepares && self.may_lose_patience()
    }

    /// What it asks with its next condition: the value that it saw last, or that there is none.
    pub(crate) fn op(&self, planned: Op) -> Op {
        match planned {
            Op::Propose { asks: Asks::Is(_), value, key: None } => {
                let asks = self.seen.map_or(Asks::Absent, |(seen, _)| Asks::Is(seen));
                Op::Propose { asks, value, key: None }
            }
            other => other,
        }
    }

    /// Begins an operation.
    pub(crate) fn start(&mut self, op: Op, ballots: u32, clock: &mut Hlc) -> Came {
        self.begun += 1;
        self.unheard = Some(op);
        self.ballots_left = ballots;
        let Op::Propose { asks, value, key: idempotency } = op else {
            let mut fold = ReadFold::new(Arc::clone(&self.placement), Level::Linearizable, NOW, false);
            let asks = fold.start(NodeNum(self.me % 3), &|_| Ask::Yes);
            self.doing = Doing::Reading(Box::new(fold), op);
            self.fresh = true;
            self.read(&asks);
            return Came::Nothing;
        };
        let any = Some(Tags::Any);
        let condition = match (asks, self.seen) {
            (Asks::Absent, _) => Condition { if_none_match: any, ..Condition::default() },
            (Asks::Present, _) => Condition { if_match: any, ..Condition::default() },
            (Asks::Is(_), seen) => {
                let tags = Tags::Of(seen.iter().map(|(_, version)| *version).collect());
                Condition { if_match: Some(tags), ..Condition::default() }
            }
            (Asks::Nothing, _) => Condition::default(),
        };
        let edit = Edit::Write(value.map_or(NewContent::Tombstone, |v| NewContent::value(vec![v])));
        let op = OpId(Uuid::from_u128(u128::from(self.me) << 32 | self.begun as u128));
        let idempotency = idempotency.map(|k| Idempotency { key: k.into(), request: k.into() });
        let fold = ProposerFold::new(
            Arc::clone(&self.placement),
            Proposal { key: key(), condition, edit, op, idempotency, ended: None },
        );
        self.doing = Doing::Pausing(Box::new(fold));
        self.prepare(clock)
    }

    /// Begins its next ballot.
    pub(crate) fn prepare(&mut self, clock: &mut Hlc) -> Came {
        let Doing::Pausing(mut fold) = self.end_round() else { panic!("it does not pause") };
        self.ballots_left -= 1;
        let step = fold.prepare(Ballot { hlc: tick(clock), writer: Writer(self.me.into()) }, &|_| Ask::Yes);
        self.step(fold, step)
    }

    /// A replica's answer to what was asked in the round under way.
    pub(crate) fn on_answer(&mut self, from: NodeNum, answer: Answer, clock: &mut Hlc) -> Came {
        self.fresh = false;
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Proposing(mut fold) => {
                let step = fold.on_answer(from, answer, NOW, &|_| Ask::Yes);
                self.step(fold, step)
            }
            Doing::Committing(fold, mut write) => {
                write.on_write(from, &answer, &|_| Ask::Yes);
                self.commit(fold, write)
            }
            Doing::Reading(mut fold, op) => {
                let asks = fold.on_answer(from, answer, &|_| Ask::Yes);
                self.doing = Doing::Reading(fold, op);
                self.read(&asks);
                self.found(clock)
            }
            Doing::Writing(mut fold, said) => {
                fold.on_write(from, &answer, &|_| Ask::Yes);
                self.written(fold, said)
            }
            Doing::Nothing | Doing::Pausing(_) => panic!("nothing was asked"),
        }
    }

    /// Nobody answers any more: a register operation's round is lost, a read asks somebody else.
    pub(crate) fn lose_patience(&mut self, clock: &mut Hlc) -> Came {
        if let Doing::Reading(fold, _) = &mut self.doing {
            let silent: Vec<_> = self.open.iter().map(|(n, _)| *n).collect();
            let asks = fold.on_silence(&silent, &|_| Ask::Yes);
            self.read(&asks);
            return self.found(clock);
        }
        let silent = self.open.clone();
        for (node, _) in silent {
            if matches!(self.doing, Doing::Proposing(_) | Doing::Committing(..)) {
                let came = self.on_answer(node, Err(a3::types::PeerError::TimedOut), clock);
                if !matches!(came, Came::Nothing) {
                    return came;
                }
            }
        }
        Came::Nothing
    }

    /// Its time is up.
    pub(crate) fn give_up(&mut self) -> Came {
        let Doing::Pausing(fold) = self.end_round() else { panic!("it does not pause") };
        self.conclude(fold.give_up())
    }

    // ------------------------------------------------------------------------------------------------------ inside

    /// The round is over: what did not arrive yet is late. A prepare that nobody waits for changes nothing but who is
    /// outbid, and a read nothing at all: those are lost.
    fn end_round(&mut self) -> Doing {
        let lasts = |m: &Message| matches!(m.1, ReplicaRequest::Accept { .. } | ReplicaRequest::Write { .. });
        self.late.extend(self.open.drain(..).filter(lasts));
        std::mem::replace(&mut self.doing, Doing::Nothing)
    }

    fn step(&mut self, fold: Box<ProposerFold>, step: Step) -> Came {
        if step != Step::Wait {
            self.end_round();
        }
        match step {
            Step::Wait => self.doing = Doing::Proposing(fold),
            Step::Send { to, request } => {
                self.open = to.iter().map(|n| (*n, request.clone())).collect();
                self.fresh = true;
                self.doing = Doing::Proposing(fold);
            }
            Step::Write { record, have } => {
                let write = self.send_write(record, &have);
                return self.commit(fold, write);
            }
            Step::BackOff { .. } => self.doing = Doing::Pausing(fold),
            Step::Done(verdict) => return self.conclude(verdict),
        }
        Came::Nothing
    }

    fn send_write(&mut self, record: Record, have: &[NodeNum]) -> Box<WriteFold> {
        let level = Level::Linearizable;
        self.fresh = true;
        let mut write = WriteFold::write_back(Arc::clone(&self.placement), level, &record, have);
        for ask in write.start(&|_| Ask::Yes) {
            if let WriteAsk::Write { to } = ask {
                self.open.push((to, ReplicaRequest::Write { key: key(), record: record.clone() }));
            }
        }
        Box::new(write)
    }

    fn commit(&mut self, mut fold: Box<ProposerFold>, write: Box<WriteFold>) -> Came {
        let written = match write.state() {
            WriteState::Met => Ok(write.acked().collect()),
            WriteState::Failed => Err(write.failed()),
            WriteState::Waiting | WriteState::Restamp { .. } => {
                self.doing = Doing::Committing(fold, write);
                return Came::Nothing;
            }
        };
        let step = fold.on_written(written);
        self.step(fold, step)
    }

    fn read(&mut self, asks: &[ReadAsk]) {
        let request = |a: &ReadAsk| (a.to, ReplicaRequest::Read { key: key(), part: a.part, hints: a.hints });
        self.open.extend(asks.iter().map(request));
    }

    /// Where enough was read: a read is written back where the copies differ, a write goes above what was found.
    fn found(&mut self, clock: &mut Hlc) -> Came {
        let Doing::Reading(fold, op) = &self.doing else { panic!("it does not read") };
        if fold.state() == ReadState::Waiting {
            return Came::Nothing;
        }
        let (fold, op) = (fold.clone(), *op);
        self.end_round();
        match (op, fold.state()) {
            (_, ReadState::Failed) => Came::Unknown,
            (Op::Write(value), _) => {
                let version = Version::plain(tick(clock), Writer(self.me.into()));
                assert!(fold.record().is_none_or(|r| r.version < version), "the clock observes what it reads");
                let write = self.send_write(record(version, Some(value)), &[]);
                self.written(write, Said::Written)
            }
            _ => {
                let found = fold.record().cloned();
                let value = value_of(found.as_ref());
                self.note(found.as_ref());
                match found.filter(|_| fold.disagree()) {
                    None => Came::Said(Said::Found(value)),
                    Some(record) => {
                        let write = self.send_write(record, &fold.have());
                        self.written(write, Said::Found(value))
                    }
                }
            }
        }
    }

    fn written(&mut self, fold: Box<WriteFold>, said: Said) -> Came {
        match fold.state() {
            WriteState::Met => {
                self.end_round();
                Came::Said(said)
            }
            WriteState::Failed => Came::Unknown,
            WriteState::Waiting | WriteState::Restamp { .. } => {
                self.doing = Doing::Writing(fold, said);
                Came::Nothing
            }
        }
    }

    fn note(&mut self, record: Option<&Record>) {
        let value = value_of(record);
        self.seen = record.and_then(|r| value.map(|v| (v, r.version)));
    }

    fn conclude(&mut self, verdict: Verdict) -> Came {
        self.end_round();
        self.ballots_left = 0;
        match verdict {
            Verdict::Applied { version, created, .. } => {
                self.applied = self.applied.max(Some(version));
                self.created = created.then_some(version).or(self.created);
                Came::Said(Said::Applied { created })
            }
            Verdict::ConditionFailed { current } => {
                self.note(current.as_ref());
                Came::Said(Said::Failed(value_of(current.as_ref())))
            }
            Verdict::FailedBefore { .. } => Came::Said(Said::FailedBefore),
            Verdict::KeyReused | Verdict::Conflict | Verdict::Exhausted | Verdict::Unavailable { .. } => {
                Came::Said(Said::Not)
            }
            Verdict::Unknown { .. } => Came::Unknown,
        }
    }
}
