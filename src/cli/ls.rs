//! `a3 ls`: keys in order.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};

use super::Fault;
use super::client::{Asked, Client, block_on};
use super::output::{self, Output};
use super::views::fetch;
use crate::types::Key;
use crate::types::limits::LISTING_ITEMS_MAX;

/// List keys in the order of their bytes, a key a line; with --long their sizes, versions, types and ends.
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only keys that begin so.
    #[arg(default_value = "")]
    prefix: OsString,
    /// List what keys have in common up to this, behind the prefix, in their place: `/` lists like a directory.
    #[arg(long)]
    delimiter: Option<OsString>,
    /// Only keys behind this one.
    #[arg(long, value_name = "KEY")]
    after: Option<OsString>,
    /// So many at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// All of them.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// A line with size, version, type and end for each key.
    #[arg(short, long)]
    long: bool,
    /// Leave out what cannot be reached, instead of failing.
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

/// A page, as far as this command reads it.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Page {
    items: Vec<Item>,
    common_prefixes: Vec<CommonPrefix>,
    next: Option<String>,
    strict: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unreachable_slots: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Item {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    damaged: bool,
}

#[derive(Debug, Deserialize, Serialize)]
struct CommonPrefix {
    prefix: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix_base64: Option<String>,
}

impl Ls {
    pub(super) fn run(self) -> Result<(), Fault> {
        block_on(self.list())
    }

    async fn list(&self) -> Result<(), Fault> {
        let client = Client::new();
        let (mut left, mut cursor, mut whole) = (if self.all { u64::MAX } else { self.limit }, None, Page::default());
        whole.strict = true;
        loop {
            let path = self.path(left, cursor.as_deref());
            let page: Page = fetch(&client, &self.asked.host, &path).await?;
            left = left.saturating_sub((page.items.len() + page.common_prefixes.len()) as u64);
            whole.strict &= page.strict;
            whole.unreachable_slots.extend(page.unreachable_slots.iter().cloned());
            cursor.clone_from(&page.next);
            if self.output.is_json() {
                whole.items.extend(page.items);
                whole.common_prefixes.extend(page.common_prefixes);
            } else {
                output::write(self.shown(&page).as_bytes())?;
            }
            if cursor.is_none() || left == 0 {
                break;
            }
        }
        whole.unreachable_slots.sort_unstable();
        whole.unreachable_slots.dedup();
        if self.output.is_json() {
            return output::json(&Page { next: cursor, ..whole });
        }
        if !whole.unreachable_slots.is_empty() {
            eprintln!("{} of 256 slots could not be reached: keys may be missing", whole.unreachable_slots.len());
        }
        if cursor.is_some() {
            eprintln!("there may be more: --all lists them, --after KEY goes on");
        }
        Ok(())
    }

    fn path(&self, left: u64, cursor: Option<&str>) -> String {
        let text = |name: &str, bytes: &[u8]| format!("{name}={}", percent_encode(bytes, NON_ALPHANUMERIC));
        let mut query = vec![format!("limit={}", left.min(LISTING_ITEMS_MAX as u64))];
        query.push(text("prefix", self.prefix.as_bytes()));
        query.extend(self.delimiter.as_ref().map(|delimiter| text("delimiter", delimiter.as_bytes())));
        match (cursor, &self.after) {
            (Some(cursor), _) => query.push(format!("cursor={cursor}")),
            (None, Some(after)) => query.push(text("after", after.as_bytes())),
            (None, None) => {}
        }
        query.extend(self.partial.then(|| "partial=true".to_owned()));
        format!("/kv?{}", query.join("&"))
    }

    /// Keys and common prefixes in one order, a line each.
    fn shown(&self, page: &Page) -> String {
        let items = page.items.iter().map(|item| (bytes_of(&item.key, item.key_base64.as_deref()), Some(item)));
        let prefixes = page.common_prefixes.iter().map(|p| (bytes_of(&p.prefix, p.prefix_base64.as_deref()), None));
        let mut lines: Vec<(Vec<u8>, Option<&Item>)> = items.chain(prefixes).collect();
        lines.sort_by(|(a, _), (b, _)| a.cmp(b));
        lines.iter().map(|(name, item)| self.line(name, *item)).collect()
    }

    fn line(&self, name: &[u8], item: Option<&Item>) -> String {
        let name = Key::new(name.to_vec()).map(|key| key.to_string()).unwrap_or_default();
        if !self.long {
            return format!("{name}\n");
        }
        let dash = || "-".to_owned();
        let bytes = item.and_then(|item| item.bytes).map_or_else(dash, |bytes| bytes.to_string());
        let version = item.and_then(|item| item.version.clone()).unwrap_or_else(dash);
        let kind = item.and_then(|item| item.content_type.clone()).unwrap_or_else(dash);
        let end = item.and_then(|item| item.expires_at_ms).map_or_else(dash, |ms| {
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
            httpdate::fmt_http_date(at)
        });
        let damaged = if item.is_some_and(|item| item.damaged) { "  damaged" } else { "" };
        format!("{bytes:>10}  {version:<20}  {kind:<24}  {end:<29}  {name}{damaged}\n")
    }
}

fn bytes_of(text: &str, base64: Option<&str>) -> Vec<u8> {
    let exact = base64.and_then(|base64| BASE64_STANDARD.decode(base64).ok());
    exact.unwrap_or_else(|| text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        ls: Ls,
    }

    fn ls(arguments: &[&str]) -> Ls {
        Line::parse_from(["ls"].iter().chain(arguments)).ls
    }

    #[test]
    fn a_listing_is_asked_as_it_is_wished() {
        let asked = |arguments: &[&str], left, cursor| ls(arguments).path(left, cursor);
        assert_eq!(asked(&[], 100, None), "/kv?limit=100&prefix=");
        let all = ["a/b", "--delimiter", "/", "--after", "a/b c", "--all", "--partial"];
        let wished = "/kv?limit=1000&prefix=a%2Fb&delimiter=%2F&after=a%2Fb%20c&partial=true";
        assert_eq!(asked(&all, u64::MAX, None), wished);
        assert_eq!(asked(&["--after", "x"], 5, Some("abc")), "/kv?limit=5&prefix=&cursor=abc");
        assert!(Line::try_parse_from(["ls", "--limit", "0"]).is_err());
        assert!(Line::try_parse_from(["ls", "--limit", "5", "--all"]).is_err());
    }

    #[test]
    fn keys_and_common_prefixes_are_shown_in_one_order() {
        let page: Page = serde_json::from_value(serde_json::json!({
            "items": [{"key": "a", "version": "01-1-0", "bytes": 3, "content_type": "text/plain", "expires_at_ms": 0},
                      {"key": "c\u{fffd}", "key_base64": "Y/8="}, {"key": "d", "damaged": true}],
            "common_prefixes": [{"prefix": "b/"}], "next": null, "strict": true
        }))
        .unwrap();
        assert_eq!(ls(&[]).shown(&page), "a\nb/\nc\\xff\nd\n");
        let long = ls(&["--long"]).shown(&page);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = long.lines().map(words).collect();
        assert_eq!(lines[0][..4], ["3", "01-1-0", "text/plain", "Thu,"]);
        assert_eq!((lines[0].last().unwrap().as_str(), lines[1].last().unwrap().as_str()), ("a", "b/"));
        assert_eq!(lines[3].last().unwrap(), "damaged");
    }
}
