//! The planner: which member keeps which slot.
//!
//! It is told the members, the copies wanted and the ring in force, and answers the next ring. What it keeps, in the
//! order in which it gives way:
//! - a slot's home replicas are distinct members, as many as there are copies (or members with weight, if fewer);
//! - they stand in as many zones as they can; a member without a zone is a zone of its own;
//! - every member keeps its share by weight, to within one slot;
//! - the fewest copies move;
//! - every member is the first of its slots' replicas, the one asked first, about equally often.
//!
//! How: shares are rounded to quotas (`quota`), what fits the quotas stays where it is, and each copy that is left is
//! placed, directly or along a shortest augmenting path of a flow slot -> zone -> member. Such a path exists whenever
//! the quotas can be met, and they always can: members laid zone by zone on a line that is wound around the slots meet
//! them, and put no more of a zone on one slot than the bound that the flow is given.
//!
//! The same arguments give the same ring on every node.

mod quota;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xxhash_rust::xxh3::xxh3_64;

use crate::types::{Member, NodeNum, Slot};

/// The home replicas of every slot, in order; the first is asked first. `current` is the ring in force, of which as
/// much stays as can. No members give empty slots. Where no member has weight, one copy of everything is spread evenly.
pub fn plan(members: &[Member], rf: u8, current: Option<&[Vec<NodeNum>]>) -> Vec<Vec<NodeNum>> {
    let (mut able, copies) = able(members, rf);
    able.sort_by_key(|m| m.node);
    let index: BTreeMap<NodeNum, usize> = able.iter().enumerate().map(|(i, m)| (m.node, i)).collect();
    let kept: Vec<Vec<usize>> = (0..Slot::COUNT)
        .map(|slot| {
            let homes = current.and_then(|ring| ring.get(slot)).map_or(&[][..], Vec::as_slice);
            let mut seen = BTreeSet::new();
            homes.iter().filter_map(|n| index.get(n).copied()).filter(|m| seen.insert(*m)).collect()
        })
        .collect();
    let mut layout = Layout::new(&able, copies, kept);
    layout.trim();
    layout.fill();
    layout.even_out();
    layout.spread_firsts();
    layout.homes.iter().map(|homes| homes.iter().map(|m| able[*m].node).collect()).collect()
}

/// Those who keep slots, and how many copies they keep together.
fn able(members: &[Member], rf: u8) -> (Vec<&Member>, usize) {
    let able: Vec<&Member> = members.iter().filter(|m| m.weight > 0).collect();
    if able.is_empty() {
        return (members.iter().collect(), members.len().min(1));
    }
    let copies = usize::from(rf).min(able.len());
    (able, copies)
}

fn weights(able: &[&Member]) -> Vec<u64> {
    able.iter().map(|m| u64::from(m.weight.max(1))).collect()
}

/// The slots that weight alone would give each member that keeps some, as if every member were a zone of its own. What cannot
/// be divided goes to those who hold more already.
pub fn shares(members: &[Member], rf: u8, held: impl Fn(NodeNum) -> usize) -> Vec<(NodeNum, usize)> {
    let (able, copies) = able(members, rf);
    let held: Vec<usize> = able.iter().map(|m| held(m.node)).collect();
    let zones: Vec<Vec<usize>> = (0..able.len()).map(|m| vec![m]).collect();
    let quotas = quota::quotas(&weights(&able), &zones, copies, &held);
    able.iter().map(|m| m.node).zip(quotas).collect()
}

/// Members by index into the list of those that may keep slots; zones by index, too.
struct Layout {
    copies: usize,
    quota: Vec<usize>,
    /// For breaking ties in a way that scatters a member's slots over its peers, and does so equally on every node.
    salt: Vec<u16>,
    zone: Vec<usize>,
    /// The most copies of one slot that a zone may hold.
    zone_max: Vec<usize>,
    zone_members: Vec<Vec<usize>>,
    homes: Vec<Vec<usize>>,
    load: Vec<usize>,
}

/// A step of the search for an augmenting path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// This slot wants one more copy.
    Slot(usize),
    /// This slot wants one more copy in this zone.
    Zone(usize, usize),
    /// This member takes one more copy.
    Member(usize),
}

