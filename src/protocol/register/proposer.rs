//! The proposer: one conditional write, from its first ballot to its verdict.
//!
//! A ballot is one run through three rounds: *prepare* (a majority promises, and says what it holds), *accept* (a
//! majority accepts what is to be), *write* (a majority holds it in its rows, where reads see it). A ballot that is outbid,
//! or that loses its majority on the way, is followed by a higher one after a pause, from prepare on.
//!
//! The *base*, on which the condition is judged, is the greatest record that was promised, or the state accepted under
//! the highest ballot where that is newer: it may have been decided, and not written yet.
//!
//! Invariants:
//! - An operation is decided once. After it sent an accept, it goes on only when it knows that nobody decided beside it: a
//!   state of its own that it finds is finished; a higher ballot than its own says that others may have built on it, or
//!   not, which is [`Verdict::Unknown`].
//! - "Condition failed" is said only of a base that stays: one that a majority holds in its rows, or that was accepted
//!   again under this ballot and written. After an accept of its own only the latter will do: it ends what was accepted of
//!   that one.
//! - Without an accept every verdict but success is definite: nothing was written.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::protocol::quorum::{Asking, Gather, Gathered};
use crate::protocol::ring::Placement;
use crate::types::{
    Accepted, Answer, Ballot, Hlc, Level, NodeNum, Promise, Proposal, Recent, Record, Remembered, RememberedAnswer,
    ReplicaReply, ReplicaRequest, Verdict, Version,
};

/// Ballots of an operation that never came to an accept; then it gives up.
const BALLOTS_MAX: u32 = 12;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// More answers are needed.
    Wait,
    /// Send this to each of them.
    Send {
        to: SmallVec<[NodeNum; 4]>,
        request: ReplicaRequest,
    },
    /// Write this to a majority of home replicas (any `Dominated` is an acknowledgement), of which these have it already;
    /// then tell [`ProposerFold::on_written`].
    Write {
        record: Record,
        have: SmallVec<[NodeNum; 4]>,
    },
    /// Pause a little, the longer the more often, then [`ProposerFold::prepare`] with a ballot above this.
    BackOff {
        above: Hlc,
    },
    Done(Verdict),
}

/// A state of this operation's own making that was sent to be accepted.
#[derive(Clone, Debug)]
struct Sent {
    ballot: Ballot,
    version: Version,
    /// What is said once it is written.
    verdict: Verdict,
}

#[derive(Clone, Debug)]
enum Round {
    Idle,
    Prepare(Gather<Box<Promise>>),
    Accept { gather: Gather<()>, accepted: Box<Accepted>, verdict: Verdict },
    Write { verdict: Verdict },
}

/// One operation.
#[derive(Clone, Debug)]
pub struct ProposerFold {
    placement: Arc<Placement>,
    proposal: Proposal,
    ballot: Ballot,
    /// The clock of its first ballot: when what it writes came to be.
    written: Hlc,
    ballots: u32,
    round: Round,
    sent: Vec<Sent>,
    /// The highest ballot that anybody was promised instead.
    outbid: Option<Ballot>,
    /// Of the last round that did not come to its end.
    acked: Vec<NodeNum>,
    failed: Vec<(NodeNum, String)>,
}

impl ProposerFold {
    pub fn new(placement: Arc<Placement>, proposal: Proposal) -> Self {
        Self {
            placement,
            proposal,
            ballot: Ballot::default(),
            written: Hlc::ZERO,
            ballots: 0,
            round: Round::Idle,
            sent: Vec::new(),
            outbid: None,
            acked: Vec::new(),
            failed: Vec::new(),
        }
    }

    pub fn proposal(&self) -> &Proposal {
        &self.proposal
    }

    /// Ballots so far.
    pub fn ballots(&self) -> u32 {
        self.ballots
    }

    /// Answers needed in each round.
    pub fn required(&self) -> usize {
        self.placement.needed(Level::Linearizable)
    }

    /// The home replicas.
    pub fn replicas(&self) -> Vec<NodeNum> {
        self.placement.home_replicas().to_vec()
    }

    /// Begins a ballot, which must be above all before.
    pub fn prepare(&mut self, ballot: Ballot, asking: Asking<'_>) -> Step {
        if self.ballots == 0 {
            self.written = ballot.hlc;
        }
        self.ballots += 1;
        self.ballot = ballot;
        let mut gather = Gather::new(Arc::clone(&self.placement));
        let to = gather.start(asking);
        self.round = Round::Prepare(gather);
        let key = self.proposal.key.clone();
        self.send_or_fail(to, ReplicaRequest::Prepare { key, ballot })
    }

