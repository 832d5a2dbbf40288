//! What `a3 export` and `a3 import` share: bodies that are streamed, of any length, and how far they are.
//!
//! A stream has no time-out as a whole: it fails where nothing of it has moved for as long as any answer may take.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use tokio::time::Instant;

use super::Fault;
use super::client::{Host, connector, why};
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

pub(super) type Sent = UnsyncBoxBody<Bytes, io::Error>;

/// Sends a request; its body goes on while the answer is waited for, which has no time-out.
pub(super) async fn open(
    method: Method,
    host: &Host,
    path: &str,
    headers: HeaderMap,
    body: Sent,
) -> Result<Response<Incoming>, Fault> {
    let client: HyperClient<_, Sent> = HyperClient::builder(TokioExecutor::new()).build(connector());
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() =
        format!("http://{host}{path}").parse().map_err(|e| Fault::Usage(format!("{host}{path}: {e}")))?;
    *request.headers_mut() = headers;
    client.request(request).await.map_err(|e| Fault::Unavailable(format!("{host}: {}", why(&e))))
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
