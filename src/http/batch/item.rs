//! One operation of a batch, as its JSON says it. Every fault in it is listed.

use std::borrow::Cow;

use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::super::body::Bodies;
use super::super::conditions::{ReadConditions, WriteConditions};
use super::super::docs::{IdempotencyText, LevelName, TtlText};
use super::super::key::key;
use super::super::problem::{BadParameter, Code, Problem};
use super::super::{kv, query};
use crate::node::batch::Operation;
use crate::node::request::{Edit, Get, NewContent};
use crate::types::{Key, Level, Version};

/// What holds for all operations of a batch that do not say their own.
#[derive(Debug)]
pub(super) struct Defaults<'a> {
    pub(super) level: Option<Level>,
    pub(super) deadline: Instant,
    pub(super) bodies: &'a Bodies,
}

/// An operation that can be done.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) key: Key,
    pub(super) verb: Verb,
    pub(super) operation: Operation,
}

/// How its answer is shown.
#[derive(Debug)]
pub(super) enum Verb {
    Get(ReadConditions),
    Put,
    Delete,
}

impl Verb {
    pub(super) fn writes(&self) -> bool {
        !matches!(self, Verb::Get(_))
    }
}

impl Item {
    /// # Errors
    /// What is wrong with it.
    pub(super) fn of(one: Value, defaults: &Defaults<'_>) -> Result<Self, Problem> {
        let Value::Object(members) = one else {
            return Err(Problem::new(Code::BadBody, "the operation is not a JSON object"));
        };
        let mut members = Members { members, bad: Vec::new() };
        match members.text("op").as_deref() {
            Some("get") => get(members, defaults),
            Some("put") => put(members, defaults),
            Some("delete") => delete(members, defaults),
            _ => {
                members.fault("op", "get, put or delete");
                Err(members.problem())
            }
        }
    }
}

fn get(mut members: Members, defaults: &Defaults<'_>) -> Result<Item, Problem> {
    let key = members.key();
    let level = members.take("consistency", |text| kv::level(text, false)).or(defaults.level).unwrap_or_default();
    let headers = members.conditions();
    let key = members.finish("op, key, key_base64, consistency, if_match, if_none_match", key)??;
    let conditions = ReadConditions::of(&headers)?;
    let get = Get { key: key.clone(), level, deadline: defaults.deadline, every_copy: false };
    Ok(Item { key, verb: Verb::Get(conditions), operation: Operation::Get(get) })
}

fn put(mut members: Members, defaults: &Defaults<'_>) -> Result<Item, Problem> {
    let key = members.key();
    let bytes = members.bytes("value", "value_base64");
    let content_type =
        members.take("content_type", |text| kv::kept_type(text.as_bytes()).map_err(|error| error.to_string().into()));
    let ttl = members.take("ttl", query::ttl);
    let known = "op, key, key_base64, value, value_base64, content_type, ttl, consistency, if_match, if_none_match, idempotency_key";
    let write = write(members, (key, known), &Method::PUT, defaults, move |bodies| {
        let bytes = bytes.unwrap_or_default();
        bodies.check_value(&bytes)?;
        Ok(NewContent::Value { bytes, content_type: content_type.flatten(), ttl })
    });
    write.map(|(key, operation)| Item { key, verb: Verb::Put, operation })
}

fn delete(mut members: Members, defaults: &Defaults<'_>) -> Result<Item, Problem> {
    let key = members.key();
    let known = "op, key, key_base64, consistency, if_match, if_none_match, idempotency_key";
    let write = write(members, (key, known), &Method::DELETE, defaults, |_| Ok(NewContent::Tombstone));
    write.map(|(key, operation)| Item { key, verb: Verb::Delete, operation })
}

/// What puts and deletes have in common.
fn write(
    mut members: Members,
    (key, known): (Option<Result<Key, Problem>>, &str),
    method: &Method,
    defaults: &Defaults<'_>,
    content: impl FnOnce(&Bodies) -> Result<NewContent, Problem>,
) -> Result<(Key, Operation), Problem> {
    let headers = members.write_conditions();
    let registered = !headers.is_empty();
    let own = members.take("consistency", |text| kv::level(text, registered));
    let key = members.finish(known, key)??;
    let conditions = WriteConditions::of(&headers)?;
    // Who asks the whole batch at `one` or `all` means those that can be.
    let default = defaults.level.filter(|level| !registered || !matches!(level, Level::One | Level::All));
    let level = own.or(default).unwrap_or_default();
    let edit = Edit::Write(content(defaults.bodies)?);
    let write = kv::write_of(&key, (level, defaults.deadline), &conditions, method, edit);
    Ok((key, Operation::Write(write)))
}

/// An object under inspection: members are taken one by one, faults are collected.
struct Members {
    members: Map<String, Value>,
    bad: Vec<BadParameter>,
}

impl Members {
    fn fault(&mut self, name: &str, reason: impl Into<String>) {
        self.bad.push(BadParameter { name: name.to_owned(), reason: reason.into() });
    }

