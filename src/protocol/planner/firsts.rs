//! Which home replica of a slot is the first, the one asked first.

use std::collections::{BTreeMap, VecDeque};

use super::Layout;

impl Layout {
    /// Chooses each slot's first replica: the one it had, unless a shift along a chain of slots makes it more even.
    pub(super) fn spread_firsts(&mut self) {
        while self.shift_first() {}
    }

    /// One shift from a member that is first too often to one that is first too seldom. Each makes the counts more
    /// even, so they end.
    fn shift_first(&mut self) -> bool {
        let mut first_in = vec![Vec::new(); self.quota.len()];
        for (slot, homes) in self.homes.iter().enumerate() {
            homes.first().iter().for_each(|m| first_in[**m].push(slot));
        }
        // In units of one `copies`-th of a slot: a member should be first in load / copies of them.
        let over: Vec<isize> =
            (0..first_in.len()).map(|m| (first_in[m].len() * self.copies) as isize - self.load[m] as isize).collect();
        let worth = |giver: usize, taker: usize| over[giver] - over[taker] > self.copies as isize;
        let Some(least) = (0..over.len()).min_by_key(|m| over[*m]) else { return false };
        let mut givers: Vec<usize> = (0..over.len()).filter(|giver| worth(*giver, least)).collect();
        givers.sort_by_key(|m| -over[*m]);
        for giver in givers {
            let mut came_from: BTreeMap<usize, Option<(usize, usize)>> = BTreeMap::from([(giver, None)]);
            let mut queue = VecDeque::from([giver]);
            while let Some(member) = queue.pop_front() {
                if worth(giver, member) {
                    let mut taker = member;
                    while let Some(Some((slot, before))) = came_from.get(&taker) {
                        self.homes[*slot].retain(|m| *m != taker);
                        self.homes[*slot].insert(0, taker);
                        taker = *before;
                    }
                    return true;
                }
                for slot in &first_in[member] {
                    for taker in &self.homes[*slot][1..] {
                        came_from.entry(*taker).or_insert_with(|| {
                            queue.push_back(*taker);
                            Some((*slot, member))
                        });
                    }
                }
            }
        }
        false
    }
}
