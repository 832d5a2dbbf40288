//! How long operations took lately: counts in buckets, and the p99 that they tell.
//!
//! Eight buckets to each doubling, so that what is told is at most an eighth above the truth. Whoever measures counts
//! into [`BUCKETS`] numbers that only grow; [`Window`] keeps what they were a while ago, and the difference is what
//! happened since.

use std::collections::VecDeque;

/// How many buckets there are: up to 2^28 microseconds, some four and a half minutes; what took longer counts there.
pub const BUCKETS: usize = 208;
/// Buckets to each doubling.
const PARTS: usize = 8;

/// The bucket of an operation that took so many microseconds.
pub fn bucket(us: u64) -> usize {
    if us < PARTS as u64 {
        return us as usize;
    }
    let doubling = us.ilog2() as usize;
    let part = (us >> (doubling - 3)) as usize & (PARTS - 1);
    ((doubling - 2) * PARTS + part).min(BUCKETS - 1)
}

/// The longest that falls into a bucket, in microseconds.
fn longest_us(bucket: usize) -> u64 {
    let next = bucket + 1;
    let first_of_next = if next < PARTS { next as u64 } else { ((PARTS + next % PARTS) as u64) << (next / PARTS - 1) };
    first_of_next - 1
}

/// What 99 of 100 operations took at most, in microseconds, to an eighth; nothing where there were none.
fn p99_us(counts: impl Iterator<Item = u64> + Clone) -> Option<u64> {
    let all: u64 = counts.clone().sum();
    let mut left = all.div_ceil(100);
    if all == 0 {
        return None;
    }
    // From the slowest down: the p99 is the bucket in which the slowest hundredth ends.
    let counts: Vec<u64> = counts.collect();
    for (bucket, count) in counts.iter().enumerate().rev() {
        if *count >= left {
            return Some(longest_us(bucket));
        }
        left -= count;
    }
    None
}

/// What the counts were at the last few looks.
#[derive(Clone, Debug, Default)]
pub struct Window {
    looks: VecDeque<Vec<u64>>,
}

impl Window {
    /// Looks that it reaches back.
    pub const LOOKS: usize = 10;

    /// Takes the counts as they are now; tells the p99 of what was counted within the last [`Self::LOOKS`] looks.
    pub fn look(&mut self, counts: Vec<u64>) -> Option<u64> {
        let now = counts.iter().copied();
        let p99 = match self.looks.front() {
            Some(then) => p99_us(now.zip(then).map(|(now, then)| now.saturating_sub(*then))),
            None => p99_us(now),
        };
        self.looks.push_back(counts);
        if self.looks.len() > Self::LOOKS {
            self.looks.pop_front();
        }
        p99
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap_and_are_narrow() {
        let mut last = 0;
        for us in 0..100_000u64 {
            let at = bucket(us);
            assert!(at == last || at == last + 1, "{us} falls into {at} after {last}");
            assert!(us <= longest_us(at) && longest_us(at) <= us + us / 8, "{us}: {at} ends at {}", longest_us(at));
            last = at;
        }
        assert_eq!((bucket(u64::MAX), bucket(1 << 28)), (BUCKETS - 1, BUCKETS - 1));
        assert_eq!(longest_us(BUCKETS - 1), (1 << 28) - 1);
    }

    #[test]
    fn one_in_a_hundred_may_be_slower() {
        let mut counts = vec![0; BUCKETS];
        assert_eq!(p99_us(counts.iter().copied()), None);
        counts[bucket(1_000)] = 99;
        counts[bucket(50_000)] = 1;
        assert!(
            p99_us(counts.iter().copied()).is_some_and(|us| (50_000..=57_000).contains(&us)),
            "the slowest of them"
        );
        counts[bucket(1_000)] = 200;
        assert!(p99_us(counts.iter().copied()).is_some_and(|us| (1_000..=1_125).contains(&us)));
    }

    #[test]
    fn what_is_long_ago_no_longer_counts() {
        let mut window = Window::default();
        let mut counts = vec![0; BUCKETS];
        counts[bucket(9_000)] = 5;
        assert!(window.look(counts.clone()).is_some_and(|us| us >= 9_000));
        counts[bucket(100)] = 5;
        let told: Vec<_> = (0..Window::LOOKS).map(|_| window.look(counts.clone())).collect();
        assert!(told.iter().all(|us| us.is_some_and(|us| us < 1_000)), "{told:?}");
        assert_eq!(window.look(counts), None, "nothing happened lately");
    }
}
