//! Stamps: the hybrid logical clock and the version it makes (a *carstamp*).
//!
//! Sources: Kulkarni et al., "Logical Physical Clocks" (OPODIS 2014) for the clock; Burke et al., "Gryff" (NSDI 2020)
//! for carstamps.
//!
//! Invariants:
//! - [`HybridClock::tick`] returns a stamp above every stamp it returned or observed before.
//! - A version orders by hlc, then writer, then rmw; no two different contents of a key share one.
//!
//! Caveat: the clock here is only arithmetic. That no stamp is issued twice across restarts is the business of the
//! reservation that `node` keeps on disk.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::Writer;

/// A hybrid logical clock's reading: 48 bits of wall milliseconds since 1970, then 16 bits of counter.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hlc(pub u64);

impl Hlc {
    const COUNTER_BITS: u32 = 16;
    pub const ZERO: Hlc = Hlc(0);

    /// The first reading of that millisecond.
    pub fn from_ms(wall_ms: u64) -> Self {
        Self(wall_ms << Self::COUNTER_BITS)
    }

    /// Wall milliseconds since 1970.
    pub fn ms(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The clock's state: the greatest reading issued or seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct HybridClock {
    last: Hlc,
}

impl HybridClock {
    /// A clock that issues only readings above `floor` (what a restarted node had reserved).
    pub fn above(floor: Hlc) -> Self {
        Self { last: floor }
    }

    /// A new reading: above everything issued or seen, and not behind the wall.
    pub fn tick(&mut self, wall_ms: u64) -> Hlc {
        self.last = self.last.next().max(Hlc::from_ms(wall_ms));
        self.last
    }

    /// Takes note of somebody else's reading.
    pub fn observe(&mut self, seen: Hlc) {
        self.last = self.last.max(seen);
    }

    /// What the time is, without issuing anything. It never goes back.
    pub fn now(&self, wall_ms: u64) -> Hlc {
        self.last.max(Hlc::from_ms(wall_ms))
    }
}

/// Which write a record came from; the ETag of a value. Greater wins.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub hlc: Hlc,
    pub writer: Writer,
    /// Conditional writes on top of one plain write. The low bit marks an expiry.
    pub rmw: u32,
}

impl Version {
    /// The version of a plain write.
    pub fn plain(hlc: Hlc, writer: Writer) -> Self {
        Self { hlc, writer, rmw: 0 }
    }

    /// The version of a conditional write on top of this one: the next even count. `None` where the counts are used up.
    pub fn conditional(&self) -> Option<Version> {
        let rmw = (self.rmw | 1).checked_add(1)?;
        Some(Self { rmw, ..*self })
    }

    /// The version of what stands in place of this one when its value has ended: above it, and below whatever is built
    /// upon either.
    pub fn ended(&self) -> Version {
        Self { rmw: self.rmw | 1, ..*self }
    }

    /// Whether it marks the end of a value.
    pub fn is_end(&self) -> bool {
        self.rmw & 1 == 1
    }

    /// Whether the other version is this plain write, or was built on it by conditional writes or expiry.
    pub fn same_stamp(&self, other: &Version) -> bool {
        (self.hlc, self.writer) == (other.hlc, other.writer)
    }
}

impl fmt::Display for Version {
    /// `hlc-writer-rmw`, in hexadecimal; the hlc has 16 digits, so that texts of one writer sort like versions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}-{:x}", self.hlc.0, self.writer.0, self.rmw)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version looks like 018f3c5a1b2c0000-1-0: clock, writer and conditional count in hexadecimal")]
pub struct VersionParseError;

impl FromStr for Version {
    type Err = VersionParseError;

    /// Takes exactly what `Display` prints, nothing looser: an ETag is compared as bytes by caches.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || -> Option<Version> {
            let mut parts = text.split('-');
            let version = Version {
                hlc: Hlc(u64::from_str_radix(parts.next()?, 16).ok()?),
                writer: Writer(u32::from_str_radix(parts.next()?, 16).ok()?),
                rmw: u32::from_str_radix(parts.next()?, 16).ok()?,
            };
            parts.next().is_none().then_some(version)
        };
        parse().filter(|v| v.to_string() == text).ok_or(VersionParseError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_order_by_clock_then_writer_then_conditional_count() {
        let v = |h, w, r| Version { hlc: Hlc(h), writer: Writer(w), rmw: r };
        let sorted = [v(1, 1, 0), v(1, 1, 1), v(1, 1, 2), v(1, 2, 0), v(2, 1, 0)];
        assert!(sorted.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_conditional_write_takes_the_next_even_count() {
        let next = |rmw| Version { rmw, ..Version::default() }.conditional().map(|v| v.rmw);
        assert_eq!([next(0), next(1), next(2)], [Some(2), Some(2), Some(4)]);
        assert_eq!([next(u32::MAX - 1), next(u32::MAX)], [None, None]);
    }

    #[test]
    fn an_end_lies_between_a_version_and_what_is_built_upon_it() {
        for rmw in [0, 2, 40] {
            let version = Version { rmw, ..Version::default() };
            let end = version.ended();
            assert!(version < end && Some(end) < version.conditional() && end.conditional() == version.conditional());
            assert!(end.is_end() && !version.is_end() && end.ended() == end && version.same_stamp(&end));
        }
    }

    proptest! {
        #[test]
        fn a_version_survives_its_text(h: u64, w: u32, r: u32) {
            let v = Version { hlc: Hlc(h), writer: Writer(w), rmw: r };
            prop_assert_eq!(v.to_string().parse(), Ok(v));
        }

        #[test]
        fn the_clock_only_goes_up(steps in prop::collection::vec((0u64..1 << 40, any::<bool>()), 1..50)) {
            let mut clock = HybridClock::default();
            let mut last = Hlc::ZERO;
            for (ms, tick) in steps {
                if tick {
                    let now = clock.tick(ms);
                    prop_assert!(now > last && now >= Hlc::from_ms(ms));
                    last = now;
                } else {
                    clock.observe(Hlc::from_ms(ms));
                    last = last.max(Hlc::from_ms(ms));
                }
            }
        }

        #[test]
        fn other_texts_are_refused(text in "[0-9a-fA-F+-]{0,24}") {
            if let Ok(v) = text.parse::<Version>() { prop_assert_eq!(v.to_string(), text) }
        }
    }
}
