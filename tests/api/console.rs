//! The console as a browser and a program are served it, and the stream that it follows.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::client::Answer;
use crate::harness::{Cluster, eventually};

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

/// The files that a page of the console names, as paths.
fn named(text: &str) -> Vec<String> {
    let of_page = text.split("\"/console/").skip(1).map(|rest| rest.split('"').next().unwrap());
    let imported = text.split("from \"./").skip(1).map(|rest| rest.split('"').next().unwrap());
    of_page.chain(imported).map(|name| format!("/console/{name}")).collect()
}

/// Whether whoever keeps the answer is told that another kind may be had.
fn varies(answer: &Answer) -> bool {
    answer.headers.get_all("vary").iter().any(|name| name == "accept")
}

fn text(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.body).unwrap()
}

#[tokio::test]
async fn a_browser_gets_a_page_and_a_program_the_index() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let page = node.ask("GET", "/", &[BROWSER], "").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(varies(&page), "{page:?}");
    assert!(text(&page).starts_with("<!doctype html>"), "{page:?}");
    let head = node.ask("HEAD", "/", &[BROWSER], "").await;
    assert_eq!((head.status, head.header("content-type")), (200, page.header("content-type")));
    for program in [&[][..], &[("accept", "*/*")], &[("accept", "application/json")]] {
        let index = node.ask("GET", "/", program, "").await;
        assert_eq!((varies(&index), &index.json()["name"]), (true, &"a3.store".into()));
    }
    node.ask("GET", "/?view=keys", &[BROWSER], "").await.problem(400, "bad-parameters");
}

#[tokio::test]
async fn its_files_are_few_small_guarded_and_fetched_once() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let page = node.ask("GET", "/", &[BROWSER], "").await;
    let mut bytes = page.body.len();
    let mut files = named(text(&page));
    let mut seen = 0;
    while let Some(path) = files.get(seen).cloned() {
        seen += 1;
        let file = node.get(&path).await;
        assert_eq!(file.status, 200, "{path}");
        for (name, value) in [("cache-control", "no-cache"), ("x-content-type-options", "nosniff")] {
            assert_eq!(file.header(name), Some(value), "{path}");
        }
        let policy = file.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        let known = [("if-none-match", file.header("etag").unwrap())];
        let again = node.ask("GET", &path, &known, "").await;
        assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, file.header("etag")), "{path}");
        let packed = node.ask("GET", &path, &[("accept-encoding", "gzip")], "").await;
        assert!(packed.body.len() <= file.body.len(), "{path}");
        if file.body.len() > 1000 {
            assert_eq!(packed.header("content-encoding"), Some("gzip"), "{path}");
        }
        bytes += file.body.len();
        for more in named(text(&file)) {
            if !files.contains(&more) {
                files.push(more);
            }
        }
    }
    assert!(seen > 10 && bytes < 80_000, "{seen} files, {bytes} bytes");
    for missing in ["/console/index.html", "/console/none.js", "/console/..%2Fstyle.css"] {
        node.get(missing).await.problem(404, "no-such-page");
    }
    node.put("/console/app.js", "").await.problem(405, "method-not-allowed");
}

#[tokio::test]
async fn a_record_is_seen_with_each_replicas_copy() {
    let cluster = Cluster::of_three().await;
    let receipt = cluster.at(1).put("/kv/k?consistency=all", "<b>").await.receipt(201, "stored");
    let seen = cluster.at(2).get("/kv/k?view=record").await.json();
    assert_eq!((&seen["value"], &seen["version"], &seen["bytes"]), (&"<b>".into(), &receipt["version"], &3.into()));
    let copies = seen["copies"].as_array().unwrap();
    assert_eq!(copies.len(), 2, "{seen}");
    for copy in copies {
        assert!(seen["replicas"].as_array().unwrap().contains(&copy["node"]), "{seen}");
        assert_eq!((&copy["version"], &copy["live"]), (&receipt["version"], &true.into()), "{seen}");
    }
}

/// One stream of events, read as it comes.
struct Stream {
    socket: TcpStream,
    read: Vec<u8>,
}

impl Stream {
    async fn open(address: &str, last: &str) -> Self {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /cluster/events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nAccept-Encoding: gzip\r\n{last}\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        Self { socket, read: Vec::new() }
    }

    /// Reads until its text is so, or its end. Returns all that came.
    async fn until(&mut self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let deadline = Duration::from_secs(20);
        let reading = async {
            loop {
                let came = String::from_utf8_lossy(&self.read).into_owned();
                if is_so(&came) || self.socket.read_buf(&mut self.read).await.unwrap() == 0 {
                    return came;
                }
            }
        };
        timeout(deadline, reading).await.unwrap_or_else(|_| panic!("{what}: not in time"))
    }
}

