//! `a3 watch`: what changes, a line a change.
//!
//! A watch goes on at another member of the cluster where its node is lost; what it was told at the beginning of who they are
//! is enough for that.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::Fault;
use super::client::{Asked, Client, Host, block_on, download, within};
use super::output::{self, Output};
use super::views::{Cluster, fetch};
use crate::types::Key;

/// A stream that says nothing for so long is lost: a node tells its cursor every 10 s.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a node may take to begin, before the next is tried.
const BEGINS: Duration = Duration::from_secs(5);
/// Before the next node is tried.
const AGAIN: Duration = Duration::from_millis(500);
/// Tries in a row that told nothing before it is given up.
const TRIES: usize = 60;
/// An event's lines together, in bytes: beside a key there is little in one.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// Print each change of a key as it happens, a line a change: what was done, the version, the key.
#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Only keys that begin so.
    #[arg(default_value = "")]
    prefix: OsString,
    /// Go on behind this cursor; -o json shows one with the last of the changes that came together.
    #[arg(long)]
    cursor: Option<String>,
    /// End after so many changes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

/// A change, as far as this command reads it.
#[derive(Debug, Deserialize)]
struct Change {
    key: String,
    key_base64: Option<String>,
    version: String,
    expires_at_ms: Option<u64>,
}

/// A change, as programs read it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    event: &'a str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<&'a str>,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<&'a str>,
}

/// Where a watch stands.
struct Place {
    cursor: Option<String>,
    left: u64,
    /// Something came since the last try.
    heard: bool,
}

impl Watch {
    pub(super) fn run(self) -> Result<(), Fault> {
        block_on(self.watch())
    }

    async fn watch(&self) -> Result<(), Fault> {
        let client = Client::new();
        let mut hosts = vec![self.asked.host.clone()];
        let mut place = Place { cursor: self.cursor.clone(), left: self.limit.unwrap_or(u64::MAX), heard: false };
        let (mut at, mut tries) = (0, 0);
        loop {
            let host = hosts[at % hosts.len()].clone();
            let lost = match self.follow(&client, &host, &mut hosts, &mut place).await {
                Ok(()) => return Ok(()),
                Err(Fault::Unavailable(lost)) => lost,
                Err(fault) => return Err(fault),
            };
            tries = if std::mem::take(&mut place.heard) { 1 } else { tries + 1 };
            // At first nothing is known but the node that was named.
            if tries >= TRIES || place.cursor.is_none() {
                return Err(Fault::Unavailable(lost));
            }
            at += 1;
            eprintln!("{lost}; going on at {}", hosts[at % hosts.len()]);
            sleep(AGAIN).await;
        }
    }

    /// Prints what one node tells, until it is enough.
    async fn follow(
        &self,
        client: &Client,
        host: &Host,
        hosts: &mut Vec<Host>,
        place: &mut Place,
    ) -> Result<(), Fault> {
        let mut body = within(BEGINS, host, download(host, &self.path(), headers(place.cursor.as_deref())?)).await?;
        if let Ok(Ok(cluster)) = timeout(BEGINS, fetch::<Cluster>(client, host, "/cluster")).await {
            let others = cluster.members.iter().filter_map(|member| member.http_address.parse().ok());
            others.for_each(|other| {
                if !hosts.contains(&other) {
                    hosts.push(other)
                }
            });
        }
        let mut events = Events::default();
        loop {
            let piece = next_piece(host, &mut body).await?;
            for event in events.of(&piece)? {
                place.heard = true;
                place.cursor = event.id.clone().or(place.cursor.take());
                if event.name == "gone" {
                    return Err(Fault::of_answer(410, event.data.as_bytes()));
                }
                if event.data.is_empty() {
                    continue;
                }
                place.left -= 1;
                if !self.print(&event)? || place.left == 0 {
                    return Ok(());
                }
            }
        }
    }

    fn path(&self) -> String {
        format!("/watch?prefix={}", percent_encode(self.prefix.as_bytes(), NON_ALPHANUMERIC))
    }

