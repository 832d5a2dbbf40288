//! The proposer: one conditional write, from its first ballot to its verdict.
//!
//! A ballot is one run through three rounds: *prepare* (a majority promises, and says what it holds), *accept* (a
//! majority accepts what is to be), *write* (a majority holds it in its rows, where reads see it). A ballot that is outbid,
//! or that loses its majority on the way, is followed by a higher one after a pause, from prepare on.
//!
//! The *base*, on which the condition is judged, is the greatest record that was promised, or the state accepted under
//! the highest ballot where that is newer: it may have been decided, and not written yet. Where it is a value whose time
//! is up, the tombstone of its end stands in its place.
//!
//! Invariants:
//! - An operation is decided once. After it sent an accept, it goes on only when it knows that nobody decided beside it: a
//!   state of its own that it finds is finished; somebody else's under a higher ballot than the *first* of its accepts may
//!   have been built on it, or not, which is [`Verdict::Unknown`]. (Higher than the last of them will not do: what was
//!   built on the first may have been out of sight when the second was sent, and come back after it.)
//! - "Condition failed" is said only of a base that stays: one that a majority holds in its rows, or that was accepted
//!   again under this ballot and written. After an accept of its own only the latter will do: it ends what was accepted of
//!   that one. Of the end of a value it is said only where a majority accepted that end: a row may have it without.
//! - Without an accept every verdict but success is definite: nothing was written.

use std::sync::Arc;

use smallvec::SmallVec;
use uuid::Uuid;

use super::found::Found;
use crate::protocol::quorum::{Asking, Gather, Gathered};
use crate::protocol::ring::Placement;
use crate::types::{
    Accepted, Answer, Ballot, Content, Hlc, Level, NodeNum, OpId, Promise, Proposal, Recent, Record, Remembered,
    RememberedAnswer, ReplicaReply, ReplicaRequest, Verdict, Version,
};

/// Ballots of an operation that never came to an accept; then it gives up.
const BALLOTS_MAX: u32 = 12;

/// The name of a state that no operation made: what was found, kept as it is.
const NOBODY: OpId = OpId(Uuid::nil());

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

/// A state that this operation sent to be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sent {
    ballot: Ballot,
    op: OpId,
    version: Version,
    /// What is said once it is written.
    verdict: Verdict,
}

impl Sent {
    /// The version that it was to write.
    fn applied(&self) -> Option<Version> {
        if let Verdict::Applied { version, .. } = self.verdict { Some(version) } else { None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Round {
    Idle,
    Prepare(Gather<Box<Promise>>),
    Accept { gather: Gather<()>, accepted: Box<Accepted>, verdict: Verdict },
    Write { verdict: Verdict },
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProposerFold {
    placement: Arc<Placement>,
    proposal: Proposal,
    ballot: Ballot,
    /// The clock of its first ballot: when what it writes came to be.
    written: Hlc,
    ballots: u32,
    round: Round,
    sent: Vec<Sent>,
    /// The first ballot under which something was sent to be accepted that answers this operation: a state of its own, or
    /// an entry under its `Idempotency-Key`. From then on nothing but a verdict of the register is definite.
    first_sent: Option<Ballot>,
    /// What the ballot under way found or made to stand under the key, a tombstone too; `None` until it has, and where it
    /// finishes a state of an earlier one.
    current: Option<Option<Record>>,
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
            first_sent: None,
            current: None,
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

    /// What stood under the key (a tombstone, too) at some moment since the last ballot began, where that ballot came to say
    /// it by a verdict of its own.
    pub fn current(&self) -> Option<&Option<Record>> {
        self.current.as_ref()
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
        self.current = None;
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
                Verdict::Applied { version, created, expires_at_ms, .. } => {
                    Verdict::Applied { version, created, expires_at_ms, acked: nodes }
                }
                other => other,
            }),
            Err(failed) => {
                self.failed = failed;
                self.again()
            }
        }
    }

    /// What is said when time is up: [`Verdict::Conflict`] where the last ballot was outbid, [`Verdict::Unavailable`] where
    /// it was not, and [`Verdict::Unknown`] after an accept that may come to be this operation's answer.
    pub fn give_up(&self) -> Verdict {
        let (acked, failed) = match &self.round {
            Round::Prepare(gather) => (gather.yes().map(|(n, _)| n).collect(), gather.failed()),
            Round::Accept { gather, .. } => (gather.yes().map(|(n, _)| n).collect(), gather.failed()),
            Round::Idle | Round::Write { .. } => (self.acked.clone(), self.failed.clone()),
        };
        let required = self.required();
        if self.first_sent.is_some() {
            Verdict::Unknown { required, acked, failed }
        } else if self.outbid >= Some(self.ballot) {
            Verdict::Conflict
        } else {
            Verdict::Unavailable { required, acked, failed }
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
                None if self.first_sent.is_none() => Step::Done(Verdict::KeyReused),
                None => Step::Done(self.unknown()),
            };
        }
        if self.is_overtaken(&found) {
            return self.again();
        }
        let end = found.base().filter(|r| r.has_ended(now)).and_then(|r| r.end(&self.proposal.key));
        let stands = end.or_else(|| found.base().cloned());
        let live = stands.as_ref().filter(|r| !r.is_tombstone());
        // This clock may lag behind the one that stamped the base; a later state never looks older.
        let written = stands.as_ref().map_or(self.written, |r| r.written.max(self.written));
        let holds = self.proposal.condition.holds(live);
        match self.proposal.edit.made_of(live, written).filter(|_| holds) {
            Some(content) => self.propose(&found, stands, (written, content), asking),
            None => self.refuse(found, stands, asking),
        }
    }

