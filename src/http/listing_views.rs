//! The JSON of listings: a page, and the lines of a stream.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use super::bodies::key_texts;
use crate::node::listing::{Item, Page};
use crate::types::SlotSet;

/// A page of keys.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeyPage)]
pub(super) struct PageBody<'a> {
    /// In the order of their keys' bytes.
    items: Vec<ItemBody<'a>>,
    /// In order, too; they stand between the keys. Empty without a delimiter.
    common_prefixes: Vec<CommonPrefixBody<'a>>,
    /// The `cursor` of the next page; null: this was the last.
    next: Option<String>,
    /// False where a stand-in was counted: the page may miss strict writes.
    strict: bool,
    /// Under `partial=true`: slots that could not be had, as `/cluster/ring` names them. What lies there is not listed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    unreachable_slots: Vec<String>,
}

/// A key and what is known of its value.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeyItem)]
pub(super) struct ItemBody<'a> {
    /// The key as text; what is not UTF-8 in it shows as U+FFFD.
    #[schema(value_type = String, example = "name")]
    key: std::borrow::Cow<'a, str>,
    /// The exact key, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    key_base64: Option<String>,
    /// The value's version: its ETag without the quotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "018f3c5a1b2c0000-1-0")]
    version: Option<String>,
    /// Length of the value, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "text/plain")]
    content_type: Option<&'a str>,
    /// When the value ends, milliseconds since 1970; absent where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    expires_at_ms: Option<u64>,
    /// With `values`: the value, where it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value: Option<&'a str>,
    /// With `values`: the value, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value_base64: Option<String>,
    /// True where a copy is damaged and the others could not be asked: nothing else is known of the key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    damaged: bool,
}

impl<'a> From<&'a Item> for ItemBody<'a> {
    fn from(item: &'a Item) -> Self {
        let (key, key_base64) = key_texts(&item.key);
        let outline = item.outline.as_ref();
        let value = outline.and_then(|outline| outline.value.as_ref());
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        Self {
            key,
            key_base64,
            version: outline.map(|outline| outline.version.to_string()),
            bytes: outline.map(|outline| outline.bytes),
            content_type: outline
                .map(|outline| outline.content_type.as_ref().map_or("application/octet-stream", |kind| kind.as_str())),
            expires_at_ms: outline.and_then(|outline| outline.expires_at_ms),
            value: text,
            value_base64: value.filter(|_| text.is_none()).map(|value| BASE64_STANDARD.encode(value)),
            damaged: outline.is_none(),
        }
    }
}

/// What keys have in common up to a delimiter.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CommonPrefix)]
pub(super) struct CommonPrefixBody<'a> {
    /// As text; what is not UTF-8 in it shows as U+FFFD.
    #[schema(value_type = String, example = "users/")]
    prefix: std::borrow::Cow<'a, str>,
    /// The exact prefix, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    prefix_base64: Option<String>,
}

impl<'a> From<&'a Bytes> for CommonPrefixBody<'a> {
    fn from(prefix: &'a Bytes) -> Self {
        match std::str::from_utf8(prefix) {
            Ok(text) => Self { prefix: text.into(), prefix_base64: None },
            Err(_) => {
                Self { prefix: String::from_utf8_lossy(prefix), prefix_base64: Some(BASE64_STANDARD.encode(prefix)) }
            }
        }
    }
}

impl<'a> PageBody<'a> {
    pub(super) fn of(page: &'a Page, next: Option<String>) -> Self {
        Self {
            items: page.items.iter().map(ItemBody::from).collect(),
            common_prefixes: page.common_prefixes.iter().map(CommonPrefixBody::from).collect(),
            next,
            strict: page.strict,
            unreachable_slots: names_of(page.missing),
        }
    }
}

/// As they are named everywhere.
pub(super) fn names_of(slots: SlotSet) -> Vec<String> {
    slots.iter().map(|slot| slot.to_string()).collect()
}

