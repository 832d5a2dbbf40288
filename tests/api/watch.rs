//! Watches: what is told, from where one goes on, and what is said where that cannot be. Long polls.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::client::{Answer, Client, encoded};
use crate::harness::{Cluster, Setup, eventually};

/// A stream of changes, as far as it was read.
struct Stream {
    body: Incoming,
    begun: Vec<u8>,
    /// The last cursor.
    cursor: String,
}

/// An event's name and data; without an event there is neither.
type Event = (String, Value);

impl Stream {
    async fn open(node: &Client, query: &str, last: Option<&str>) -> Self {
        let headers: Vec<(&str, &str)> = last.iter().map(|last| ("last-event-id", *last)).collect();
        let answer = node.open(&format!("/watch?{query}"), &headers).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (200, &"text/event-stream".parse().unwrap())
        );
        assert_eq!(answer.headers()["cache-control"], "no-cache");
        Self { body: answer.into_body(), begun: Vec::new(), cursor: String::new() }
    }

    /// The next event; an event without a name at the end.
    async fn event(&mut self) -> Event {
        loop {
            if let Some(end) = self.begun.windows(2).position(|two| two == b"\n\n") {
                let text = String::from_utf8(self.begun.drain(..end + 2).collect()).unwrap();
                let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                if let Some(id) = field("id:") {
                    id.clone_into(&mut self.cursor);
                }
                let data = field("data:").map_or(Value::Null, |data| serde_json::from_str(data).unwrap());
                return (field("event:").unwrap_or_default().to_owned(), data);
            }
            let frame = timeout(Duration::from_secs(30), self.body.frame()).await.expect("something in time");
            match frame {
                Some(Ok(frame)) => self.begun.extend_from_slice(frame.data_ref().unwrap()),
                _ => return ("end".to_owned(), Value::Null),
            }
        }
    }

    /// The next `many` changes: what was done, the key, and the version.
    async fn changes(&mut self, many: usize) -> Vec<(String, String, String)> {
        let (mut told, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(60));
        while told.len() < many {
            assert!(Instant::now() < deadline, "{many} changes in time, not {told:?}");
            let (name, data) = self.event().await;
            assert_ne!(name, "end", "after {told:?}");
            if data != Value::Null {
                let text = |member: &str| data[member].as_str().unwrap_or_default().to_owned();
                told.push((name, text("key"), text("version")));
            }
        }
        told
    }
}

fn version(answer: &Answer) -> String {
    answer.header("a3-version").unwrap().to_owned()
}

#[tokio::test]
async fn changes_are_told_at_whichever_node_with_their_versions() {
    let cluster = Cluster::of_three().await;
    cluster.at(1).put("/kv/a/0", "before").await.receipt(201, "stored");
    let mut stream = Stream::open(&cluster.at(3), "prefix=a%2F", None).await;
    let mut wanted = Vec::new();
    for (event, key) in [("put", "a/1"), ("put", "b/1"), ("put", "a/1"), ("delete", "a/1"), ("delete", "a/never")] {
        let path = format!("/kv/{key}");
        let answer = match event {
            "put" => cluster.at(2).put(&path, "v").await,
            _ => cluster.at(1).delete(&path).await,
        };
        if key.starts_with("a/") {
            wanted.push((event.to_owned(), key.to_owned(), version(&answer)));
        }
        // One after the other, so that none is left out for a later one.
        if let Some(last) = wanted.last().filter(|last| last.1 == key) {
            assert_eq!(stream.changes(1).await, std::slice::from_ref(last));
        }
    }
    let ending = cluster.at(1).put("/kv/a/2?ttl=1s", "v").await;
    let told = stream.changes(2).await;
    assert_eq!(told[0], ("put".to_owned(), "a/2".to_owned(), version(&ending)));
    assert_eq!((told[1].0.as_str(), told[1].1.as_str()), ("expire", "a/2"));
    let odd = format!("/kv/{}", encoded(b"a/\xff"));
    cluster.at(2).put(&odd, "v").await.receipt(201, "stored");
    let (name, data) = stream.event().await;
    assert_eq!((name.as_str(), data["key_base64"].as_str()), ("put", Some("YS//")));
}