    /// Where an accept that answers it was sent before: what is said when the state found is written again, or that nobody
    /// knows. `None`: whatever was sent before can never be decided under its old ballot, nor was anything built on it.
    fn mine(&self, found: &Found<'_>) -> Option<Result<Verdict, Verdict>> {
        let first = self.first_sent?;
        let of_ballot = |a: &Accepted| self.sent.iter().find(|s| s.ballot == a.ballot);
        if let Some(sent) = found.accepted.and_then(of_ballot) {
            return Some(Ok(sent.verdict.clone()));
        }
        if let Some(before) = self.remembered(found) {
            return self.said_before(before).map(Ok);
        }
        if let Some(a) = found.accepted.filter(|a| a.op == self.proposal.op) {
            // Somebody else accepted it again. All states of this name are of attempts to apply it.
            let sent = self.sent.iter().rev().find(|s| s.op == a.op && s.version == a.version());
            return Some(sent.map(|s| s.verdict.clone()).ok_or_else(|| self.unknown()));
        }
        let passed = found.accepted.is_some_and(|a| a.ballot > first) || found.low > first;
        passed.then(|| Err(self.unknown()))
    }

    /// Whether a row has a version that it proposed, or the end of it, though no such state was found. A row holds it only after a majority
    /// accepted it, so that was under a ballot above this one, and the next will find whose it is.
    fn is_overtaken(&self, found: &Found<'_>) -> bool {
        let mut rows = found.promises.iter().filter_map(|(_, p)| p.record.as_ref());
        let proposed = |row: Version| self.sent.iter().filter_map(Sent::applied).any(|v| row == v || row == v.ended());
        rows.any(|r| proposed(r.version))
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
        let applied =
            |created| Verdict::Applied { version: before.version, created, expires_at_ms: None, acked: Vec::new() };
        Some(match before.answer {
            RememberedAnswer::Created => applied(true),
            RememberedAnswer::Replaced => applied(false),
            RememberedAnswer::ConditionFailed => {
                Verdict::FailedBefore { version: Some(before.version).filter(|v| *v != Version::default()) }
            }
        })
    }

    /// The condition is true of what stands there.
    fn propose(
        &mut self,
        found: &Found<'_>,
        stands: Option<Record>,
        (written, content): (Hlc, Content),
        asking: Asking<'_>,
    ) -> Step {
        let below = stands.as_ref().map_or(found.floor_version, |r| r.version);
        let Some(version) = below.conditional() else {
            return Step::Done(if self.first_sent.is_none() { Verdict::Exhausted } else { self.unknown() });
        };
        let record = Record::seal(&self.proposal.key, version, written, content);
        let (created, expires_at_ms) = (stands.is_none_or(|r| r.is_tombstone()), record.expires_at_ms());
        let answer = if created { RememberedAnswer::Created } else { RememberedAnswer::Replaced };
        let recent = self.remember(found, answer, version);
        self.current = Some(Some(record.clone()));
        let accepted = Accepted { ballot: self.ballot, op: self.proposal.op, record: Some(record), recent };
        self.accept(accepted, Verdict::Applied { version, created, expires_at_ms, acked: Vec::new() }, asking)
    }

    /// The condition is false of what stands there: that must stay before it is said.
    fn refuse(&mut self, found: Found<'_>, stands: Option<Record>, asking: Asking<'_>) -> Step {
        let met = stands.as_ref().filter(|r| !r.is_tombstone()).map_or_else(Version::default, |r| r.version);
        self.current = Some(stands.clone());
        let verdict = Verdict::ConditionFailed { current: stands.clone() };
        let remembers = self.proposal.idempotency.is_some();
        let open = stands.as_ref().is_some_and(|r| r.version.is_end() && !found.has_chosen(r));
        if !remembers && self.first_sent.is_none() && found.newer().is_none() && !open {
            return self.settle(&found, verdict);
        }
        let recent = self.remember(&found, RememberedAnswer::ConditionFailed, met);
        // Whoever made the base may still ask for it. That it was refused is nobody's state: were it this operation's,
        // it could be taken for one that applied it, once somebody else has accepted it again.
        let maker = found.maker().filter(|a| a.record.as_ref() == stands.as_ref());
        let op = maker.map_or(NOBODY, |a| a.op);
        let accepted = Accepted { ballot: self.ballot, op, record: stands, recent };
        self.accept(accepted, verdict, asking)
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
        let op = found.accepted.map_or(NOBODY, |a| a.op);
        let (record, recent) = (found.base().cloned(), found.recent().clone());
        self.accept(Accepted { ballot: self.ballot, op, record, recent }, verdict, asking)
    }

    fn accept(&mut self, accepted: Accepted, verdict: Verdict, asking: Asking<'_>) -> Step {
        let mut gather = Gather::new(Arc::clone(&self.placement));
        let to = gather.start(asking);
        if !to.is_empty() {
            let answers = accepted.op == self.proposal.op || self.proposal.idempotency.is_some();
            self.first_sent = self.first_sent.or(answers.then_some(self.ballot));
            let (ballot, op, version) = (self.ballot, accepted.op, accepted.version());
            self.sent.push(Sent { ballot, op, version, verdict: verdict.clone() });
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
        if self.ballots >= BALLOTS_MAX && self.first_sent.is_none() {
            return Step::Done(self.give_up());
        }
        Step::BackOff { above: self.outbid.map_or(self.ballot.hlc, |b| b.hlc.max(self.ballot.hlc)) }
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
