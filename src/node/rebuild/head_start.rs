//! A rebuild that begins with rows: those of a backup, or of a rebuild that was broken off.
//!
//! Such rows are not what this instance acknowledged, and nobody relies on them. They may be *right*, which saves sending them;
//! *newer* than what the sources hold (a write that these missed); or *purged*: the value of a key whose tombstone has been
//! forgotten since, which would come back. Only a floor tells the last two apart. So the slot ends as
//!
//! > what a majority of the sources holds, merged, and those rows from before that lie above every floor of theirs
//!
//! that is: as a rebuild from nothing, with some writes more that somebody was told may be found later. It takes three steps:
//!
//! 1. *compare*: a majority of the sources says which of the slot's 256 leaves are other than here, and its floor. A leaf that is
//!    equal at one source is as if that source had sent it.
//! 2. *drop*: in the leaves that are other at all of them, whatever the greatest of the floors covers.
//! 3. *fetch* from each what is other there than here by then; registers and floors always, as no sum speaks of them.
//!
//! Why dropping is right: a floor is raised only when all home replicas hold the same of its time, the instance before this one
//! among them. What it covers and a source does not hold was purged, or never acknowledged at a quorum (what was, one of any
//! majority of the others holds). Why it is enough: whatever a purged tombstone stood for is covered by the floor under which it
//! was purged, and that floor is on every home replica. docs/decisions/0016-a-restored-backup.md has it in full.
//!
//! A member that catches up on a slot which it kept before has rows *of its own*: it acknowledged them, and took part in every floor.
//! Nothing of them is dropped, not even to be fetched again: who has them too may die before it sent them.
//!
//! Invariants:
//! - The source looks up its floor after its sums: where they do not count a tombstone any more, the floor tells.
//! - A floor that rose while the slot was fetched makes it begin again.
//!
//! Caveats: sums are of what was written, so a row that was damaged since on either side is found by a scrub, as ever. One key
//! that differs has its whole leaf sent: of ten million keys a leaf holds 150.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Rebuild, Unfetched, WITHIN, refused};
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest, StoreError};
use crate::protocol::ring::Ring;
use crate::types::{Digest, Epoch, Floor, Key, Leaf, LeafSet, NodeNum, Slot, SlotSet, Sum, Token};

/// For so long a slot's sums are waited for, which are counted once after the start.
const SUMMED_WITHIN: Duration = Duration::from_secs(60);
/// How often they are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Keys dropped in one transaction.
const DROP_STEP: usize = 256;

/// What is known of a slot while it is fetched.
pub(super) struct Start {
    /// Of what was here, leaf by leaf; `None` where that was nothing.
    digests: Option<Vec<Digest>>,
    /// It is this member's own.
    own: bool,
    /// By source, the leaves that are other there.
    differing: BTreeMap<NodeNum, LeafSet>,
    /// The greatest that was told.
    floor: Floor,
    /// What was told of it before it was begun.
    known: Floor,
    /// What was dropped, and under which floor.
    dropped: Option<(LeafSet, Floor)>,
    /// A source has sent all that it was asked for.
    has_some: bool,
}

impl Start {
    /// Whether there is anything to begin with.
    fn is_ahead(&self) -> bool {
        self.digests.is_some()
    }

    /// Whether some of what was here may have to be dropped.
    pub(super) fn may_drop(&self) -> bool {
        self.is_ahead() && !self.own
    }

    /// A source has sent its pages.
    pub(super) fn heard(&mut self) {
        self.has_some = true;
    }

    /// The leaves that source has to send: where it is other, and where something was dropped that it may hold.
    fn wanted_of(&self, source: NodeNum) -> LeafSet {
        let dropped = self.dropped.map_or(LeafSet::NONE, |(leaves, _)| leaves);
        self.differing.get(&source).map_or(LeafSet::ALL, |differing| differing.or(&dropped))
    }

    pub(super) fn floor(&self) -> Floor {
        self.floor
    }

    pub(super) fn told(&mut self, floor: &Floor) {
        self.floor = self.floor.merge(floor);
    }

    /// Whether nothing was here that a floor could cover which was not known then. A replica that is `live` took writes meanwhile:
    /// it must have had that floor itself since before it was compared.
    pub(super) fn is_settled(&self, live: bool) -> bool {
        let known = !self.may_drop() || self.dropped.is_some_and(|(_, floor)| floor == self.floor);
        known && (!live || self.known == self.floor)
    }
}

