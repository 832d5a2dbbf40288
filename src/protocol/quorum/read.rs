//! The read fold: enough replicas are asked, their answers compared, and the newest record found.
//!
//! One replica is asked for the record, the others only for its version; where they disagree the record is fetched
//! from one that has the newest. What the driver does then (write the newest back to a majority *before* answering) is
//! said by [`ReadFold::disagree`] and [`ReadFold::have`].
//!
//! Invariants:
//! - At quorum and above, a majority of every write set answered, or stand-ins with every hint they hold for the key
//!   in place of home replicas that cannot be reached, and then the read is not strict.
//! - Stand-ins alone know what they hold hints for. That there is nothing they cannot know: their absence is no answer where
//!   no home replica gave one.
//! - At `one` a fallback is asked only where no home replica can be had.
//! - A damaged row is no answer; it is disagreement, so that it is written again.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::protocol::quorum::{Ask, Asking, NO_ANSWER, NOT_ASKED};
use crate::protocol::ring::Placement;
use crate::types::{Answer, Hlc, Level, NodeNum, PeerError, ReadPart, Record, Refusal, ReplicaReply, Seen, majority};

/// Why a stand-in's answer counts for nothing.
const NO_HINT: &str = "a stand-in without a hint for the key";

/// A read to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAsk {
    pub to: NodeNum,
    pub part: ReadPart,
    /// It is a stand-in: its hints count.
    pub hints: bool,
}

/// Where a read stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadState {
    Waiting,
    /// Enough answers, and the newest record is at hand.
    Met,
    /// Enough answers cannot be had any more.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Reply {
    Silent,
    /// Somebody else was asked beside it; a late answer still counts.
    Hung,
    /// What it holds.
    Holds(Option<Seen>),
    Missing {
        why: String,
        damaged: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    node: NodeNum,
    home: bool,
    reply: Reply,
}

/// One read on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReadFold {
    placement: Arc<Placement>,
    level: Level,
    /// By this time records are judged live or not.
    now: Hlc,
    /// Who may be asked, in order: home replicas that can be reached, this node first.
    candidates: SmallVec<[NodeNum; 4]>,
    asked: SmallVec<[Asked; 4]>,
    /// Home replicas that are not asked: not connected, or, while others are left, silent lately.
    unreachable: SmallVec<[NodeNum; 4]>,
    /// The newest full record so far.
    record: Option<Record>,
    /// A second question under way: the full record from a node whose version was the newest.
    fetching: Option<NodeNum>,
    /// Every home replica is asked, to show their versions.
    every_copy: bool,
}