impl Layout {
    fn new(able: &[&Member], copies: usize, homes: Vec<Vec<usize>>) -> Self {
        let mut zones = BTreeMap::new();
        let zone: Vec<usize> = able
            .iter()
            .map(|m| {
                let next = zones.len();
                *zones.entry(m.zone.as_deref().ok_or(m.node)).or_insert(next)
            })
            .collect();
        let mut zone_members = vec![Vec::new(); zones.len()];
        for (member, z) in zone.iter().enumerate() {
            zone_members[*z].push(member);
        }
        let mut load = vec![0; able.len()];
        homes.iter().flatten().for_each(|m| load[*m] += 1);
        let quota = quota::quotas(&weights(able), &zone_members, copies, &load);
        let zone_max =
            zone_members.iter().map(|z| z.iter().map(|m| quota[*m]).sum::<usize>().div_ceil(Slot::COUNT)).collect();
        let salt = able.iter().map(|m| m.node.0).collect();
        Self { copies, quota, salt, zone, zone_max, zone_members, homes, load }
    }

    fn scatter(&self, slot: usize, member: usize) -> u64 {
        let [high, low] = self.salt[member].to_be_bytes();
        xxh3_64(&[slot as u8, high, low])
    }

    fn in_zone(&self, slot: usize, zone: usize) -> usize {
        self.homes[slot].iter().filter(|m| self.zone[**m] == zone).count()
    }

    fn add(&mut self, slot: usize, member: usize) {
        self.homes[slot].push(member);
        self.load[member] += 1;
    }

    fn remove(&mut self, slot: usize, member: usize) {
        self.homes[slot].retain(|m| *m != member);
        self.load[member] -= 1;
    }

    /// How far over its quota a member is, in slots.
    fn excess(&self, member: usize) -> isize {
        self.load[member] as isize - self.quota[member] as isize
    }

    /// Takes away what no quota could justify: too much of one zone on a slot, too many copies.
    fn trim(&mut self) {
        for slot in 0..self.homes.len() {
            for zone in 0..self.zone_max.len() {
                while self.in_zone(slot, zone) > self.zone_max[zone] {
                    self.drop_one(slot, |member, layout| layout.zone[member] == zone);
                }
            }
            while self.homes[slot].len() > self.copies {
                self.drop_one(slot, |_, _| true);
            }
        }
    }

    fn drop_one(&mut self, slot: usize, may: impl Fn(usize, &Self) -> bool) {
        let most = self.homes[slot].iter().copied().filter(|m| may(*m, self)).max_by_key(|m| self.excess(*m));
        if let Some(member) = most {
            self.remove(slot, member);
        }
    }

    /// Gives every slot all its copies.
    fn fill(&mut self) {
        for slot in 0..self.homes.len() {
            while self.homes[slot].len() < self.copies && (self.place(slot) || self.augment(slot)) {}
        }
    }

    /// Places a copy on a member with room: drawn by its salt, the likelier the more room it has. Always the emptiest
    /// would pair the same members over and over, and the load of one that is down would fall on few.
    fn place(&mut self, slot: usize) -> bool {
        let fits = |m: &usize| {
            self.load[*m] < self.quota[*m]
                && !self.homes[slot].contains(m)
                && self.in_zone(slot, self.zone[*m]) < self.zone_max[self.zone[*m]]
        };
        let drawn = (0..self.quota.len())
            .filter(fits)
            .max_by_key(|m| (self.quota[*m] - self.load[*m]) as u64 * (self.scatter(slot, *m) >> 32));
        drawn.map(|member| self.add(slot, member)).is_some()
    }

    /// Places a copy by moving others out of its way: the shortest such chain.
    fn augment(&mut self, slot: usize) -> bool {
        let mut came_from = BTreeMap::from([(Step::Slot(slot), None)]);
        let mut queue = VecDeque::from([Step::Slot(slot)]);
        while let Some(step) = queue.pop_front() {
            if let Step::Member(m) = step
                && self.load[m] < self.quota[m]
            {
                self.apply(&came_from, step);
                return true;
            }
            for next in self.steps_from(step) {
                came_from.entry(next).or_insert_with(|| {
                    queue.push_back(next);
                    Some(step)
                });
            }
        }
        false
    }

