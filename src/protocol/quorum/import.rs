//! The import fold: one record under the version that it has already, to all home replicas, and what that came to.
//!
//! It is a write of one round that is never stamped again: what stands there already, or was purged, decides. A record from
//! an export may be years old, and that is what makes it different from a write:
//!
//! - **An equal version of another content ends it, too.** A conditional write's version follows from the one that it was made
//!   upon, so two clusters that went on from one export give the same version to different contents. At a replica the greater
//!   checksum would win, and an acknowledged write might be gone under its own ETag. So whoever drives this reads first, at
//!   quorum, and writes only where nothing as new is; where a home replica answers with another content all the same, or replaced one,
//!   it is *differs*, whatever the others say. No hint is left then.
//! - **A greater version ends it.** Where one replica stored it and another one answers with a greater version, it is
//!   *older*: the greater one reaches both by anti-entropy, as after any two writes that met different replicas.
//! - **The floor is asked before a stand-in is.** A hint is read without a look at the floor of the home replica that it is
//!   for, so one is left only when some home replica has taken the record (or has it) and none named its floor or a greater
//!   version. Hints are left only where acknowledgements alone are no majority, and they count: a copy that is missing beside a
//!   majority is anti-entropy's.
//! - **No hint is left for what was not written just now** ([`ImportTerms::hints`]). Before a floor is raised every hint that it
//!   covers is delivered, and no write may leave one later: a floor lies further in the past than any write takes. An old record's
//!   hint could come after that, meet the floor, and with it go a copy that was counted. So an old record needs a majority of the home
//!   replicas themselves.
//! - **Below a floor it stays.** A floor covers a record by its version and by when it was written, and all home replicas have
//!   the same one, but for the moment in which it is raised. Met in that moment, some have stored the record and others refuse
//!   it, and would for ever: no round of anti-entropy gets it past their floor. So *all* home replicas that answer within what is
//!   usual are heard, and not only a majority; and where one refuses what another has just stored in an empty place or a tombstone's, it is
//!   *older*, and the fold says that it must be taken back ([`Imported::Older`]): a tombstone above it, written now, which no
//!   floor covers and every later write outbids. What stood there before is never taken back; what an earlier attempt may have
//!   left there ([`ImportTerms::planted`]) did not.
//! - **A majority that had it already keeps it**, whatever a floor elsewhere says: there it is a row that was lost.
//!
//! That the import's own records do not disturb a floor that is being raised:
//! - A *value* that is new on some replicas only is never dropped by a purge, and what a floor refuses of it is the case above.
//! - A *tombstone* would be: an old one that reached some replicas after they were compared, and before the floor is in force,
//!   could go there before the others had it, and the value under it would come back. So a tombstone is not imported with the
//!   time at which it was written, but as one that is written now (`node/coordinator/import`), and lives through a whole
//!   grace like any other.
//!
//! Caveats: a home replica that hangs beyond the usual while the floor is raised may refuse later what the others have stored;
//! then their copies differ until the key is written again. A conditional write that is decided between the read and the import's
//! own writes can take the same version with another content still; then equal versions converge as always, by checksum, and the
//! import says *differs* where it saw so.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Ask, Asking, NO_ANSWER, WriteAsk};
use crate::protocol::ring::Placement;
use crate::types::{Answer, Hlc, Level, NodeNum, PeerError, Record, Refusal, ReplicaReply, Seen, Version, majority};

/// Longest ago that a record was written for which hints are left, in milliseconds: about as long as an import tries to write it,
/// and far less than lies between now and what a purge's seal covers (`protocol::purge::seal_age_ms`).
pub(super) const HINTED_AGE_MS_MAX: u64 = 10_000;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is on a majority, and was not before.
    Stored,
    /// Exactly this version was there already.
    Unchanged,
    /// A greater version is there, or was there and is purged. `take_back`: some replica has stored it all the same, and
    /// others never will.
    Older { take_back: bool },
}

