//! Moving data: all of it out as lines (`/export`), and lines in (`/import`).
//!
//! The two have one format, in two spellings: JSON objects, one a line, and CSV. What one writes the other reads ([`rows`],
//! [`line`]); the rest is how it travels: [`export`] follows the pages of a listing, [`import`] reads a body that has no end that
//! anybody would have to hold.

mod csv;
mod export;
mod import;
mod line;
mod ndjson;
mod rows;
mod tally;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::query::Query;

pub(super) use import::IMPORTS_MAX;
pub(super) use tally::ImportBody;

const NDJSON: &str = "application/x-ndjson";
const CSV: &str = "text/csv";
/// What a line has beside its value, in bytes: its key, twice, and everything else, however it is escaped; and what a value that is told as
/// text may take beyond base64 (`types::text`).
const LINE_REST_BYTES: usize = 16 * 1024;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(export::export)).routes(routes!(import::import))
}

/// How lines are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Ndjson,
    Csv,
}

/// How lines are spelled.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it only describes a parameter")]
enum FormatName {
    Ndjson,
    Jsonl,
    Csv,
}

impl Format {
    fn take(query: &mut Query<'_>) -> Option<Self> {
        query.take("format", |text| match text {
            "ndjson" | "jsonl" => Ok(Format::Ndjson),
            "csv" => Ok(Format::Csv),
            _ => Err("ndjson, jsonl (the same) or csv".into()),
        })
    }

    /// What a body says that it is; `Err` where that is neither. Clients that say nothing mean lines of JSON, and so do those
    /// whose header was not chosen by anybody.
    fn of_body(headers: &HeaderMap) -> Result<Self, String> {
        let Some(given) = headers.get(CONTENT_TYPE) else { return Ok(Format::Ndjson) };
        let text = String::from_utf8_lossy(given.as_bytes()).to_ascii_lowercase();
        match text.split(';').next().unwrap_or_default().trim() {
            ""
            | NDJSON
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/octet-stream"
            | "application/x-www-form-urlencoded" => Ok(Format::Ndjson),
            CSV => Ok(Format::Csv),
            _ => Err(format!("the body's Content-Type is neither {NDJSON} nor {CSV}; format= says what it is")),
        }
    }
}

/// Longest line, in bytes, where values are so long at most: they are base64 at worst.
fn line_bytes_max(value_bytes_max: usize) -> usize {
    value_bytes_max.div_ceil(3) * 4 + LINE_REST_BYTES
}