    fn steps_from(&self, step: Step) -> Vec<Step> {
        match step {
            Step::Slot(slot) => (0..self.zone_max.len())
                .filter(|z| self.in_zone(slot, *z) < self.zone_max[*z])
                .map(|z| Step::Zone(slot, z))
                .collect(),
            Step::Zone(slot, zone) => {
                let takers = self.zone_members[zone].iter().filter(|m| !self.homes[slot].contains(m));
                takers.map(|m| Step::Member(*m)).chain([Step::Slot(slot)]).collect()
            }
            Step::Member(member) => {
                let gives = (0..self.homes.len()).filter(|slot| self.homes[*slot].contains(&member));
                gives.map(|slot| Step::Zone(slot, self.zone[member])).collect()
            }
        }
    }

    fn apply(&mut self, came_from: &BTreeMap<Step, Option<Step>>, last: Step) {
        let mut step = last;
        while let Some(Some(before)) = came_from.get(&step) {
            match (*before, step) {
                (Step::Zone(slot, _), Step::Member(member)) => self.add(slot, member),
                (Step::Member(member), Step::Zone(slot, _)) => self.remove(slot, member),
                _ => {}
            }
            step = *before;
        }
    }

    /// Moves copies from members over their quota to members below it; every slot stays complete.
    fn even_out(&mut self) {
        for giver in 0..self.quota.len() {
            while self.load[giver] > self.quota[giver] {
                let mut slots: Vec<usize> = (0..self.homes.len()).filter(|s| self.homes[*s].contains(&giver)).collect();
                slots.sort_by_key(|slot| self.scatter(*slot, giver));
                let direct = slots.iter().find(|slot| {
                    (0..self.quota.len()).any(|taker| {
                        let zone = self.zone[taker];
                        let freed = usize::from(zone == self.zone[giver]);
                        self.load[taker] < self.quota[taker]
                            && !self.homes[**slot].contains(&taker)
                            && self.in_zone(**slot, zone) - freed < self.zone_max[zone]
                    })
                });
                // A member over its quota keeps a slot: an empty one would not be over anything.
                let Some(slot) = direct.or(slots.first()).copied() else { return };
                self.remove(slot, giver);
                // The giver is full even without it, so the copy ends elsewhere.
                if !(self.place(slot) || self.augment(slot)) {
                    self.add(slot, giver);
                    return;
                }
            }
        }
    }

    /// Chooses each slot's first replica: the one it had, unless a shift along a chain of slots makes it more even.
    fn spread_firsts(&mut self) {
        let mut firsts = vec![0usize; self.quota.len()];
        self.homes.iter().filter_map(|h| h.first()).for_each(|m| firsts[*m] += 1);
        while self.shift_first(&mut firsts) {}
    }

    /// One shift from a member that is first too often to one that is first too seldom. Each makes the counts more
    /// even, so they end.
    fn shift_first(&mut self, firsts: &mut [usize]) -> bool {
        // In units of one `copies`-th of a slot: a member should be first in quota / copies of them.
        let over = |m: usize, firsts: &[usize]| (firsts[m] * self.copies) as isize - self.load[m] as isize;
        let mut givers: Vec<usize> = (0..firsts.len()).collect();
        givers.sort_by_key(|m| -over(*m, firsts));
        for giver in givers {
            let mut came_from: BTreeMap<usize, Option<(usize, usize)>> = BTreeMap::from([(giver, None)]);
            let mut queue = VecDeque::from([giver]);
            while let Some(member) = queue.pop_front() {
                if over(giver, firsts) - over(member, firsts) > self.copies as isize {
                    firsts[giver] -= 1;
                    firsts[member] += 1;
                    let mut taker = member;
                    while let Some(Some((slot, before))) = came_from.get(&taker) {
                        self.homes[*slot].retain(|m| *m != taker);
                        self.homes[*slot].insert(0, taker);
                        taker = *before;
                    }
                    return true;
                }
                for (slot, homes) in self.homes.iter().enumerate().filter(|(_, h)| h.first() == Some(&member)) {
                    for taker in &homes[1..] {
                        came_from.entry(*taker).or_insert_with(|| {
                            queue.push_back(*taker);
                            Some((slot, member))
                        });
                    }
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