/// The data of the events of that name.
fn told(came: &str, name: &str) -> Vec<Value> {
    let blocks = came.split("\n\n").filter(|block| block.contains(&format!("event: {name}\n")));
    let data = blocks.filter_map(|block| block.lines().find_map(|line| line.strip_prefix("data: ")));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

#[tokio::test]
async fn a_stream_tells_the_cluster_each_second_and_what_happens() {
    let mut cluster = Cluster::of_three().await;
    let address = cluster.client_address(1).to_owned();
    let address = address.as_str();
    let mut stream = Stream::open(address, "").await;
    let came = stream.until("three snapshots", |came| told(came, "cluster").len() >= 3).await;
    assert!(came.starts_with("HTTP/1.1 200 ") && came.contains("content-type: text/event-stream\r\n"), "{came}");
    assert!(!came.contains("content-encoding"), "{came}");
    let snapshot = told(&came, "cluster").pop().unwrap();
    assert_eq!(
        (&snapshot["node"], &snapshot["state"], &snapshot["ready"]),
        (&"n1".into(), &"serving".into(), &true.into())
    );
    assert_eq!(
        (snapshot["cluster"]["members"].as_array().unwrap().len(), &snapshot["health"]["status"]),
        (3, &"healthy".into())
    );
    let texts = |came: &str| -> Vec<String> {
        told(came, "event")
            .iter()
            .map(|e| format!("{} {}", e["node"].as_str().unwrap(), e["text"].as_str().unwrap()))
            .collect()
    };
    assert!(texts(&came).contains(&"n1 serves clients".to_owned()), "{came}");

    let began = Instant::now();
    cluster.stop(3).await;
    stream.until("the death is told", |came| texts(came).contains(&"n3 is down".to_owned())).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let down = |came: &str| told(came, "cluster").iter().any(|s| s["cluster"]["members"][2]["liveness"] == "down");
    let whole = stream.until("the snapshot has it", down).await;

    let remembered = cluster.at(1).get("/cluster/events").await;
    assert!(varies(&remembered), "{remembered:?}");
    let remembered = remembered.json();
    let events = remembered["events"].as_array().unwrap();
    assert_eq!(remembered["node"], "n1");
    let last = events.iter().find(|e| e["node"] == "n3" && e["text"] == "is down").unwrap();
    assert_eq!(last["kind"], "membership");

    // A stream that comes again is not told what it has; one that followed another life of the node is.
    let ends = format!(".{}", last["number"]);
    let id = whole.lines().find_map(|line| line.strip_prefix("id: ").filter(|id| id.ends_with(&ends))).unwrap();
    let again = async |id: &str| Stream::open(address, &format!("Last-Event-ID: {id}\r\n")).await;
    let resumed = again(id).await.until("two snapshots", |came| told(came, "cluster").len() >= 2).await;
    assert!(!texts(&resumed).contains(&"n3 is down".to_owned()), "{resumed}");
    let is_told = |came: &str| texts(came).contains(&"n3 is down".to_owned());
    let anew = again(&format!("0{id}")).await.until("the events", is_told).await;
    assert!(anew.contains(&format!("id: {id}\n")), "{anew}");
}

#[tokio::test]
async fn streams_are_bounded_and_given_back() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let streaming = [("accept", "text/event-stream")];
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = Stream::open(cluster.client_address(1), "").await;
        stream.until("a snapshot", |came| came.contains("event: cluster")).await;
        streams.push(stream);
    }
    node.ask("GET", "/cluster/events", &streaming, "").await.problem(503, "overloaded");
    assert_eq!(node.get("/cluster/events").await.status, 200, "what is no stream is told all the same");
    streams.pop();
    eventually("a place is free again", async || {
        let mut stream = Stream::open(cluster.client_address(1), "").await;
        stream.until("an answer", |came| came.contains("\r\n\r\n")).await.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
    node.get("/cluster/events?x=1").await.problem(400, "bad-parameters");
}

#[tokio::test]
async fn a_stream_ends_when_the_node_stops() {
    let cluster = Cluster::single().await;
    let mut stream = Stream::open(cluster.client_address(1), "").await;
    stream.until("a snapshot", |came| came.contains("event: cluster")).await;
    cluster.drain(1).await;
    let whole = stream.until("its end", |came| came.ends_with("\r\n0\r\n\r\n")).await;
    let last = told(&whole, "cluster").pop().unwrap();
    assert_eq!((&last["state"], &last["ready"]), (&"draining".into(), &false.into()));
    assert_eq!(told(&whole, "event").last().unwrap()["text"], "is stopping: it takes no new requests");
}

#[tokio::test]
async fn what_a_node_did_lately_is_told_with_it() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let member = async || node.get("/cluster").await.json()["members"][0].clone();
    assert_eq!(member().await["latency_p99_ms"], Value::Null, "nothing was asked yet");
    node.put("/kv/k", "v").await.receipt(201, "stored");
    let p99 = eventually("the latency is told", async || member().await["latency_p99_ms"].as_f64()).await;
    assert!(p99 > 0.0 && p99 < 10_000.0, "{p99}");
    assert_eq!(member().await["hints_kept"], Value::Array(Vec::new()));
}
