//! What is measured of listings: each page as an operation at quorum.

use std::time::Duration;

use crate::metrics::{self, Counter, Histogram};

pub(super) struct Meters {
    seconds: Histogram,
    failures: Counter,
}

impl Meters {
    pub(super) fn new() -> Self {
        let labels = [("operation", "list"), ("consistency", "quorum")];
        Self {
            seconds: metrics::histogram(metrics::OPERATION_SECONDS, &labels),
            failures: metrics::counter(metrics::OPERATION_FAILURES, &labels),
        }
    }

    pub(super) fn done(&self, took: Duration, failed: bool) {
        self.seconds.record(took.as_secs_f64());
        if failed {
            self.failures.increment(1);
        }
    }
}