#[tokio::test]
async fn another_node_goes_on_where_one_was_lost_and_hints_are_told_in_the_end() {
    let mut cluster = Cluster::of_three().await;
    let mut stream = Stream::open(&cluster.at(1), "", None).await;
    cluster.at(2).put("/kv/first", "v").await;
    assert_eq!(stream.changes(1).await[0].1, "first");
    let cursor = stream.cursor.clone();
    drop(stream);
    // Two writes of each key while a node is down: hints are kept for it.
    cluster.stop(1).await;
    let mut last = Vec::new();
    for n in 0..40 {
        cluster.at(2).put(&format!("/kv/k{n}"), "old").await.receipt(201, "stored");
        let answer = cluster.at(3).put(&format!("/kv/k{n}"), "new").await;
        last.push((format!("k{n}"), version(&answer)));
    }
    let mut stream = Stream::open(&cluster.at(2), "", Some(&cursor)).await;
    while !last.is_empty() {
        let (_, key, told) = stream.changes(1).await.remove(0);
        last.retain(|(k, version)| *k != key || *version > told);
    }
    // Only the last of those that came together has a cursor.
    while stream.cursor.is_empty() {
        stream.event().await;
    }
    // The node that comes back tells its hints' versions, which were told before.
    let again = stream.cursor.clone();
    cluster.restart(1).await;
    cluster.all_reachable().await;
    cluster.at(1).put("/kv/last", "v").await;
    while stream.changes(1).await[0].1 != "last" {}
    let mut other = Stream::open(&cluster.at(1), "", Some(&again)).await;
    while other.changes(1).await[0].1 != "last" {}
}

#[tokio::test]
async fn a_place_that_nobody_remembers_is_gone() {
    let mut cluster = Cluster::single().await;
    let mut stream = Stream::open(&cluster.at(1), "", None).await;
    assert_eq!(stream.event().await, (String::new(), Value::Null), "its cursor comes first");
    let cursor = stream.cursor.clone();
    drop(stream);
    cluster.stop(1).await;
    cluster.restart(1).await;
    for (query, headers) in
        [(format!("?cursor={cursor}"), vec![]), (String::new(), vec![("last-event-id", cursor.as_str())])]
    {
        let answer = cluster.at(1).ask("GET", &format!("/watch{query}"), &headers, "").await;
        let problem = answer.problem(410, "watch-gone");
        assert!(problem["detail"].as_str().unwrap().contains("no longer remember"), "{problem}");
    }
    let other = Cluster::single().await;
    let problem = other.at(1).get(&format!("/watch?cursor={cursor}")).await.problem(410, "watch-gone");
    assert!(problem["detail"].as_str().unwrap().contains("another cluster"), "{problem}");
}

