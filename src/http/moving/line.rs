//! What a line says: its members by their names, whatever they were spelled in, made a record or found to be none.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::body::Bodies;
use super::super::problem::Code;
use super::super::{kv, query};
use crate::node::import::Entry;
use crate::types::limits::TTL_MS_MAX;
use crate::types::{Content, Hlc, Key, KeyError, NewContent, Version};

/// The members of a line. `end` and `error` are the last lines of an export.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Members {
    pub(super) key: Option<String>,
    pub(super) key_base64: Option<String>,
    pub(super) version: Option<String>,
    pub(super) written: Option<String>,
    pub(super) value: Option<String>,
    pub(super) value_base64: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) expires_at_ms: Option<u64>,
    pub(super) ttl: Option<String>,
    pub(super) deleted: bool,
    pub(super) damaged: bool,
    /// Of a listing's lines: the value's length, which it has anyway.
    bytes: Option<IgnoredAny>,
    pub(super) end: Option<IgnoredAny>,
    pub(super) error: Option<IgnoredAny>,
}

/// A line's number, and its members or what is wrong with it.
pub(super) type Numbered = (u64, Result<Members, Fault>);

/// What there was at a place of the body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Entry {
        key: Key,
        entry: Entry,
    },
    /// Whoever wrote the lines came to their end.
    End,
    /// He did not.
    Error,
}

/// Why a line is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: Code,
    pub(super) detail: String,
    /// The line's key as text, where it has one.
    pub(super) key: Option<String>,
}

impl Fault {
    pub(super) fn bad(detail: impl Into<String>) -> Self {
        Self { code: Code::BadLine, detail: detail.into(), key: None }
    }
}

impl Members {
    /// # Errors
    /// Where it is no line of an import.
    pub(super) fn parse(self, bodies: &Bodies) -> Result<Parsed, Fault> {
        if self.end.is_some() || self.error.is_some() {
            return self.last();
        }
        let key = key_of(self.key.as_deref(), self.key_base64.as_deref())?;
        match self.entry(bodies) {
            Ok(entry) => Ok(Parsed::Entry { key, entry }),
            Err(fault) => Err(Fault { key: Some(String::from_utf8_lossy(key.as_bytes()).into_owned()), ..fault }),
        }
    }

    /// An export's last line says nothing else.
    fn last(&self) -> Result<Parsed, Fault> {
        let texts = [&self.key, &self.key_base64, &self.version, &self.written, &self.value, &self.value_base64];
        let others = texts.iter().any(|text| text.is_some()) || self.content_type.is_some() || self.ttl.is_some();
        let others = others || self.expires_at_ms.is_some() || self.bytes.is_some() || self.deleted || self.damaged;
        match (&self.end, &self.error) {
            (Some(_), None) if !others => Ok(Parsed::End),
            (None, Some(_)) if !others => Ok(Parsed::Error),
            _ => Err(Fault::bad("end, error: given beside other members; the last line of an export has nothing else")),
        }
    }

    fn entry(mut self, bodies: &Bodies) -> Result<Entry, Fault> {
        if self.damaged {
            return Err(Fault::bad("nothing but its key could be read when it was exported"));
        }
        let version = self.version.as_deref().map(str::parse::<Version>).transpose();
        let version = version.map_err(|error| Fault::bad(format!("version: {error}")))?;
        let value = self.value(bodies)?;
        match version {
            Some(version) => self.exact(version, value),
            None => self.fresh(value),
        }
    }

    /// The value; none of what is deleted.
    fn value(&mut self, bodies: &Bodies) -> Result<Option<Bytes>, Fault> {
        let bytes: Bytes = match (self.value.take(), self.value_base64.take()) {
            (Some(_), Some(_)) => return Err(Fault::bad("value_base64: given beside value")),
            (Some(text), None) => text.into(),
            (None, Some(encoded)) => match BASE64_STANDARD.decode(encoded) {
                Ok(bytes) => bytes.into(),
                Err(error) => return Err(Fault::bad(format!("value_base64: not base64: {error}"))),
            },
            (None, None) if self.deleted => return Ok(None),
            (None, None) => return Err(Fault::bad("value: missing; value, value_base64 or deleted is needed")),
        };
        if self.deleted {
            return Err(Fault::bad("deleted: what is deleted has no value"));
        }
        match bodies.check_value(&bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(problem) => Err(Fault { code: Code::ValueTooLarge, detail: problem.detail().to_owned(), key: None }),
        }
    }

