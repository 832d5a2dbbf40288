//! The schedule of handoff: which way a hint goes, for which node hints are delivered now, and how long a failed delivery waits.
//!
//! A hint goes to the node it is kept for (its *target*) while that is a home replica of the slot. Where it is none any more, as it
//! left or the slot moved away, the hint goes to those that are; and so does every hint of a member that leaves, where its target
//! is out of reach: nothing may be left with it when it goes.
//!
//! Invariants:
//! - One delivery per target is under way at a time.
//! - A target that comes back is tried at once, whatever it waited for before.
//! - A target whose hints can go but keep failing is tried after 100 ms, then twice as long each time, up to 30 s;
//!   half of each wait is drawn, so that the nodes that owe one target do not come together.

use std::collections::BTreeMap;

use super::ring::{Ring, WriteSet};
use crate::types::{NodeNum, Slot};

/// Which way hints can go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// None, now.
    #[default]
    Shut,
    /// To the home replicas in place of the target: until a majority of every write set has the record.
    Around,
    /// To the target.
    Straight,
}

/// Which way the hints of a target go that are of that slot, from this node, as the ring in force has it.
pub fn way(ring: &Ring, me: NodeNum, target: NodeNum, slot: Slot, can_reach: impl Fn(NodeNum) -> bool) -> Way {
    let placement = ring.placement(slot);
    let home = placement.is_home(target);
    if home && can_reach(target) {
        return Way::Straight;
    }
    let leaving = ring.topology().leaver() == Some(me);
    let reachable: WriteSet = placement.home_replicas().into_iter().filter(|node| can_reach(*node)).collect();
    if (leaving || !home) && placement.is_majority(&reachable) { Way::Around } else { Way::Shut }
}

/// The first wait after a failure, in milliseconds.
const BACKOFF_MIN_MS: u64 = 100;
/// The longest.
const BACKOFF_MAX_MS: u64 = 30_000;

#[derive(Clone, Copy, Debug, Default)]
struct Target {
    running: bool,
    way: Way,
    failures: u32,
    not_before_ms: u64,
}

/// What every target waits for. Times are milliseconds of one monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    targets: BTreeMap<NodeNum, Target>,
}

impl Schedule {
    /// The hints of which nodes are to be delivered now; each is under way from here on, until [`Self::ended`]. `owed` says of
    /// each which way some of them may go. Targets without hints are forgotten.
    pub fn start(&mut self, owed: &[(NodeNum, Way)], now_ms: u64) -> Vec<NodeNum> {
        self.targets.retain(|node, target| target.running || owed.iter().any(|(n, _)| n == node));
        let mut started = Vec::new();
        for &(node, way) in owed {
            let target = self.targets.entry(node).or_default();
            if way > target.way {
                target.failures = 0;
                target.not_before_ms = 0;
            }
            target.way = way;
            if way > Way::Shut && !target.running && now_ms >= target.not_before_ms {
                target.running = true;
                started.push(node);
            }
        }
        started
    }

    /// A delivery has ended. After a failure the target waits; `draw` is any random number.
    pub fn ended(&mut self, node: NodeNum, ok: bool, now_ms: u64, draw: u64) {
        let Some(target) = self.targets.get_mut(&node) else { return };
        target.running = false;
        if ok {
            target.failures = 0;
            target.not_before_ms = 0;
        } else {
            let wait_ms = BACKOFF_MAX_MS.min(BACKOFF_MIN_MS << target.failures.min(16));
            target.failures = target.failures.saturating_add(1);
            target.not_before_ms = now_ms + wait_ms / 2 + draw % (wait_ms / 2 + 1);
        }
    }

    /// Whatever they waited for before, all are tried now: hints go other ways.
    pub fn afresh(&mut self) {
        self.targets.values_mut().for_each(|target| (target.failures, target.not_before_ms) = (0, 0));
    }

    pub fn is_running(&self, node: NodeNum) -> bool {
        self.targets.get(&node).is_some_and(|t| t.running)
    }

