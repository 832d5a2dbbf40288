//! The write fold: one round of `Write` to all home replicas, with hints on fallbacks for those that cannot be had.
//!
//! Invariants:
//! - What is counted is on a disk: a home replica's own acknowledgement, or a *counted* hint for a home replica that
//!   has not acknowledged, on a disk that holds no other counted copy of this write.
//! - In the first round of a plain write a `Dominated` by somebody else's stamp is no acknowledgement: this clock
//!   lags, and the write must be stamped again above what was seen ([`WriteState::Restamp`]), once. In the second
//!   round, in a linearizable write, and where a record is only written back, any `Dominated` is one. `BelowFloor` is one
//!   of a tombstone that is written back, and never else.
//! - A receipt and an outcome are computed from answers alone.
//!
//! Caveat: a write that was stamped twice may have been seen under its first stamp.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::protocol::quorum::{Ask, Asking, NO_ANSWER, NOT_ASKED};
use crate::protocol::ring::Placement;
use crate::types::{Answer, Hlc, Level, NodeNum, PeerError, Record, Refusal, ReplicaReply, Seen, Version, majority};

/// Something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAsk {
    /// The record, to a home replica.
    Write { to: NodeNum },
    /// A hint, to a node that keeps it for `target`.
    Hint { to: NodeNum, target: NodeNum, counted: bool },
}

/// Where a write stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteState {
    /// More answers are needed, and may come.
    Waiting,
    /// The level is met.
    Met,
    /// Stamp above this reading and write once more.
    Restamp { above: Hlc },
    /// The level cannot be met any more.
    Failed,
}

/// What came of asking a home replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Home {
    /// Asked; no answer yet.
    Silent,
    /// Asked; silent for so long that somebody stands in. A late answer still counts.
    Hung,
    Acked,
    /// Dominated by another write, or below the floor, in a round where that is no acknowledgement.
    Above(Hlc),
    /// It will not have it: refused, not reachable, or nobody knows.
    Missing {
        why: String,
        maybe_done: bool,
    },
}

/// A hint kept, or asked to be kept, in place of a home replica's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct HintAt {
    target: NodeNum,
    holder: NodeNum,
    counted: bool,
    kept: bool,
}

/// How a `Dominated` is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Round {
    /// A plain write under its first stamp.
    First,
    /// A plain write stamped again.
    Second,
    /// A write stamped above what a majority held.
    Ordered,
    /// A record that exists already, written where it is missing. A tombstone that is below a floor was there, and is purged.
    WriteBack { tombstone: bool },
}

/// One write on its way to its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WriteFold {
    placement: Arc<Placement>,
    level: Level,
    version: Version,
    first_version: Version,
    round: Round,
    homes: SmallVec<[(NodeNum, Home); 4]>,
    hints: SmallVec<[HintAt; 2]>,
    /// Fallbacks that would not keep a hint.
    refused: SmallVec<[NodeNum; 2]>,
    /// A replica may hold this write under some stamp.
    maybe_stored: bool,
    /// Some replica had a live value that was not this request's own.
    live_before: bool,
    /// Before it was stamped again, a majority of home replicas had been heard.
    heard_majority: bool,
}

impl WriteFold {
    /// A plain write under its first stamp.
    pub fn plain(placement: Arc<Placement>, level: Level, version: Version) -> Self {
        Self {
            level,
            version,
            first_version: version,
            round: Round::First,
            homes: SmallVec::new(),
            hints: SmallVec::new(),
            refused: SmallVec::new(),
            maybe_stored: false,
            live_before: false,
            heard_majority: true,
            placement,
        }
    }

    /// A linearizable write: its stamp is above what a majority of home replicas held, so it is never stamped again, and
    /// whatever dominates it came after it began. `live_before`: one of them had a live value.
    pub fn ordered(placement: Arc<Placement>, version: Version, live_before: bool) -> Self {
        Self { round: Round::Ordered, live_before, ..Self::plain(placement, Level::Linearizable, version) }
    }

