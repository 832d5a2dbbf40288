//! `POST /import`: lines in, however many there are.
//!
//! Invariants:
//! - Of the body no more is held than a line that is not whole yet and what the node holds of lines under way
//!   (`node::import`): who sends faster waits. That much is counted among the bodies held while the import goes on.
//! - The body as a whole has no limit and no deadline. One of which nothing comes for the time that another body may take in all
//!   ends the import.
//! - A node that stops waits for no body: it answers with what was done.
//! - A line that is wrong is named in the answer and harms no other.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_ENCODING;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::super::Api;
use super::super::body::Bodies;
use super::super::docs::Flag;
use super::super::error::{Operation, problem_of};
use super::super::problem::{Code, Problem};
use super::super::query::Query;
use super::csv::Rows;
use super::line::{Fault, Members, Numbered, Parsed};
use super::ndjson::Lines;
use super::tally::{ImportBody, Tally};
use super::{Format, FormatName, line_bytes_max};
use crate::node::Node;
use crate::node::import::{BYTES_HELD_MAX, Entry, Line, Options, Stop};
use crate::node::request::Outcome;

/// Imports at a time; more are answered 503.
pub(in super::super) const IMPORTS_MAX: usize = 4;

/// How often an import that waits for its body looks whether the node is stopping.
const STOPPING_EVERY: Duration = Duration::from_secs(1);

/// Import records
///
/// Takes what `GET /export` gives, as lines of JSON or as CSV, and lines that people write. Each line is written by itself: an
/// import is not atomic. A line with a `version` is written under just that version, with its time of writing and its end, on
/// a majority of the key's home replicas, and only where nothing as new is there: importing it twice changes nothing. One whose version
/// stands there with another content is refused (`version-conflict`). One without is an ordinary new write, each time anew. A deleted key stays deleted; `restamp=true` brings it back, as a new version.
///
/// There is no limit to the body; a line may be as long as one with the largest value in base64, and 16 KiB. Lines on one key are
/// done in their order, others at once. A line that is wrong is counted as `refused` and named, and harms no other. A line that
/// cannot be written for ten seconds ends the import with 503, 504 or 507; `import` in the problem says what was done, and `stopped_at`
/// which line was not. At most 4 imports at a time on one node.
#[utoipa::path(
    post, path = "/import", operation_id = "importRecords", tag = "moving",
    params(
        ("format" = inline(Option<FormatName>), Query, description = "`ndjson` (`jsonl` is the same) or `csv`; else the Content-Type says it, and without one it is `ndjson`."),
        ("restamp" = inline(Option<Flag>), Query, description = "Write every line as a new version, above what is there. What has an end keeps the time that it has left."),
    ),
    request_body(content(
        (ImportLines = "application/x-ndjson"), (ImportLines = "application/jsonl"), (ImportLines = "text/csv")),
        description = "The lines: `key` or `key_base64`; `value` or `value_base64`, or `deleted`: true; `content_type`; `expires_at_ms`; and `version` with `written`, or neither and perhaps `ttl`. CSV begins with a row that names its columns."),
    responses((status = 200, description = "What became of the lines, good and bad.", body = ImportBody)),
)]
pub(super) async fn import(State(api): State<Arc<Api>>, request: Request) -> Result<Json<ImportBody>, Problem> {
    let (parts, body) = request.into_parts();
    let mut query = Query::new(parts.uri.query(), &["format", "restamp"]);
    let (format, restamp) = (Format::take(&mut query), query.flag("restamp"));
    query.finish()?;
    if parts.headers.get(CONTENT_ENCODING).is_some_and(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Problem::new(
            Code::UnsupportedEncoding,
            "an import's body is taken as it is; send it uncompressed",
        ));
    }
    let format = format.map_or_else(|| Format::of_body(&parts.headers), Ok);
    let format = format.map_err(|why| Problem::new(Code::BadRequest, why))?;
    let permit = Arc::clone(&api.imports).try_acquire_owned();
    let _permit = permit.map_err(|_| Problem::new(Code::Overloaded, "too many imports are under way"))?;
    let longest = line_bytes_max(api.bodies.value_bytes_max());
    let _weight = api.bodies.hold(2 * longest + BYTES_HELD_MAX)?;

    let tally = Mutex::new(Tally::default());
    let source = Source { body, splitter: Splitter::new(format, longest), api: &api, tally: &tally, ended: false };
    let lines = stream::unfold(source, async |mut source| Some((source.next().await.transpose()?, source)));
    let options = Options { restamp, attempt: api.request_timeout };
    let counted = |line: Line, became| tally.lock().count(line.number, &line.key, became);
    let result = Box::pin(api.node.import(Box::pin(lines), options, counted)).await;
    let tally = tally.into_inner();
    let outcome = if tally.wrote() { Outcome::Unknown } else { Outcome::NotApplied };
    let done = tally.finish();
    let (problem, at) = match result {
        Ok(()) => return Ok(Json(done)),
        Err(Stop::Source(problem)) => (problem, None),
        Err(Stop::Line { number, failure }) => {
            let problem = problem_of(Operation::Write, failure).about(&format!("line {number} cannot be written"));
            (problem, Some(number))
        }
    };
    Err(problem.with_outcome(outcome).with_import(done.stopped(at)))
}