    /// False where nobody reads on.
    fn print(&self, event: &Event) -> Result<bool, Fault> {
        let unknown = |_| Fault::Failed("the stream is not of changes: is this an a3 node?".into());
        let change: Change = serde_json::from_str(&event.data).map_err(unknown)?;
        let Change { key, key_base64, version, expires_at_ms } = &change;
        if !self.output.is_json() {
            let exact = key_base64.as_ref().and_then(|base64| BASE64_STANDARD.decode(base64).ok());
            let exact = exact.unwrap_or_else(|| key.as_bytes().to_vec());
            let name = Key::new(exact).map(|key| key.to_string()).unwrap_or_default();
            return output::put(format!("{:<6}  {version:<20}  {name}\n", event.name).as_bytes());
        }
        let line = Line {
            event: &event.name,
            key,
            key_base64: key_base64.as_deref(),
            version,
            expires_at_ms: *expires_at_ms,
            cursor: event.id.as_deref(),
        };
        let line = serde_json::to_string(&line).map_err(|e| Fault::Failed(format!("no JSON: {e}")))?;
        output::put(format!("{line}\n").as_bytes())
    }
}

/// Where to go on. It is no part of the path, which would be too long beside a long prefix in a large cluster.
fn headers(cursor: Option<&str>) -> Result<HeaderMap, Fault> {
    let bad = |_| Fault::Usage("--cursor: not what a watch gave".into());
    let cursor = cursor.map(|cursor| HeaderValue::from_str(cursor).map_err(bad)).transpose()?;
    Ok(cursor.into_iter().map(|cursor| (HeaderName::from_static("last-event-id"), cursor)).collect())
}

/// What comes next of a stream.
async fn next_piece(host: &Host, body: &mut Incoming) -> Result<Bytes, Fault> {
    let lost = |why: &str| Fault::Unavailable(format!("{host}: {why}"));
    loop {
        let frame = timeout(SILENCE, body.frame()).await.map_err(|_| lost("the stream fell silent"))?;
        let frame = frame.ok_or_else(|| lost("the stream ended"))?;
        if let Ok(piece) = frame.map_err(|_| lost("the stream broke off"))?.into_data() {
            return Ok(piece);
        }
    }
}

/// An event of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    name: String,
    data: String,
    id: Option<String>,
}

/// Cuts a stream into events (WHATWG HTML, section 9.2.6), as nodes write them: with line feeds alone.
#[derive(Debug, Default)]
struct Events {
    begun: Vec<u8>,
}

impl Events {
    /// The events that end with that piece.
    fn of(&mut self, piece: &[u8]) -> Result<Vec<Event>, Fault> {
        self.begun.extend_from_slice(piece);
        let mut events = Vec::new();
        while let Some(end) = self.begun.windows(2).position(|two| two == b"\n\n") {
            let text = String::from_utf8_lossy(&self.begun[..end]).into_owned();
            self.begun.drain(..end + 2);
            let mut event = Event::default();
            for line in text.lines() {
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "event" => value.clone_into(&mut event.name),
                    "data" => event.data.push_str(value),
                    "id" => event.id = Some(value.to_owned()),
                    _ => {}
                }
            }
            events.push(event);
        }
        if self.begun.len() > EVENT_BYTES_MAX {
            return Err(Fault::Failed("an event of more than a mebibyte: is this an a3 node?".into()));
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        watch: Watch,
    }

    fn event(name: &str, data: &str, id: Option<&str>) -> Event {
        Event { name: name.into(), data: data.into(), id: id.map(str::to_owned) }
    }

    #[test]
    fn events_are_cut_wherever_the_pieces_end() {
        let stream =
            "id: a\nretry: 1000\n\nevent: put\ndata: {\"key\":\"k: 1\"}\n\n:\n\nevent: delete\ndata:x\nid: b\n\n";
        let wanted = [
            event("", "", Some("a")),
            event("put", "{\"key\":\"k: 1\"}", None),
            event("", "", None),
            event("delete", "x", Some("b")),
        ];
        for size in [1, 2, 7, 1_000] {
            let mut events = Events::default();
            let told: Vec<Event> = stream.as_bytes().chunks(size).flat_map(|piece| events.of(piece).unwrap()).collect();
            assert_eq!(told, wanted, "{size}");
        }
        assert!(Events::default().of(&vec![b'x'; EVENT_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn it_asks_for_what_is_wished() {
        let path = |arguments: &[&str]| Command::parse_from(["watch"].iter().chain(arguments)).watch.path();
        assert_eq!([path(&[]), path(&["a/b"])], ["/watch?prefix=", "/watch?prefix=a%2Fb"]);
        assert_eq!(headers(Some("x_y-z")).unwrap()["last-event-id"], "x_y-z");
        assert!(headers(None).unwrap().is_empty() && headers(Some("a\nb")).is_err());
        assert!(Command::try_parse_from(["watch", "--limit", "0"]).is_err());
    }
}
