//! What `a3 export` and `a3 import` share: how lines are spelled, and how far they are.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use tokio::time::Instant;

use crate::config::units::about_bytes;

/// How often the terminal is told.
const TOLD_EVERY: Duration = Duration::from_millis(500);

/// How lines are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LineFormat {
    /// JSON objects, one a line.
    #[value(alias = "jsonl")]
    Ndjson,
    /// Comma-separated values, with a header.
    Csv,
}

impl LineFormat {
    /// As a file's name ends: JSON, but for `.csv`.
    pub(super) fn of_name(file: Option<&Path>) -> Self {
        let end = file.and_then(Path::extension).is_some_and(|end| end.eq_ignore_ascii_case("csv"));
        if end { LineFormat::Csv } else { LineFormat::Ndjson }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            LineFormat::Ndjson => "ndjson",
            LineFormat::Csv => "csv",
        }
    }
}

/// A line on the terminal that is written over and over: what was moved, and how fast.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
    what: &'static str,
    began: Instant,
    told: Instant,
}

impl Progress {
    pub(super) fn new(what: &'static str) -> Self {
        let now = Instant::now();
        Self { shown: io::stderr().is_terminal(), what, began: now, told: now }
    }

    pub(super) fn show(&mut self, bytes: u64) {
        if !self.shown || self.told.elapsed() < TOLD_EVERY {
            return;
        }
        self.told = Instant::now();
        let rate = bytes as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        // A terminal that went away misses nothing.
        let _ =
            write!(io::stderr(), "\r\x1b[K{} {}, {} a second", about_bytes(bytes), self.what, about_bytes(rate as u64));
    }

    pub(super) fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_says_how_its_lines_are_spelled() {
        let of = |name: &str| LineFormat::of_name(Some(Path::new(name)));
        assert_eq!(
            [of("a.csv"), of("b/A.CSV"), of("a.csv.part"), of("csv"), of("a.jsonl")].map(LineFormat::name),
            ["csv", "csv", "ndjson", "ndjson", "ndjson"]
        );
        assert_eq!(LineFormat::of_name(None), LineFormat::Ndjson);
    }
}