/// What is known of a record before the home replicas are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportTerms {
    /// It was written so lately that fallbacks may keep it.
    pub hints: bool,
    /// No majority had anything there but a tombstone, and an earlier attempt may have stored it since.
    pub planted: bool,
}

impl ImportTerms {
    /// Of a record that was written then.
    pub fn at(written: Hlc, now_ms: u64, planted: bool) -> Self {
        Self { hints: written.ms().saturating_add(HINTED_AGE_MS_MAX) >= now_ms, planted }
    }
}

/// Where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportState {
    Waiting,
    Decided(Imported),
    /// The replicas will not have it, now or later: why.
    Refused(Refusal),
    /// This version stands there with another content.
    Differs,
    /// No majority can be had now.
    Failed,
}

/// What a home replica said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Home {
    /// Asked; no answer yet.
    Silent,
    /// Asked, and silent for longer than is usual.
    Hung,
    /// Stored where nothing was.
    New,
    /// Stored in place of a tombstone.
    Revived,
    /// Stored in place of an older value.
    Over,
    /// It is there.
    Same,
    /// Its version is there with another content, or was until this took its place.
    Other,
    /// Something newer is there.
    Greater,
    /// Nothing is there, and it may have been purged.
    Below,
    /// It will not have this record.
    Refused(String),
    /// No answer that counts.
    Missing(String),
}

impl Home {
    fn has(&self) -> bool {
        matches!(self, Home::New | Home::Revived | Home::Over | Home::Same)
    }

    fn is_definite(&self) -> bool {
        self.has() || matches!(self, Home::Other | Home::Greater | Home::Below)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct HintAt {
    target: NodeNum,
    holder: NodeNum,
    kept: bool,
}

/// One record on its way to its home replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportFold {
    placement: Arc<Placement>,
    version: Version,
    checksum: u64,
    tombstone: bool,
    terms: ImportTerms,
    homes: SmallVec<[(NodeNum, Home); 4]>,
    hints: SmallVec<[HintAt; 2]>,
    /// Fallbacks that would not keep a hint.
    unwilling: SmallVec<[NodeNum; 2]>,
    /// Why a replica refused the record itself.
    refusal: Option<Refusal>,
}

impl ImportFold {
    pub fn new(placement: Arc<Placement>, record: &Record, terms: ImportTerms) -> Self {
        let (version, checksum, tombstone) = (record.version, record.checksum, record.is_tombstone());
        let (homes, hints, unwilling) = (SmallVec::new(), SmallVec::new(), SmallVec::new());
        Self { placement, version, checksum, tombstone, terms, homes, hints, unwilling, refusal: None }
    }

    /// Begins: every home replica that is connected is asked at once.
    pub fn start(&mut self, asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        let mut asks = SmallVec::new();
        for node in self.placement.home_replicas() {
            let home = match asking(node) {
                Ask::No => Home::Missing(PeerError::Unreachable.to_string()),
                Ask::Yes => Home::Silent,
                Ask::Probe | Ask::Last => Home::Hung,
            };
            if matches!(home, Home::Silent | Home::Hung) {
                asks.push(WriteAsk::Write { to: node });
            }
            self.homes.push((node, home));
        }
        asks
    }

    /// A home replica's answer.
    pub fn on_write(&mut self, from: NodeNum, answer: &Answer, asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        let home = match answer {
            Ok(ReplicaReply::Stored { replaced: None }) => Home::New,
            Ok(ReplicaReply::Stored { replaced: Some(by) } | ReplicaReply::Dominated { by })
                if by.version == self.version =>
            {
                self.equal(by)
            }
            Ok(ReplicaReply::Stored { replaced: Some(by) }) if by.tombstone => Home::Revived,
            Ok(ReplicaReply::Stored { replaced: Some(_) }) => Home::Over,
            Ok(ReplicaReply::Dominated { .. }) => Home::Greater,
            Ok(ReplicaReply::BelowFloor { .. }) => Home::Below,
            Ok(ReplicaReply::Refused(refusal)) => self.refused(*refusal),
            Ok(_) => Home::Missing("answered another question".to_owned()),
            Err(error) => Home::Missing(error.to_string()),
        };
        if let Some((_, state)) = self.homes.iter_mut().find(|(n, _)| *n == from) {
            *state = home;
        }
        self.stand_in(asking)
    }

