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
//! How: shares are rounded to quotas (`quota`), and copies are a flow slot -> zone -> member in which a copy that stays costs
//! nothing and one that moves costs 1. What fits the quotas stays, then each copy that is left is placed: directly, or by the
//! cheapest chain of moves (`chain`), so that what comes out is the cheapest flow there is. Such a chain exists whenever the
//! quotas can be met, and they always can: members laid zone by zone on a line that is wound around the slots meet them, and
//! put no more of a zone on one slot than the bound that the flow is given.
//!
//! The same arguments give the same ring on every node.

mod chain;
mod firsts;
mod quota;

use std::collections::{BTreeMap, BTreeSet};

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
    /// Who keeps each slot in the ring in force.
    had: Vec<Vec<usize>>,
    homes: Vec<Vec<usize>>,
    load: Vec<usize>,
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
        Self { copies, quota, salt, zone, zone_max, zone_members, had: homes.clone(), homes, load }
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

    /// Takes away what no quota justifies: too much of one zone on a slot, too many copies, too much on a member.
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
        for giver in 0..self.quota.len() {
            let mut slots: Vec<usize> = (0..self.homes.len()).filter(|s| self.homes[*s].contains(&giver)).collect();
            slots.sort_by_key(|slot| self.scatter(*slot, giver));
            slots.truncate(self.load[giver].saturating_sub(self.quota[giver]));
            slots.iter().for_each(|slot| self.remove(*slot, giver));
        }
    }

    fn drop_one(&mut self, slot: usize, may: impl Fn(usize, &Self) -> bool) {
        let most = self.homes[slot].iter().copied().filter(|m| may(*m, self)).max_by_key(|m| self.excess(*m));
        if let Some(member) = most {
            self.remove(slot, member);
        }
    }

    /// Gives every slot all its copies: first as many as can stay where they were, at once.
    fn fill(&mut self) {
        while self.keep_one_more() {}
        for slot in 0..self.homes.len() {
            while self.homes[slot].len() < self.copies && (self.place(slot) || self.place_by_moves(slot)) {}
        }
        for (homes, had) in self.homes.iter_mut().zip(&self.had) {
            homes.sort_by_key(|m| had.iter().position(|before| before == m).unwrap_or(usize::MAX));
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
}

#[cfg(test)]
mod tests;