    /// The topology changed: the next ballot goes to these replicas. Where it stands between two rounds does not matter.
    pub fn move_to(&mut self, placement: Arc<Placement>) {
        self.placement = placement;
        self.round = Round::Idle;
    }

    /// A home replica's answer to what was sent in the round under way. By `now` records are judged live or not.
    pub fn on_answer(&mut self, from: NodeNum, answer: Answer, now: Hlc, asking: Asking<'_>) -> Step {
        if let Ok(ReplicaReply::Outbid { promised }) = &answer {
            self.outbid = self.outbid.max(Some(*promised));
        }
        match &mut self.round {
            Round::Prepare(gather) => {
                let said = match answer {
                    Ok(ReplicaReply::Promised(promise)) => Ok(promise),
                    other => Err(why_not(&other)),
                };
                gather.on(from, said);
                match gather.state() {
                    Gathered::Waiting => Step::Wait,
                    Gathered::Failed => self.lost(),
                    Gathered::Met => self.judge(now, asking),
                }
            }
            Round::Accept { gather, .. } => {
                let said = match answer {
                    Ok(ReplicaReply::Accepted) => Ok(()),
                    other => Err(why_not(&other)),
                };
                gather.on(from, said);
                match gather.state() {
                    Gathered::Waiting => Step::Wait,
                    Gathered::Failed => self.lost(),
                    Gathered::Met => self.decided(),
                }
            }
            Round::Idle | Round::Write { .. } => Step::Wait,
        }
    }

    /// A majority has the record in its rows (these acknowledged it), or it could not be had.
    pub fn on_written(&mut self, acked: Result<Vec<NodeNum>, Vec<(NodeNum, String)>>) -> Step {
        let Round::Write { verdict } = std::mem::replace(&mut self.round, Round::Idle) else { return Step::Wait };
        match acked {
            Ok(nodes) => Step::Done(match verdict {
                Verdict::Applied { version, created, .. } => Verdict::Applied { version, created, acked: nodes },
                other => other,
            }),
            Err(failed) => {
                self.failed = failed;
                self.again()
            }
        }
    }

    /// Time is up.
    pub fn give_up(&self) -> Verdict {
        let (acked, failed) = match &self.round {
            Round::Prepare(gather) => (gather.yes().map(|(n, _)| n).collect(), gather.failed()),
            Round::Accept { gather, .. } => (gather.yes().map(|(n, _)| n).collect(), gather.failed()),
            Round::Idle | Round::Write { .. } => (self.acked.clone(), self.failed.clone()),
        };
        let required = self.required();
        match (self.sent.is_empty(), self.outbid) {
            (false, _) => Verdict::Unknown { required, acked, failed },
            (true, Some(_)) => Verdict::Conflict,
            (true, None) => Verdict::Unavailable { required, acked, failed },
        }
    }

    // ----------------------------------------------------------------------------------------------------- judging

    /// A majority promised.
    fn judge(&mut self, now: Hlc, asking: Asking<'_>) -> Step {
        let Round::Prepare(gather) = std::mem::replace(&mut self.round, Round::Idle) else { return Step::Wait };
        let found = Found::of(&gather);
        if let Some(verdict) = self.mine(&found) {
            return match verdict {
                Ok(verdict) => self.accept_again(found, verdict, asking),
                Err(unknown) => Step::Done(unknown),
            };
        }
        if let Some(before) = self.remembered(&found) {
            return match self.said_before(before) {
                Some(verdict) => self.accept_again(found, verdict, asking),
                None if self.sent.is_empty() => Step::Done(Verdict::KeyReused),
                None => Step::Done(self.unknown()),
            };
        }
        let base = found.base().cloned();
        let current = base.filter(|r| r.is_live(now));
        if self.proposal.condition.holds(current.as_ref()) {
            return self.propose(&found, current.is_none(), asking);
        }
        let verdict = Verdict::ConditionFailed { current };
        self.refuse(found, verdict, asking)
    }