    /// Two tombstones of one version are the same deletion, whenever each was written.
    fn equal(&self, by: &Seen) -> Home {
        let alike = by.checksum == self.checksum || (by.tombstone && self.tombstone);
        if alike { Home::Same } else { Home::Other }
    }

    fn refused(&mut self, refusal: Refusal) -> Home {
        match refusal {
            Refusal::ClockSkew { .. } | Refusal::TooLarge { .. } | Refusal::Corrupt => {
                self.refusal = Some(refusal);
                Home::Refused(refusal.to_string())
            }
            _ => Home::Missing(refusal.to_string()),
        }
    }

    /// A fallback's answer.
    pub fn on_hint(
        &mut self,
        from: NodeNum,
        target: NodeNum,
        answer: &Answer,
        asking: Asking<'_>,
    ) -> SmallVec<[WriteAsk; 4]> {
        let kept = matches!(answer, Ok(ReplicaReply::Hinted));
        match self.hints.iter().position(|hint| (hint.target, hint.holder) == (target, from)) {
            Some(at) if kept => self.hints[at].kept = true,
            Some(at) => {
                self.hints.remove(at);
                self.unwilling.push(from);
            }
            None => {}
        }
        self.stand_in(asking)
    }

    /// These have been silent for longer than is usual.
    pub fn on_silence(&mut self, silent: &[NodeNum], asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        for (_, home) in self.homes.iter_mut().filter(|(n, home)| *home == Home::Silent && silent.contains(n)) {
            *home = Home::Hung;
        }
        self.stand_in(asking)
    }

    pub fn state(&self) -> ImportState {
        if self.any(|home| *home == Home::Silent) {
            return ImportState::Waiting;
        }
        if self.majority_of(Home::is_definite) {
            return self.decided();
        }
        if self.may_stand_in() && self.sets_all(|set| self.counted(set) >= majority(set.len())) {
            return ImportState::Decided(self.kept());
        }
        if self.any(|home| *home == Home::Hung) || self.hints.iter().any(|hint| !hint.kept) {
            return ImportState::Waiting;
        }
        let refused = |set: &[NodeNum]| self.count(set, |home| matches!(home, Home::Refused(_)));
        let hopeless = self.placement.write_sets.iter().any(|set| set.len() - refused(set) < majority(set.len()));
        match self.refusal {
            Some(refusal) if hopeless => ImportState::Refused(refusal),
            _ => ImportState::Failed,
        }
    }

    /// A majority has said what it knows.
    fn decided(&self) -> ImportState {
        let fresh = self.any(|home| matches!(home, Home::New | Home::Revived));
        let take_back = fresh || (self.terms.planted && self.any(|home| *home == Home::Same));
        if self.any(|home| *home == Home::Greater) {
            return ImportState::Decided(Imported::Older { take_back: false });
        }
        if self.any(|home| *home == Home::Below) && (take_back || !self.majority_of(Home::has)) {
            return ImportState::Decided(Imported::Older { take_back });
        }
        if self.any(|home| *home == Home::Other) { ImportState::Differs } else { ImportState::Decided(self.kept()) }
    }

    /// It is on a majority: whether it was before.
    fn kept(&self) -> Imported {
        let same = self.majority_of(|home| *home == Home::Same);
        if self.has_stored() && !same { Imported::Stored } else { Imported::Unchanged }
    }

    /// Whether a replica is known to have stored it on this occasion.
    pub fn has_stored(&self) -> bool {
        self.any(|home| matches!(home, Home::New | Home::Revived | Home::Over))
    }

    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    pub fn required(&self) -> usize {
        self.placement.needed(Level::Quorum)
    }