    /// When the next wait ends of a target whose hints can go.
    pub fn next_ms(&self) -> Option<u64> {
        self.targets.values().filter(|t| t.way > Way::Shut && !t.running).map(|t| t.not_before_ms).min()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Way::{Around, Shut, Straight};
    use super::*;
    use crate::protocol::founding::first_topology;
    use crate::types::{Announcement, ClusterId, InstanceId, Topology, TopologyChange};

    const A: NodeNum = NodeNum(1);
    const B: NodeNum = NodeNum(2);

    #[test]
    fn one_delivery_at_a_time_to_each() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.start(&[(A, Straight), (B, Shut)], 0), [A]);
        assert_eq!(schedule.start(&[(A, Straight), (B, Straight)], 1), [B]);
        assert_eq!(schedule.start(&[(A, Straight), (B, Straight)], 2), []);
        schedule.ended(A, true, 3, 0);
        assert_eq!(schedule.start(&[(A, Straight), (B, Straight)], 3), [A]);
    }

    #[test]
    fn a_failing_target_waits_longer_each_time_up_to_a_limit() {
        for draw in [0, u64::MAX] {
            let mut schedule = Schedule::default();
            let mut now = 0;
            let mut waits = Vec::new();
            for _ in 0..12 {
                assert_eq!(schedule.start(&[(A, Straight)], now), [A]);
                assert_eq!(schedule.next_ms(), None);
                schedule.ended(A, false, now, draw);
                let next = schedule.next_ms().unwrap();
                assert_eq!(schedule.start(&[(A, Straight)], next - 1), []);
                waits.push(next - now);
                now = next;
            }
            assert!(waits.iter().zip([100, 200, 400]).all(|(w, full)| (full / 2..=full).contains(w)), "{waits:?}");
            assert!((15_000..=30_000).contains(&waits[11]), "{waits:?}");
            assert!(waits.is_sorted() || draw != 0, "{waits:?}");
        }
    }

    #[test]
    fn a_target_that_comes_back_is_tried_at_once() {
        let mut schedule = Schedule::default();
        for _ in 0..10 {
            let at = schedule.next_ms().unwrap_or(0);
            schedule.start(&[(A, Straight)], at);
            schedule.ended(A, false, at, 0);
        }
        let now = schedule.next_ms().unwrap() - 1_000;
        assert_eq!(schedule.start(&[(A, Shut)], now), []);
        assert_eq!(schedule.next_ms(), None, "waits for its return, not for a time");
        assert_eq!(schedule.start(&[(A, Straight)], now), [A]);
    }

    #[test]
    fn one_that_comes_back_does_not_wait_for_what_goes_around_it() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.start(&[(A, Around)], 0), [A]);
        schedule.ended(A, false, 0, u64::MAX);
        assert_eq!(schedule.start(&[(A, Around)], 1), []);
        assert_eq!(schedule.start(&[(A, Straight)], 1), [A]);
        schedule.ended(A, false, 1, u64::MAX);
        assert_eq!(schedule.start(&[(A, Around)], 2), [], "that is no better than it was");
        schedule.afresh();
        assert_eq!(schedule.start(&[(A, Around)], 2), [A]);
    }

    /// Members 1 to 4 with two copies; slot 0 lies where the test says.
    fn ring(change: impl FnOnce(&mut Topology)) -> Ring {
        let member = |n: u16| Announcement {
            node: NodeNum(n),
            instance: InstanceId(uuid::Uuid::from_u128(n.into())),
            zone: None,
            weight: 1,
            mesh_address: "h:1".into(),
            http_address: "h:1".into(),
            cluster_size: 4,
            rf: 2,
        };
        let founders: Vec<_> = (1..=4).map(member).collect();
        let mut topology = first_topology(&founders, ClusterId(uuid::Uuid::from_u128(9)));
        topology.ring[0] = vec![NodeNum(2), NodeNum(3)];
        change(&mut topology);
        Ring::new(Arc::new(topology))
    }

    #[test]
    fn a_hint_goes_to_its_target_while_that_keeps_the_slot_and_else_around_it() {
        let me = NodeNum(1);
        let way = |ring: &Ring, target: u16, down: &[u16]| {
            way(ring, me, NodeNum(target), Slot(0), |node| !down.contains(&node.0))
        };
        let still = ring(|_| {});
        assert_eq!((way(&still, 2, &[]), way(&still, 2, &[2])), (Straight, Shut));
        // The slot moved away from it, or it is none of the members.
        for target in [4, 9] {
            assert_eq!((way(&still, target, &[]), way(&still, target, &[target])), (Around, Around));
            assert_eq!(way(&still, target, &[3]), Shut, "one of two is no majority");
        }
        let moving = |change| {
            ring(|topology| {
                let before = topology.clone();
                let moving = crate::types::Moving { since: before.epoch, change, rf: 2, ring: before.ring };
                topology.moving = Some(moving);
                topology.ring[0] = vec![NodeNum(3), NodeNum(4)];
            })
        };
        let joins = moving(TopologyChange::Join { node: NodeNum(4) });
        assert_eq!((way(&joins, 2, &[]), way(&joins, 2, &[2])), (Straight, Shut), "it counts until the change ends");
        assert_eq!((way(&joins, 4, &[]), way(&joins, 9, &[])), (Straight, Around));
        assert_eq!((way(&joins, 9, &[2]), way(&joins, 9, &[4])), (Shut, Shut), "a majority of either set alone");
        let leaves = moving(TopologyChange::Leave { node: me });
        assert_eq!((way(&leaves, 2, &[]), way(&leaves, 2, &[2])), (Straight, Shut));
        let three = ring(|topology| {
            let change = TopologyChange::Leave { node: me };
            topology.moving =
                Some(crate::types::Moving { since: topology.epoch, change, rf: 2, ring: topology.ring.clone() });
            topology.ring[0] = [2, 3, 4].map(NodeNum).to_vec();
            if let Some(moving) = &mut topology.moving {
                moving.ring[0] = topology.ring[0].clone();
            }
        });
        assert_eq!((way(&three, 2, &[]), way(&three, 2, &[2])), (Straight, Around), "nothing is left with who goes");
    }

    #[test]
    fn a_target_that_is_owed_nothing_is_forgotten() {
        let mut schedule = Schedule::default();
        schedule.start(&[(A, Straight)], 0);
        schedule.start(&[], 0);
        schedule.ended(A, false, 0, 0);
        schedule.start(&[], 0);
        assert_eq!(schedule.next_ms(), None);
        schedule.ended(A, true, 0, 0);
    }
}