    /// Where an accept of its own was sent before: what is said when the state found is written again, or that nobody
    /// knows. `None`: whatever was accepted of it can never be decided under its old ballot.
    fn mine(&self, found: &Found<'_>) -> Option<Result<Verdict, Verdict>> {
        let last = self.sent.last()?;
        let accepted = found.accepted;
        if let Some(a) = accepted.filter(|a| a.op == self.proposal.op) {
            let sent = self.sent.iter().rev().find(|s| s.version == a.version());
            return Some(Ok(sent.unwrap_or(last).verdict.clone()));
        }
        if let Some(before) = self.remembered(found) {
            return self.said_before(before).map(Ok);
        }
        let passed = accepted.is_some_and(|a| a.ballot > last.ballot) || found.low > last.ballot;
        passed.then(|| Err(self.unknown()))
    }

    /// The answer that was given before under its `Idempotency-Key`.
    fn remembered(&self, found: &Found<'_>) -> Option<Remembered> {
        let idempotency = self.proposal.idempotency?;
        found.recent().find(idempotency.key).copied()
    }

    /// What is said again. `None`: the key belongs to another request.
    fn said_before(&self, before: Remembered) -> Option<Verdict> {
        if Some(before.request) != self.proposal.idempotency {
            return None;
        }
        let applied = |created| Verdict::Applied { version: before.version, created, acked: Vec::new() };
        Some(match before.answer {
            RememberedAnswer::Created => applied(true),
            RememberedAnswer::Replaced => applied(false),
            RememberedAnswer::ConditionFailed => {
                Verdict::FailedBefore { version: Some(before.version).filter(|v| *v != Version::default()) }
            }
        })
    }

    /// The condition is true.
    fn propose(&mut self, found: &Found<'_>, created: bool, asking: Asking<'_>) -> Step {
        let below = found.base().map_or(found.floor_version, |r| r.version);
        let Some(version) = below.conditional() else {
            return Step::Done(if self.sent.is_empty() { Verdict::Exhausted } else { self.unknown() });
        };
        let content = self.proposal.content.clone();
        let record = Record::seal(&self.proposal.key, version, self.written, content);
        let answer = if created { RememberedAnswer::Created } else { RememberedAnswer::Replaced };
        let recent = self.remember(found, answer, version);
        let accepted = Accepted { ballot: self.ballot, op: self.proposal.op, record: Some(record), recent };
        self.accept(accepted, Verdict::Applied { version, created, acked: Vec::new() }, asking)
    }

    /// The condition is false: the base must stay before that is said.
    fn refuse(&mut self, found: Found<'_>, verdict: Verdict, asking: Asking<'_>) -> Step {
        let remembers = self.proposal.idempotency.is_some();
        match found.newer() {
            Some(_) if !remembers => self.accept_again(found, verdict, asking),
            None if !remembers && self.sent.is_empty() => self.settle(&found, verdict),
            newer => {
                let version = found.base().map_or_else(Version::default, |r| r.version);
                let recent = self.remember(&found, RememberedAnswer::ConditionFailed, version);
                // Whose state it was may still ask for it.
                let op = newer.map_or(self.proposal.op, |a| a.op);
                let accepted = Accepted { ballot: self.ballot, op, record: found.base().cloned(), recent };
                self.accept(accepted, verdict, asking)
            }
        }
    }

    /// No accept is needed where a majority holds the base in its rows.
    fn settle(&mut self, found: &Found<'_>, verdict: Verdict) -> Step {
        let Some(record) = found.row.filter(|_| !found.is_unanimous()) else { return Step::Done(verdict) };
        self.round = Round::Write { verdict };
        Step::Write { record: record.clone(), have: found.holders(record) }
    }

    fn remember(&self, found: &Found<'_>, answer: RememberedAnswer, version: Version) -> Recent {
        let recent = found.recent();
        self.proposal
            .idempotency
            .map_or_else(|| recent.clone(), |request| recent.with(Remembered { request, answer, version }))
    }

    fn unknown(&self) -> Verdict {
        Verdict::Unknown { required: self.required(), acked: Vec::new(), failed: Vec::new() }
    }

    // --------------------------------------------------------------------------------------------- accepting, writing

    /// The state that is, once more under this ballot: what may have been decided is, then.
    fn accept_again(&mut self, found: Found<'_>, verdict: Verdict, asking: Asking<'_>) -> Step {
        let op = found.accepted.map_or(self.proposal.op, |a| a.op);
        let (record, recent) = (found.base().cloned(), found.recent().clone());
        self.accept(Accepted { ballot: self.ballot, op, record, recent }, verdict, asking)
    }

