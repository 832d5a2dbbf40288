//! What the edge measures. The handles are taken once, by method and status class, and looked up by index.

use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram};
use axum::http::{Method, StatusCode};

use crate::metrics;

const METHODS: [&str; 8] = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "POST", "OPTIONS", "other"];
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

pub(super) struct Meters {
    requests: [[Counter; CLASSES.len()]; METHODS.len()],
    seconds: Histogram,
    in_flight: Gauge,
    shed: Counter,
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meters")
    }
}

impl Default for Meters {
    fn default() -> Self {
        let counter =
            |method, class| metrics::counter(metrics::HTTP_REQUESTS, &[("method", method), ("status", class)]);
        Self {
            requests: METHODS.map(|method| CLASSES.map(|class| counter(method, class))),
            seconds: metrics::histogram(metrics::HTTP_SECONDS, &[]),
            in_flight: metrics::gauge(metrics::HTTP_IN_FLIGHT, &[]),
            shed: metrics::counter(metrics::HTTP_SHED, &[]),
        }
    }
}

impl Meters {
    pub(super) fn enter(&self) {
        self.in_flight.increment(1.0);
    }

    pub(super) fn leave(&self) {
        self.in_flight.decrement(1.0);
    }

    pub(super) fn shed(&self) {
        self.shed.increment(1);
    }

    /// `took`: how long, where that says something of the node.
    pub(super) fn answered(&self, method: &Method, status: StatusCode, took: Option<Duration>) {
        // Both indices are within their tables by construction.
        self.requests[method_index(method)][class_index(status)].increment(1);
        if let Some(took) = took {
            self.seconds.record(took.as_secs_f64());
        }
    }
}

fn method_index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::PUT => 2,
        Method::PATCH => 3,
        Method::DELETE => 4,
        Method::POST => 5,
        Method::OPTIONS => 6,
        _ => 7,
    }
}

fn class_index(status: StatusCode) -> usize {
    match status.as_u16() {
        ..300 => 0,
        300..400 => 1,
        400..500 => 2,
        500.. => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_falls_in_its_row_and_column() {
        for (i, name) in METHODS[..7].iter().enumerate() {
            assert_eq!(method_index(&name.parse().unwrap()), i);
        }
        assert_eq!(method_index(&Method::TRACE), 7);
        for (status, class) in [(200, "2xx"), (204, "2xx"), (304, "3xx"), (404, "4xx"), (503, "5xx"), (999, "5xx")] {
            assert_eq!(CLASSES[class_index(StatusCode::from_u16(status).unwrap())], class);
        }
    }
}
