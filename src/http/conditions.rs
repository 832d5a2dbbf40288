//! Preconditions (RFC 9110, section 13) and `Idempotency-Key`: what a request's headers say, as the types know it.
//!
//! `types::Condition` judges; the register decides for writes, [`ReadConditions::judge`] for reads. A condition that is
//! not understood is refused and never dropped, since an ignored one loses somebody's write. The exceptions are those
//! that the RFC demands: a date that is none asks nothing, and `If-Modified-Since` is for reads alone.
//!
//! Precedence (section 13.2.1): conditions are asked only where the answer would be a success without them. So a read of
//! what is not there is 404 whatever its conditions, while a write, which would succeed, meets them as "no value".

use std::time::UNIX_EPOCH;

use axum::http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::etag::{Comparison, tags};
use super::problem::{Code, Problem};
use crate::node::request::{Edit, Found, NewContent, Ttl};
use crate::types::limits::IDEMPOTENCY_KEY_BYTES_MAX;
use crate::types::{Condition, Idempotency, Record, Tags};

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static PREFER: HeaderName = HeaderName::from_static("prefer");

/// What a write's headers ask of the value it replaces, and what it is remembered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WriteConditions<'a> {
    pub(super) condition: Condition,
    key: Option<&'a [u8]>,
}

impl<'a> WriteConditions<'a> {
    /// # Errors
    /// A problem of the kind `bad-request`. Nothing was written.
    pub(super) fn of(headers: &'a HeaderMap) -> Result<Self, Problem> {
        let condition =
            Condition { if_none_match: tags(headers, &IF_NONE_MATCH, Comparison::Weak)?, ..first(headers)? };
        Ok(Self { condition, key: idempotency_key(headers)? })
    }

    /// Whether there are none: the write needs no register.
    pub(super) fn is_empty(&self) -> bool {
        self.key.is_none() && self.condition.is_empty()
    }

    /// What the request is known by, if it has an `Idempotency-Key`: everything that decides what it does, as it was
    /// understood. How long it may take is not of it, so that a patient repeat is still the same request.
    pub(super) fn idempotency(&self, method: &Method, edit: &Edit) -> Option<Idempotency> {
        let key = self.key?;
        let Condition { if_match, if_none_match, if_unmodified_since } = &self.condition;
        let (if_match, if_none_match) = (tags_text(if_match.as_ref()), tags_text(if_none_match.as_ref()));
        let since = if_unmodified_since.map_or_else(String::new, |seconds| seconds.to_string());
        let (content_type, body, ttl) = match edit {
            Edit::Write(NewContent::Value { bytes, content_type, ttl }) => {
                (content_type.as_ref().map_or("", |c| c.as_str()), &bytes[..], *ttl)
            }
            Edit::Write(NewContent::Tombstone) => ("", &[][..], None),
            Edit::Touch { ttl } => ("", &[][..], *ttl),
        };
        let ttl = ttl.map(Ttl::ms).unwrap_or_default().to_le_bytes();
        let text = [method.as_str(), &if_match, &if_none_match, &since, content_type].map(str::as_bytes);
        let [method, if_match, if_none_match, since, content_type] = text;
        Some(Idempotency::of(key, &[method, if_match, if_none_match, since, content_type, body, &ttl]))
    }
}

/// The preconditions that come first for reads and writes alike. A time counts only where no tag is asked for.
fn first(headers: &HeaderMap) -> Result<Condition, Problem> {
    let if_match = tags(headers, &IF_MATCH, Comparison::Strong)?;
    let if_unmodified_since = if if_match.is_none() { date(headers, &IF_UNMODIFIED_SINCE) } else { None };
    Ok(Condition { if_match, if_none_match: None, if_unmodified_since })
}