    fn accept(&mut self, accepted: Accepted, verdict: Verdict, asking: Asking<'_>) -> Step {
        let mut gather = Gather::new(Arc::clone(&self.placement));
        let to = gather.start(asking);
        if !to.is_empty() && accepted.op == self.proposal.op {
            let (ballot, version, verdict) = (self.ballot, accepted.version(), verdict.clone());
            self.sent.push(Sent { ballot, version, verdict });
        }
        let accepted = Box::new(accepted);
        let request = ReplicaRequest::Accept { key: self.proposal.key.clone(), accepted: accepted.clone() };
        self.round = Round::Accept { gather, accepted, verdict };
        self.send_or_fail(to, request)
    }

    /// A majority accepted.
    fn decided(&mut self) -> Step {
        let Round::Accept { accepted, verdict, .. } = std::mem::replace(&mut self.round, Round::Idle) else {
            return Step::Wait;
        };
        match accepted.record {
            Some(record) => {
                self.round = Round::Write { verdict };
                Step::Write { record, have: SmallVec::new() }
            }
            None => Step::Done(verdict),
        }
    }

    fn send_or_fail(&mut self, to: SmallVec<[NodeNum; 4]>, request: ReplicaRequest) -> Step {
        if to.is_empty() { self.lost() } else { Step::Send { to, request } }
    }

    /// The round lost its majority. Somebody else's higher ballot is outbid; where replicas cannot be had and nothing
    /// was sent, that is the verdict.
    fn lost(&mut self) -> Step {
        let verdict = self.give_up();
        if let Verdict::Unavailable { .. } = verdict {
            return Step::Done(verdict);
        }
        if let Verdict::Unknown { acked, failed, .. } = verdict {
            (self.acked, self.failed) = (acked, failed);
        }
        self.again()
    }

    fn again(&mut self) -> Step {
        self.round = Round::Idle;
        if self.ballots >= BALLOTS_MAX && self.sent.is_empty() {
            return Step::Done(self.give_up());
        }
        Step::BackOff { above: self.outbid.map_or(self.ballot.hlc, |b| b.hlc.max(self.ballot.hlc)) }
    }
}

/// What a majority held when it promised.
struct Found<'a> {
    promises: SmallVec<[(NodeNum, &'a Promise); 4]>,
    /// The state accepted under the highest ballot, none below the greatest floor's.
    accepted: Option<&'a Accepted>,
    /// The greatest record.
    row: Option<&'a Record>,
    floor_version: Version,
    low: Ballot,
}

impl<'a> Found<'a> {
    fn of(gather: &'a Gather<Box<Promise>>) -> Self {
        let promises: SmallVec<[(NodeNum, &Promise); 4]> = gather.yes().map(|(n, p)| (n, &**p)).collect();
        let all = || promises.iter().map(|(_, p)| *p);
        let low = all().map(|p| p.floor.ballot).max().unwrap_or_default();
        let floor_version = all().map(|p| p.floor.version).max().unwrap_or_default();
        let accepted = all().filter_map(|p| p.accepted.as_ref()).max_by_key(|a| a.ballot).filter(|a| a.ballot >= low);
        let row = all().filter_map(|p| p.record.as_ref()).reduce(|a, b| if b.beats(a) { b } else { a });
        Self { accepted, row, floor_version, low, promises }
    }

    /// The accepted state, where it is newer than every row.
    fn newer(&self) -> Option<&'a Accepted> {
        self.accepted.filter(|a| a.version() > self.row.map_or_else(Version::default, |r| r.version))
    }

    /// What conditions are judged on.
    fn base(&self) -> Option<&'a Record> {
        self.newer().map_or(self.row, |a| a.record.as_ref())
    }

    fn recent(&self) -> &Recent {
        const NONE: &Recent = &Recent::NONE;
        self.accepted.map_or(NONE, |a| &a.recent)
    }

    fn is_unanimous(&self) -> bool {
        self.promises.iter().all(|(_, p)| p.record.as_ref() == self.row)
    }

    fn holders(&self, record: &Record) -> SmallVec<[NodeNum; 4]> {
        self.promises.iter().filter(|(_, p)| p.record.as_ref() == Some(record)).map(|(n, _)| *n).collect()
    }
}

/// Why an answer is no yes.
fn why_not(answer: &Answer) -> String {
    match answer {
        Ok(ReplicaReply::Outbid { .. }) => "promised a higher ballot to another".into(),
        Ok(ReplicaReply::Refused(refusal)) => refusal.to_string(),
        Ok(ReplicaReply::WrongEpoch { topology }) => format!("holds the newer epoch {}", topology.epoch),
        Ok(_) => "answered another question".into(),
        Err(error) => error.to_string(),
    }
}
