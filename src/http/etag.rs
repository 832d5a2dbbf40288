//! ETags: a version in quotes, and the lists of them that preconditions ask about.

use std::fmt::Write;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::problem::{Code, Problem};
use crate::types::limits::CONDITION_TAGS_MAX;
use crate::types::{Tags, Version};

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

/// How two entity tags are compared (RFC 9110, section 8.8.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// A weak tag equals nothing.
    Strong,
    /// A tag is the same whether it is weak or not.
    Weak,
}

/// The tags that a field such as `If-Match` lists, over all its lines; `None` where there is no such field. A tag that
/// is no version of ours names nothing and is left out; so is one that the comparison can never find equal.
///
/// # Errors
/// A problem of the kind `bad-request`, where it is neither `*` nor a list of tags, names none (whoever sends that has
/// lost the tag it meant), or lists more than [`CONDITION_TAGS_MAX`].
pub(super) fn tags(headers: &HeaderMap, name: &HeaderName, comparison: Comparison) -> Result<Option<Tags>, Problem> {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let Some(first) = lines.next() else { return Ok(None) };
    let second = lines.next();
    if first.trim_ascii() == b"*" && second.is_none() {
        return Ok(Some(Tags::Any));
    }
    let mut versions = Vec::new();
    let mut listed = 0;
    for line in [first].into_iter().chain(second).chain(lines) {
        let mut rest = line;
        while let Some((tag, tail)) = next_tag(rest).map_err(|NoTag| malformed(name))? {
            rest = tail;
            listed += 1;
            if listed > CONDITION_TAGS_MAX {
                let detail = format!("{name} lists more than {CONDITION_TAGS_MAX} entity tags");
                return Err(Problem::new(Code::BadRequest, detail));
            }
            if comparison == Comparison::Weak || !tag.weak {
                versions.extend(std::str::from_utf8(tag.opaque).ok().and_then(|text| text.parse::<Version>().ok()));
            }
        }
    }
    if listed == 0 { Err(malformed(name)) } else { Ok(Some(Tags::Of(versions))) }
}

fn malformed(name: &HeaderName) -> Problem {
    Problem::new(Code::BadRequest, format!("{name} is neither * nor a list of entity tags, each in double quotes"))
}

/// One entity tag, without its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag<'a> {
    weak: bool,
    opaque: &'a [u8],
}

/// What stands there is no entity tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NoTag;

/// The first tag of a list, and what follows it. A list may have empty members; a tag may hold commas, so it ends at its
/// quote and not at a comma.
fn next_tag(list: &[u8]) -> Result<Option<(Tag<'_>, &[u8])>, NoTag> {
    let begin = list.iter().position(|b| !matches!(b, b' ' | b'\t' | b','));
    let Some(begin) = begin else { return Ok(None) };
    let rest = &list[begin..];
    let (weak, rest) = rest.strip_prefix(b"W/").map_or((false, rest), |rest| (true, rest));
    let rest = rest.strip_prefix(b"\"").ok_or(NoTag)?;
    let end = rest.iter().position(|b| !is_tag_byte(*b)).filter(|at| rest[*at] == b'"').ok_or(NoTag)?;
    let (opaque, tail) = (&rest[..end], rest[end + 1..].trim_ascii_start());
    // Only a comma or the list's end may follow.
    if tail.first().is_some_and(|b| *b != b',') { Err(NoTag) } else { Ok(Some((Tag { weak, opaque }, tail))) }
}

/// Anything visible but a double quote; beyond ASCII anything.
fn is_tag_byte(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x7e | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Hlc, Writer};
    use axum::http::header::IF_MATCH;

    const OURS: &str = "000000000000018f-2-0";

    fn ours() -> Version {
        Version::plain(Hlc(0x18f), Writer(2))
    }

    fn parsed(lines: &[&[u8]], comparison: Comparison) -> Result<Option<Tags>, Code> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IF_MATCH, HeaderValue::from_bytes(line).unwrap());
        }
        tags(&headers, &IF_MATCH, comparison).map_err(|problem| problem.code())
    }

    fn of(versions: &[Version]) -> Result<Option<Tags>, Code> {
        Ok(Some(Tags::Of(versions.to_vec())))
    }

    #[test]
    fn a_version_is_quoted_in_the_etag_only() {
        let headers = VersionHeaders::of(&ours());
        assert_eq!(headers.etag, "\"000000000000018f-2-0\"");
        assert_eq!(headers.version, "000000000000018f-2-0");
    }

    #[test]
    fn a_field_is_absent_or_any_or_a_list_over_all_its_lines() {
        let tag = format!("\"{OURS}\"");
        let next = ours().conditional().unwrap();
        assert_eq!(parsed(&[], Comparison::Strong), Ok(None));
        assert_eq!(parsed(&[b" * "], Comparison::Strong), Ok(Some(Tags::Any)));
        assert_eq!(parsed(&[tag.as_bytes()], Comparison::Strong), of(&[ours()]));
        let list = format!(",\t, {tag} ,,\"{next}\" , ");
        assert_eq!(parsed(&[list.as_bytes()], Comparison::Strong), of(&[ours(), next]));
        let lines = [tag.as_bytes(), b"", b"\"x\"", format!("\"{next}\"").as_bytes()].map(<[u8]>::to_vec);
        assert_eq!(parsed(&lines.each_ref().map(Vec::as_slice), Comparison::Strong), of(&[ours(), next]));
    }

    #[test]
    fn a_weak_tag_is_equal_only_where_that_is_asked() {
        let weak = format!("W/\"{OURS}\"");
        assert_eq!(parsed(&[weak.as_bytes()], Comparison::Weak), of(&[ours()]));
        assert_eq!(parsed(&[weak.as_bytes()], Comparison::Strong), of(&[]));
    }

    #[test]
    fn tags_of_others_name_nothing_and_may_hold_anything_but_quotes() {
        for tag in [&b"\"\""[..], b"\"x,y\"", b"\"18f-2-0\"", b"\"000000000000018F-2-0\"", b"\"\xe9\xff\"", b"\"*\""] {
            assert_eq!(parsed(&[tag], Comparison::Strong), of(&[]), "{}", tag.escape_ascii());
        }
        let hidden = format!("\"x,{OURS},y\", \"{OURS}\"");
        assert_eq!(parsed(&[hidden.as_bytes()], Comparison::Weak), of(&[ours()]));
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused() {
        let bad: [&[&[u8]]; 15] = [
            &[b""],
            &[b" , ,"],
            &[b"a"],
            &[OURS.as_bytes()],
            &[b"\"a"],
            &[b"a\""],
            &[b"\"a\"\"b\""],
            &[b"\"a\" \"b\""],
            &[b"\"a b\""],
            &[b"w/\"a\""],
            &[b"W/ \"a\""],
            &[b"**"],
            &[b"*, \"a\""],
            &[b"\"a\", *"],
            &[b"*", b"*"],
        ];
        for lines in bad {
            let shown: Vec<_> = lines.iter().map(|line| line.escape_ascii().to_string()).collect();
            assert_eq!(parsed(lines, Comparison::Weak), Err(Code::BadRequest), "{shown:?}");
        }
    }

    #[test]
    fn a_list_has_a_limit() {
        let many = |n: usize| vec!["\"x\""; n].join(",").into_bytes();
        assert_eq!(parsed(&[&many(CONDITION_TAGS_MAX)], Comparison::Strong), of(&[]));
        assert_eq!(parsed(&[&many(CONDITION_TAGS_MAX), b"\"x\""], Comparison::Strong), Err(Code::BadRequest));
    }
}
