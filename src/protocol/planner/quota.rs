//! How many slots each member should keep: shares by weight, bounded, and rounded to whole slots.
//!
//! A share is the member's part of all copies by weight. Two bounds cut it: a member keeps a slot once, and a zone
//! holds no more copies of a slot than it must. What a bound cuts off goes to the others by weight. Rounding keeps
//! members, and zones as a whole, to within one of their share, and rounds up those who hold more already.

use crate::types::Slot;

/// Quotas of the members, by index. They add up to all copies, and none is above the number of slots.
/// `held` is what each keeps now.
pub(super) fn quotas(weights: &[u64], zones: &[Vec<usize>], copies: usize, held: &[usize]) -> Vec<usize> {
    let mut quotas = vec![0; weights.len()];
    for pool in pools(weights, zones, copies) {
        pool.round(weights, held, &mut quotas);
    }
    quotas
}

const SLOTS: u64 = Slot::COUNT as u64;

/// Zones whose members share a number of copies by weight.
struct Pool<'a> {
    zones: Vec<&'a [usize]>,
    copies: u64,
}

/// All zones in one pool, except that a zone at its bound is a pool of its own.
fn pools<'a>(weights: &[u64], zones: &'a [Vec<usize>], copies: usize) -> Vec<Pool<'a>> {
    // The fewest copies of one slot that some zone must take.
    let most = (1..=copies).find(|k| zones.iter().map(|z| z.len().min(*k)).sum::<usize>() >= copies).unwrap_or(1);
    let bound = |zone: &[usize]| zone.len().min(most) as u64 * SLOTS;
    let mut open: Vec<&[usize]> = zones.iter().map(Vec::as_slice).collect();
    let mut left = copies as u64 * SLOTS;
    let mut pools = Vec::new();
    loop {
        let pool = Pool { zones: open.clone(), copies: left };
        let level = pool.level(weights);
        let (over, within): (Vec<_>, Vec<_>) =
            open.iter().partition(|z| level.sum(z, weights) > bound(z) * level.weight.max(1));
        if over.is_empty() {
            pools.push(pool);
            return pools;
        }
        for zone in over {
            left -= bound(zone);
            pools.push(Pool { zones: vec![zone], copies: bound(zone) });
        }
        open = within;
    }
}

/// Who of a pool is at the bound of one copy of every slot; the others have `copies / weight` per unit of weight.
struct Level {
    full: Vec<usize>,
    copies: u64,
    weight: u64,
}

impl Level {
    /// A member's share, in units of one `weight`-th of a slot.
    fn share(&self, member: usize, weights: &[u64]) -> u64 {
        if self.full.contains(&member) { SLOTS * self.weight.max(1) } else { weights[member] * self.copies }
    }

    fn sum(&self, members: &[usize], weights: &[u64]) -> u64 {
        members.iter().map(|m| self.share(*m, weights)).sum()
    }
}

impl Pool<'_> {
    fn level(&self, weights: &[u64]) -> Level {
        let mut rest: Vec<usize> = self.zones.iter().flat_map(|z| z.iter().copied()).collect();
        let mut level = Level { full: Vec::new(), copies: self.copies, weight: 0 };
        loop {
            level.weight = rest.iter().map(|m| weights[*m]).sum();
            let (over, within): (Vec<usize>, Vec<usize>) =
                rest.iter().partition(|m| weights[**m] * level.copies > SLOTS * level.weight);
            if over.is_empty() {
                return level;
            }
            level.copies -= over.len() as u64 * SLOTS;
            level.full.extend(over);
            rest = within;
        }
    }

    /// Every member gets the whole part of its share. The slots left over go to members with a broken share, one
    /// each: first as many as each zone must have, then to whoever comes first while its zone may have one more.
    fn round(&self, weights: &[u64], held: &[usize], quotas: &mut [usize]) {
        let level = self.level(weights);
        let unit = level.weight.max(1);
        let mut left = self.copies;
        let mut room = Vec::new();
        let mut wishes = Vec::new();
        for (z, zone) in self.zones.iter().enumerate() {
            let whole: u64 = zone.iter().map(|m| level.share(*m, weights) / unit).sum();
            let sum = level.sum(zone, weights);
            left -= whole;
            room.push((sum / unit - whole, sum.div_ceil(unit) - whole));
            for m in zone.iter() {
                let share = level.share(*m, weights);
                quotas[*m] = (share / unit) as usize;
                if !share.is_multiple_of(unit) {
                    wishes.push((held[*m] <= quotas[*m], std::cmp::Reverse(share % unit), *m, z));
                }
            }
        }
        wishes.sort_unstable();
        for must in [true, false] {
            wishes.retain(|(_, _, member, z)| {
                let (needed, allowed) = &mut room[*z];
                let given = left > 0 && if must { *needed > 0 } else { *allowed > 0 };
                if given {
                    quotas[*member] += 1;
                    left -= 1;
                    *needed = needed.saturating_sub(1);
                    *allowed -= 1;
                }
                !given
            });
        }
    }
}
