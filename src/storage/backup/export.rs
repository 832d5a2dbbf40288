//! What a backup holds as lines of JSON, without a cluster: for reading it back where nothing else is left, or elsewhere. They are
//! those of `GET /export`, and `POST /import` takes them.
//!
//! One object a line: `key` (or `key_base64`, where it is no UTF-8 or much longer so), `version` (as ETags have it), `written` (the clock's
//! reading, 16 hexadecimal digits), and `value` (or `value_base64`), `content_type`, `expires_at_ms`; of a tombstone `"deleted":true` in their place. The last
//! line is `{"end":{...}}`: without it the file was not read to its end.
//!
//! Invariants:
//! - The file is not changed, nor is anything made beside it.
//! - Each record is verified before it is printed. One that is damaged ends the lines without an `end`.
//! - Hints are lines, too, after the records: a write that this node took for another is acknowledged, and may be in no other file. So
//!   a key may have several lines, of which the greatest version counts.
//!
//! Caveat: what registers accepted and had not written yet is not printed.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use super::described;
use super::verify::{self, Wrong};
use crate::storage::{examine, migrations::KNOWN};
use crate::types::{BackupAbout, Content, Key, Record, TokenSeed, text};

/// Why the lines ended.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{}: this is no sound backup: {reason}", path.display())]
    Unsound { path: PathBuf, reason: String },
    #[error("{} cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// It may be sound.
    #[error("{} cannot be read: {reason}", path.display())]
    Sqlite { path: PathBuf, reason: String },
    /// They could not be written.
    #[error("{0}")]
    Out(io::Error),
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    version: String,
    written: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

#[derive(Serialize)]
struct End<'a> {
    end: Totals<'a>,
}

#[derive(Serialize)]
struct Totals<'a> {
    records: u64,
    tombstones: u64,
    /// Lines that are hints; not among the records.
    hints: u64,
    backup: &'a BackupAbout,
}

enum Stop {
    Wrong(Wrong),
    Out(io::Error),
}

impl From<Wrong> for Stop {
    fn from(wrong: Wrong) -> Self {
        Stop::Wrong(wrong)
    }
}

/// Prints every record and hint of a backup, each in the order of slots and keys; what the file says of itself.
///
/// # Errors
/// See [`ExportError`]. What was printed by then is right, and not all.
pub fn export(file: &Path, out: &mut dyn Write) -> Result<BackupAbout, ExportError> {
    let unsound = |reason: String| ExportError::Unsound { path: file.to_owned(), reason };
    let sqlite = |error: rusqlite::Error| match error.to_string() {
        reason if examine::is_unsound(&error) => unsound(reason),
        reason => ExportError::Sqlite { path: file.to_owned(), reason },
    };
    let stopped = |stop| match stop {
        Stop::Wrong(Wrong::Damaged(what)) => unsound(what),
        Stop::Wrong(Wrong::Sqlite(error)) => sqlite(error),
        Stop::Out(error) => ExportError::Out(error),
    };
    let failed = |source| ExportError::Io { path: file.to_owned(), source };
    if let Some(what) = examine::header(file).map_err(failed)? {
        return Err(unsound(what.to_owned()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(file, flags).map_err(sqlite)?;
    conn.pragma_update(None, "trusted_schema", false).map_err(sqlite)?;
    let about = described(&conn).map_err(|wrong| stopped(Stop::Wrong(wrong)))?;
    if about.schema > KNOWN {
        return Err(unsound(format!("it has schema {}, and this program knows {KNOWN}", about.schema)));
    }
    if let Some(what) = examine::walk_pages(&conn).map_err(sqlite)? {
        return Err(unsound(what));
    }
    let seed = TokenSeed::of(about.cluster);
    let mut tombstones = 0;
    let see = |key: &Key, record: Record| {
        tombstones += u64::from(record.is_tombstone());
        print(out, &line(key, &record)).map_err(Stop::Out)
    };
    let records = verify::each_record(&conn, seed, see).map_err(stopped)?;
    let see = |key: &Key, record: Record| print(out, &line(key, &record)).map_err(Stop::Out);
    let hints = verify::each_hint(&conn, seed, see).map_err(stopped)?;
    let should = (about.rows.records, about.rows.hints);
    if (records, hints) != should {
        let (of, and) = should;
        return Err(unsound(format!("it should have {of} records and {and} hints, and has {records} and {hints}")));
    }
    let end = End { end: Totals { records, tombstones, hints, backup: &about } };
    print(out, &end).and_then(|()| out.flush()).map_err(ExportError::Out)?;
    Ok(about)
}

fn print(out: &mut dyn Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Bytes as text, or as base64.
type Either<'a> = (Option<&'a str>, Option<String>);

fn text_of(bytes: &[u8]) -> Either<'_> {
    match text::as_text(bytes, text::json_cost) {
        Some(text) => (Some(text), None),
        None => (None, Some(BASE64_STANDARD.encode(bytes))),
    }
}

fn line<'a>(key: &'a Key, record: &'a Record) -> Line<'a> {
    let (name, key_base64) = text_of(key.as_bytes());
    let (version, written) = (record.version.to_string(), format!("{:016x}", record.written.0));
    let bare = Line {
        key: name,
        key_base64,
        version,
        written,
        value: None,
        value_base64: None,
        content_type: None,
        expires_at_ms: record.expires_at_ms(),
        deleted: record.is_tombstone(),
    };
    match &record.content {
        Content::Tombstone => bare,
        Content::Value { bytes, content_type, .. } => {
            let (value, value_base64) = text_of(bytes);
            let content_type = content_type.as_ref().and_then(|t| std::str::from_utf8(t.bytes()).ok());
            Line { value, value_base64, content_type, ..bare }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Hlc, Version, Writer};

    #[test]
    fn no_value_makes_a_line_longer_than_nodes_take_it() {
        let key = Key::new(vec![1; 1024]).unwrap();
        let mut contents =
            vec![vec![1; 512 * 1024], vec![b'\n'; 1024 * 1024], vec![0xff; 1024 * 1024], b"short\n".to_vec()];
        contents.push([&[b'x'; 900_000][..], &[1; 100_000]].concat());
        for value in contents {
            let bytes = value.len();
            let version = Version::plain(Hlc(5), Writer(1));
            let record = Record::seal(&key, version, version.hlc, Content::value(value.clone()));
            let mut out = Vec::new();
            print(&mut out, &line(&key, &record)).unwrap();
            // What `POST /import` takes: base64, and 16 KiB.
            assert!(out.len() <= bytes.div_ceil(3) * 4 + 16 * 1024, "{} for {bytes}", out.len());
            let told: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let back = match (told["value"].as_str(), told["value_base64"].as_str()) {
                (Some(text), None) => text.as_bytes().to_vec(),
                (None, Some(encoded)) => BASE64_STANDARD.decode(encoded).unwrap(),
                both => panic!("{both:?}"),
            };
            assert!(back == value);
        }
    }
}
