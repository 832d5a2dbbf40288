//! What a change of the topology would do, told before anything is done.
//!
//! The plan is the topology that would be proposed (`protocol::succession::change`), and `protocol::transfer` says what it
//! moves. Only the bytes are this node's to guess: of a slot that it keeps it knows how many records there are, and of the
//! others what members told of themselves.

use super::Node;
use super::change::ChangeFailure;
use super::views::PlanView;
use crate::ports::StoreTotals;
use crate::protocol::spread::Spread;
use crate::protocol::succession::change::{Unfit, Wish};
use crate::protocol::transfer::Transfer;
use crate::types::{NodeNum, Slot, Topology};

impl Node {
    /// What that change would move. Nothing is begun.
    ///
    /// # Errors
    /// Why there could be no such change now.
    pub fn plan(&self, wish: &Wish) -> Result<PlanView, ChangeFailure> {
        let ring = self.routing.ring().ok_or(ChangeFailure::NotReady)?;
        let before = ring.topology();
        let after = self.next(before, wish)?;
        // What has begun is under way.
        let change = after.moving.as_ref().map(|moving| moving.change.clone()).ok_or(Unfit::Nothing)?;
        let transfer = Transfer::between(before, &after);
        let sizes = self.slot_bytes(before);
        let bytes = |slots: &[Slot]| slots.iter().map(|slot| sizes[slot.index()]).sum::<f64>().round() as u64;
        Ok(PlanView {
            asked: self.identity.node,
            epoch: before.epoch,
            change,
            rf: (before.rf, after.rf),
            bytes: transfer.parts.iter().map(|part| bytes(&part.gained)).collect(),
            transfer,
            spread: Spread::of(&after),
        })
    }

    /// About how many bytes one copy of each slot is.
    fn slot_bytes(&self, topology: &Topology) -> Vec<f64> {
        let (me, totals) = (self.identity.node, self.store.totals());
        let told = |node: NodeNum| {
            if node == me { Some(totals.bytes) } else { self.directory.info(node).map(|info| info.bytes) }
        };
        let usual = usual_bytes(topology, told);
        let kept = |slot: &Slot| topology.home_replicas(*slot).contains(&me);
        let sums = Slot::all().zip(self.store.slot_sums()).map(|(slot, sum)| sum.filter(|_| kept(&slot)));
        sums.map(|sum| sum.map_or(usual, |sum| sum.records as f64 * record_bytes(&totals))).collect()
    }
}

/// Of a record here, in the mean.
fn record_bytes(totals: &StoreTotals) -> f64 {
    totals.bytes as f64 / (totals.keys + totals.tombstones).max(1) as f64
}

/// Of a slot, in the mean over the members that told how much they keep.
fn usual_bytes(topology: &Topology, told: impl Fn(NodeNum) -> Option<u64>) -> f64 {
    let (mut bytes, mut slots) = (0.0, 0usize);
    for member in &topology.members {
        let Some(kept) = told(member.node) else { continue };
        bytes += kept as f64;
        slots += topology.ring.iter().filter(|homes| homes.contains(&member.node)).count();
    }
    bytes / slots.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fakes::topology;

    #[test]
    fn a_slot_is_as_large_as_those_are_that_members_told_of() {
        let three = topology(1, 3, 1);
        let told = |node: NodeNum| [Some(8600), Some(8500), None][usize::from(node.0) - 1];
        assert_eq!(usual_bytes(&three, told), 100.0, "n1 keeps 86 slots, n2 85, and what n3 keeps is not known");
        assert_eq!(usual_bytes(&three, |_| None), 0.0);
        let totals = StoreTotals { keys: 3, tombstones: 1, bytes: 400, ..StoreTotals::default() };
        assert_eq!((record_bytes(&totals), record_bytes(&StoreTotals::default())), (100.0, 0.0));
    }
}
