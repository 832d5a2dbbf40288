//! Moving data: what is exported, what an import makes of it, and of lines that are wrong.

use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::{Answer, Client, encoded};
use crate::harness::{Cluster, Setup, eventually};

const CSV: &[(&str, &str)] = &[("content-type", "text/csv")];

async fn exported(node: &Client, query: &str) -> String {
    let answer = node.get(&format!("/export{query}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let kind = answer.header("content-type").unwrap();
    assert_eq!(kind.starts_with("text/csv"), query.contains("csv"), "{kind}");
    String::from_utf8(answer.body.to_vec()).unwrap()
}

async fn imported(node: &Client, query: &str, body: impl Into<bytes::Bytes>) -> Value {
    let answer = node.post(&format!("/import{query}"), body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Lines, stored, unchanged, older, expired, refused.
#[track_caller]
fn counts(told: &Value) -> [u64; 6] {
    ["lines", "stored", "unchanged", "older", "expired", "refused"].map(|name| told[name].as_u64().unwrap())
}

fn line(members: &Value) -> String {
    format!("{members}\n")
}

/// Values of all kinds: text, bytes, ends, versions of conditional writes, and one that is deleted.
async fn fill(cluster: &Cluster) {
    let node = |n: usize| cluster.at(n as u16 % 3 + 1);
    for n in 0..60 {
        node(n).put(&format!("/kv/plain/{n:03}"), format!("{n}\n\"{n}\",")).await.receipt(201, "stored");
    }
    let binary: Vec<u8> = (0..=255).collect();
    for key in [&b"\xff\x00"[..], b"a\"b,c\nd", "\u{e9}".as_bytes(), b"."] {
        node(1).put(&format!("/kv/{}", encoded(key)), binary.clone()).await.receipt(201, "stored");
    }
    node(2).put("/kv/empty", "").await.receipt(201, "stored");
    node(2).put("/kv/large", vec![0; 300_000]).await.receipt(201, "stored");
    node(2).ask("PUT", "/kv/typed?ttl=1h", &[("content-type", "text/html; charset=utf-8")], "<p>").await;
    let first = node(0).put("/kv/conditional", "1").await;
    let tag = first.header("etag").unwrap().to_owned();
    node(1).ask("PUT", "/kv/conditional", &[("if-match", &tag)], "2").await.receipt(200, "stored");
    node(1).put("/kv/deleted", "x").await.receipt(201, "stored");
    node(2).delete("/kv/deleted").await.receipt(200, "deleted");
}

#[tokio::test]
async fn another_cluster_gets_the_same_keys_values_versions_and_ends() {
    let cluster = Cluster::of_three().await;
    fill(&cluster).await;
    let text = exported(&cluster.at(2), "").await;
    let rows = exported(&cluster.at(3), "?format=csv").await;
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (end, records) = lines.split_last().unwrap();
    assert_eq!(*end, json!({"end": {"keys": 68, "damaged": 0, "strict": true}}));
    assert_eq!(records.len(), 68);
    let typed = records.iter().find(|record| record["key"] == "typed").unwrap();
    assert_eq!((&typed["content_type"], &typed["value"]), (&json!("text/html; charset=utf-8"), &json!("<p>")));
    assert!(typed["expires_at_ms"].is_u64());
    let conditional = records.iter().find(|record| record["key"] == "conditional").unwrap();
    assert!(conditional["version"].as_str().unwrap().ends_with("-2"));
    assert_eq!(rows.matches("\r\n").count(), 69, "a header and a row each; the values have other line ends");

    // At one node, from lines; at three with other copies, from rows.
    let alone = Cluster::single().await;
    let told = imported(&alone.at(1), "", text.clone()).await;
    assert_eq!((counts(&told), &told["complete"]), ([68, 68, 0, 0, 0, 0], &json!(true)), "{told}");
    assert_eq!(exported(&alone.at(1), "").await, text);
    let three = Cluster::start(3, Setup { rf: 3, ..Setup::default() }).await;
    three.all_reachable().await;
    let told = three.at(2).ask("POST", "/import", CSV, rows.clone()).await;
    assert_eq!((told.status, counts(&told.json())), (200, [68, 68, 0, 0, 0, 0]), "{told:?}");
    assert_eq!(exported(&three.at(1), "?format=csv").await, rows);
    assert_eq!(exported(&three.at(3), "").await, text);

    for node in [alone.at(1), three.at(1)] {
        for key in ["typed", "conditional", "%FF%00", "large"] {
            let (here, there) = (cluster.at(1).get(&format!("/kv/{key}")).await, node.get(&format!("/kv/{key}")).await);
            assert_eq!(there.body, here.body);
            for name in ["etag", "content-type", "last-modified", "a3-expires-at"] {
                assert_eq!(there.header(name), here.header(name), "{key}: {name}");
            }
        }
        // Twice changes nothing.
        assert_eq!(counts(&imported(&node, "", text.clone()).await), [68, 0, 68, 0, 0, 0]);
        assert_eq!(counts(&imported(&node, "?format=csv", rows.clone()).await), [68, 0, 68, 0, 0, 0]);
        assert_eq!(exported(&node, "").await, text);
    }
    assert_eq!(exported(&cluster.at(1), "?prefix=plain%2F00").await.lines().count(), 11);
    // A client that takes compressed answers gets them whole.
    for path in ["/export", "/export?format=csv", "/kv?values"] {
        let headers = [("accept-encoding", "gzip"), ("accept", "application/x-ndjson")];
        let packed = alone.at(1).ask("GET", path, &headers, "").await;
        assert_eq!((packed.status, packed.header("content-encoding")), (200, Some("gzip")), "{path}");
        assert!(packed.body.starts_with(&[0x1f, 0x8b]) && packed.body.len() < text.len() / 2, "{path}");
    }
    // What a listing tells is taken, too; of plain writes a version says when they were written.
    let headers = [("accept", "application/x-ndjson")];
    let listed = cluster.at(1).ask("GET", "/kv?values&prefix=plain", &headers, "").await;
    assert_eq!(counts(&imported(&alone.at(1), "", listed.body).await), [60, 0, 60, 0, 0, 0]);
}

#[tokio::test]
async fn what_is_newer_or_deleted_stays_and_restamping_brings_it_back() {
    let cluster = Cluster::of_three().await;
    let node = cluster.at(1);
    for key in ["a", "b", "c", "d"] {
        node.put(&format!("/kv/{key}"), "old").await.receipt(201, "stored");
    }
    node.put("/kv/d?ttl=1h", "ends").await;
    let text = exported(&node, "").await;
    let newer = cluster.at(2).put("/kv/a", "new").await.receipt(200, "stored");
    let deleted = cluster.at(3).delete("/kv/b").await.receipt(200, "deleted");
    let told = imported(&cluster.at(2), "", text.clone()).await;
    assert_eq!(counts(&told), [4, 0, 2, 2, 0, 0], "{told}");
    assert_eq!(node.get("/kv/a").await.header("a3-version"), newer["version"].as_str());
    assert_eq!(node.get("/kv/b").await.header("a3-version"), deleted["version"].as_str());

    let told = imported(&cluster.at(3), "?restamp=true", text.clone()).await;
    assert_eq!((counts(&told), &told["complete"]), ([4, 4, 0, 0, 0, 0], &json!(true)), "{told}");
    let back = node.get("/kv/a").await;
    assert_eq!(back.body, "old");
    assert!(back.header("a3-version").unwrap() > newer["version"].as_str().unwrap());
    assert_eq!(node.get("/kv/b").await.body, "old");
    // It keeps the time that it had left, to the time that the import took.
    let end = |text: &str| {
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["key"] == "d").map(|line| line["expires_at_ms"].as_u64().unwrap()).next().unwrap()
    };
    assert!(end(&exported(&node, "").await).abs_diff(end(&text)) < 60_000);
    // A deletion is imported as one.
    let version = back.header("a3-version").unwrap();
    let ended = version.replace("-0", "-1");
    let written = &version[..16];
    let tombstones = [
        line(&json!({"key": "a", "version": version, "written": written, "deleted": true})),
        line(&json!({"key": "a", "version": ended, "written": written, "deleted": true})),
        line(&json!({"key": "c", "deleted": true})),
    ];
    let told = imported(&node, "", tombstones.concat()).await;
    // The first has the version of the value that stands there.
    assert_eq!(counts(&told), [3, 2, 0, 0, 0, 1], "{told}");
    assert_eq!(told["problems"][0]["code"], "version-conflict");
    assert_eq!(node.get("/kv/a").await.header("a3-version"), Some(ended.as_str()));
    assert_eq!(node.get("/kv/c").await.status, 404);
    assert_eq!(counts(&imported(&node, "", tombstones[1].clone()).await), [1, 0, 1, 0, 0, 0]);
    assert_eq!(counts(&imported(&node, "?restamp", tombstones[1].clone()).await), [1, 1, 0, 0, 0, 0]);
}

#[tokio::test]
async fn a_bad_line_is_named_and_harms_no_other() {
    let setup =
        Setup { http: a3::http::Options { value_bytes_max: 1000, ..Setup::default().http }, ..Setup::default() };
    let cluster = Cluster::start(1, setup).await;
    let node = cluster.at(1);
    let ahead = "0fffffffffff0000-1-0";
    let body = [
        line(&json!({"key": "a", "value": "1"})),
        "\n".to_owned(),
        "not json\n".to_owned(),
        line(&json!({"key": "b", "value": "x".repeat(1001)})),
        line(&json!({"key": "b", "value": "x".repeat(30_000)})),
        line(&json!({"key": "ahead", "value": "v", "version": ahead})),
        line(&json!({"key": "gone", "value": "v", "version": "0000000000050000-1-0", "expires_at_ms": 6})),
        line(&json!({"key": "gone", "value": "v", "expires_at_ms": 6})),
        line(&json!({"key": "a", "value": "2"})),
        line(&json!({"key": "c", "value": "3", "ttl": "1h"})),
    ];
    let told = imported(&node, "", body.concat()).await;
    assert_eq!((counts(&told), &told["complete"]), ([9, 3, 0, 0, 2, 4], &json!(false)), "{told}");
    let problems: Vec<(u64, &str)> = told["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| (problem["line"].as_u64().unwrap(), problem["code"].as_str().unwrap()))
        .collect();
    assert_eq!(problems, [(3, "bad-line"), (4, "value-too-large"), (5, "line-too-long"), (6, "clock-skew")]);
    assert_eq!(told["problems"][3]["key"], "ahead");
    for (_, code) in problems {
        assert_eq!(node.get(&format!("/problems/{code}")).await.status, 200);
    }
    assert_eq!(node.get("/kv/a").await.body, "2", "lines on one key stay in order");
    assert!(node.get("/kv/c").await.header("a3-expires-at").is_some());
    assert_eq!(node.get("/kv/ahead").await.status, 404);
    node.put("/kv/later", "v").await.receipt(201, "stored");

    let rows = "value,key\n1,r\n2\n3,s\n";
    let told = node.ask("POST", "/import", CSV, rows).await.json();
    assert_eq!((counts(&told), &told["problems"][0]["line"]), ([3, 2, 0, 0, 0, 1], &json!(3)), "{told}");
    // The first hundred are named, and all are counted.
    let told = imported(&node, "", "x\n".repeat(1000)).await;
    assert_eq!((counts(&told), told["problems"].as_array().unwrap().len()), ([1000, 0, 0, 0, 0, 1000], 100));
    // Another content under a version that is taken is not told to be stored.
    let record = |value: &str| line(&json!({"key": "twice", "value": value, "version": "0000000000050000-1-0"}));
    let told = imported(&node, "", (0..20).map(|n| record(&n.to_string())).collect::<String>()).await;
    assert_eq!(counts(&told), [20, 1, 0, 0, 0, 19], "{told}");
    assert_eq!(
        (&told["problems"][0]["code"], node.get("/kv/twice").await.body.as_ref()),
        (&json!("version-conflict"), &b"0"[..])
    );
    assert_eq!(node.get("/problems/version-conflict").await.status, 200);
}

#[tokio::test]
async fn whether_the_lines_were_all_there_is_said() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let record = line(&json!({"key": "k", "value": "v", "version": "0000000000050000-1-0"}));
    let (end, error) = ("{\"end\":{\"keys\":1}}\n", "{\"error\":{\"code\":\"unavailable\"}}\n");
    for (body, complete) in [
        (String::new(), true),
        (line(&json!({"key": "new", "value": "v"})), true),
        (record.clone(), false),
        ([&record, end].concat(), true),
        ([&record, end, &record, end].concat(), true),
        ([&record, end, &record].concat(), true),
        ([&record, end, error].concat(), false),
        ([&record, error].concat(), false),
        ([&record, error, end].concat(), false),
    ] {
        let told = imported(&node, "", body.clone()).await;
        assert_eq!((&told["complete"], &told["refused"]), (&json!(complete), &json!(0)), "{body}: {told}");
    }
    let rows = "key,value,version\nk,v,0000000000050000-1-0\n";
    assert_eq!(imported(&node, "?format=csv", rows).await["complete"], true);
    let told = imported(&node, "?format=csv", rows.trim_end()).await;
    assert_eq!((counts(&told), &told["problems"][0]["line"]), ([1, 0, 0, 0, 0, 1], &json!(2)), "{told}");
}

#[tokio::test]
async fn what_is_no_export_or_import_is_refused_before_anything_is_done() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    for query in ["format=xml", "limit=5", "prefix=%zz", "format=csv&format=csv"] {
        node.get(&format!("/export?{query}")).await.problem(400, "bad-parameters");
    }
    for query in ["format=xml", "restamp=1", "prefix=a"] {
        let problem = node.post(&format!("/import?{query}"), "").await.problem(400, "bad-parameters");
        assert_eq!(problem["outcome"], "not_applied");
    }
    let body = line(&json!({"key": "k", "value": "v"}));
    let with = async |name: &str, value: &str| node.ask("POST", "/import", &[(name, value)], body.clone()).await;
    with("content-type", "application/xml").await.problem(400, "bad-request");
    with("content-encoding", "gzip").await.problem(415, "unsupported-encoding");
    let problem = node.ask("POST", "/import", CSV, "kez,value\na,b\n").await.problem(400, "bad-body");
    assert_eq!((&problem["outcome"], problem["parameters"].as_array().unwrap().len()), (&json!("not_applied"), 2));
    node.get("/import").await.problem(405, "method-not-allowed");
    node.post("/export", "").await.problem(405, "method-not-allowed");
    for kind in ["application/x-www-form-urlencoded", "application/jsonl", "application/x-ndjson; charset=utf-8"] {
        assert_eq!(with("content-type", kind).await.status, 200, "{kind}");
    }
    assert_eq!(counts(&imported(&node, "", "").await), [0; 6]);
}

#[tokio::test]
async fn two_clusters_that_went_on_from_one_export_keep_what_each_acknowledged() {
    let (one, other) = (Cluster::of_three().await, Cluster::single().await);
    one.at(1).put("/kv/k", "first").await.receipt(201, "stored");
    imported(&other.at(1), "", exported(&one.at(1), "").await).await;
    let tag = one.at(1).get("/kv/k").await.header("etag").unwrap().to_owned();
    for (node, value) in [(one.at(2), "here"), (other.at(1), "there")] {
        node.ask("PUT", "/kv/k", &[("if-match", &tag)], value).await.receipt(200, "stored");
    }
    for (from, to, kept) in [(&other, &one, "here"), (&one, &other, "there")] {
        let told = imported(&to.at(1), "", exported(&from.at(1), "").await).await;
        assert_eq!((counts(&told), &told["problems"][0]["code"]), ([1, 0, 0, 0, 0, 1], &json!("version-conflict")));
        assert_eq!(to.at(1).get("/kv/k").await.body, kept);
    }
}

#[tokio::test]
async fn a_node_that_stops_does_not_wait_for_the_rest_of_an_import() {
    let cluster = Cluster::single().await;
    let mut socket = begun(cluster.client_address(1), &line(&json!({"key": "k", "value": "v"}))).await;
    let node = cluster.at(1);
    eventually("its line is done", async || (node.get("/kv/k").await.status == 200).then_some(())).await;
    cluster.drain(1).await;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains("\"import\"") {
        let read = socket.read(&mut piece).await.unwrap();
        assert!(read > 0, "it broke off: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..read]);
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"stored\":1"), "{answer}");
}

/// A request whose body never comes to its end.
async fn begun(address: &str, body: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!("POST /import HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000000\r\n\r\n{body}");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket
}

#[tokio::test]
async fn there_are_only_so_many_imports_at_a_time() {
    let cluster = Cluster::single().await;
    let (node, address) = (cluster.at(1), cluster.client_address(1));
    let mut under_way = Vec::new();
    for n in 0..4 {
        under_way.push(begun(address, &line(&json!({"key": format!("k{n}"), "value": "v"}))).await);
        let done = async || (node.get(&format!("/kv/k{n}")).await.status == 200).then_some(());
        eventually("its line is done", done).await;
    }
    let problem = node.post("/import", "").await.problem(503, "overloaded");
    assert_eq!(problem["outcome"], "not_applied");
    drop(under_way);
    eventually("there is room", async || (node.post("/import", "").await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn a_body_of_which_nothing_comes_ends_its_import() {
    let body_timeout = std::time::Duration::from_millis(500);
    let setup = Setup { http: a3::http::Options { body_timeout, ..Setup::default().http }, ..Setup::default() };
    let cluster = Cluster::start(1, setup).await;
    let mut socket = begun(cluster.client_address(1), &line(&json!({"key": "k", "value": "v"}))).await;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    let problem: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&problem["code"], &problem["outcome"]), (&json!("body-timeout"), &json!("unknown")), "{problem}");
    assert_eq!((counts(&problem["import"]), &problem["import"]["complete"]), ([1, 1, 0, 0, 0, 0], &json!(false)));
    assert_eq!(cluster.at(1).get("/kv/k").await.body, "v");
}

#[tokio::test]
async fn lines_that_cannot_be_written_end_the_import_and_a_cut_export_is_known_for_one() {
    let mut cluster = Cluster::of_three().await;
    for n in 0..120 {
        cluster.at(1).put(&format!("/kv/k{n:03}"), vec![b'x'; 200_000]).await.receipt(201, "stored");
    }
    let mut texts = cluster.at(1).open("/export", &[("x-request-id", "export-1")]).await;
    let mut rows = cluster.at(1).open("/export?format=csv", &[]).await;
    for answer in [&mut texts, &mut rows] {
        answer.body_mut().frame().await.unwrap().unwrap();
    }
    cluster.stop(2).await;
    cluster.stop(3).await;
    let node = cluster.at(1);
    let body: String = (0..200).map(|n| line(&json!({"key": format!("new{n}"), "value": "v"}))).collect();
    let (rest, cut, stopped): (_, _, Answer) =
        tokio::join!(texts.into_body().collect(), rows.into_body().collect(), node.post("/import", body));

    let text = String::from_utf8(rest.unwrap().to_bytes().to_vec()).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["error"]["code"], &last["error"]["request_id"]), (&json!("unavailable"), &json!("export-1")));
    assert!(cut.is_err(), "rows without their rest are no answer");

    let code = if stopped.status == 503 { "unavailable" } else { "timed-out" };
    let problem = stopped.problem(stopped.status, code);
    assert_eq!((&problem["outcome"], &problem["import"]["stopped_at"]), (&json!("unknown"), &json!(1)), "{problem}");
    assert_eq!(counts(&problem["import"]), [0; 6]);
    assert!(problem["detail"].as_str().unwrap().starts_with("line 1 cannot be written: "), "{problem}");
}

#[tokio::test]
async fn a_long_body_is_imported_line_by_line() {
    let cluster = Cluster::single().await;
    let lines = |range: std::ops::Range<u32>| -> String {
        range
            .map(|n| format!("{{\"key\":\"k{n:06}\",\"value\":\"{n}\",\"version\":\"{:016x}-1-0\"}}\n", (n + 1) << 8))
            .collect()
    };
    let body = lines(0..20_000);
    let told = imported(&cluster.at(1), "", body.clone()).await;
    assert_eq!(counts(&told), [20_000, 20_000, 0, 0, 0, 0]);
    let text = exported(&cluster.at(1), "").await;
    assert_eq!(text.lines().count(), 20_001);
    assert_eq!(counts(&imported(&cluster.at(1), "", body + &text).await), [40_000, 0, 40_000, 0, 0, 0]);
}