    /// Home replicas that have it.
    pub fn acked(&self) -> Vec<NodeNum> {
        self.homes.iter().filter(|(_, home)| home.has()).map(|(n, _)| *n).collect()
    }

    /// Who does not have it, and why.
    pub fn failed(&self) -> Vec<(NodeNum, String)> {
        let why = |home: &Home| match home {
            Home::Silent | Home::Hung => Some(NO_ANSWER.to_owned()),
            Home::Greater => Some("holds a newer version".to_owned()),
            Home::Below => Some("the record may have been purged there".to_owned()),
            Home::Refused(why) | Home::Missing(why) => Some(why.clone()),
            Home::Other => Some("holds another content under this version".to_owned()),
            Home::New | Home::Revived | Home::Over | Home::Same => None,
        };
        self.homes.iter().filter_map(|(n, home)| why(home).map(|why| (*n, why))).collect()
    }

    /// Every home replica that does not have it lacks room for it.
    pub fn disks_full(&self) -> bool {
        let full = Refusal::DiskFull.to_string();
        let mut lacking = self.homes.iter().filter(|(_, home)| !home.has()).peekable();
        lacking.peek().is_some() && lacking.all(|(_, home)| matches!(home, Home::Missing(why) if *why == full))
    }

    // ---------------------------------------------------------------------------------------------------- counting

    fn any(&self, is: impl Fn(&Home) -> bool) -> bool {
        self.homes.iter().any(|(_, home)| is(home))
    }

    fn sets_all(&self, is: impl Fn(&[NodeNum]) -> bool) -> bool {
        self.placement.write_sets.iter().all(|set| is(set))
    }

    fn count(&self, set: &[NodeNum], is: impl Fn(&Home) -> bool) -> usize {
        self.homes.iter().filter(|(n, home)| set.contains(n) && is(home)).count()
    }

    fn majority_of(&self, is: impl Fn(&Home) -> bool + Copy) -> bool {
        self.sets_all(|set| self.count(set, is) >= majority(set.len()))
    }

    /// Copies of a set: those of home replicas, and hints, of which each lies on another disk.
    fn counted(&self, set: &[NodeNum]) -> usize {
        let hints = self.hints.iter().filter(|hint| hint.kept && set.contains(&hint.target));
        let open = |hint: &&HintAt| !self.homes.iter().any(|(n, home)| *n == hint.target && home.has());
        self.count(set, Home::has) + hints.filter(open).count()
    }

    /// Whether a hint may be left: the record is new enough, a home replica has it, and nobody says that it must not be there.
    fn may_stand_in(&self) -> bool {
        let forbids = |home: &Home| matches!(home, Home::Other | Home::Greater | Home::Below | Home::Refused(_));
        self.terms.hints && self.any(Home::has) && !self.any(forbids)
    }

    /// Finds a fallback for each home replica that cannot be had, where the others are no majority.
    fn stand_in(&mut self, asking: Asking<'_>) -> SmallVec<[WriteAsk; 4]> {
        let mut asks = SmallVec::new();
        let enough = self.majority_of(|home| home.has() || *home == Home::Silent);
        if enough || !self.may_stand_in() {
            return asks;
        }
        let bare = |n: NodeNum| !self.hints.iter().any(|hint| hint.target == n);
        let gone = |(n, home): &&(NodeNum, Home)| matches!(home, Home::Hung | Home::Missing(_)) && bare(*n);
        let targets: SmallVec<[NodeNum; 4]> = self.homes.iter().filter(gone).map(|(n, _)| *n).collect();
        for target in targets {
            let free = |n: &NodeNum| !self.unwilling.contains(n) && !self.hints.iter().any(|hint| hint.holder == *n);
            let holder = self.placement.fallbacks.iter().copied().find(|n| free(n) && asking(*n) == Ask::Yes);
            let Some(to) = holder else { break };
            self.hints.push(HintAt { target, holder: to, kept: false });
            asks.push(WriteAsk::Hint { to, target, counted: true });
        }
        asks
    }
}
