//! The JSON of values and writes. Wire types stop at this layer: nothing behind it knows of them.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::node::request::{Found, Receipt};
use crate::ports::Seen;
use crate::types::{Content, Key, NodeNum, Record};

/// A value: any bytes.
#[derive(Debug, ToSchema)]
#[schema(as = Value, value_type = String, format = Binary)]
#[expect(dead_code, reason = "it only describes a body")]
pub(super) struct ValueBytes(Vec<u8>);

/// A node by its number: `n1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, example = "n1", pattern = "^n[0-9]+$")]
pub(super) struct NodeName(pub(super) NodeNum);

impl Serialize for NodeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

pub(super) fn names<'a>(nodes: impl IntoIterator<Item = &'a NodeNum>) -> Vec<NodeName> {
    nodes.into_iter().copied().map(NodeName).collect()
}

/// A key in JSON: as text, and where it is no text in base64 too.
pub(super) fn key_texts(key: &Key) -> (std::borrow::Cow<'_, str>, Option<String>) {
    match std::str::from_utf8(key.as_bytes()) {
        Ok(text) => (text.into(), None),
        Err(_) => (String::from_utf8_lossy(key.as_bytes()), Some(BASE64_STANDARD.encode(key.as_bytes()))),
    }
}

/// What a write really did, from the replies of the replicas.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Receipt)]
pub(super) struct ReceiptBody<'a> {
    /// Always true: a write that failed is a problem.
    ok: bool,
    /// `stored`, `touched` or `deleted`.
    #[schema(example = "stored")]
    message: &'static str,
    /// The key as text; what is not UTF-8 in it shows as U+FFFD.
    #[schema(value_type = String, example = "name")]
    key: std::borrow::Cow<'a, str>,
    /// The exact key, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    key_base64: Option<String>,
    /// The version written; the ETag without its quotes.
    #[schema(example = "018f3c5a1b2c0000-1-0")]
    version: String,
    #[schema(example = "quorum")]
    consistency: &'static str,
    /// The key's home replicas.
    replicas: Vec<NodeName>,
    /// Home replicas that have it on disk.
    acked: Vec<NodeName>,
    /// Home replicas that were unreachable, each with the node that keeps the write for it.
    #[schema(value_type = std::collections::BTreeMap<String, String>, example = json!({"n2": "n3"}))]
    hinted: HintedBody<'a>,
    /// False while fewer than a majority of the home replicas hold it.
    strict: bool,
    /// When the value ends, milliseconds since 1970; absent where it does not, and where the answer was given before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    expires_at_ms: Option<u64>,
}

#[derive(Debug)]
struct HintedBody<'a>(&'a [(NodeNum, NodeNum)]);

impl Serialize for HintedBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (home, keeper) in self.0 {
            map.serialize_entry(&NodeName(*home), &NodeName(*keeper))?;
        }
        map.end()
    }
}

impl<'a> ReceiptBody<'a> {
    pub(super) fn of(key: &'a Key, receipt: &'a Receipt, message: &'static str) -> Self {
        let (key, key_base64) = key_texts(key);
        Self {
            ok: true,
            message,
            key,
            key_base64,
            version: receipt.version.to_string(),
            consistency: receipt.level.as_str(),
            replicas: names(&receipt.replicas),
            acked: names(&receipt.acked),
            hinted: HintedBody(&receipt.hinted),
            strict: receipt.strict,
            expires_at_ms: receipt.expires_at_ms,
        }
    }
}

/// One node's copy of a key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Copy)]
pub(super) struct CopyBody {
    node: NodeName,
    /// The version it holds; null when it holds nothing.
    version: Option<String>,
    /// Whether a reader finds a value in it (it is no tombstone).
    live: bool,
}

impl From<&(NodeNum, Option<Seen>)> for CopyBody {
    fn from((node, seen): &(NodeNum, Option<Seen>)) -> Self {
        Self { node: NodeName(*node), version: seen.map(|s| s.version.to_string()), live: seen.is_some_and(|s| s.live) }
    }
}

