//! The lines of an export: a record as a JSON object, or as a row of CSV.
//!
//! A value is text where it is UTF-8 and not much longer so than in base64 ([`text`]): a line has a limit on the other side.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::bodies::key_texts;
use crate::node::listing::Item;
use crate::types::{Hlc, text};

/// The columns, in their order.
pub(super) const HEADER: &[u8] = b"key,key_base64,version,written,value,value_base64,content_type,expires_at_ms\r\n";

/// A record.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExportedRecord)]
pub(super) struct RecordLine<'a> {
    /// The key as text; what is not UTF-8 in it shows as U+FFFD.
    #[schema(value_type = String, example = "name")]
    key: Cow<'a, str>,
    /// The exact key, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    key_base64: Option<String>,
    /// The value's version: its ETag without the quotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "018f3c5a1b2c0000-1-0")]
    version: Option<String>,
    /// When it was written, by the cluster's clock: 48 bits of milliseconds since 1970 and 16 of counter, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "018f3c5a1b2c0000")]
    written: Option<String>,
    /// The value, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value: Option<&'a str>,
    /// The value, where it is not UTF-8, or shorter so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value_base64: Option<String>,
    /// Absent: `application/octet-stream`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "text/plain")]
    content_type: Option<&'a str>,
    /// When the value ends, milliseconds since 1970; absent where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    expires_at_ms: Option<u64>,
    /// True where a copy is damaged and the others could not be asked: nothing else is known of the key, and an import refuses
    /// the line.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    damaged: bool,
}

/// The last line of an export that came to its end.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExportEnd)]
pub(super) struct EndLine<'a> {
    end: &'a EndBody,
}

/// What an export was.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExportEndBody)]
pub(super) struct EndBody {
    /// Records told.
    pub(super) keys: u64,
    /// Keys of which nothing could be told.
    pub(super) damaged: u64,
    /// False where a stand-in was counted: it may miss strict writes.
    pub(super) strict: bool,
}

/// The lines of an export, before they are bytes.
#[derive(Debug, ToSchema)]
#[schema(as = ExportLine)]
#[serde(untagged)]
#[expect(dead_code, reason = "it only describes a line")]
pub(super) enum LineBody<'a> {
    Record(RecordLine<'a>),
    End(EndLine<'a>),
    Error(super::super::listing_views::ErrorLine),
}

pub(super) fn written_text(written: Hlc) -> String {
    format!("{:016x}", written.0)
}

/// What a byte of a text takes in a quoted cell.
fn csv_cost(byte: u8) -> usize {
    if byte == b'"' { 2 } else { 1 }
}

impl<'a> From<&'a Item> for RecordLine<'a> {
    fn from(item: &'a Item) -> Self {
        let (key, key_base64) = key_texts(&item.key);
        let outline = item.outline.as_ref();
        let value = outline.map(|outline| outline.value.as_deref().unwrap_or_default());
        let text = value.and_then(|value| text::as_text(value, text::json_cost));
        Self {
            key,
            key_base64,
            version: outline.map(|outline| outline.version.to_string()),
            written: outline.map(|outline| written_text(outline.written)),
            value: text,
            value_base64: value.filter(|_| text.is_none()).map(|value| BASE64_STANDARD.encode(value)),
            content_type: outline.and_then(|outline| outline.content_type.as_ref()).map(|kind| kind.as_str()),
            expires_at_ms: outline.and_then(|outline| outline.expires_at_ms),
            damaged: outline.is_none(),
        }
    }
}

/// The lines of JSON of a page.
pub(super) fn json_line(item: &Item, lines: &mut Vec<u8>) {
    write_json(&RecordLine::from(item), lines);
}

pub(super) fn end_line(end: &EndBody, lines: &mut Vec<u8>) {
    write_json(&EndLine { end }, lines);
}

fn write_json(line: &impl Serialize, lines: &mut Vec<u8>) {
    // Strings, numbers and flags under string keys: serialisation to memory has no way to fail.
    let _ = serde_json::to_writer(&mut *lines, line);
    lines.push(b'\n');
}

/// A record as a row, by RFC 4180. False, and nothing is written, for a key of which nothing is known.
pub(super) fn csv_row(item: &Item, rows: &mut Vec<u8>) -> bool {
    let Some(outline) = &item.outline else { return false };
    let value = outline.value.as_deref().unwrap_or_default();
    let text = text::as_text(value, csv_cost);
    let encoded = if text.is_none() { BASE64_STANDARD.encode(value) } else { String::new() };
    let (key, key_base64) = match key_texts(&item.key) {
        (key, None) => (key, String::new()),
        (_, Some(exact)) => (Cow::Borrowed(""), exact),
    };
    let expires = outline.expires_at_ms.map(|at| at.to_string()).unwrap_or_default();
    let cells = [
        &*key,
        key_base64.as_str(),
        &outline.version.to_string(),
        &written_text(outline.written),
        text.unwrap_or_default(),
        &encoded,
        outline.content_type.as_ref().map_or("", |kind| kind.as_str()),
        &expires,
    ];
    for (at, cell) in cells.into_iter().enumerate() {
        if at > 0 {
            rows.push(b',');
        }
        write_cell(cell, rows);
    }
    rows.extend_from_slice(b"\r\n");
    true
}

fn write_cell(cell: &str, rows: &mut Vec<u8>) {
    // A byte order mark at the very start of a file is no part of its first cell, so one in a cell is quoted.
    let plain = !cell.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\r' | b'\n')) && !cell.starts_with('\u{feff}');
    if plain {
        return rows.extend_from_slice(cell.as_bytes());
    }
    rows.push(b'"');
    for byte in cell.bytes() {
        if byte == b'"' {
            rows.push(b'"');
        }
        rows.push(byte);
    }
    rows.push(b'"');
}