    /// A record that exists, written to the home replicas that are not known to have it.
    pub fn write_back(placement: Arc<Placement>, level: Level, record: &Record, have: &[NodeNum]) -> Self {
        let mut fold = Self::plain(placement, level, record.version);
        fold.round = Round::WriteBack { tombstone: record.is_tombstone() };
        fold.homes = have.iter().filter(|n| fold.placement.is_home(**n)).map(|n| (*n, Home::Acked)).collect();
        fold
    }

    /// The stamp of the round under way.
    pub fn version(&self) -> Version {
        self.version
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// Copies that the level needs.
    pub fn required(&self) -> usize {
        self.placement.needed(self.level)
    }

    pub fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }

    /// The home replicas.
    pub fn replicas(&self) -> Vec<NodeNum> {
        self.placement.home_replicas().to_vec()
    }

    /// Begins the round: every home replica that can be reached is asked at once. Where the level cannot be met with
    /// those, the ones that did not answer lately are asked as well; where it cannot be met at all, nothing is sent.
    pub fn start(&mut self, asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        let mut asks = SmallVec::new();
        for node in self.placement.home_replicas() {
            if self.homes.iter().any(|(n, _)| *n == node) {
                continue;
            }
            let home = match asking(node) {
                Ask::No | Ask::Last => Home::Missing { why: PeerError::Unreachable.to_string(), maybe_done: false },
                Ask::Probe => Home::Hung,
                Ask::Yes => Home::Silent,
            };
            if matches!(home, Home::Silent | Home::Hung) {
                asks.push(WriteAsk::Write { to: node });
            }
            self.homes.push((node, home));
        }
        self.stand_in(asking, &mut asks);
        if self.state() == WriteState::Failed {
            self.ask_last(asking, &mut asks);
        }
        if self.state() == WriteState::Failed {
            // Nothing has left yet, so nothing is written: say so instead of leaving half a write behind.
            for (_, home) in self.homes.iter_mut().filter(|(_, h)| matches!(h, Home::Silent | Home::Hung)) {
                *home = Home::Missing { why: NOT_ASKED.into(), maybe_done: false };
            }
            self.hints.clear();
            asks.clear();
        }
        asks
    }

    /// Asks the home replicas that are connected and did not answer lately, as those that may hang.
    fn ask_last(&mut self, asking: Asking<'_>, asks: &mut SmallVec<[WriteAsk; 4]>) {
        for (node, home) in self.homes.iter_mut().filter(|(_, h)| matches!(h, Home::Missing { .. })) {
            if asking(*node) != Ask::No {
                *home = Home::Hung;
                asks.push(WriteAsk::Write { to: *node });
            }
        }
        self.stand_in(asking, asks);
    }

    /// The round begins again under a new stamp.
    pub fn restart(&mut self, version: Version, asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        self.heard_majority = self.heard_majority && self.heard_majority_now();
        self.maybe_stored = self.maybe_stored || self.maybe_stored_now();
        self.version = version;
        self.round = Round::Second;
        self.homes.clear();
        self.hints.clear();
        self.refused.clear();
        self.start(asking)
    }

    /// The same write goes to the replicas of a newer topology, under the same version: what was acknowledged stays
    /// acknowledged, but not by `void`, who may have lost it since.
    pub fn move_to(&mut self, to: Arc<Placement>, void: &[NodeNum], asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        self.maybe_stored = self.maybe_stored || self.maybe_stored_now();
        self.homes.retain(|(n, home)| *home == Home::Acked && to.is_home(*n) && !void.contains(n));
        self.hints.clear();
        self.refused.clear();
        self.placement = to;
        self.start(asking)
    }

