//! `GET /export`: every live record in the order of the keys, as lines.
//!
//! Invariants:
//! - Nothing is held but the page that is being sent, however much there is.
//! - Nobody takes a part for the whole: lines of JSON end with one that says so, and where they cannot go on with one that says
//!   why. CSV has no room for that, so there the body is cut: no client takes it for whole that minds what it is told by HTTP.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::super::Api;
use super::super::edge::Named;
use super::super::listing::{PrefixText, problem_of};
use super::super::listing_views::ErrorLine;
use super::super::live::accepts;
use super::super::problem::{Code, Problem};
use super::super::query::Query;
use super::rows::{EndBody, HEADER, LineBody, csv_row, end_line, json_line};
use super::{CSV, Format, FormatName, NDJSON};
use crate::node::Node;
use crate::node::listing::{Page, Question};
use crate::types::limits::{KEY_BYTES_MAX, LISTING_ITEMS_MAX};

/// How long a page may take: what is listed by then is one.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a page is tried again that cannot be had, when the answer has begun: a member that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Export everything
///
/// Every key that has a value, in the order of the keys' bytes, over the whole cluster, each slot answered by a majority of its
/// home replicas, with its value, version, time of writing and end: what `POST /import` takes, at this cluster or another. It is
/// a listing with values: a key that exists all the time that it takes is told exactly once, one written or deleted meanwhile may be
/// told or not.
///
/// One JSON object a line; the last line is `{"end":{...}}`, or `{"error":...}` with a problem where it could not go on, so that
/// what was cut is never taken for whole. With `format=csv` a header and a row for each record (RFC 4180); there is no last
/// row, so where it cannot go on the body is cut: curl ends with code 18. At most 64 exports and streams of keys at a time.
#[utoipa::path(
    get, path = "/export", operation_id = "exportRecords", tag = "moving",
    params(
        ("prefix" = inline(Option<PrefixText>), Query, description = "Only keys that begin with these bytes, percent-encoded."),
        ("format" = inline(Option<FormatName>), Query, description = "`ndjson` (unless said; `jsonl` is the same) or `csv`; `Accept: text/csv` says it, too."),
    ),
    responses((status = 200, description = "The records.", content((LineBody = "application/x-ndjson"), (String = "text/csv")))),
)]
pub(super) async fn export(State(api): State<Arc<Api>>, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let (question, format) = asked(&uri, &headers)?;
    let permit = Arc::clone(&api.listings).try_acquire_owned();
    let permit = permit.map_err(|_| Problem::new(Code::Overloaded, "too many streams of keys"))?;
    let (node, name) = (Arc::clone(&api.node), Named::default());
    let end = EndBody { keys: 0, damaged: 0, strict: true };
    let pages = Pages { node, question, format, name: name.clone(), end, _permit: permit };
    // What fails at once has its status.
    let first = pages.read().await?;
    let begun = match format {
        Format::Ndjson => Vec::new(),
        Format::Csv => HEADER.to_vec(),
    };
    let parts = stream::unfold(Some((pages, Some(first), begun)), |state| async {
        let (mut pages, page, mut lines) = state?;
        match pages.next(page, &mut lines).await {
            Ok(true) => Some((Ok(Bytes::from(lines)), Some((pages, None, Vec::new())))),
            Ok(false) => Some((Ok(Bytes::from(lines)), None)),
            Err(error) => Some((Err(error), None)),
        }
    });
    let kind = match format {
        Format::Ndjson => NDJSON,
        Format::Csv => "text/csv; charset=utf-8; header=present",
    };
    // Who compresses it asks once more behind its end.
    let mut response = ([(CONTENT_TYPE, kind), (VARY, "accept")], Body::from_stream(parts.fuse())).into_response();
    response.extensions_mut().insert(name);
    Ok(response)
}

/// What the request asks.
fn asked(uri: &Uri, headers: &HeaderMap) -> Result<(Question, Format), Problem> {
    let mut query = Query::new(uri.query(), &["prefix", "format"]);
    let prefix = query.bytes("prefix").unwrap_or_default();
    if prefix.len() > KEY_BYTES_MAX {
        query.fault("prefix", format!("at most {KEY_BYTES_MAX} bytes long, as keys are"));
    }
    let accepted = if accepts(headers, CSV) && !accepts(headers, NDJSON) { Format::Csv } else { Format::Ndjson };
    let format = Format::take(&mut query).unwrap_or(accepted);
    query.finish()?;
    let (prefix, limit) = (Bytes::from(prefix.into_owned()), LISTING_ITEMS_MAX);
    let (delimiter, from) = (Bytes::new(), Bytes::new());
    Ok((Question { prefix, delimiter, from, limit, values: true, partial: false }, format))
}