impl Rebuild {
    /// Looks what is here of the slot; `floor`: what was told of it before, by whomever. Who is asked this time need not know it: begun
    /// without it, it could find the same one out for ever.
    pub(super) async fn begin(&self, ring: &Ring, slot: Slot, floor: Floor) -> Start {
        let kept = ring.topology().replicas_before(slot).is_some_and(|before| before.contains(&self.me));
        let own = kept && !self.routing.is_rebuilding();
        let until = Instant::now() + SUMMED_WITHIN;
        let sums = loop {
            match self.ports.store.leaf_sums(slot) {
                None if Instant::now() < until => sleep(LOOK_EVERY).await,
                sums => break sums,
            }
        };
        let digests = match sums {
            Some(sums) if sums.iter().all(|sum| *sum == Sum::default()) => None,
            Some(sums) => Some(sums.iter().map(Sum::digest).collect()),
            // What is here is not known, so it is taken for other than anything.
            None => Some(vec![Digest(0); Leaf::IN_SLOT]),
        };
        Start { digests, own, differing: BTreeMap::new(), floor, known: floor, dropped: None, has_some: false }
    }

    /// The leaves that source has to send. Who comes after another has only to send what the others have not: copies are equal but
    /// for little, so that a slot comes once, however many sources it takes.
    pub(super) async fn wanted_of(
        &self,
        ring: &Ring,
        slot: Slot,
        source: NodeNum,
        start: &mut Start,
    ) -> Result<LeafSet, Unfetched> {
        let now = self.ports.store.leaf_sums(slot).filter(|_| start.has_some);
        if let Some(sums) = now {
            return self.compare(ring, slot, source, sums.iter().map(Sum::digest).collect(), start).await;
        }
        if start.is_ahead() && !start.differing.contains_key(&source) {
            self.compare_with(ring, slot, source, start).await?;
        }
        Ok(start.wanted_of(source))
    }

    /// Hears from a source where it is other than what was here.
    pub(super) async fn compare_with(
        &self,
        ring: &Ring,
        slot: Slot,
        source: NodeNum,
        start: &mut Start,
    ) -> Result<(), Unfetched> {
        let digests = start.digests.clone().unwrap_or_default();
        let differing = self.compare(ring, slot, source, digests, start).await?;
        start.differing.insert(source, differing);
        Ok(())
    }

    async fn compare(
        &self,
        ring: &Ring,
        slot: Slot,
        source: NodeNum,
        digests: Vec<Digest>,
        start: &mut Start,
    ) -> Result<LeafSet, Unfetched> {
        let request = PeerRequest::CompareSlot { epoch: ring.epoch(), slot, digests };
        let reply = self.ports.peers.ask(Destination::Member(source), request, Instant::now() + WITHIN).await;
        match reply.map_err(Unfetched::Peer)? {
            PeerReply::SlotCompared { differing, floor } => {
                start.told(&floor);
                Ok(differing)
            }
            PeerReply::WrongEpoch { epoch } => Err(Unfetched::Epoch(epoch)),
            _ => Err(Unfetched::Peer(PeerError::Protocol("not a comparison of a slot".into()))),
        }
    }

    /// Drops what no source holds and a floor covers.
    pub(super) async fn drop_covered(&self, ring: &Ring, slot: Slot, start: &mut Start) -> Result<(), StoreError> {
        let leaves = start.differing.values().fold(LeafSet::ALL, |all, differing| all.and(differing));
        start.dropped = Some((leaves, start.floor));
        if leaves.is_empty() || start.floor == Floor::default() {
            return Ok(());
        }
        let held = self.ports.store.holdings(slot, leaves.of_slot(slot).collect()).await?;
        let keys: Vec<(Token, Key)> = held.intact.into_iter().map(|(_, key)| (ring.token(&key), key)).collect();
        let mut gone = 0;
        for keys in keys.chunks(DROP_STEP) {
            gone += self.ports.store.drop_covered(start.floor, keys.to_vec()).await?;
        }
        self.meters.dropped.increment(gone);
        if gone > 0 {
            tracing::debug!(%slot, gone, "keys were dropped that no source holds as they were here");
        }
        Ok(())
    }

    /// Where this node is other than a member that is being rebuilt.
    ///
    /// # Errors
    /// As for [`Self::answer`].
    pub async fn answer_compare(&self, epoch: Epoch, slot: Slot, digests: &[Digest]) -> Result<PeerReply, PeerError> {
        let ring = match self.as_source(epoch, slot)? {
            Ok(ring) => ring,
            Err(wrong_epoch) => return Ok(wrong_epoch),
        };
        self.let_in_is_on_disk(&ring).await?;
        let differing = match self.ports.store.leaf_sums(slot) {
            Some(sums) => {
                let pairs = (0..=u8::MAX).zip(sums.iter().zip(digests));
                LeafSet::of(pairs.filter(|(_, (ours, theirs))| ours.digest() != **theirs).map(|(place, _)| place))
            }
            None => LeafSet::ALL,
        };
        // After the sums: see above.
        let of_slot: SlotSet = std::iter::once(slot).collect();
        let surveys = self.ports.store.survey(of_slot).await.map_err(|e| refused(e.to_string()))?;
        let survey = surveys.first().ok_or_else(|| refused("its floor is not known".into()))?;
        Ok(PeerReply::SlotCompared { differing, floor: survey.floor })
    }
}