/// Seconds since 1970 of a header that is one HTTP date; the RFC has anything else ignored.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut lines = headers.get_all(name).iter();
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let time = httpdate::parse_http_date(line.to_str().ok()?).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&[u8]>, Problem> {
    let mut lines = headers.get_all(&IDEMPOTENCY_KEY).iter().map(HeaderValue::as_bytes);
    let Some(key) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(Problem::new(Code::BadRequest, "the header Idempotency-Key is given more than once"));
    }
    if !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) || !key.iter().all(u8::is_ascii_graphic) {
        let detail = format!("an Idempotency-Key is 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters");
        return Err(Problem::new(Code::BadRequest, detail));
    }
    Ok(Some(key))
}

/// Versions have neither blanks nor stars, so that no two lists read the same.
fn tags_text(tags: Option<&Tags>) -> String {
    match tags {
        None => "-".to_owned(),
        Some(Tags::Any) => "*".to_owned(),
        Some(Tags::Of(versions)) => versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}

/// What a read's conditions make of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Send,
    /// The client has it.
    NotModified,
    /// It is not the value that the client asked about.
    Failed,
}

/// What a read's headers ask of the value it finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadConditions {
    must: Condition,
    /// `If-None-Match` alone.
    unless: Condition,
    /// `If-Modified-Since`, seconds since 1970.
    modified_since: Option<u64>,
}

impl ReadConditions {
    /// # Errors
    /// A problem of the kind `bad-request`.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let must = first(headers)?;
        let if_none_match = tags(headers, &IF_NONE_MATCH, Comparison::Weak)?;
        let modified_since = if if_none_match.is_none() { date(headers, &IF_MODIFIED_SINCE) } else { None };
        Ok(Self { must, unless: Condition { if_none_match, ..Condition::default() }, modified_since })
    }

    /// In the order of section 13.2.2.
    pub(super) fn judge(&self, record: &Record) -> Judgement {
        if !self.must.holds(Some(record)) {
            return Judgement::Failed;
        }
        let is_old = self.modified_since.is_some_and(|since| record.written.ms() / 1000 <= since);
        if is_old || !self.unless.holds(Some(record)) { Judgement::NotModified } else { Judgement::Send }
    }
}

impl ReadConditions {
    /// Whether a long poll ends with that, and need not wait: it is no value that the client has already, nor, where it named
    /// none, that there is none. One that was deleted is told once: its tombstone's tag may be named as a value's.
    pub(super) fn are_news(&self, found: &Found) -> bool {
        match (&found.record, &self.unless.if_none_match) {
            (Some(record), _) if found.live => self.judge(record) != Judgement::NotModified,
            (_, None) => false,
            (Some(tombstone), Some(Tags::Of(known))) => !known.contains(&tombstone.version),
            (_, Some(_)) => true,
        }
    }
}

/// Whether a write that fails wants to be answered with the value that stands in its way: `Prefer:
/// return=representation` (RFC 7240). The first preference of a name counts.
pub(super) fn prefers_representation(headers: &HeaderMap) -> bool {
    let preferences = headers.get_all(&PREFER).iter().filter_map(|line| line.to_str().ok()).flat_map(split_unquoted);
    let named = preferences.filter_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("return").then(|| value.trim().trim_matches('"'))
    });
    named.take(1).any(|value| value == "representation")
}