/// The pages that are still to come.
struct Pages {
    node: Arc<Node>,
    question: Question,
    format: Format,
    /// What the edge calls the request, for the problem that it may end with.
    name: Named,
    end: EndBody,
    _permit: OwnedSemaphorePermit,
}

impl Pages {
    /// The lines of the next page that has any, and whether there are more.
    ///
    /// # Errors
    /// Where the body is to be cut.
    async fn next(&mut self, read: Option<Page>, lines: &mut Vec<u8>) -> io::Result<bool> {
        let mut read = read;
        loop {
            let page = match read.take() {
                Some(page) => page,
                None => match self.read_patiently().await {
                    Ok(page) => page,
                    Err(problem) => return self.broken(&problem, lines).map(|()| false),
                },
            };
            if let Err(problem) = self.tell(&page, lines) {
                return self.broken(&problem, lines).map(|()| false);
            }
            match page.next {
                None => {
                    if self.format == Format::Ndjson {
                        end_line(&self.end, lines);
                    }
                    return Ok(false);
                }
                Some(place) => self.question.from = place,
            }
            if !lines.is_empty() {
                return Ok(true);
            }
        }
    }

    /// # Errors
    /// Where the format cannot tell what there is.
    fn tell(&mut self, page: &Page, lines: &mut Vec<u8>) -> Result<(), Problem> {
        self.end.strict &= page.strict;
        for item in &page.items {
            if item.outline.is_some() {
                self.end.keys += 1
            } else {
                self.end.damaged += 1
            }
            match self.format {
                Format::Ndjson => json_line(item, lines),
                Format::Csv if csv_row(item, lines) => {}
                Format::Csv => {
                    let detail = format!("the copies of {} that can be reached are damaged", item.key);
                    return Err(Problem::new(Code::Unavailable, detail));
                }
            }
        }
        Ok(())
    }

    /// It cannot go on.
    fn broken(&self, problem: &Problem, lines: &mut Vec<u8>) -> io::Result<()> {
        tracing::warn!(request_id = self.name.get(), "an export could not go on: {}", problem.detail());
        if self.format == Format::Csv {
            return Err(io::Error::other("the export could not go on"));
        }
        ErrorLine::write(&problem.body(self.name.get()), lines);
        Ok(())
    }

    async fn read(&self) -> Result<Page, Problem> {
        if self.node.is_stopping() {
            return Err(Problem::new(Code::NotReady, "the node is stopping"));
        }
        self.node.list(self.question.clone(), Instant::now() + PAGE_TIMEOUT).await.map_err(problem_of)
    }

    async fn read_patiently(&self) -> Result<Page, Problem> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.read().await {
                Err(_) if Instant::now() < until && !self.node.is_stopping() => sleep(PAUSE).await,
                read => return read,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use axum::http::header::ACCEPT;

    use super::*;

    fn format(query: &str, accept: &'static str) -> Result<Format, Code> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        asked(&format!("/export?{query}").parse().unwrap(), &headers)
            .map(|(_, format)| format)
            .map_err(|problem| problem.code())
    }

    #[test]
    fn the_format_is_what_is_asked_for_and_then_what_is_accepted() {
        assert_eq!(format("", "*/*"), Ok(Format::Ndjson));
        assert_eq!(format("", "text/csv;q=0.5, */*"), Ok(Format::Csv));
        assert_eq!(format("", "application/x-ndjson, text/csv"), Ok(Format::Ndjson));
        assert_eq!(format("format=jsonl", "text/csv"), Ok(Format::Ndjson));
        assert_eq!(format("format=csv", "application/x-ndjson"), Ok(Format::Csv));
        for bad in ["format=xml", "format=", "limit=5", "values=true", "prefix=%zz"] {
            assert_eq!(format(bad, "*/*"), Err(Code::BadParameters), "{bad}");
        }
        assert_eq!(format(&format!("prefix={}", "x".repeat(KEY_BYTES_MAX + 1)), "*/*"), Err(Code::BadParameters));
    }
}