impl ReadFold {
    pub fn new(placement: Arc<Placement>, level: Level, now: Hlc, every_copy: bool) -> Self {
        Self {
            placement,
            level,
            now,
            candidates: SmallVec::new(),
            asked: SmallVec::new(),
            unreachable: SmallVec::new(),
            record: None,
            fetching: None,
            every_copy,
        }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Answers that the level needs.
    pub fn required(&self) -> usize {
        self.placement.needed(self.level)
    }

    /// Begins: as many home replicas as the level needs, this node first if it is one. Where the level cannot be met,
    /// nothing is sent.
    pub fn start(&mut self, me: NodeNum, asking: Asking<'_>) -> SmallVec<[ReadAsk; 4]> {
        let mut homes = self.placement.home_replicas();
        if let Some(at) = homes.iter().position(|n| *n == me) {
            homes[..=at].rotate_right(1);
        }
        for node in homes {
            match asking(node) {
                Ask::Yes => self.candidates.push(node),
                // A read does not wait for late answers, so it is no use as a probe.
                Ask::No | Ask::Last | Ask::Probe => self.unreachable.push(node),
            }
        }
        let mut asks = SmallVec::new();
        self.ask_more(asking, &mut asks);
        if self.state() == ReadState::Failed {
            // Whatever they answered, it would not be enough: nobody is troubled, and nobody is blamed for silence.
            for asked in &mut self.asked {
                asked.reply = Reply::Missing { why: NOT_ASKED.into(), damaged: false };
            }
            asks.clear();
        }
        asks
    }

    pub fn on_answer(&mut self, from: NodeNum, answer: Answer, asking: Asking<'_>) -> SmallVec<[ReadAsk; 4]> {
        if self.fetching == Some(from) {
            self.fetching = None;
        }
        let reply = match answer {
            Ok(ReplicaReply::Record { record, .. }) => {
                let seen = record.as_ref().map(|r| Seen::of(r, self.now));
                if let Some(record) = record
                    && self.record.as_ref().is_none_or(|r| record.beats(r))
                {
                    self.record = Some(record);
                }
                Reply::Holds(seen)
            }
            Ok(ReplicaReply::Version { seen, .. }) => Reply::Holds(seen),
            Ok(ReplicaReply::Refused(refusal)) => {
                Reply::Missing { why: refusal.to_string(), damaged: refusal == Refusal::Damaged }
            }
            Ok(_) => Reply::Missing { why: "answered another question".into(), damaged: false },
            Err(error) => Reply::Missing { why: error.to_string(), damaged: false },
        };
        if let Some(asked) = self.asked.iter_mut().find(|a| a.node == from) {
            let none_from_stand_in = !asked.home && self.level == Level::One && reply == Reply::Holds(None);
            asked.reply =
                if none_from_stand_in { Reply::Missing { why: NO_HINT.into(), damaged: false } } else { reply };
        }
        let mut asks = SmallVec::new();
        self.ask_more(asking, &mut asks);
        self.fetch(&mut asks);
        asks
    }

    /// These nodes have been silent for longer than is usual.
    pub fn on_silence(&mut self, silent: &[NodeNum], asking: Asking<'_>) -> SmallVec<[ReadAsk; 4]> {
        for node in silent {
            self.set_hung(*node);
            if self.fetching == Some(*node) {
                // Nobody was told of what only this node holds, so the others' answers are as good without it.
                self.fetching = None;
                self.set_missing(*node, PeerError::TimedOut.to_string());
            }
        }
        let mut asks = SmallVec::new();
        self.ask_more(asking, &mut asks);
        self.fetch(&mut asks);
        asks
    }

    /// Time is up. Where the level is met, and the read only waited to show more copies, those at hand must do.
    pub fn on_deadline(&mut self) -> ReadState {
        for asked in self.asked.iter_mut().filter(|a| a.reply == Reply::Silent) {
            asked.reply = Reply::Hung;
        }
        self.state()
    }

    pub fn state(&self) -> ReadState {
        let enough = self.placement.write_sets.iter().all(|set| self.answers(set) >= self.level.needed(set.len()));
        let open = |a: &Asked| matches!(a.reply, Reply::Silent | Reply::Hung);
        let shown = !self.every_copy || !self.asked.iter().any(|a| a.reply == Reply::Silent);
        if enough && shown && !self.tells() {
            let may_tell = self.asked.iter().any(|a| a.home && open(a));
            return if may_tell { ReadState::Waiting } else { ReadState::Failed };
        }
        if enough && shown {
            let whole = self
                .newest()
                .is_none_or(|n| self.record.as_ref().is_some_and(|r| !Seen::of(r, self.now).is_older_than(&n)));
            return match (whole, self.fetching) {
                (true, _) => ReadState::Met,
                (false, Some(_)) => ReadState::Waiting,
                (false, None) => ReadState::Failed,
            };
        }
        let possible = |set: &[NodeNum]| self.answers(set) + self.asked.iter().filter(|a| open(a)).count();
        if self.placement.write_sets.iter().any(|set| possible(set) < self.level.needed(set.len())) {
            return ReadState::Failed;
        }
        ReadState::Waiting
    }

    /// The newest record among the answers; a tombstone too.
    pub fn into_record(self) -> Option<Record> {
        self.record
    }

    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Whether some answer differs from the newest record, so that it must be written back before it is told.
    pub fn disagree(&self) -> bool {
        let newest = self.record.as_ref().map(|r| Seen::of(r, self.now));
        newest.is_some_and(|newest| {
            self.asked.iter().any(|a| match &a.reply {
                // A stand-in without a hint is no copy that differs.
                Reply::Holds(None) => a.home,
                Reply::Holds(Some(seen)) => seen.is_older_than(&newest),
                Reply::Missing { damaged, .. } => *damaged,
                Reply::Silent | Reply::Hung => false,
            }) || self.only_hinted(&newest)
        })
    }

    /// Home replicas known to hold the newest record.
    pub fn have(&self) -> SmallVec<[NodeNum; 4]> {
        let Some(newest) = self.record.as_ref().map(|r| Seen::of(r, self.now)) else { return SmallVec::new() };
        let has = |a: &&Asked| matches!(&a.reply, Reply::Holds(Some(seen)) if a.home && !seen.is_older_than(&newest));
        self.asked.iter().filter(has).map(|a| a.node).collect()
    }

    /// A majority of home replicas of every set answered.
    pub fn is_strict(&self) -> bool {
        let answered = |n: &NodeNum| self.asked.iter().any(|a| a.node == *n && matches!(a.reply, Reply::Holds(_)));
        self.placement.write_sets.iter().all(|set| {
            let needed = self.level.needed(set.len()).min(majority(set.len()));
            set.iter().filter(|n| answered(n)).count() >= needed
        })
    }

    /// What each node holds that gave an answer that counts.
    pub fn copies(&self) -> Vec<(NodeNum, Option<Seen>)> {
        let tells = self.tells();
        let holds = |a: &Asked| match &a.reply {
            Reply::Holds(seen) if tells || a.home => Some((a.node, *seen)),
            _ => None,
        };
        self.asked.iter().filter_map(holds).collect()
    }

    /// Who gave no answer that counts, and why.
    pub fn failed(&self) -> Vec<(NodeNum, String)> {
        let tells = self.tells();
        let why = |a: &Asked| match &a.reply {
            Reply::Holds(_) if !tells && !a.home => Some(NO_HINT.to_owned()),
            Reply::Silent | Reply::Hung => Some(NO_ANSWER.to_owned()),
            Reply::Missing { why, .. } => Some(why.clone()),
            Reply::Holds(_) => None,
        };
        let asked = self.asked.iter().filter_map(|a| why(a).map(|w| (a.node, w)));
        let never = self
            .unreachable
            .iter()
            .filter(|n| !self.asked.iter().any(|a| a.node == **n))
            .map(|n| (*n, PeerError::Unreachable.to_string()));
        asked.chain(never).collect()
    }

    // ------------------------------------------------------------------------------------------------------ inside

    /// Whether the answers tell anything: a record, or, by a home replica of every set, that there is none.
    fn tells(&self) -> bool {
        let answered = |n: &NodeNum| self.asked.iter().any(|a| a.node == *n && matches!(a.reply, Reply::Holds(_)));
        self.newest().is_some() || self.placement.write_sets.iter().all(|set| set.iter().any(answered))
    }

    fn set_hung(&mut self, node: NodeNum) {
        if let Some(asked) = self.asked.iter_mut().find(|a| a.node == node && a.reply == Reply::Silent) {
            asked.reply = Reply::Hung;
        }
    }

    fn set_missing(&mut self, node: NodeNum, why: String) {
        if let Some(asked) = self.asked.iter_mut().find(|a| a.node == node) {
            asked.reply = Reply::Missing { why, damaged: false };
        }
    }

    /// Answers that count for a set: its members', and stand-ins' for those members that gave none.
    fn answers(&self, set: &[NodeNum]) -> usize {
        let holds = |a: &&Asked| matches!(a.reply, Reply::Holds(_));
        let homes = self.asked.iter().filter(holds).filter(|a| set.contains(&a.node)).count();
        let stand_ins = self.asked.iter().filter(holds).filter(|a| !a.home).count();
        (homes + stand_ins).min(set.len())
    }

    /// Whom to ask next: home replicas first, then stand-ins; at last those that did not answer lately, in that order.
    /// True for a home replica.
    fn next(&self, asking: Asking<'_>) -> Option<(NodeNum, bool)> {
        let fresh = |n: &&NodeNum| !self.asked.iter().any(|a| a.node == **n);
        let fallbacks = match self.level {
            Level::One | Level::Quorum => self.placement.fallbacks.as_slice(),
            Level::All | Level::Linearizable => &[],
        };
        let first = |nodes: &[NodeNum], may: &dyn Fn(Ask) -> bool| {
            nodes.iter().filter(fresh).copied().find(|n| may(asking(*n)))
        };
        let home = |node| (node, true);
        let stand_in = |node| (node, false);
        let candidate = self.candidates.iter().filter(fresh).copied().next();
        candidate
            .map(home)
            .or_else(|| first(fallbacks, &|ask| ask == Ask::Yes).map(stand_in))
            .or_else(|| first(&self.unreachable, &|ask| ask != Ask::No).map(home))
            .or_else(|| first(fallbacks, &|ask| ask != Ask::No).map(stand_in))
    }

    /// Asks one after the other until enough answers may come.
    fn ask_more(&mut self, asking: Asking<'_>, asks: &mut SmallVec<[ReadAsk; 4]>) {
        while self.too_few_asked() {
            let Some((to, is_home)) = self.next(asking) else { return };
            let part = if self.asked.is_empty() || !is_home { ReadPart::Record } else { ReadPart::Version };
            self.asked.push(Asked { node: to, home: is_home, reply: Reply::Silent });
            asks.push(ReadAsk { to, part, hints: !is_home });
        }
    }

    /// Whether the answers that came, and those expected soon, are fewer than needed.
    fn too_few_asked(&self) -> bool {
        let soon = |set: &[NodeNum]| {
            let silent = self.asked.iter().filter(|a| a.reply == Reply::Silent);
            self.answers(set) + silent.filter(|a| !a.home || set.contains(&a.node)).count()
        };
        let homes_left = self.candidates.iter().any(|n| !self.asked.iter().any(|a| a.node == *n));
        self.placement.write_sets.iter().any(|set| soon(set) < self.level.needed(set.len()))
            || (self.every_copy && homes_left)
    }

    /// The newest of what was seen.
    fn newest(&self) -> Option<Seen> {
        let seen = self.asked.iter().filter_map(|a| if let Reply::Holds(seen) = &a.reply { *seen } else { None });
        seen.reduce(|a, b| if a.is_older_than(&b) { b } else { a })
    }

    /// Where the newest version is known but not its record, asks one that has it.
    fn fetch(&mut self, asks: &mut SmallVec<[ReadAsk; 4]>) {
        let Some(newest) = self.newest() else { return };
        let at_hand = self.record.as_ref().is_some_and(|r| !Seen::of(r, self.now).is_older_than(&newest));
        if at_hand || self.fetching.is_some() {
            return;
        }
        let has = |a: &&Asked| matches!(&a.reply, Reply::Holds(Some(seen)) if !seen.is_older_than(&newest));
        if let Some(asked) = self.asked.iter().find(has) {
            self.fetching = Some(asked.node);
            asks.push(ReadAsk { to: asked.node, part: ReadPart::Record, hints: !asked.home });
        }
    }

    /// The newest record is held by stand-ins alone.
    fn only_hinted(&self, newest: &Seen) -> bool {
        let has = |a: &&Asked| matches!(&a.reply, Reply::Holds(Some(seen)) if !seen.is_older_than(newest));
        self.asked.iter().any(|a| has(&a)) && !self.asked.iter().any(|a| a.home && has(&a))
    }
}