    /// A home replica's answer to `Write`.
    pub fn on_write(&mut self, from: NodeNum, answer: &Answer, asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        let home = match answer {
            Ok(ReplicaReply::Stored { replaced }) => {
                self.note_replaced(replaced.as_ref());
                Home::Acked
            }
            Ok(ReplicaReply::Dominated { by }) => {
                self.note_replaced(Some(by));
                let own = by.version.same_stamp(&self.version);
                if own || self.round != Round::First { Home::Acked } else { Home::Above(by.version.hlc) }
            }
            Ok(ReplicaReply::BelowFloor { floor }) if self.round == Round::First => Home::Above(floor.version.hlc),
            Ok(ReplicaReply::BelowFloor { .. }) if self.round == (Round::WriteBack { tombstone: true }) => Home::Acked,
            Ok(ReplicaReply::Refused(refusal)) => Home::Missing { why: refusal.to_string(), maybe_done: false },
            Ok(other) => Home::Missing { why: unexpected(other), maybe_done: false },
            Err(error) => Home::Missing { why: error.to_string(), maybe_done: error.maybe_done() },
        };
        if let Some((_, state)) = self.homes.iter_mut().find(|(n, _)| *n == from) {
            *state = home;
        }
        let mut asks = SmallVec::new();
        self.stand_in(asking, &mut asks);
        asks
    }

    /// A fallback's answer to `Hint`.
    pub fn on_hint(
        &mut self,
        from: NodeNum,
        target: NodeNum,
        counted: bool,
        answer: &Answer,
        asking: Asking<'_>,
    ) -> SmallVec<[WriteAsk; 4]> {
        let kept = matches!(answer, Ok(ReplicaReply::Hinted));
        let place = self.hints.iter().position(|h| h.target == target && h.holder == from && h.counted == counted);
        match place {
            Some(i) if kept => self.hints[i].kept = true,
            Some(i) => {
                self.maybe_stored |= answer.as_ref().err().is_some_and(PeerError::maybe_done);
                self.hints.remove(i);
                self.refused.push(from);
            }
            None => {}
        }
        let mut asks = SmallVec::new();
        self.stand_in(asking, &mut asks);
        asks
    }

    /// These home replicas have been silent for longer than is usual: somebody is asked beside them.
    pub fn on_silence(&mut self, silent: &[NodeNum], asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        for (_, home) in self.homes.iter_mut().filter(|(n, h)| *h == Home::Silent && silent.contains(n)) {
            *home = Home::Hung;
        }
        let mut asks = SmallVec::new();
        self.stand_in(asking, &mut asks);
        asks
    }

    pub fn state(&self) -> WriteState {
        if self.placement.write_sets.iter().all(|set| self.counted(set) >= self.level.needed(set.len())) {
            return WriteState::Met;
        }
        if self.round == Round::First
            && let Some(above) = self.above()
            && (self.heard_majority_now() || !self.homes.iter().any(|(_, h)| *h == Home::Silent))
        {
            return WriteState::Restamp { above };
        }
        if self.placement.write_sets.iter().any(|set| self.possible(set) < self.level.needed(set.len())) {
            return WriteState::Failed;
        }
        WriteState::Waiting
    }

    /// Whether some answer is still to come.
    pub fn is_open(&self) -> bool {
        self.homes.iter().any(|(_, h)| matches!(h, Home::Silent | Home::Hung)) || self.hints.iter().any(|h| !h.kept)
    }

    /// When nothing more is expected: hints, that count for nothing, for home replicas that have no copy and nobody
    /// who keeps one for them. A home replica that has the record keeps them where there is no fallback.
    pub fn leftovers(&self, asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        let bare = |n: NodeNum| !self.hints.iter().any(|h| h.target == n && h.kept);
        let missing = self.homes.iter().filter(|(n, h)| !matches!(h, Home::Acked | Home::Above(_)) && bare(*n));
        // Nearly every write: nobody's reachability is looked up for it.
        if missing.clone().next().is_none() {
            return SmallVec::new();
        }
        let keeper = self.fallbacks(asking).next().or_else(|| self.acked().next());
        let Some(to) = keeper else { return SmallVec::new() };
        missing.filter(|(n, _)| *n != to).map(|(n, _)| WriteAsk::Hint { to, target: *n, counted: false }).collect()
    }