    fn problem(self) -> Problem {
        Problem::bad_members(self.bad)
    }

    /// A member that is a text; `null` is as if it were not there.
    fn text(&mut self, name: &str) -> Option<String> {
        match self.members.remove(name)? {
            Value::String(text) => Some(text),
            Value::Null => None,
            _ => {
                self.fault(name, "a text");
                None
            }
        }
    }

    fn take<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, Cow<'static, str>>) -> Option<T> {
        let text = self.text(name)?;
        parse(&text).map_err(|reason| self.fault(name, reason)).ok()
    }

    /// Bytes, which are one of two members: as text, or in base64.
    fn bytes(&mut self, text: &'static str, base64: &'static str) -> Option<Bytes> {
        let faults = self.bad.len();
        match (self.text(text), self.text(base64)) {
            (Some(text), None) => Some(text.into()),
            (None, Some(encoded)) => match BASE64_STANDARD.decode(encoded) {
                Ok(bytes) => Some(bytes.into()),
                Err(error) => {
                    self.fault(base64, format!("not base64: {error}"));
                    None
                }
            },
            (Some(_), Some(_)) => {
                self.fault(base64, format!("given beside {text}"));
                None
            }
            (None, None) => {
                if self.bad.len() == faults {
                    self.fault(text, format!("missing; {text} or {base64} is needed"));
                }
                None
            }
        }
    }

    fn key(&mut self) -> Option<Result<Key, Problem>> {
        self.bytes("key", "key_base64").map(key)
    }

    /// The conditions as headers, which one reader knows how to read. An ETag may come without its quotes, as a version
    /// comes in receipts.
    fn conditions(&mut self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, header) in [("if_match", IF_MATCH), ("if_none_match", IF_NONE_MATCH)] {
            let Some(text) = self.text(name) else { continue };
            let bare = text.parse::<Version>().is_ok();
            self.header(&mut headers, name, header, if bare { format!("\"{text}\"") } else { text });
        }
        headers
    }

    /// Those of a write, and its `Idempotency-Key`.
    fn write_conditions(&mut self) -> HeaderMap {
        let mut headers = self.conditions();
        if let Some(text) = self.text("idempotency_key") {
            self.header(&mut headers, "idempotency_key", HeaderName::from_static("idempotency-key"), text);
        }
        headers
    }

    fn header(&mut self, headers: &mut HeaderMap, name: &str, header: HeaderName, text: String) {
        match HeaderValue::from_str(&text) {
            Ok(value) => drop(headers.insert(header, value)),
            Err(_) => self.fault(name, "visible ASCII characters"),
        }
    }

    /// The last question: whether there was a fault, or something that no operation of this kind knows.
    fn finish<T>(mut self, known: &str, key: Option<T>) -> Result<T, Problem> {
        let unknown: Vec<String> = self.members.keys().map(|name| name.get(..64).unwrap_or(name).to_owned()).collect();
        for name in unknown {
            self.fault(&name, format!("unknown; this operation knows {known}"));
        }
        match key {
            Some(key) if self.bad.is_empty() => Ok(key),
            // A key that is missing is a fault that was noted.
            _ => Err(self.problem()),
        }
    }
}

/// One operation.
#[derive(Debug, utoipa::ToSchema)]
#[schema(as = BatchOperation)]
#[expect(dead_code, reason = "it only describes a body")]
pub(super) struct OperationBody {
    op: OperationName,
    /// The key, as text.
    #[schema(nullable = false, example = "name")]
    key: Option<String>,
    /// The key, where it is not UTF-8. Exactly one of `key` and `key_base64` is needed.
    #[schema(nullable = false)]
    key_base64: Option<String>,
    /// The value of a put, as text.
    #[schema(nullable = false, example = "anas")]
    value: Option<String>,
    /// The value of a put, as bytes. Of a put exactly one of `value` and `value_base64` is needed.
    #[schema(nullable = false)]
    value_base64: Option<String>,
    /// The content type that a put keeps with its value; `application/octet-stream` unless said.
    #[schema(nullable = false)]
    content_type: Option<String>,
    /// How long the value of a put lives, as `?ttl=` says it.
    #[schema(inline, nullable = false, value_type = Option<TtlText>)]
    ttl: Option<TtlText>,
    /// The level of this one.
    #[schema(inline, nullable = false, value_type = Option<LevelName>)]
    consistency: Option<LevelName>,
    /// As the header `If-Match`; a single version may come without its quotes.
    #[schema(nullable = false)]
    if_match: Option<String>,
    /// As the header `If-None-Match`; a single version may come without its quotes.
    #[schema(nullable = false)]
    if_none_match: Option<String>,
    /// As the header `Idempotency-Key`, of a put or delete.
    #[schema(inline, nullable = false, value_type = Option<IdempotencyText>)]
    idempotency_key: Option<IdempotencyText>,
}