    fn content_type(&self) -> Result<Option<crate::types::ContentType>, Fault> {
        let given = self.content_type.as_deref().unwrap_or_default();
        kv::kept_type(given.as_bytes()).map_err(|error| Fault::bad(format!("content_type: {error}")))
    }

    /// A record as it was. What no node would have written is not taken for one.
    fn exact(self, version: Version, value: Option<Bytes>) -> Result<Entry, Fault> {
        if self.ttl.is_some() {
            return Err(Fault::bad("ttl: of a line with a version expires_at_ms says when it ends"));
        }
        let written = match self.written.as_deref() {
            Some(text) => hlc_of(text).ok_or_else(|| Fault::bad("written: 16 hexadecimal digits"))?,
            None if version.rmw == 0 => version.hlc,
            None => return Err(Fault::bad("written: missing; only of a version that ends in -0 it is known without")),
        };
        if version.hlc == Hlc::ZERO || written < version.hlc || (version.rmw == 0 && written != version.hlc) {
            return Err(Fault::bad("version: no node gives one like that to what was written then"));
        }
        let Some(bytes) = value else {
            if self.expires_at_ms.is_some() || self.content_type.is_some() {
                return Err(Fault::bad("deleted: what is deleted has no end and no content type"));
            }
            return Ok(Entry::Exact { version, written, content: Content::Tombstone });
        };
        if version.is_end() {
            return Err(Fault::bad("version: an odd last part is that of a value that ended"));
        }
        let latest = written.ms() + TTL_MS_MAX;
        if self.expires_at_ms.is_some_and(|at| at > latest) {
            return Err(Fault::bad("expires_at_ms: further from written than any value lives"));
        }
        let content = Content::Value { bytes, content_type: self.content_type()?, expires_at_ms: self.expires_at_ms };
        Ok(Entry::Exact { version, written, content })
    }

    /// Something that gets a version of its own.
    fn fresh(self, value: Option<Bytes>) -> Result<Entry, Fault> {
        if self.written.is_some() {
            return Err(Fault::bad("written: given without a version"));
        }
        if self.ttl.is_some() && self.expires_at_ms.is_some() {
            return Err(Fault::bad("ttl: given beside expires_at_ms"));
        }
        let ttl = self.ttl.as_deref().map(query::ttl).transpose();
        let ttl = ttl.map_err(|reason| Fault::bad(format!("ttl: {reason}")))?;
        let content = match value {
            Some(bytes) => NewContent::Value { bytes, content_type: self.content_type()?, ttl },
            None if ttl.is_some() || self.expires_at_ms.is_some() || self.content_type.is_some() => {
                return Err(Fault::bad("deleted: what is deleted has no end and no content type"));
            }
            None => NewContent::Tombstone,
        };
        Ok(Entry::New { content, expires_at_ms: self.expires_at_ms })
    }
}

/// The exact one where both are given, as an export does for what is no text.
fn key_of(text: Option<&str>, encoded: Option<&str>) -> Result<Key, Fault> {
    let bytes = match (text, encoded) {
        (_, Some(encoded)) => match BASE64_STANDARD.decode(encoded) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => return Err(Fault::bad(format!("key_base64: not base64: {error}"))),
        },
        (Some(text), None) => Bytes::copy_from_slice(text.as_bytes()),
        (None, None) => return Err(Fault::bad("key: missing; key or key_base64 is needed")),
    };
    Key::new(bytes).map_err(|error| {
        let code = match error {
            KeyError::Empty => Code::BadKey,
            KeyError::TooLong(_) => Code::KeyTooLong,
        };
        Fault { code, detail: error.to_string(), key: None }
    })
}

fn hlc_of(text: &str) -> Option<Hlc> {
    let sound = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(text, 16).ok().filter(|_| sound).map(Hlc)
}