/// A record and its copies, side by side.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Record)]
pub(super) struct RecordBody<'a> {
    /// The key as text; what is not UTF-8 in it shows as U+FFFD.
    #[schema(value_type = String, example = "name")]
    key: std::borrow::Cow<'a, str>,
    /// The exact key, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    key_base64: Option<String>,
    /// The value, where it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value: Option<&'a str>,
    /// The value, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value_base64: Option<String>,
    /// Length of the value, in bytes.
    bytes: usize,
    #[schema(example = "text/plain")]
    content_type: &'a str,
    #[schema(example = "018f3c5a1b2c0000-1-0")]
    version: String,
    /// When it was written, milliseconds since 1970.
    written_ms: u64,
    /// When the value ends, milliseconds since 1970; absent where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    expires_at_ms: Option<u64>,
    /// False where a stand-in was counted: the answer may miss strict writes.
    strict: bool,
    /// The key's home replicas.
    replicas: Vec<NodeName>,
    /// What each node that answered holds.
    copies: Vec<CopyBody>,
}

impl<'a> RecordBody<'a> {
    /// Nothing for a tombstone.
    pub(super) fn of(key: &'a Key, record: &'a Record, found: &'a Found) -> Option<Self> {
        let Content::Value { bytes, content_type, .. } = &record.content else { return None };
        let text = std::str::from_utf8(bytes).ok();
        let (key, key_base64) = key_texts(key);
        Some(Self {
            key,
            key_base64,
            value: text,
            value_base64: text.is_none().then(|| BASE64_STANDARD.encode(bytes)),
            bytes: bytes.len(),
            content_type: content_type.as_ref().map_or("application/octet-stream", |c| c.as_str()),
            version: record.version.to_string(),
            written_ms: record.written.ms(),
            expires_at_ms: record.expires_at_ms(),
            strict: found.strict,
            replicas: names(&found.replicas),
            copies: found.copies.iter().map(CopyBody::from).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ContentType, Hlc, Level, Version, Writer};
    use serde_json::json;

    fn receipt() -> Receipt {
        Receipt {
            version: Version::plain(Hlc(0x18f), Writer(1)),
            level: Level::Quorum,
            replicas: vec![NodeNum(1), NodeNum(2)],
            acked: vec![NodeNum(1)],
            hinted: vec![(NodeNum(2), NodeNum(3))],
            strict: false,
            created: true,
            expires_at_ms: None,
        }
    }

    #[test]
    fn a_receipt_says_what_was_done() {
        let key = Key::new("a \"b\"\n").unwrap();
        assert_eq!(
            serde_json::to_value(ReceiptBody::of(&key, &receipt(), "stored")).unwrap(),
            json!({
                "ok": true, "message": "stored", "key": "a \"b\"\n", "version": "000000000000018f-1-0",
                "consistency": "quorum", "replicas": ["n1", "n2"], "acked": ["n1"], "hinted": {"n2": "n3"},
                "strict": false,
            })
        );
    }

    #[test]
    fn a_key_that_is_no_text_comes_exact_too() {
        let key = Key::new(vec![b'a', 0xff]).unwrap();
        let body = serde_json::to_value(ReceiptBody::of(&key, &receipt(), "stored")).unwrap();
        assert_eq!((&body["key"], &body["key_base64"]), (&json!("a\u{fffd}"), &json!("Yf8=")));
    }

    #[test]
    fn a_record_shows_text_or_base64_and_each_copy() {
        let key = Key::new("k").unwrap();
        let version = Version::plain(Hlc::from_ms(5), Writer(1));
        let shown = |bytes: &'static [u8]| {
            let content = Content::Value {
                bytes: bytes.into(),
                content_type: Some(ContentType::new("text/plain").unwrap()),
                expires_at_ms: None,
            };
            let record = Record::seal(&key, version, Hlc::from_ms(5), content);
            let seen = Seen::of(&record, Hlc::from_ms(6));
            let found = Found {
                record: Some(record.clone()),
                live: true,
                strict: true,
                replicas: vec![NodeNum(1), NodeNum(2)],
                copies: vec![(NodeNum(1), Some(seen)), (NodeNum(2), None)],
            };
            serde_json::to_value(RecordBody::of(&key, &record, &found).unwrap()).unwrap()
        };
        let text = shown(b"hi");
        assert_eq!((&text["value"], &text["bytes"], &text["written_ms"]), (&json!("hi"), &json!(2), &json!(5)));
        assert_eq!(
            text["copies"],
            json!([{"node": "n1", "version": version.to_string(), "live": true}, {"node": "n2", "version": null, "live": false}])
        );
        let raw = shown(b"\xff");
        assert_eq!((&raw["value_base64"], raw.get("value")), (&json!("/w=="), None));
    }
}
