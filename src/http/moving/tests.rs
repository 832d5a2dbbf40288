//! What an export writes an import reads, in both spellings; and what it does not take.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::csv::Rows;
use super::line::{Fault, Members, Parsed};
use super::ndjson::Lines;
use super::rows::{EndBody, HEADER, csv_row, end_line, json_line};
use super::*;
use crate::http::Options;
use crate::http::body::Bodies;
use crate::http::problem::Code;
use crate::node::import::Entry;
use crate::node::listing::Item;
use crate::types::{Content, ContentType, Hlc, Key, NewContent, Outline, Record, Ttl, Version, Writer};

const VALUE_BYTES_MAX: usize = 3000;

fn bodies() -> Bodies {
    Bodies::new(&Options {
        value_bytes_max: VALUE_BYTES_MAX,
        body_timeout: Duration::from_secs(1),
        ..Options::default()
    })
}

fn json(line: &str) -> Result<Parsed, Fault> {
    let mut lines = Lines::new(100_000);
    lines.push(&Bytes::copy_from_slice(line.as_bytes()));
    lines.next(true).unwrap().1.and_then(|members: Members| members.parse(&bodies()))
}

fn entry(line: &str) -> Entry {
    match json(line) {
        Ok(Parsed::Entry { entry, .. }) => entry,
        other => panic!("{line}: {other:?}"),
    }
}

fn at(hlc: u64, rmw: u32) -> Version {
    Version { hlc: Hlc(hlc), writer: Writer(7), rmw }
}

