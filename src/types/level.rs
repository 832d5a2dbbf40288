//! How many replicas a request asks for.

use std::fmt;
use std::str::FromStr;

/// The consistency of one request (`?consistency=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// One replica.
    One,
    /// A majority of the home replicas; stand-ins may count.
    #[default]
    Quorum,
    /// Every home replica, no stand-in.
    All,
    /// As quorum without stand-ins, ordered after everything acknowledged before it began.
    Linearizable,
}

impl Level {
    pub const EVERY: [Level; 4] = [Level::One, Level::Quorum, Level::All, Level::Linearizable];

    pub fn as_str(self) -> &'static str {
        match self {
            Level::One => "one",
            Level::Quorum => "quorum",
            Level::All => "all",
            Level::Linearizable => "linearizable",
        }
    }

    /// Answers needed from a set of that many home replicas.
    pub fn needed(self, replicas: usize) -> usize {
        match self {
            Level::One => 1.min(replicas),
            Level::Quorum | Level::Linearizable => majority(replicas),
            Level::All => replicas,
        }
    }
}

/// More than half.
pub fn majority(of: usize) -> usize {
    of / 2 + 1
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a consistency level is one of one, quorum, all, linearizable")]
pub struct LevelParseError;

impl FromStr for Level {
    type Err = LevelParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::EVERY.into_iter().find(|l| l.as_str() == text).ok_or(LevelParseError)
    }
}