/// What an operation does.
#[derive(Debug, utoipa::ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it only describes a body")]
pub(super) enum OperationName {
    Get,
    Put,
    Delete,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Options;
    use crate::node::request::Write;
    use serde_json::json;

    async fn of(one: Value, level: Option<Level>) -> Result<Item, Problem> {
        let bodies = Bodies::new(&Options { value_bytes_max: 4, ..Options::default() });
        Item::of(one, &Defaults { level, deadline: Instant::now(), bodies: &bodies })
    }

    async fn faults(one: Value) -> Vec<String> {
        let problem = of(one, None).await.unwrap_err();
        let body = serde_json::to_value(problem.shown(None)).unwrap();
        let listed = body["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
        listed.iter().map(|fault| fault["name"].as_str().unwrap().to_owned()).collect()
    }

    fn plain(item: &Item) -> Option<(Level, NewContent)> {
        match &item.operation {
            Operation::Write(Write::Plain(put)) => Some((put.level, put.content.clone())),
            _ => None,
        }
    }

    #[tokio::test]
    async fn an_operation_says_what_a_request_would() {
        let item = of(json!({"op": "put", "key": "k", "value": "v", "consistency": "one"}), None).await.unwrap();
        assert_eq!(plain(&item), Some((Level::One, NewContent::value("v"))));
        let binary = json!({"op": "put", "key_base64": "/w==", "value_base64": "AAE=", "ttl": "60s"});
        let item = of(binary, Some(Level::All)).await.unwrap();
        assert_eq!(item.key.as_bytes(), [0xff]);
        let Some((Level::All, NewContent::Value { bytes, ttl, .. })) = plain(&item) else { panic!("{item:?}") };
        assert_eq!((&bytes[..], ttl.map(|t| t.ms())), (&[0, 1][..], Some(60_000)));
        let item = of(json!({"op": "delete", "key": "k"}), None).await.unwrap();
        assert_eq!(plain(&item), Some((Level::Quorum, NewContent::Tombstone)));
        let item = of(json!({"op": "get", "key": "k", "if_none_match": null}), Some(Level::One)).await.unwrap();
        assert!(matches!(item.operation, Operation::Get(get) if get.level == Level::One));
    }

    #[tokio::test]
    async fn a_condition_makes_it_the_registers_and_may_come_without_quotes() {
        for tag in ["000000000000018f-2-0", "\"000000000000018f-2-0\"", "*"] {
            let item = of(json!({"op": "put", "key": "k", "value": "v", "if_match": tag}), Some(Level::One)).await;
            let Operation::Write(Write::Conditional(put)) = item.unwrap().operation else { panic!("{tag}") };
            assert!(put.condition.if_match.is_some());
        }
        let named = json!({"op": "delete", "key": "k", "idempotency_key": "a"});
        let Operation::Write(Write::Conditional(put)) = of(named, None).await.unwrap().operation else { panic!() };
        assert!(put.idempotency.is_some());
        let one = json!({"op": "put", "key": "k", "value": "v", "if_match": "*", "consistency": "one"});
        assert_eq!(faults(one).await, ["consistency"]);
    }

    #[tokio::test]
    async fn every_fault_of_an_operation_is_listed() {
        assert_eq!(faults(json!({"op": "drop", "key": "k"})).await, ["op"]);
        assert_eq!(faults(json!({"key": "k"})).await, ["op"]);
        assert_eq!(faults(json!({"op": "get"})).await, ["key"]);
        assert_eq!(faults(json!({"op": "get", "key": 1})).await, ["key"]);
        assert_eq!(faults(json!({"op": "get", "key": "a", "key_base64": "YQ=="})).await, ["key_base64"]);
        assert_eq!(faults(json!({"op": "get", "key_base64": "?"})).await, ["key_base64"]);
        assert_eq!(faults(json!({"op": "put", "key": "k"})).await, ["value"]);
        let many = json!({"op": "put", "key": "k", "value": "v", "ttl": "0s", "content_type": "\u{e9}", "kez": 1});
        assert_eq!(faults(many).await, ["content_type", "ttl", "kez"]);
        assert_eq!(faults(json!({"op": "get", "key": "k", "value": "v"})).await, ["value"]);
        assert_eq!(faults(json!({"op": "get", "key": "k", "idempotency_key": "a"})).await, ["idempotency_key"]);
    }

    #[tokio::test]
    async fn keys_values_and_conditions_have_the_limits_of_requests() {
        let code = async |one: Value| of(one, None).await.unwrap_err().code();
        assert_eq!(code(json!({"op": "get", "key": ""})).await, Code::BadKey);
        assert_eq!(code(json!({"op": "get", "key": "k".repeat(1025)})).await, Code::KeyTooLong);
        assert_eq!(code(json!({"op": "put", "key": "k", "value": "12345"})).await, Code::ValueTooLarge);
        assert_eq!(code(json!({"op": "put", "key": "k", "value": "v", "if_match": ""})).await, Code::BadRequest);
        assert_eq!(code(json!([])).await, Code::BadBody);
    }
}
