//! Three replicas in memory that follow the replica's rules, for the tests of the proposer; and short names.

use std::fmt::Write as _;
use std::sync::Arc;

use smallvec::SmallVec;
use uuid::Uuid;

use super::proposer::{ProposerFold, Step};
use super::{accept, prepare};
use crate::protocol::quorum::Ask;
use crate::protocol::replica::{StoredRow, WriteRule, write};
use crate::protocol::ring::Placement;
use crate::types::{
    Accepted, Answer, Ballot, Condition, Content, Floor, Hlc, Key, NodeNum, OpId, PeerError, Promise, Recent, Record,
    Register, ReplicaReply, ReplicaRequest, Tags, Verdict, Version, Writer, majority,
};

pub(super) const ALL: &[u16] = &[1, 2, 3];
pub(super) const NOW: Hlc = Hlc(0);

#[derive(Clone, Default)]
pub(super) struct Cell {
    pub(super) row: Option<Record>,
    pub(super) register: Register,
    pub(super) floor: Floor,
}

/// Replicas 1 to n, and what was said to them.
pub(super) struct Replicas {
    pub(super) cells: Vec<Cell>,
    pub(super) transcript: String,
    /// By this proposers judge whether a value has ended.
    pub(super) now: Hlc,
}

impl Replicas {
    pub(super) fn new(count: usize) -> Self {
        Self { cells: vec![Cell::default(); count], transcript: String::new(), now: NOW }
    }

    /// Three that hold these versions; `None` is nothing.
    pub(super) fn holding(rows: [Option<Version>; 3]) -> Self {
        let mut replicas = Self::new(3);
        for (cell, row) in replicas.cells.iter_mut().zip(rows) {
            cell.row = row.map(|v| record(v, "row"));
        }
        replicas
    }

    pub(super) fn accepted(mut self, node: u16, ballot: Ballot, op: u8, version: Version) -> Self {
        let record = Some(record(version, "accepted"));
        let accepted = Some(Accepted { ballot, op: op_id(op), record, recent: Recent::NONE });
        self.cells[usize::from(node) - 1].register = Register { promised: ballot, accepted };
        self
    }

    pub(super) fn ask(&mut self, to: u16, request: &ReplicaRequest) -> Answer {
        let cell = &mut self.cells[usize::from(to) - 1];
        Ok(match request {
            ReplicaRequest::Prepare { ballot, .. } => match prepare(cell.register.promised, cell.floor.ballot, *ballot)
            {
                Err(promised) => ReplicaReply::Outbid { promised },
                Ok(()) => {
                    cell.register.promised = *ballot;
                    let (accepted, record) = (cell.register.accepted.clone(), cell.row.clone());
                    ReplicaReply::Promised(Box::new(Promise { accepted, record, floor: cell.floor }))
                }
            },
            ReplicaRequest::Accept { accepted, .. } => {
                match accept(cell.register.promised, cell.floor.ballot, accepted.ballot) {
                    Err(promised) => ReplicaReply::Outbid { promised },
                    Ok(()) => {
                        let accepted = (**accepted).clone();
                        cell.register = Register { promised: accepted.ballot, accepted: Some(accepted) };
                        ReplicaReply::Accepted
                    }
                }
            }
            other => panic!("a proposer does not send {other:?}"),
        })
    }

    pub(super) fn write(&mut self, to: u16, record: &Record) {
        let cell = &mut self.cells[usize::from(to) - 1];
        if write(cell.row.as_ref().map(StoredRow::of).as_ref(), &cell.floor, record) == WriteRule::Store {
            cell.row = Some(record.clone());
        }
    }

    pub(super) fn rows(&self) -> Vec<Option<Version>> {
        self.cells.iter().map(|c| c.row.as_ref().map(|r| r.version)).collect()
    }