#[tokio::test]
async fn a_stream_that_may_have_missed_something_says_so_at_last() {
    let mut cluster = Cluster::of_three().await;
    let mut stream = Stream::open(&cluster.at(1), "", None).await;
    // Of slots on both nobody else has a copy; the second is gone before the first counts again.
    for number in [2, 3] {
        cluster.stop(number).await;
        cluster.restart(number).await;
    }
    let problem = loop {
        let (name, data) = stream.event().await;
        assert_ne!(name, "end");
        if name == "gone" {
            break data;
        }
    };
    assert_eq!((&problem["code"], &problem["status"]), (&"watch-gone".into(), &410.into()));
    assert!(problem["request_id"].is_string(), "{problem}");
    assert_eq!(stream.event().await.0, "end");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_too_few_members_are_told() {
    let mut cluster = Cluster::of_three().await;
    let node = cluster.at(1);
    node.put("/kv/a", "v").await;
    node.put("/kv/b", "v").await;
    let page = node.get("/kv?limit=1").await.json();
    let listing = page["next"].as_str().unwrap();
    for bad in ["nope", "", listing] {
        let problem = node.get(&format!("/watch?cursor={bad}&prefix=%zz&wat=1")).await.problem(400, "bad-parameters");
        let names: Vec<&str> =
            problem["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["prefix", "wat", "cursor"], "{bad}");
    }
    let problem = node.ask("GET", "/watch", &[("last-event-id", "nope")], "").await.problem(400, "bad-request");
    assert!(problem["detail"].as_str().unwrap().starts_with("Last-Event-ID"), "{problem}");
    node.ask("POST", "/watch", &[], "").await.problem(405, "method-not-allowed");
    cluster.stop(2).await;
    cluster.stop(3).await;
    let problem = node.get("/watch?timeout=500ms").await.problem(503, "unavailable");
    assert!(!problem["unreachable_slots"].as_array().unwrap().is_empty(), "{problem}");
}

#[tokio::test]
async fn watches_are_bounded_given_back_and_end_with_the_node() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let mut streams = Vec::new();
    for _ in 0..256 {
        streams.push(Stream::open(&node, "", None).await);
    }
    node.get("/watch").await.problem(503, "overloaded");
    streams.pop();
    let mut last = eventually("a place is given back", async || {
        let answer = node.open("/watch", &[]).await;
        (answer.status() == 200).then(|| answer.into_body())
    })
    .await;
    node.put("/kv/k", "v").await;
    for stream in &mut streams {
        assert_eq!(stream.changes(1).await[0].1, "k");
    }
    cluster.drain(1).await;
    while let Some(Ok(_)) = timeout(Duration::from_secs(10), last.frame()).await.expect("it ends") {}
}

#[tokio::test]
async fn a_long_poll_waits_for_its_key_and_no_longer_than_it_may() {
    let cluster = Cluster::start(3, Setup::default()).await;
    let node = cluster.at(1);
    let tag = node.put("/kv/k", "one").await.header("etag").unwrap().to_owned();
    let poll = async |node: &Client, path: &str, tag: Option<&str>| {
        let headers: Vec<(&str, &str)> = tag.iter().map(|tag| ("if-none-match", *tag)).collect();
        node.ask("GET", path, &headers, "").await
    };
    let began = Instant::now();
    let answer = poll(&node, "/kv/k?wait=300ms", Some(&tag)).await;
    assert!(answer.status == 304 && began.elapsed() >= Duration::from_millis(300), "{answer:?}");
    assert_eq!(poll(&node, "/kv/k?wait=60s", Some("\"other\"")).await.status, 200, "that is news at once");

    // It waits at one node, and is woken by a write at another.
    let (waits, writes) = tokio::join!(poll(&node, "/kv/k?wait=60s", Some(&tag)), async {
        cluster.at(2).put("/kv/other", "x").await;
        cluster.at(2).put("/kv/k", "two").await
    });
    assert_eq!(
        (waits.status, &waits.body[..], waits.header("a3-version")),
        (200, &b"two"[..], writes.header("a3-version"))
    );

    // What is deleted is told once, and waited for as a value is.
    let tag = waits.header("etag").unwrap().to_owned();
    let deleted = node.delete("/kv/k").await.header("etag").unwrap().to_owned();
    poll(&node, "/kv/k?wait=60s", Some(&tag)).await.problem(404, "no-such-key");
    let began = Instant::now();
    poll(&node, "/kv/k?wait=300ms", Some(&deleted)).await.problem(404, "no-such-key");
    poll(&node, "/kv/none?wait=300ms", None).await.problem(404, "no-such-key");
    assert!(began.elapsed() >= Duration::from_millis(600));
    let (created, _) =
        tokio::join!(poll(&node, "/kv/none?wait=60s", None), async { cluster.at(3).put("/kv/none", "here").await });
    assert_eq!((created.status, &created.body[..]), (200, &b"here"[..]));
    for bad in ["wait=5", "wait=61s", "wait="] {
        node.get(&format!("/kv/k?{bad}")).await.problem(400, "bad-parameters");
    }
}
