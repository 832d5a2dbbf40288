//! ETags: a version in quotes, and the comparison that `If-None-Match` asks for.

use std::fmt::Write;

use axum::http::header::IF_NONE_MATCH;
use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;

use crate::types::Version;

/// A version as the two headers show it: quoted in `ETag`, plain in `A3-Version`. They share their bytes.
#[derive(Clone, Debug)]
pub(super) struct VersionHeaders {
    pub(super) etag: HeaderValue,
    pub(super) version: HeaderValue,
}

impl VersionHeaders {
    pub(super) fn of(version: &Version) -> Self {
        let mut quoted = String::with_capacity(40);
        // Writing to a string cannot fail.
        let _ = write!(quoted, "\"{version}\"");
        let quoted = Bytes::from(quoted);
        let inner = quoted.slice(1..quoted.len() - 1);
        // Hexadecimal digits, dashes and quotes are always a header value.
        let value = |bytes| HeaderValue::from_maybe_shared(bytes).unwrap_or(HeaderValue::from_static(""));
        Self { etag: value(quoted), version: value(inner) }
    }
}

/// Whether `If-None-Match` names this ETag: weakly compared, in any of its fields and list members, or `*`.
pub(super) fn none_match_names(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|field| lists(field.as_bytes(), etag.as_bytes()))
}

fn lists(field: &[u8], etag: &[u8]) -> bool {
    if field.trim_ascii() == b"*" {
        return true;
    }
    let mut rest = field;
    loop {
        // A list may have empty members; an ETag may hold commas, so it ends at its quote and not at a comma.
        rest = rest.trim_ascii_start();
        while let [b',', tail @ ..] = rest {
            rest = tail.trim_ascii_start();
        }
        rest = rest.strip_prefix(b"W/").unwrap_or(rest);
        let [b'"', inner @ ..] = rest else { return false };
        let Some(end) = inner.iter().position(|b| *b == b'"') else { return false };
        let (tag, tail) = rest.split_at(end + 2);
        if tag == etag {
            return true;
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Hlc, Writer};

    fn names(fields: &[&'static str], etag: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(IF_NONE_MATCH, HeaderValue::from_static(field));
        }
        none_match_names(&headers, &HeaderValue::from_static(etag))
    }

    #[test]
    fn a_version_is_quoted_in_the_etag_only() {
        let headers = VersionHeaders::of(&Version::plain(Hlc(0x18f), Writer(2)));
        assert_eq!(headers.etag, "\"000000000000018f-2-0\"");
        assert_eq!(headers.version, "000000000000018f-2-0");
    }

    #[test]
    fn if_none_match_compares_weakly_and_knows_lists() {
        assert!(names(&["\"a\""], "\"a\""));
        assert!(names(&["W/\"a\""], "\"a\""));
        assert!(names(&["*"], "\"a\""));
        assert!(names(&["\"x\", W/\"y\" ,\"a\""], "\"a\""));
        assert!(names(&["\"x\"", "\"a\""], "\"a\""));
        assert!(names(&[",, \"x,y\",\"a\""], "\"a\""));
    }

    #[test]
    fn other_tags_and_nonsense_do_not_match() {
        for field in ["", "a", "\"b\"", "\"a", "W/a", "\"x\" a", "\"a\"x", "**", "w/\"a\""] {
            let matched = names(&[field], "\"a\"");
            assert_eq!(matched, field == "\"a\"x", "{field}");
        }
        assert!(!names(&[], "\"a\""));
        assert!(!names(&["\"x,\"a\",\""], "\"b\""));
    }
}
