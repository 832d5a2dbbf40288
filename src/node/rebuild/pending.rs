//! Slots that are fetched, and how far that is.

use std::collections::BTreeSet;

use super::head_start::Start;
use crate::protocol::catch_up::Sources;
use crate::types::{CatchUp, Epoch, Floor, NodeNum, Slot};

/// How far this node is with all of them.
#[derive(Default)]
pub(super) struct Fetching {
    /// Under which they are fetched.
    pub(super) epoch: Epoch,
    pub(super) slots: usize,
    pub(super) done: usize,
    /// None is left, though the epoch is the same still.
    pub(super) over: bool,
    pub(super) keys: u64,
    pub(super) bytes: u64,
    /// A slot that does not get on, and what it waits for.
    pub(super) stuck: Option<String>,
}

impl Fetching {
    pub(super) fn begin(epoch: Epoch, slots: usize) -> Self {
        Self { epoch, slots, ..Self::default() }
    }

    pub(super) fn left(&self) -> usize {
        self.slots - self.done
    }

    /// As it is told to others who have that epoch in force.
    pub(super) fn told(&self, epoch: Epoch) -> CatchUp {
        if self.epoch != epoch {
            return CatchUp::default();
        }
        CatchUp {
            slots: self.slots as u64,
            done: self.done as u64,
            caught_up: self.over,
            keys: self.keys,
            bytes: self.bytes,
            hints: 0,
            stuck: self.stuck.clone(),
        }
    }
}

/// What is asked of a majority.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Compare,
    Fetch,
}

/// A slot that is not here yet, and how far it came.
pub(super) struct Pending {
    pub(super) slot: Slot,
    pub(super) sources: Sources,
    pub(super) start: Option<Start>,
    /// What is asked next, and who has done it.
    pub(super) part: Part,
    pub(super) done: BTreeSet<NodeNum>,
    /// The greatest floor that was told before it was begun anew.
    pub(super) floor: Floor,
    pub(super) failures: u32,
    /// Who failed last, and why.
    pub(super) waits_for: Option<(NodeNum, String)>,
}

impl Pending {
    pub(super) fn new(slot: Slot, sources: Sources) -> Self {
        let (done, floor) = (BTreeSet::new(), Floor::default());
        Self { slot, sources, start: None, part: Part::Fetch, done, floor, failures: 0, waits_for: None }
    }

    /// What it waits for, for a person.
    pub(super) fn stuck(&self) -> Option<String> {
        self.waits_for.as_ref().map(|(source, why)| format!("slot {} waits for {source} ({why})", self.slot))
    }
}