/// A line of a stream.
#[derive(Debug, ToSchema)]
#[schema(as = KeyLine)]
#[serde(untagged)]
#[expect(dead_code, reason = "it only describes a line")]
pub(super) enum LineBody<'a> {
    Key(ItemBody<'a>),
    CommonPrefix(CommonPrefixBody<'a>),
    End(EndLine<'a>),
    Error(ErrorLine),
}

/// The last line of a stream that came to its end.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeysEnd)]
pub(super) struct EndLine<'a> {
    end: &'a EndBody,
}

/// What a stream was.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeysEndBody)]
pub(super) struct EndBody {
    /// Keys and common prefixes that were listed.
    items: u64,
    /// False where a stand-in was counted: the list may miss strict writes.
    strict: bool,
    /// Under `partial=true`: slots that could not be had at some time. What lies there may not be listed.
    unreachable_slots: Vec<String>,
}

impl Default for EndBody {
    fn default() -> Self {
        Self { items: 0, strict: true, unreachable_slots: Vec::new() }
    }
}

impl EndBody {
    pub(super) fn add(&mut self, page: &Page) {
        self.items += (page.items.len() + page.common_prefixes.len()) as u64;
        self.strict &= page.strict;
        for slot in names_of(page.missing) {
            if let Err(at) = self.unreachable_slots.binary_search(&slot) {
                self.unreachable_slots.insert(at, slot);
            }
        }
    }
}

/// The last line of a stream that could not go on.
#[derive(Debug, ToSchema)]
#[schema(as = KeysError)]
#[expect(dead_code, reason = "it only describes a line")]
pub(super) struct ErrorLine {
    /// Why, as any answer that is no success says it.
    #[schema(value_type = Object)]
    error: (),
}

impl EndLine<'_> {
    pub(super) fn write(end: &EndBody, lines: &mut Vec<u8>) {
        line(&EndLine { end }, lines);
    }
}

impl ErrorLine {
    /// `problem`: as JSON.
    pub(super) fn write(problem: &[u8], lines: &mut Vec<u8>) {
        for part in [b"{\"error\":", problem, b"}\n"] {
            lines.extend_from_slice(part);
        }
    }
}

/// The lines of a page, in order of their bytes.
pub(super) fn lines_of(page: &Page, lines: &mut Vec<u8>) {
    let mut prefixes = page.common_prefixes.iter().peekable();
    for item in &page.items {
        while let Some(prefix) = prefixes.next_if(|prefix| prefix[..] < *item.key.as_bytes()) {
            line(&CommonPrefixBody::from(prefix), lines);
        }
        line(&ItemBody::from(item), lines);
    }
    prefixes.for_each(|prefix| line(&CommonPrefixBody::from(prefix), lines));
}

fn line(body: &impl Serialize, lines: &mut Vec<u8>) {
    // Strings, numbers and flags under string keys: serialisation to memory has no way to fail.
    let _ = serde_json::to_writer(&mut *lines, body);
    lines.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Content, ContentType, Hlc, Key, Outline, Record, Version, Writer};

    fn item(key: &[u8], value: Option<&'static [u8]>) -> Item {
        let key = Key::new(key.to_vec()).unwrap();
        let version = Version::plain(Hlc::from_ms(5), Writer(1));
        let outline = value.map(|value| {
            let content_type = Some(ContentType::new("text/plain").unwrap());
            let content = Content::Value { bytes: value.into(), content_type, expires_at_ms: Some(9) };
            Outline::of(&Record::seal(&key, version, Hlc::from_ms(5), content), true)
        });
        Item { key, outline }
    }

    #[test]
    fn a_page_is_lines_in_order() {
        let page = Page {
            items: vec![item(b"a", Some(b"x")), item(b"b\xff", Some(b"\xff")), item(b"c", None)],
            common_prefixes: vec![Bytes::from_static(b"a/"), Bytes::from_static(b"z/")],
            next: None,
            strict: true,
            missing: SlotSet::NONE,
        };
        let (mut lines, mut end) = (Vec::new(), EndBody::default());
        lines_of(&page, &mut lines);
        end.add(&page);
        EndLine::write(&end, &mut lines);
        let rest = r#""version":"0000000000050000-1-0","bytes":1,"content_type":"text/plain","expires_at_ms":9"#;
        let wanted = [
            format!(r#"{{"key":"a",{rest},"value":"x"}}"#),
            r#"{"prefix":"a/"}"#.to_owned(),
            format!(r#"{{"key":"b{}","key_base64":"Yv8=",{rest},"value_base64":"/w=="}}"#, '\u{fffd}'),
            r#"{"key":"c","damaged":true}"#.to_owned(),
            r#"{"prefix":"z/"}"#.to_owned(),
            r#"{"end":{"items":5,"strict":true,"unreachable_slots":[]}}"#.to_owned(),
        ];
        assert_eq!(String::from_utf8(lines).unwrap().lines().collect::<Vec<_>>(), wanted);
    }
}