#[test]
fn a_line_with_a_version_is_that_record() {
    let value = |bytes: &'static str, content_type: Option<&'static str>, expires_at_ms| Content::Value {
        bytes: bytes.into(),
        content_type: content_type.map(|kind| ContentType::new(kind).unwrap()),
        expires_at_ms,
    };
    let of = |line: &str| match entry(line) {
        Entry::Exact { version, written, content } => (version, written, content),
        new => panic!("{new:?}"),
    };
    let plain = of(r#"{"key":"k","version":"0000000000050000-7-0","value":"v"}"#);
    assert_eq!(plain, (at(0x50000, 0), Hlc(0x50000), value("v", None, None)));
    let whole = of(
        r#"{"key":"k","key_base64":"a2s=","version":"0000000000050000-7-2","written":"0000000000060000","value_base64":"dg==","content_type":"text/plain","expires_at_ms":9,"bytes":1}"#,
    );
    assert_eq!(whole, (at(0x50000, 2), Hlc(0x60000), value("v", Some("text/plain"), Some(9))));
    let deleted = of(r#"{"key":"k","version":"0000000000050000-7-0","written":"0000000000050000","deleted":true}"#);
    assert_eq!(deleted.2, Content::Tombstone);
    let ended = of(r#"{"key":"k","version":"0000000000050000-7-1","written":"0000000000060000","deleted":true}"#);
    assert_eq!(ended, (at(0x50000, 1), Hlc(0x60000), Content::Tombstone));
    // The exact key counts.
    let both = json(r#"{"key":"\ufffd","key_base64":"/w==","value":"v"}"#);
    assert!(matches!(both, Ok(Parsed::Entry { key, .. }) if key.as_bytes() == [0xff]));
}

#[test]
fn a_line_without_a_version_is_something_new() {
    let new = |bytes: &'static str, ttl| NewContent::Value { bytes: bytes.into(), content_type: None, ttl };
    let entry_of = |content, expires_at_ms| Entry::New { content, expires_at_ms };
    assert_eq!(entry(r#"{"key":"k","value":""}"#), entry_of(new("", None), None));
    assert_eq!(entry(r#"{"key":"k","value":"v","ttl":"60s"}"#), entry_of(new("v", Ttl::from_ms(60_000)), None));
    assert_eq!(entry(r#"{"key":"k","value":"v","expires_at_ms":5}"#), entry_of(new("v", None), Some(5)));
    assert_eq!(entry(r#"{"key":"k","deleted":true}"#), entry_of(NewContent::Tombstone, None));
    assert_eq!(json(r#"{"end":{"keys":1}}"#), Ok(Parsed::End));
    assert_eq!(json(r#"{"error":{"code":"unavailable"}}"#), Ok(Parsed::Error));
}

#[test]
fn every_kind_of_bad_line_says_what_is_wrong_with_it() {
    let version = r#""key":"k","version":"0000000000050000-7-0""#;
    let long = "x".repeat(VALUE_BYTES_MAX + 1);
    for (line, code, begins) in [
        ("{}".to_owned(), Code::BadLine, "key: missing"),
        (r#"{"value":"v"}"#.to_owned(), Code::BadLine, "key: missing"),
        (r#"{"key":"","value":"v"}"#.to_owned(), Code::BadKey, ""),
        (format!(r#"{{"key":"{}","value":"v"}}"#, "k".repeat(1025)), Code::KeyTooLong, ""),
        (r#"{"key_base64":"?","value":"v"}"#.to_owned(), Code::BadLine, "key_base64: not base64"),
        (r#"{"key":"k"}"#.to_owned(), Code::BadLine, "value: missing"),
        (r#"{"key":"k","value":"v","value_base64":"dg=="}"#.to_owned(), Code::BadLine, "value_base64: given beside"),
        (r#"{"key":"k","value_base64":"dg="}"#.to_owned(), Code::BadLine, "value_base64: not base64"),
        (format!(r#"{{"key":"k","value":"{long}"}}"#), Code::ValueTooLarge, ""),
        (r#"{"key":"k","value":"v","deleted":true}"#.to_owned(), Code::BadLine, "deleted: "),
        (r#"{"key":"k","deleted":true,"ttl":"1s"}"#.to_owned(), Code::BadLine, "deleted: "),
        (r#"{"key":"k","value":"v","ttl":"soon"}"#.to_owned(), Code::BadLine, "ttl: "),
        (r#"{"key":"k","value":"v","ttl":"1s","expires_at_ms":1}"#.to_owned(), Code::BadLine, "ttl: given beside"),
        (r#"{"key":"k","value":"v","content_type":"é"}"#.to_owned(), Code::BadLine, "content_type: "),
        (r#"{"key":"k","value":"v","written":"0000000000050000"}"#.to_owned(), Code::BadLine, "written: "),
        (r#"{"key":"k","value":"v","version":"5-7-0"}"#.to_owned(), Code::BadLine, "version: "),
        (r#"{"key":"k","value":"v","version":"0000000000000000-7-0"}"#.to_owned(), Code::BadLine, "version: "),
        (format!(r#"{{{version},"value":"v","written":"50000"}}"#), Code::BadLine, "written: 16"),
        (format!(r#"{{{version},"value":"v","written":"+000000000050000"}}"#), Code::BadLine, "written: 16"),
        (format!(r#"{{{version},"value":"v","written":"0000000000060000"}}"#), Code::BadLine, "version: "),
        (
            r#"{"key":"k","value":"v","version":"0000000000050000-7-2","written":"000000000004ffff"}"#.to_owned(),
            Code::BadLine,
            "version: no node",
        ),
        (r#"{"end":{},"key":"k","value":"v"}"#.to_owned(), Code::BadLine, "end, error: "),
        (r#"{"end":{},"error":{}}"#.to_owned(), Code::BadLine, "end, error: "),
        (r#"{"error":{},"deleted":true}"#.to_owned(), Code::BadLine, "end, error: "),
        (r#"{"end":{},"bytes":1}"#.to_owned(), Code::BadLine, "end, error: "),
        (format!(r#"{{{version},"value":"v","ttl":"1s"}}"#), Code::BadLine, "ttl: "),
        (format!(r#"{{{version},"value":"v","expires_at_ms":18446744073709551615}}"#), Code::BadLine, "expires_at_ms"),
        (format!(r#"{{{version},"deleted":true,"content_type":"text/plain"}}"#), Code::BadLine, "deleted: "),
        (format!(r#"{{{version},"damaged":true}}"#), Code::BadLine, "nothing but its key"),
        (r#"{"key":"k","value":"v","version":"0000000000050000-7-2"}"#.to_owned(), Code::BadLine, "written: missing"),
        (
            r#"{"key":"k","value":"v","version":"0000000000050000-7-1","written":"0000000000060000"}"#.to_owned(),
            Code::BadLine,
            "version: an odd",
        ),
    ] {
        let fault = json(&line).unwrap_err();
        assert!(fault.code == code && fault.detail.starts_with(begins), "{line}: {fault:?}");
        let named = line.contains("\"k\"") && !line.contains("kk") && !line.contains("\"end\"");
        assert_eq!(fault.key.as_deref() == Some("k"), named, "{line}: {fault:?}");
    }
}

/// A backup's lines spell their values by the same rule (`types::text`).
#[test]
fn a_value_of_control_characters_is_taken_back() {
    let bodies = Bodies::new(&Options::default());
    for value in [vec![1; 512 * 1024], vec![b'\n'; 1024 * 1024], vec![b'"'; 1024 * 1024]] {
        let key = Key::new(vec![1; 1024]).unwrap();
        let record = Record::seal(&key, at(0x50000, 0), Hlc(0x50000), Content::value(value));
        let mut line = Vec::new();
        json_line(&Item { key: key.clone(), outline: Some(Outline::of(&record, true)) }, &mut line);
        let mut lines = Lines::new(line_bytes_max(bodies.value_bytes_max()));
        lines.push(&Bytes::from(line));
        assert_eq!(back(lines.next(true).unwrap().1.unwrap().parse(&bodies).unwrap()), (key, record));
    }
}

fn records() -> impl Strategy<Value = (Key, Record)> {
    let byte = prop_oneof![Just(b'"'), Just(b','), Just(b'\n'), Just(b'\r'), Just(0u8), Just(b'a'), any::<u8>()];
    let bytes = |least, most| prop::collection::vec(byte.clone(), least..most);
    let text = "[\"\\\\,\r\n \u{feff}a\u{e9}\u{0}]{0,300}".prop_map(String::into_bytes);
    let value = prop_oneof![bytes(0, 60), text, Just(vec![0; VALUE_BYTES_MAX]), Just(vec![b'"'; VALUE_BYTES_MAX])];
    let key = prop_oneof![bytes(1, 20), "[a-z,\"\u{feff}]{1,9}".prop_map(String::into_bytes)];
    let kind = prop::option::of("[!-~]{1,30}");
    (key, value, kind, prop::option::of(1u64..1 << 40), 1u64..1 << 60, any::<u16>(), any::<bool>()).prop_map(
        |(key, value, kind, ttl, hlc, rmw, plain)| {
            let key = Key::new(key).unwrap();
            let rmw = if plain { 0 } else { u32::from(rmw | 1) + 1 };
            let version = Version { hlc: Hlc(hlc), writer: Writer(3), rmw };
            let written = if plain { Hlc(hlc) } else { Hlc(hlc + 77) };
            let content_type = kind.and_then(|kind| crate::http::kv::kept_type(kind.as_bytes()).unwrap());
            let expires_at_ms = ttl.map(|ttl| (written.ms() + ttl).min(written.ms() + 999_999_999_999));
            let content = Content::Value { bytes: value.into(), content_type, expires_at_ms };
            let record = Record::seal(&key, version, written, content);
            (key, record)
        },
    )
}

fn back(parsed: Parsed) -> (Key, Record) {
    let Parsed::Entry { key, entry: Entry::Exact { version, written, content } } = parsed else {
        panic!("{parsed:?}");
    };
    let record = Record::seal(&key, version, written, content);
    (key, record)
}

proptest! {
    #[test]
    fn what_is_exported_is_read_as_the_same_records(all in prop::collection::vec(records(), 1..6), piece in 1usize..5000) {
        let (mut lines, mut rows) = (Vec::new(), HEADER.to_vec());
        for (key, record) in &all {
            let item = Item { key: key.clone(), outline: Some(Outline::of(record, true)) };
            json_line(&item, &mut lines);
            prop_assert!(csv_row(&item, &mut rows));
        }
        end_line(&EndBody { keys: 1, damaged: 0, strict: true }, &mut lines);
        let (longest, bodies) = (line_bytes_max(VALUE_BYTES_MAX), bodies());

        let (mut read, mut found) = (Lines::new(longest), Vec::new());
        for piece in lines.chunks(piece) {
            read.push(&Bytes::copy_from_slice(piece));
            while let Some((number, members)) = read.next(false) {
                prop_assert_eq!(number, found.len() as u64 + 1);
                found.push(members.unwrap().parse(&bodies).unwrap());
            }
        }
        prop_assert_eq!(found.pop(), Some(Parsed::End));
        prop_assert_eq!(found.into_iter().map(back).collect::<Vec<_>>(), all.clone());

        let (mut read, mut found) = (Rows::new(longest), Vec::new());
        for piece in rows.chunks(piece) {
            read.push(Bytes::copy_from_slice(piece));
            while let Some((_, members)) = read.next(false).unwrap() {
                found.push(back(members.unwrap().parse(&bodies).unwrap()));
            }
        }
        prop_assert!(read.next(true).unwrap().is_none());
        prop_assert_eq!(found, all);
    }
}
