//! The cheapest chain of moves by which a slot gets one more copy.
//!
//! A path from the slot to a member with room: slot -> zone -> member is a copy that is added, member -> zone -> slot one that is
//! taken away. A copy where the ring in force has none costs 1, and taking it away gives that back.
//!
//! Invariant: no way round costs less than nothing. It holds of copies that all stay, and each cheapest path leaves it so. Hence a
//! search ends, a path never becomes cheaper than it was, and once all slots have their copies no other ring moves fewer.

use std::collections::VecDeque;

use super::Layout;

/// A step of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// This slot wants one more copy.
    Slot(usize),
    /// This slot wants one more copy in this zone.
    Zone(usize, usize),
    /// This member takes one more copy.
    Member(usize),
}

/// What is known of the paths from where the search began.
struct Paths {
    /// The cheapest path to each step: its cost, and the step before.
    to: Vec<Option<(i32, Option<Step>)>>,
    slots: usize,
    zones: usize,
    queue: VecDeque<Step>,
}

impl Paths {
    fn new(layout: &Layout) -> Self {
        let (slots, zones) = (layout.homes.len(), layout.zone_max.len());
        let steps = slots + slots * zones + layout.quota.len();
        Self { to: vec![None; steps], slots, zones, queue: VecDeque::new() }
    }

    fn index(&self, step: Step) -> usize {
        match step {
            Step::Slot(slot) => slot,
            Step::Zone(slot, zone) => self.slots + slot * self.zones + zone,
            Step::Member(member) => self.slots + self.slots * self.zones + member,
        }
    }

    fn cost(&self, step: Step) -> Option<i32> {
        self.to[self.index(step)].map(|(cost, _)| cost)
    }

    fn offer(&mut self, step: Step, cost: i32, before: Option<Step>) {
        if self.cost(step).is_none_or(|known| cost < known) {
            let index = self.index(step);
            self.to[index] = Some((cost, before));
            self.queue.push_back(step);
        }
    }
}

impl Layout {
    /// Gives some slot one more of the copies that it had; others may give way to another one that they had.
    pub(super) fn keep_one_more(&mut self) -> bool {
        let short: Vec<usize> = (0..self.homes.len()).filter(|slot| self.homes[*slot].len() < self.copies).collect();
        self.augment(&short, 0)
    }

    /// Gives a slot one more copy, by moving others out of its way.
    pub(super) fn place_by_moves(&mut self, slot: usize) -> bool {
        self.augment(&[slot], 1)
    }

    /// The cheapest path from one of these slots. No path costs less than `least`; at 0, none that costs more is taken.
    fn augment(&mut self, slots: &[usize], least: i32) -> bool {
        let mut paths = Paths::new(self);
        let mut best = None;
        // Above that, all members of a zone have cheaper paths already.
        let mut worst = vec![i32::MAX; self.zone_max.len()];
        slots.iter().for_each(|slot| paths.offer(Step::Slot(*slot), 0, None));
        while let Some(step) = paths.queue.pop_front() {
            let Some(cost) = paths.cost(step) else { continue };
            match step {
                Step::Slot(slot) => {
                    for zone in 0..self.zone_max.len() {
                        if self.in_zone(slot, zone) < self.zone_max[zone] {
                            paths.offer(Step::Zone(slot, zone), cost, Some(step));
                        }
                    }
                }
                Step::Zone(slot, zone) => {
                    paths.offer(Step::Slot(slot), cost, Some(step));
                    let free = |m: &usize| self.zone[*m] == zone && !self.homes[slot].contains(m);
                    for member in self.had[slot].iter().copied().filter(free) {
                        paths.offer(Step::Member(member), cost, Some(step));
                    }
                    if least > 0 && cost + 1 < worst[zone] {
                        let takers = self.zone_members[zone].iter().copied();
                        for member in takers.filter(free) {
                            paths.offer(Step::Member(member), cost + 1, Some(step));
                        }
                        let costs = self.zone_members[zone].iter().map(|m| paths.cost(Step::Member(*m)));
                        worst[zone] = costs.map(|cost| cost.unwrap_or(i32::MAX)).max().unwrap_or(i32::MAX);
                    }
                }
                Step::Member(member) if self.load[member] < self.quota[member] => {
                    if best.is_none_or(|(known, _)| cost < known) {
                        best = Some((cost, step));
                    }
                    if cost == least {
                        break;
                    }
                }
                Step::Member(member) => {
                    let zone = self.zone[member];
                    for slot in (0..self.homes.len()).filter(|slot| self.homes[*slot].contains(&member)) {
                        let back = i32::from(!self.had[slot].contains(&member));
                        paths.offer(Step::Zone(slot, zone), cost - back, Some(step));
                    }
                }
            }
        }
        best.map(|(_, last)| self.apply(&paths, last)).is_some()
    }

    fn apply(&mut self, paths: &Paths, last: Step) {
        let mut step = last;
        while let Some((_, Some(before))) = paths.to[paths.index(step)] {
            match (before, step) {
                (Step::Zone(slot, _), Step::Member(member)) => self.add(slot, member),
                (Step::Member(member), Step::Zone(slot, _)) => self.remove(slot, member),
                _ => {}
            }
            step = before;
        }
    }
}