/// The members of a list; a comma in quotes parts nothing.
fn split_unquoted(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Content, ContentType, Hlc, Key, Version, Writer};

    const TAG: &str = "\"000000000000018f-2-0\"";
    const DATE: &str = "Thu, 01 Jan 1970 00:00:05 GMT";

    fn version() -> Version {
        Version::plain(Hlc(0x18f), Writer(2))
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().map(line) {
            headers.append(name, value);
        }
        headers
    }

    fn write(fields: &[(&'static str, &str)]) -> Result<Condition, Code> {
        WriteConditions::of(&headers(fields)).map(|c| c.condition).map_err(|problem| problem.code())
    }

    #[test]
    fn a_write_is_asked_what_its_headers_say() {
        let of = || Some(Tags::Of(vec![version()]));
        let none = Condition::default;
        assert_eq!(write(&[]), Ok(none()));
        assert_eq!(write(&[("if-match", TAG)]), Ok(Condition { if_match: of(), ..none() }));
        assert_eq!(write(&[("if-none-match", "*")]), Ok(Condition { if_none_match: Some(Tags::Any), ..none() }));
        assert_eq!(write(&[("if-unmodified-since", DATE)]), Ok(Condition { if_unmodified_since: Some(5), ..none() }));
        let both = write(&[("if-match", "*"), ("if-none-match", TAG), ("if-unmodified-since", DATE)]);
        assert_eq!(both, Ok(Condition { if_match: Some(Tags::Any), if_none_match: of(), if_unmodified_since: None }));
        assert_eq!(write(&[("if-modified-since", DATE)]), Ok(none()), "it is for reads");
    }

    #[test]
    fn an_if_match_of_nonsense_is_false_and_a_broken_one_is_refused() {
        assert_eq!(write(&[("if-match", "\"nonsense\"")]).unwrap().if_match, Some(Tags::Of(Vec::new())));
        let weak = format!("W/{TAG}");
        assert_eq!(write(&[("if-match", &weak)]).unwrap().if_match, Some(Tags::Of(Vec::new())));
        assert_eq!(write(&[("if-none-match", &weak)]).unwrap().if_none_match, Some(Tags::Of(vec![version()])));
        for name in ["if-match", "if-none-match"] {
            assert_eq!(write(&[(name, "nonsense")]), Err(Code::BadRequest));
        }
    }

    #[test]
    fn a_date_comes_in_three_forms_and_any_other_asks_nothing() {
        let since = |fields: &[&str]| {
            let fields: Vec<_> = fields.iter().map(|text| ("if-unmodified-since", *text)).collect();
            write(&fields).unwrap().if_unmodified_since
        };
        for text in ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "Sun, 06 Nov 1994 08:49:37 GMT"] {
            assert_eq!(since(&[text]), Some(784_111_777), "{text}");
        }
        for text in ["", "5", "yesterday", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 06 Nov 1994 25:49:37 GMT", "\u{e9}"] {
            assert_eq!(since(&[text]), None, "{text}");
        }
        assert_eq!(since(&[DATE, DATE]), None, "a list of dates is no date");
    }

    #[test]
    fn an_idempotency_key_is_visible_and_given_once() {
        let long = "k".repeat(IDEMPOTENCY_KEY_BYTES_MAX);
        for key in ["a", "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", &long] {
            assert!(!WriteConditions::of(&headers(&[("idempotency-key", key)])).unwrap().is_empty());
        }
        for key in ["", "a b", "\u{e9}", &format!("{long}k")] {
            assert_eq!(write(&[("idempotency-key", key)]), Err(Code::BadRequest), "{key}");
        }
        assert_eq!(write(&[("idempotency-key", "a"), ("idempotency-key", "a")]), Err(Code::BadRequest));
    }

    fn value(bytes: &'static str, content_type: Option<&'static str>) -> Edit {
        let content_type = content_type.map(|c| ContentType::new(c).unwrap());
        Edit::Write(NewContent::Value { bytes: bytes.into(), content_type, ttl: None })
    }

    #[test]
    fn a_request_is_known_by_all_that_decides_what_it_does() {
        let known = |method: Method, fields: &[(&'static str, &str)], edit: &Edit| {
            let fields = [&[("idempotency-key", "a")], fields].concat();
            WriteConditions::of(&headers(&fields)).unwrap().idempotency(&method, edit).unwrap().request
        };
        let first = known(Method::PUT, &[("if-match", TAG)], &value("v", None));
        let understood = format!(" ,{TAG}, \"x\", W/{TAG}");
        assert_eq!(first, known(Method::PUT, &[("if-match", &understood)], &value("v", None)), "as it was understood");
        let short = Edit::Write(NewContent::Value { bytes: "v".into(), content_type: None, ttl: Ttl::from_ms(1) });
        let others = [
            known(Method::PUT, &[], &value("v", None)),
            known(Method::PUT, &[("if-match", "*")], &value("v", None)),
            known(Method::PUT, &[("if-match", "\"x\"")], &value("v", None)),
            known(Method::PUT, &[("if-none-match", TAG)], &value("v", None)),
            known(Method::PUT, &[("if-unmodified-since", DATE)], &value("v", None)),
            known(Method::PUT, &[("if-match", TAG)], &value("w", None)),
            known(Method::PUT, &[("if-match", TAG)], &value("v", Some("text/plain"))),
            known(Method::PUT, &[("if-match", TAG)], &value("", None)),
            known(Method::PUT, &[("if-match", TAG)], &short),
            known(Method::DELETE, &[("if-match", TAG)], &Edit::Write(NewContent::Tombstone)),
            known(Method::PATCH, &[("if-match", TAG)], &Edit::Touch { ttl: Ttl::from_ms(1) }),
            known(Method::PATCH, &[("if-match", TAG)], &Edit::Touch { ttl: None }),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(*other != first && !others[..i].contains(other), "{i}");
        }
        let unnamed = WriteConditions { condition: Condition::default(), key: None };
        assert_eq!(unnamed.idempotency(&Method::PUT, &value("v", None)), None);
    }

    /// Written in the sixth second.
    fn judged(fields: &[(&'static str, &str)]) -> Judgement {
        let content = Content::value("v");
        let record = Record::seal(&Key::new("k").unwrap(), version(), Hlc::from_ms(5_999), content);
        ReadConditions::of(&headers(fields)).unwrap().judge(&record)
    }

    #[test]
    fn a_read_is_judged_in_the_order_of_the_rfc() {
        use Judgement::{Failed, NotModified, Send};
        let (early, weak) = ("Thu, 01 Jan 1970 00:00:04 GMT", format!("W/{TAG}"));
        let table: [(&[(&'static str, &str)], Judgement); 17] = [
            (&[], Send),
            (&[("if-match", TAG)], Send),
            (&[("if-match", "*")], Send),
            (&[("if-match", &weak)], Failed),
            (&[("if-match", "\"x\"")], Failed),
            (&[("if-unmodified-since", DATE)], Send),
            (&[("if-unmodified-since", early)], Failed),
            (&[("if-match", TAG), ("if-unmodified-since", early)], Send),
            (&[("if-none-match", TAG)], NotModified),
            (&[("if-none-match", &weak)], NotModified),
            (&[("if-none-match", "\"x\"")], Send),
            (&[("if-match", TAG), ("if-none-match", TAG)], NotModified),
            (&[("if-match", "\"x\""), ("if-none-match", TAG)], Failed),
            (&[("if-modified-since", DATE)], NotModified),
            (&[("if-modified-since", early)], Send),
            (&[("if-none-match", "\"x\""), ("if-modified-since", DATE)], Send),
            (&[("if-unmodified-since", early), ("if-modified-since", DATE)], Failed),
        ];
        for (fields, wanted) in table {
            assert_eq!(judged(fields), wanted, "{fields:?}");
        }
    }

    #[test]
    fn the_first_preference_of_a_name_counts() {
        let prefers = |lines: &[&str]| {
            let fields: Vec<_> = lines.iter().map(|line| ("prefer", *line)).collect();
            prefers_representation(&headers(&fields))
        };
        assert!(prefers(&["return=representation"]));
        assert!(prefers(&["respond-async, Return = \"representation\"; x=1"]));
        assert!(prefers(&["wait=10", "return=representation"]));
        for lines in [
            &[][..],
            &[""],
            &["return"],
            &["return=minimal, return=representation"],
            &["x=\"a, return=representation\""],
            &["returns=representation"],
            &["x; return=representation"],
        ] {
            assert!(!prefers(lines), "{lines:?}");
        }
    }
}