    /// One ballot: these replicas hear its prepare, its accept and its write; the others hear nothing, and time out.
    pub(super) fn run(&mut self, fold: &mut ProposerFold, ballot: Ballot, heard: [&[u16]; 3]) -> Step {
        let mut step = fold.prepare(ballot, &|_| Ask::Yes);
        loop {
            match step {
                Step::Send { to, request } => {
                    let (name, heard) = match &request {
                        ReplicaRequest::Prepare { .. } => (format!("prepare {}", ballot.hlc.0), heard[0]),
                        ReplicaRequest::Accept { accepted, .. } => (told(accepted), heard[1]),
                        other => panic!("a proposer does not send {other:?}"),
                    };
                    writeln!(self.transcript, "{name} heard by {heard:?}").unwrap();
                    step = Step::Wait;
                    for node in to {
                        let heard = heard.contains(&node.0);
                        let answer = if heard { self.ask(node.0, &request) } else { Err(PeerError::TimedOut) };
                        step = fold.on_answer(node, answer, self.now, &|_| Ask::Yes);
                        if step != Step::Wait {
                            break;
                        }
                    }
                }
                Step::Write { record, have } => {
                    writeln!(self.transcript, "write {} heard by {:?}", record.version.rmw, heard[2]).unwrap();
                    heard[2].iter().for_each(|n| self.write(*n, &record));
                    let acked = nodes(heard[2]).into_iter().chain(have);
                    let acked: std::collections::BTreeSet<NodeNum> = acked.collect();
                    let enough = acked.len() >= majority(self.cells.len());
                    step = fold.on_written(if enough { Ok(acked.into_iter().collect()) } else { Err(Vec::new()) });
                }
                Step::Wait => panic!("it waits for nobody"),
                last @ (Step::BackOff { .. } | Step::Done(_)) => {
                    writeln!(self.transcript, "{}", outcome(&last)).unwrap();
                    return last;
                }
            }
        }
    }
}

pub(super) fn told(accepted: &Accepted) -> String {
    let op = accepted.op.0.as_u128();
    format!("accept {} of op {op} with {:?}", accepted.ballot.hlc.0, accepted.record.as_ref().map(|r| r.version.rmw))
}

pub(super) fn outcome(step: &Step) -> String {
    match step {
        Step::Done(Verdict::Applied { version, created, .. }) => format!("applied {} created {created}", version.rmw),
        Step::Done(Verdict::ConditionFailed { current }) => {
            let current = current.as_ref().filter(|r| !r.is_tombstone() || r.version.is_end());
            format!("failed of {:?}", current.map(|r| r.version.rmw))
        }
        Step::Done(Verdict::FailedBefore { version }) => format!("failed before of {:?}", version.map(|v| v.rmw)),
        Step::Done(Verdict::KeyReused) => "key reused".into(),
        Step::Done(Verdict::Conflict) => "conflict".into(),
        Step::Done(Verdict::Exhausted) => "exhausted".into(),
        Step::Done(Verdict::Unavailable { .. }) => "unavailable".into(),
        Step::Done(Verdict::Unknown { .. }) => "unknown".into(),
        Step::BackOff { above } => format!("back off above {}", above.0),
        other => format!("{other:?}"),
    }
}

pub(super) fn nodes(numbers: &[u16]) -> Vec<NodeNum> {
    numbers.iter().copied().map(NodeNum).collect()
}

pub(super) fn placement(write_sets: &[&[u16]]) -> Arc<Placement> {
    let write_sets = write_sets.iter().map(|set| set.iter().copied().map(NodeNum).collect()).collect::<SmallVec<_>>();
    Arc::new(Placement { write_sets, fallbacks: Vec::new() })
}

pub(super) fn key() -> Key {
    Key::new("k").unwrap()
}

pub(super) fn record(version: Version, value: &'static str) -> Record {
    Record::seal(&key(), version, version.hlc, Content::value(value))
}

pub(super) fn v(hlc: u64, rmw: u32) -> Version {
    Version { hlc: Hlc(hlc), writer: Writer(1), rmw }
}

pub(super) fn b(hlc: u64) -> Ballot {
    Ballot { hlc: Hlc(hlc), writer: Writer(9) }
}

pub(super) fn op_id(op: u8) -> OpId {
    OpId(Uuid::from_u128(op.into()))
}

pub(super) fn create() -> Condition {
    Condition { if_none_match: Some(Tags::Any), ..Condition::default() }
}

pub(super) fn replace() -> Condition {
    Condition { if_match: Some(Tags::Any), ..Condition::default() }
}