async fn stopping(node: &Node) {
    while !node.is_stopping() {
        sleep(STOPPING_EVERY).await;
    }
}

/// Lines.
#[derive(Debug, utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it only describes a body")]
struct ImportLines(Vec<u8>);

/// A body, taken apart.
enum Splitter {
    Ndjson(Lines),
    Csv(Box<Rows>),
}

impl Splitter {
    fn new(format: Format, line_bytes_max: usize) -> Self {
        match format {
            Format::Ndjson => Splitter::Ndjson(Lines::new(line_bytes_max)),
            Format::Csv => Splitter::Csv(Box::new(Rows::new(line_bytes_max))),
        }
    }

    fn next(&mut self, ended: bool) -> Result<Option<Numbered>, Problem> {
        match self {
            Splitter::Ndjson(lines) => Ok(lines.next(ended)),
            Splitter::Csv(rows) => rows.next(ended),
        }
    }
}

/// The lines of a body as they come; what is wrong with one is noted.
struct Source<'a> {
    body: Body,
    splitter: Splitter,
    api: &'a Api,
    tally: &'a Mutex<Tally>,
    ended: bool,
}

impl Source<'_> {
    /// # Errors
    /// Where no more can come.
    async fn next(&mut self) -> Result<Option<Line>, Problem> {
        loop {
            while let Some((number, members)) = self.splitter.next(self.ended)? {
                if let Some(line) = self.line(number, members, &self.api.bodies) {
                    return Ok(Some(line));
                }
            }
            if self.ended {
                return Ok(None);
            }
            self.read().await?;
        }
    }

    fn line(&self, number: u64, members: Result<Members, Fault>, bodies: &Bodies) -> Option<Line> {
        match members.and_then(|members| members.parse(bodies)) {
            Ok(Parsed::Entry { key, entry }) => {
                let exported = matches!((&self.splitter, &entry), (Splitter::Ndjson(_), Entry::Exact { .. }));
                self.tally.lock().line(exported);
                return Some(Line { number, key, entry });
            }
            Ok(Parsed::End) => self.tally.lock().end(),
            Ok(Parsed::Error) => self.tally.lock().error(),
            Err(fault) => self.tally.lock().refuse(number, fault),
        }
        None
    }

    async fn read(&mut self) -> Result<(), Problem> {
        let next = tokio::select! {
            biased;
            next = self.api.bodies.next(&mut self.body) => next?,
            () = stopping(&self.api.node) => return Err(Problem::new(Code::NotReady, "the node is stopping")),
        };
        match (next, &mut self.splitter) {
            (None, _) => self.ended = true,
            (Some(data), Splitter::Ndjson(lines)) => lines.push(&data),
            (Some(data), Splitter::Csv(rows)) => rows.push(data),
        }
        Ok(())
    }
}