    /// Home replicas that have it on disk.
    pub fn acked(&self) -> impl Iterator<Item = NodeNum> + '_ {
        self.homes.iter().filter(|(_, h)| *h == Home::Acked).map(|(n, _)| *n)
    }

    /// Home replica -> who keeps its hint; without those that acknowledged after all.
    pub fn hinted(&self) -> impl Iterator<Item = (NodeNum, NodeNum)> + '_ {
        let acked = |n: NodeNum| self.acked().any(|a| a == n);
        self.hints.iter().filter(move |h| h.kept && !acked(h.target)).map(|h| (h.target, h.holder))
    }

    /// A majority of home replicas of every set holds it, and a majority had been heard before it was stamped again.
    pub fn is_strict(&self) -> bool {
        self.heard_majority && self.majority_acked()
    }

    /// No answering replica had a live value other than this request's own.
    pub fn is_new(&self) -> bool {
        !self.live_before
    }

    /// A majority of home replicas of every set has it on disk.
    pub fn majority_acked(&self) -> bool {
        self.every_set(|home| *home == Home::Acked)
    }

    /// Whether some replica may have this write, under any of its stamps.
    pub fn maybe_stored(&self) -> bool {
        self.maybe_stored || self.maybe_stored_now()
    }

    /// Who has no copy, and why.
    pub fn failed(&self) -> Vec<(NodeNum, String)> {
        let why = |home: &Home| match home {
            Home::Silent | Home::Hung => Some(NO_ANSWER.to_owned()),
            Home::Above(_) => Some("holds a newer version".to_owned()),
            Home::Missing { why, .. } => Some(why.clone()),
            Home::Acked => None,
        };
        self.homes.iter().filter_map(|(n, h)| why(h).map(|w| (*n, w))).collect()
    }

    /// Every home replica that has no copy lacks room for it.
    pub fn disks_full(&self) -> bool {
        let full = Refusal::DiskFull.to_string();
        let mut missing = self.homes.iter().filter(|(_, h)| *h != Home::Acked).peekable();
        missing.peek().is_some() && missing.all(|(_, h)| matches!(h, Home::Missing { why, .. } if *why == full))
    }

    // ---------------------------------------------------------------------------------------------------- counting

    fn home(&self, node: NodeNum) -> Option<&Home> {
        self.homes.iter().find(|(n, _)| *n == node).map(|(_, h)| h)
    }

    fn every_set(&self, ok: impl Fn(&Home) -> bool) -> bool {
        self.placement.write_sets.iter().all(|set| {
            let good = set.iter().filter(|n| self.home(**n).is_some_and(&ok)).count();
            good >= majority(set.len())
        })
    }

    fn heard_majority_now(&self) -> bool {
        self.every_set(|home| matches!(home, Home::Acked | Home::Above(_)))
    }

    fn maybe_stored_now(&self) -> bool {
        let home = |h: &Home| match h {
            Home::Silent | Home::Hung | Home::Acked => true,
            Home::Missing { maybe_done, .. } => *maybe_done,
            Home::Above(_) => false,
        };
        self.homes.iter().any(|(_, h)| home(h)) || !self.hints.is_empty()
    }

    /// The greatest reading that outbids this stamp.
    fn above(&self) -> Option<Hlc> {
        let above = |home: &Home| if let Home::Above(hlc) = home { Some(*hlc) } else { None };
        self.homes.iter().filter_map(|(_, h)| above(h)).max()
    }

    fn stand_ins_allowed(&self) -> bool {
        matches!(self.level, Level::One | Level::Quorum)
    }

    /// Copies of a set that count: acknowledgements, and hints on disks that hold no other copy that counts.
    fn counted(&self, set: &[NodeNum]) -> usize {
        let acks = set.iter().filter(|n| self.home(**n) == Some(&Home::Acked)).count();
        acks + self.holders(set, |h| h.kept && h.counted)
    }

    /// Distinct holders of wanted hints for members of the set that have not acknowledged.
    fn holders(&self, set: &[NodeNum], wanted: impl Fn(&HintAt) -> bool) -> usize {
        let mut holders: SmallVec<[NodeNum; 4]> = SmallVec::new();
        for hint in self.hints.iter().filter(|h| set.contains(&h.target) && wanted(h)) {
            let own_copy = self.home(hint.holder) == Some(&Home::Acked);
            let acked = self.home(hint.target) == Some(&Home::Acked);
            if !acked && !own_copy && !holders.contains(&hint.holder) {
                holders.push(hint.holder);
            }
        }
        holders.len()
    }

    /// Copies that count or may still come to count: what is newer than this stamp may acknowledge the next one.
    fn possible(&self, set: &[NodeNum]) -> usize {
        let open = |h: &Home| match h {
            Home::Acked | Home::Silent | Home::Hung => true,
            Home::Above(_) => self.round == Round::First,
            Home::Missing { .. } => false,
        };
        let homes = set.iter().filter(|n| self.home(**n).is_some_and(&open)).count();
        // A hint whose home replica may still acknowledge is that copy, not another one.
        let closed = |h: &HintAt| h.counted && !self.home(h.target).is_some_and(&open);
        homes + self.holders(set, closed)
    }

    fn note_replaced(&mut self, seen: Option<&Seen>) {
        let own = |s: &Seen| s.version.same_stamp(&self.version) || s.version.same_stamp(&self.first_version);
        self.live_before |= seen.is_some_and(|s| s.live && !own(s));
    }

    // --------------------------------------------------------------------------------------------------- stand-ins

    /// Fallbacks that may be asked for a hint, in order.
    fn fallbacks<'a>(&'a self, asking: Asking<'a>) -> impl Iterator<Item = NodeNum> + 'a {
        self.fallbacks_that(move |n| asking(n) == Ask::Yes)
    }

    fn fallbacks_that<'a>(&'a self, may: impl Fn(NodeNum) -> bool + 'a) -> impl Iterator<Item = NodeNum> + 'a {
        self.placement.fallbacks.iter().copied().filter(move |n| !self.refused.contains(n) && may(*n))
    }

    /// Finds somebody for each home replica that cannot be had. A hint counts only where acknowledgements alone
    /// cannot satisfy the level: a counted hint must be kept without limit of age.
    fn stand_in(&mut self, asking: Asking<'_>, asks: &mut SmallVec<[WriteAsk; 4]>) {
        let gone = |h: &Home| matches!(h, Home::Hung | Home::Missing { .. });
        if !self.stand_ins_allowed() || !self.homes.iter().any(|(_, h)| gone(h)) {
            return;
        }
        let hopeful = |h: &Home| matches!(h, Home::Acked | Home::Silent);
        let counted = self.placement.write_sets.iter().any(|set| {
            let homes = set.iter().filter(|n| self.home(**n).is_some_and(hopeful)).count();
            homes < self.level.needed(set.len())
        });
        let targets: SmallVec<[NodeNum; 4]> = self.homes.iter().filter(|(_, h)| gone(h)).map(|(n, _)| *n).collect();
        for target in targets {
            let held = self.hints.iter().position(|h| h.target == target);
            let to = match held {
                Some(i) if self.hints[i].counted || !counted => continue,
                // It is kept as one that may be dropped; ask the same node to keep it for good. Should that be refused,
                // the first one may be delivered all the same.
                Some(i) => {
                    self.maybe_stored = true;
                    self.hints.remove(i).holder
                }
                None => {
                    let busy = |n: NodeNum| self.hints.iter().any(|h| h.holder == n);
                    let free = self.fallbacks(asking).find(|n| !busy(*n));
                    // One that did not answer lately may still do; for a hint that may be dropped it is not worth it.
                    let last = || self.fallbacks_that(|n| counted && !busy(n) && asking(n) != Ask::No).next();
                    let Some(to) = free.or_else(last).or_else(|| self.fallbacks(asking).next()) else { continue };
                    to
                }
            };
            self.hints.push(HintAt { target, holder: to, counted, kept: false });
            asks.push(WriteAsk::Hint { to, target, counted });
        }
    }
}

/// What is said of an answer that does not belong to the question.
fn unexpected(reply: &ReplicaReply) -> String {
    match reply {
        ReplicaReply::BelowFloor { .. } => "the record may have been purged there".into(),
        ReplicaReply::WrongEpoch { topology } => format!("holds the newer epoch {}", topology.epoch),
        _ => "answered another question".into(),
    }
}
