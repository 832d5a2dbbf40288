//! Keys in order: pages, cursors, prefixes, delimiters, streams, and what is said where slots cannot be had.

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::client::{Answer, Client, encoded};
use crate::harness::{Cluster, Setup, eventually};

fn keys(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap()).collect()
}

fn prefixes(page: &Value) -> Vec<&str> {
    page["common_prefixes"].as_array().unwrap().iter().map(|p| p["prefix"].as_str().unwrap()).collect()
}

async fn page(node: &Client, query: &str) -> Value {
    let answer = node.get(&format!("/kv?{query}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let page = answer.json();
    assert_eq!(answer.header("link").is_some(), page["next"].is_string(), "{answer:?}");
    page
}

/// Follows the cursors, each at another node.
async fn all(cluster: &Cluster, query: &str) -> (Vec<String>, Vec<String>) {
    let (mut found, mut common, mut cursor) = (Vec::new(), Vec::new(), String::new());
    for turn in 0..100 {
        let page = page(&cluster.at(turn % 3 + 1), &format!("{query}{cursor}")).await;
        found.extend(keys(&page).into_iter().map(str::to_owned));
        common.extend(prefixes(&page).into_iter().map(str::to_owned));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (found, common),
        }
    }
    panic!("no end");
}

async fn stream(node: &Client, query: &str) -> Answer {
    node.ask("GET", &format!("/kv?{query}"), &[("accept", "application/x-ndjson")], "").await
}

fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-ndjson")));
    let text = std::str::from_utf8(&answer.body).unwrap();
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn pages_hold_every_live_key_once_and_in_order() {
    let cluster = Cluster::of_three().await;
    let mut written: Vec<String> =
        (0..300).map(|n| format!("{}/{}", ["a", "b", "c"][n % 3], n * 7919 % 1000)).collect();
    for (n, key) in written.iter().enumerate() {
        cluster.at(n as u16 % 3 + 1).put(&format!("/kv/{key}"), n.to_string()).await.receipt(201, "stored");
    }
    for key in written.drain(..20) {
        cluster.at(1).delete(&format!("/kv/{key}")).await.receipt(200, "deleted");
    }
    written.sort();
    for limit in [1000, 100, 7] {
        assert_eq!(all(&cluster, &format!("limit={limit}")).await, (written.clone(), Vec::new()), "limit {limit}");
    }
    let (of_b, _) = all(&cluster, "prefix=b%2F&limit=9").await;
    let wanted: Vec<&String> = written.iter().filter(|key| key.starts_with("b/")).collect();
    assert_eq!(of_b.iter().collect::<Vec<_>>(), wanted);
    // A key to begin behind, which need not exist.
    let behind = page(&cluster.at(2), "after=b%2F5&limit=1000").await;
    assert_eq!(keys(&behind), written.iter().filter(|key| key.as_str() > "b/5").collect::<Vec<_>>());
    assert_eq!(keys(&page(&cluster.at(1), "").await).len(), 100, "a page is 100 keys unless it is asked for more");

    assert_eq!(all(&cluster, "delimiter=%2F&limit=1").await, (vec![], vec!["a/".into(), "b/".into(), "c/".into()]));
    cluster.at(1).put("/kv/b", "beside").await;
    let top = page(&cluster.at(3), "delimiter=/").await;
    assert_eq!((keys(&top), prefixes(&top), &top["next"]), (vec!["b"], vec!["a/", "b/", "c/"], &Value::Null));
    let within = page(&cluster.at(3), "delimiter=/&prefix=b/&limit=1000").await;
    assert_eq!((keys(&within).len(), prefixes(&within).len()), (wanted.len(), 0));

    let told = lines(&stream(&cluster.at(2), "prefix=b").await);
    let (end, told) = told.split_last().unwrap();
    assert_eq!(*end, json!({"end": {"items": wanted.len() + 1, "strict": true, "unreachable_slots": []}}));
    let mut of_b: Vec<&str> = wanted.iter().map(|key| key.as_str()).collect();
    of_b.insert(0, "b");
    assert_eq!(told.iter().map(|line| line["key"].as_str().unwrap()).collect::<Vec<_>>(), of_b);
    let told = lines(&stream(&cluster.at(2), "delimiter=/").await);
    assert_eq!(told.len(), 5);
    let named = |at: usize, member: &str| told[at][member].as_str().map(str::to_owned);
    assert_eq!([named(0, "prefix"), named(1, "key"), named(2, "prefix")], ["a/", "b", "b/"].map(|t| Some(t.into())));
}

#[tokio::test]
async fn an_item_says_what_a_read_would_say() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let binary = [0xff, 0x00, b'/', 0x80];
    let kind = [("content-type", "text/plain")];
    let receipt = node.ask("PUT", "/kv/text?ttl=1h", &kind, "val\u{fc}e").await.receipt(201, "stored");
    node.put(&format!("/kv/{}", encoded(&binary)), vec![0xfe, 0xff]).await.receipt(201, "stored");
    node.put("/kv/soon?ttl=1ms", "gone").await;
    eventually("it has ended", async || (node.get("/kv/soon").await.status == 404).then_some(())).await;

    let plain = page(&node, "").await;
    let item = &plain["items"][0];
    let wanted = json!({"key": "text", "version": receipt["version"], "bytes": 6, "content_type": "text/plain",
        "expires_at_ms": receipt["expires_at_ms"]});
    assert_eq!((item, plain["items"].as_array().unwrap().len()), (&wanted, 2), "what has ended is not listed");
    assert_eq!((&plain["next"], &plain["strict"]), (&Value::Null, &json!(true)));
    let item = &plain["items"][1];
    assert_eq!((&item["key_base64"], &item["bytes"]), (&json!("/wAvgA=="), &json!(2)));
    assert_eq!(item["content_type"], "application/octet-stream");

    let valued = page(&node, "values=true").await;
    assert_eq!(valued["items"][0]["value"], "val\u{fc}e");
    assert_eq!((&valued["items"][1]["value_base64"], valued["items"][1].get("value")), (&json!("/v8="), None));
    // A prefix, a key to begin behind and a delimiter are bytes, too.
    assert_eq!(page(&node, "prefix=%FF").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(page(&node, "after=%FF%00%2F%80").await["items"].as_array().unwrap().len(), 0);
    let common = page(&node, "delimiter=%00").await;
    assert_eq!(common["common_prefixes"], json!([{"prefix": "\u{fffd}\u{0}", "prefix_base64": "/wA="}]));
}

#[tokio::test]
async fn large_values_end_a_page_early_and_a_page_without_them_not() {
    let cluster = Cluster::single().await;
    for n in 0..6 {
        cluster.at(1).put(&format!("/kv/k{n}"), vec![b'x'; 400_000]).await.receipt(201, "stored");
    }
    assert_eq!(keys(&page(&cluster.at(1), "").await).len(), 6);
    let first = page(&cluster.at(1), "values=true").await;
    assert!((1..6).contains(&keys(&first).len()) && first["next"].is_string());
    let told = lines(&stream(&cluster.at(1), "values").await);
    let sizes: Vec<usize> = told.iter().filter_map(|line| line["value"].as_str()).map(str::len).collect();
    assert_eq!(sizes, [400_000; 6]);
}

#[tokio::test]
async fn every_bad_parameter_is_named() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let problem = node.get("/kv?limit=0&cursor=x&delimiter=&after=&values=1&nope").await.problem(400, "bad-parameters");
    let mut named: Vec<&str> =
        problem["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    named.sort_unstable();
    assert_eq!(named, ["after", "cursor", "delimiter", "limit", "nope", "values"]);
    stream(&node, "limit=5").await.problem(400, "bad-parameters");
    let cursor = {
        node.put("/kv/a", "1").await;
        node.put("/kv/b", "1").await;
        page(&node, "limit=1").await["next"].as_str().unwrap().to_owned()
    };
    assert_eq!(keys(&page(&node, &format!("cursor={cursor}")).await), ["b"]);
    node.get(&format!("/kv?cursor={}", &cursor[1..])).await.problem(400, "bad-parameters");
    node.get(&format!("/kv?cursor={cursor}&after=a")).await.problem(400, "bad-parameters");
    node.ask("POST", "/kv", &[], "").await.problem(405, "method-not-allowed");
}

#[tokio::test]
async fn a_node_that_is_gone_is_stood_in_for_and_two_leave_slots_unreachable() {
    let mut cluster = Cluster::of_three().await;
    let written: Vec<String> = (0..100).map(|n| format!("k{n:03}")).collect();
    for key in &written[..50] {
        cluster.at(1).put(&format!("/kv/{key}?consistency=all"), "v").await.receipt(201, "stored");
    }
    cluster.stop(3).await;
    let node = cluster.at(1);
    for key in &written[50..] {
        eventually("it is written", async || (node.put(&format!("/kv/{key}"), "v").await.status == 201).then_some(()))
            .await;
    }
    let listed = eventually("the page", async || {
        let answer = node.get("/kv").await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    assert_eq!((keys(&listed), &listed["strict"]), (written.iter().map(String::as_str).collect(), &json!(false)));
    assert_eq!(lines(&stream(&cluster.at(2), "").await).len(), 101);

    cluster.stop(2).await;
    eventually("both are known to be gone", async || {
        let answer = node.get("/kv?timeout=500ms").await;
        if answer.status != 503 {
            return None;
        }
        let problem = answer.problem(503, "unavailable");
        assert!(problem["unreachable_slots"].as_array().unwrap().len() > 200, "{problem}");
        assert_eq!(problem.get("outcome"), None);
        let nodes: Vec<&Value> = problem["failed"].as_array().unwrap().iter().map(|failed| &failed["node"]).collect();
        (nodes == ["n2", "n3"]).then_some(())
    })
    .await;
    let partial = page(&node, "partial=true").await;
    assert_eq!((keys(&partial).len(), partial["unreachable_slots"].as_array().unwrap().len()), (0, 256));
    stream(&node, "").await.problem(503, "unavailable");
    let told = lines(&stream(&node, "partial").await);
    assert_eq!((told.len(), told[0]["end"]["unreachable_slots"].as_array().unwrap().len()), (1, 256));
}

#[tokio::test]
async fn with_one_copy_of_each_the_others_stand_in_and_say_so() {
    let cluster = Cluster::start(1, Setup { rf: 1, ..Setup::default() }).await;
    cluster.at(1).put("/kv/k", "v").await.receipt(201, "stored");
    assert_eq!(keys(&page(&cluster.at(1), "prefix=k").await), ["k"]);
}

#[tokio::test]
async fn a_stream_that_cannot_go_on_says_so_in_its_last_line() {
    let mut cluster = Cluster::of_three().await;
    for n in 0..120 {
        cluster.at(1).put(&format!("/kv/k{n:03}"), vec![b'x'; 200_000]).await.receipt(201, "stored");
    }
    // More than the sockets hold, so that the node reads on only when it is read from.
    let asked = [("accept", "application/x-ndjson"), ("x-request-id", "stream-1")];
    let mut answer = cluster.at(1).open("/kv?values&timeout=1s", &asked).await;
    assert_eq!(answer.status(), 200);
    let first = answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    cluster.stop(2).await;
    cluster.stop(3).await;
    let rest = answer.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8([&first[..], &rest[..]].concat()).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["error"]["status"], &last["error"]["request_id"]), (&json!(503), &json!("stream-1")), "{last}");
    let listed = text.lines().filter(|line| line.starts_with("{\"key\"")).count();
    assert!((1..120).contains(&listed), "{listed}");
}
