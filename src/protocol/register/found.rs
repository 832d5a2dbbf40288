//! What a majority of replicas held when it promised: the base that a proposer judges and builds upon.

use smallvec::SmallVec;

use crate::protocol::quorum::Gather;
use crate::types::{Accepted, Ballot, NodeNum, Promise, Recent, Record, Version};

/// What a majority held when it promised.
pub(super) struct Found<'a> {
    pub(super) promises: SmallVec<[(NodeNum, &'a Promise); 4]>,
    /// The state accepted under the highest ballot, none below the greatest floor's.
    pub(super) accepted: Option<&'a Accepted>,
    /// The answers that were given: they outlive a floor for as long as the key is not purged.
    recent: &'a Recent,
    /// The greatest record.
    pub(super) row: Option<&'a Record>,
    pub(super) floor_version: Version,
    pub(super) low: Ballot,
}

impl<'a> Found<'a> {
    pub(super) fn of(gather: &'a Gather<Box<Promise>>) -> Self {
        let promises: SmallVec<[(NodeNum, &Promise); 4]> = gather.yes().map(|(n, p)| (n, &**p)).collect();
        let all = || promises.iter().map(|(_, p)| *p);
        let low = all().map(|p| p.floor.ballot).max().unwrap_or_default();
        let floor_version = all().map(|p| p.floor.version).max().unwrap_or_default();
        let latest = all().filter_map(|p| p.accepted.as_ref()).max_by_key(|a| a.ballot);
        let accepted = latest.filter(|a| a.ballot >= low);
        // Below the floor it was decided if it was written everywhere, or superseded: all copies were compared by then.
        let holds = |p: &Promise, a: &Accepted| p.record.as_ref().is_some_and(|r| r.version >= a.version());
        let stands = |a: &&Accepted| a.ballot >= low || a.record.is_none() || all().all(|p| holds(p, a));
        let recent = latest.filter(stands).map_or(const { &Recent::NONE }, |a| &a.recent);
        let row = all().filter_map(|p| p.record.as_ref()).reduce(|a, b| if b.beats(a) { b } else { a });
        Self { accepted, recent, row, floor_version, low, promises }
    }

    /// The accepted state, where it is newer than every row.
    pub(super) fn newer(&self) -> Option<&'a Accepted> {
        self.accepted.filter(|a| a.version() > self.row.map_or_else(Version::default, |r| r.version))
    }

    /// The accepted state, where it made the base.
    pub(super) fn maker(&self) -> Option<&'a Accepted> {
        self.accepted
            .filter(|a| a.record.is_some() && a.version() >= self.row.map_or_else(Version::default, |r| r.version))
    }

    /// What conditions are judged on.
    pub(super) fn base(&self) -> Option<&'a Record> {
        self.newer().map_or(self.row, |a| a.record.as_ref())
    }

    pub(super) fn recent(&self) -> &Recent {
        self.recent
    }

    /// Whether a majority accepted this record under one ballot: then nothing that was accepted before it can be decided any
    /// more, and whatever comes after it builds on it.
    pub(super) fn has_chosen(&self, record: &Record) -> bool {
        let mut accepted = self.promises.iter().map(|(_, p)| p.accepted.as_ref());
        let ballot = self.accepted.map(|a| a.ballot);
        accepted.all(|a| a.is_some_and(|a| Some(a.ballot) == ballot && a.record.as_ref() == Some(record)))
    }

    pub(super) fn is_unanimous(&self) -> bool {
        self.promises.iter().all(|(_, p)| p.record.as_ref() == self.row)
    }

    pub(super) fn holders(&self, record: &Record) -> SmallVec<[NodeNum; 4]> {
        self.promises.iter().filter(|(_, p)| p.record.as_ref() == Some(record)).map(|(n, _)| *n).collect()
    }
}
