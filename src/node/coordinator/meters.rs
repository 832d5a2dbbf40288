//! The coordinator's metric handles, taken once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::{self, Counter, Histogram};
use crate::node::request::Outcome;
use crate::protocol::latency;
use crate::types::Level;

/// What a client did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Get,
    Put,
    Delete,
}

impl Operation {
    const EVERY: [Operation; 3] = [Operation::Get, Operation::Put, Operation::Delete];

    fn as_str(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::Delete => "delete",
        }
    }
}

struct Meter {
    seconds: Histogram,
    failures: Counter,
}

/// Handles by operation and level.
pub(super) struct Meters {
    operations: Vec<Meter>,
    /// How long operations took, by [`latency::bucket`]; they only grow.
    took: [AtomicU64; latency::BUCKETS],
    outcomes: [Counter; 3],
    pub(super) restamps: Counter,
    pub(super) weak_writes: Counter,
    pub(super) read_repairs: Counter,
    pub(super) stand_ins: Counter,
}

impl Meters {
    pub(super) fn new() -> Self {
        let meter = |operation: Operation, level: Level| {
            let labels = [("operation", operation.as_str()), ("consistency", level.as_str())];
            Meter {
                seconds: metrics::histogram(metrics::OPERATION_SECONDS, &labels),
                failures: metrics::counter(metrics::OPERATION_FAILURES, &labels),
            }
        };
        let every = Operation::EVERY.into_iter().flat_map(|o| Level::EVERY.into_iter().map(move |l| (o, l)));
        let outcome = |o: Outcome| metrics::counter(metrics::WRITE_FAILURES, &[("outcome", o.as_str())]);
        Self {
            operations: every.map(|(o, l)| meter(o, l)).collect(),
            took: [const { AtomicU64::new(0) }; latency::BUCKETS],
            outcomes: [Outcome::Applied, Outcome::NotApplied, Outcome::Unknown].map(outcome),
            restamps: metrics::counter(metrics::RESTAMPS, &[]),
            weak_writes: metrics::counter(metrics::WEAK_WRITES, &[]),
            read_repairs: metrics::counter(metrics::READ_REPAIRS, &[]),
            stand_ins: metrics::counter(metrics::STAND_INS, &[]),
        }
    }

    pub(super) fn done(&self, operation: Operation, level: Level, took: Duration, failed: bool) {
        // Built above from the same two lists, so every pair has its place.
        let meter = &self.operations[operation as usize * Level::EVERY.len() + level as usize];
        meter.seconds.record(took.as_secs_f64());
        // A bucket's number is within the table by construction.
        self.took[latency::bucket(took.as_micros() as u64)].fetch_add(1, Ordering::Relaxed);
        if failed {
            meter.failures.increment(1);
        }
    }

    /// The operations that ended so far, by how long they took.
    pub(super) fn took(&self) -> Vec<u64> {
        self.took.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    pub(super) fn write_failed(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].increment(1);
    }
}
