//! One delivery: all hints of one target that can go now, page after page.
//!
//! Which way a hint goes is its slot's matter (`protocol::hints`), so slots whose hints cannot go are passed over unread.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::{DEADLINE, Fate, PAGES_UNDER_WAY, fate};
use crate::node::answers::Answers;
use crate::node::parts::Parts;
use crate::ports::{Hint, ReplicaCall, ReplicaRequest, StoreError};
use crate::protocol::hints::{Way, way};
use crate::protocol::ring::{Ring, WriteSet};
use crate::types::limits::KEY_BYTES_MAX;
use crate::types::{Key, NodeNum, Slot};

/// How one delivery ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ended {
    /// To the target.
    pub(super) delivered: u64,
    /// To a majority of the home replicas, in place of the target.
    pub(super) around: u64,
    /// Hints that were refused, each for a reason of its own, or had by too few.
    pub(super) kept: u64,
    /// A replica, or our store, takes no more.
    pub(super) stopped: bool,
    /// There may be hints to go around the target whose home replicas are out of reach.
    pub(super) barred: bool,
}

impl Ended {
    /// Whether the target said something about a hint, and would take more.
    pub(super) fn answered(&self) -> bool {
        self.delivered + self.kept > 0 && !self.stopped
    }

    /// Whether to go on without a wait. A delivery that moved nothing waits, whatever the reason.
    pub(super) fn ok(&self) -> bool {
        self.delivered + self.around > 0 && self.kept == 0 && !self.stopped
    }

    /// Whether all went that could go around the target under that ring.
    pub(super) fn is_clean(&self) -> bool {
        self.kept == 0 && !self.stopped && !self.barred
    }
}

pub(super) struct Delivery<'a> {
    parts: &'a Parts,
    ring: Arc<Ring>,
    target: NodeNum,
    /// The target can be reached.
    pub(super) straight: bool,
    /// Hints that cannot go to it go to the home replicas.
    pub(super) around: bool,
    /// Who takes nothing at the moment.
    shut: BTreeSet<NodeNum>,
    pub(super) ended: Ended,
}

/// A page on its way.
struct SentPage {
    hints: Vec<SentHint>,
    requests: usize,
    answers: Arc<Answers>,
}

struct SentHint {
    hint: Hint,
    way: Way,
    /// Who has it on disk.
    acked: WriteSet,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(parts: &'a Parts, ring: Arc<Ring>, target: NodeNum, straight: bool) -> Self {
        let (shut, ended) = Default::default();
        Self { parts, ring, target, straight, around: false, shut, ended }
    }

    /// Pages of that size, at most so many.
    pub(super) async fn pages(&mut self, size: usize, most: usize) -> Result<(), StoreError> {
        let mut under_way: VecDeque<SentPage> = VecDeque::new();
        let mut after = None;
        let mut left = most;
        loop {
            while left > 0 && under_way.len() < PAGES_UNDER_WAY {
                let Some(from) = self.next(after.take()) else {
                    left = 0;
                    break;
                };
                let page = self.parts.store.hints(self.target, from, size).await?;
                let Some(last) = page.last() else {
                    left = 0;
                    break;
                };
                after = Some((last.slot, last.key.clone()));
                left -= 1;
                under_way.push_back(self.send(page));
            }
            let Some(page) = under_way.pop_front() else { return Ok(()) };
            self.settle(page).await?;
        }
    }

    /// After which hint to read on, past slots whose hints cannot go; `None` where no others are left.
    fn next(&mut self, after: Option<(Slot, Key)>) -> Option<Option<(Slot, Key)>> {
        let first = after.as_ref().map_or(0, |(slot, _)| slot.index());
        let slot = Slot::all().skip(first).find(|slot| self.way(*slot) > Way::Shut)?;
        if slot.index() == first {
            return Some(after);
        }
        // No key of the slot before it is greater.
        let last = Key::new(vec![u8::MAX; KEY_BYTES_MAX]).ok()?;
        Some(Some((Slot(slot.0 - 1), last)))
    }

    fn way(&mut self, slot: Slot) -> Way {
        match way(&self.ring, self.parts.me, self.target, slot, |node| self.can_reach(node)) {
            Way::Around if !self.around => Way::Shut,
            Way::Shut if !self.ring.placement(slot).is_home(self.target) => {
                self.ended.barred = true;
                Way::Shut
            }
            way => way,
        }
    }

    fn can_reach(&self, node: NodeNum) -> bool {
        let reachable = if node == self.target { self.straight } else { self.parts.reach.is_reachable(node) };
        reachable && !self.shut.contains(&node)
    }

    fn send(&mut self, page: Vec<Hint>) -> SentPage {
        let answers = Answers::new();
        let (mut hints, mut requests) = (Vec::with_capacity(page.len()), 0);
        let deadline = Some(Instant::now() + DEADLINE);
        for (place, hint) in (0u64..).zip(page) {
            let way = self.way(hint.slot);
            let to = match way {
                Way::Shut => WriteSet::new(),
                Way::Straight => [self.target].into_iter().collect(),
                Way::Around => {
                    let homes = self.ring.placement(hint.slot).home_replicas();
                    homes.into_iter().filter(|node| self.can_reach(*node)).collect()
                }
            };
            for node in to {
                let request = ReplicaRequest::Write { key: hint.key.clone(), record: hint.record.clone() };
                let call = ReplicaCall { epoch: self.ring.epoch(), request, deadline, behind: true, trace: None };
                self.parts.peers.send(node, call, answers.reply_to(place << 16 | u64::from(node.0)));
                requests += 1;
            }
            hints.push(SentHint { hint, way, acked: WriteSet::new() });
        }
        SentPage { hints, requests, answers }
    }

    /// Waits for every answer to a page, then forgets what is delivered.
    async fn settle(&mut self, SentPage { mut hints, requests, answers }: SentPage) -> Result<(), StoreError> {
        for _ in 0..requests {
            let (tag, answer) = answers.next().await;
            let node = NodeNum(tag as u16);
            match fate(&answer) {
                Fate::Delivered => {
                    if let Some(sent) = usize::try_from(tag >> 16).ok().and_then(|place| hints.get_mut(place)) {
                        sent.acked.push(node);
                    }
                }
                Fate::Kept => {}
                Fate::Stop => {
                    self.shut.insert(node);
                    self.ended.stopped = true;
                }
            }
        }
        let mut delivered = Vec::with_capacity(hints.len());
        let (mut straight, mut around) = (0, 0);
        for SentHint { hint, way, acked } in hints {
            let counted = match way {
                Way::Shut => continue,
                Way::Straight if !acked.is_empty() => &mut straight,
                Way::Around if self.ring.placement(hint.slot).is_majority(&acked) => &mut around,
                Way::Straight | Way::Around => {
                    self.ended.kept += 1;
                    continue;
                }
            };
            *counted += 1;
            delivered.push((hint.target, hint.slot, hint.key, hint.record.version));
        }
        if !delivered.is_empty() {
            self.parts.store.forget_hints(delivered).await?;
            self.ended.delivered += straight;
            self.ended.around += around;
        }
        Ok(())
    }
}
