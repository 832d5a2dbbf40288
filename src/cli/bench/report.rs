//! What a run measured.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart, in microseconds.
const LATENCY_US_MAX: u64 = 120_000_000;

/// Counts and times of the requests that ended while it was measured.
#[derive(Debug)]
pub(super) struct Tally {
    /// Microseconds of each answer that was a success.
    latencies: Histogram<u64>,
    /// By status, or by what happened to the connection.
    errors: BTreeMap<String, u64>,
}

impl Tally {
    pub(super) fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self { latencies: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?, errors: BTreeMap::new() })
    }

    pub(super) fn success(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(us.max(1));
    }

    pub(super) fn error(&mut self, what: String) {
        *self.errors.entry(what).or_default() += 1;
    }

    pub(super) fn report(&self, measured: Duration) -> Report {
        let ms = |us: u64| us as f64 / 1000.0;
        let at = |quantile: f64| ms(self.latencies.value_at_quantile(quantile));
        let operations = self.latencies.len();
        Report {
            operations,
            seconds: measured.as_secs_f64(),
            operations_per_second: operations as f64 / measured.as_secs_f64().max(f64::EPSILON),
            errors: self.errors.clone(),
            latency_ms: Latency {
                mean: self.latencies.mean() / 1000.0,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                max: ms(self.latencies.max()),
            },
        }
    }
}

/// A run's figures. Only successes count as operations and have latencies.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) operations: u64,
    pub(super) seconds: f64,
    pub(super) operations_per_second: f64,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) latency_ms: Latency,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p99_9: f64,
    pub(super) max: f64,
}

impl Report {
    /// As a person reads it.
    pub(super) fn text(&self) -> String {
        let Latency { mean, p50, p90, p99, p99_9, max } = self.latency_ms;
        let errors = match self.errors.is_empty() {
            true => "none".to_owned(),
            false => self.errors.iter().map(|(what, n)| format!("{what}: {n}")).collect::<Vec<_>>().join(", "),
        };
        format!(
            "{:.0} operations/s ({} in {:.1} s)\nlatency ms: mean {mean:.3}, p50 {p50:.3}, p90 {p90:.3}, p99 {p99:.3}, \
             p99.9 {p99_9:.3}, max {max:.3}\nerrors: {errors}",
            self.operations_per_second, self.operations, self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successes_and_errors_are_told_apart() {
        let mut tally = Tally::new().unwrap();
        for ms in 1..=100 {
            tally.success(Duration::from_millis(ms));
        }
        tally.error("503".into());
        tally.error("503".into());
        let report = tally.report(Duration::from_secs(2));
        assert_eq!((report.operations, report.errors["503"]), (100, 2));
        assert!((report.operations_per_second - 50.0).abs() < 0.01);
        assert!((report.latency_ms.p50 - 50.0).abs() < 0.1 && (report.latency_ms.max - 100.0).abs() < 0.1);
        assert!(report.text().contains("errors: 503: 2"));
    }
}
