//! The metric handles of conditional writes, taken once.

use crate::metrics::{self, Counter};
use crate::types::Verdict;

pub(super) struct Meters {
    verdicts: [Counter; 7],
    pub(super) forwarded: Counter,
    pub(super) ballots: Counter,
}

impl Meters {
    pub(super) fn new() -> Self {
        let verdict = |name: &'static str| metrics::counter(metrics::VERDICTS, &[("verdict", name)]);
        let names = ["applied", "condition_failed", "key_reused", "conflict", "exhausted", "unavailable", "unknown"];
        Self {
            verdicts: names.map(verdict),
            forwarded: metrics::counter(metrics::PROPOSALS_FORWARDED, &[]),
            ballots: metrics::counter(metrics::BALLOTS, &[]),
        }
    }

    pub(super) fn verdict(&self, verdict: &Verdict) {
        let place = match verdict {
            Verdict::Applied { .. } => 0,
            Verdict::ConditionFailed { .. } | Verdict::FailedBefore { .. } => 1,
            Verdict::KeyReused => 2,
            Verdict::Conflict => 3,
            Verdict::Exhausted => 4,
            Verdict::Unavailable { .. } => 5,
            Verdict::Unknown { .. } => 6,
        };
        self.verdicts[place].increment(1);
    }
}
