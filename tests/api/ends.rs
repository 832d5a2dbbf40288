//! Values that live for a while: their end is told beforehand, comes at every node and level, and can be changed.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::client::{Answer, Client};
use crate::harness::{Cluster, Setup, eventually};

const LEVELS: [&str; 4] = ["one", "quorum", "all", "linearizable"];

async fn patch(node: &Client, path: &str, headers: &[(&str, &str)]) -> Answer {
    node.ask("PATCH", path, headers, "").await
}

/// Whatever node and level is asked, there is no value; the tombstone has the same version everywhere.
async fn has_ended(cluster: &Cluster, path: &str, version: &str) {
    let end = format!("{}1", version.strip_suffix('0').unwrap());
    for number in 1..=3 {
        for level in LEVELS {
            let answer = cluster.at(number).get(&format!("{path}?consistency={level}")).await;
            let problem = answer.problem(404, "no-such-key");
            assert_eq!(problem["detail"], "the value has expired", "n{number} at {level}");
            let told = (answer.header("a3-version"), answer.header("a3-deleted"), answer.header("a3-expires-at"));
            assert_eq!(told, (Some(end.as_str()), Some("true"), None), "n{number} at {level}");
        }
    }
}

#[tokio::test]
async fn a_value_ends_at_every_node_and_level_and_its_key_is_free_again() {
    let cluster = Cluster::start(3, Setup { rf: 3, ..Setup::default() }).await;
    let node = cluster.at(1);
    let began = Instant::now();
    let put = node.put("/kv/k?ttl=1500ms", "short").await;
    let receipt = put.receipt(201, "stored");
    let expires_at_ms = receipt["expires_at_ms"].as_u64().unwrap();
    let version = receipt["version"].as_str().unwrap();
    let written_ms = u64::from_str_radix(&version[..16], 16).unwrap() >> 16;
    assert_eq!(expires_at_ms, written_ms + 1_500);
    for number in 1..=3 {
        let got = cluster.at(number).get("/kv/k").await;
        if began.elapsed() < Duration::from_millis(1_000) {
            assert_eq!((got.status, &got.body[..]), (200, &b"short"[..]));
            assert_eq!(got.header("a3-expires-at"), put.header("a3-expires-at"));
            let head = cluster.at(number).ask("HEAD", "/kv/k", &[], "").await;
            assert_eq!(head.header("a3-expires-at"), put.header("a3-expires-at"));
        }
    }
    sleep_until(began + Duration::from_millis(1_700)).await;
    has_ended(&cluster, "/kv/k", version).await;
    let refused = node.ask("PUT", "/kv/k", &[("if-match", &format!("\"{version}\""))], "late").await;
    refused.problem(412, "precondition-failed");
    let created = cluster.at(2).ask("PUT", "/kv/k", &[("if-none-match", "*")], "next").await;
    let next = created.receipt(201, "stored");
    assert_eq!(
        (&next["version"], next.get("expires_at_ms")),
        (&format!("{}2", version.strip_suffix('0').unwrap()).into(), None)
    );
    assert_eq!(cluster.at(3).get("/kv/k?consistency=linearizable").await.body, "next");
}

#[tokio::test]
async fn what_ended_leaves_the_same_on_every_disk_by_itself() {
    let cluster = Cluster::start(3, Setup { rf: 3, ..Setup::default() }).await;
    for n in 0..20 {
        cluster.at(n % 3 + 1).put(&format!("/kv/k{n}?ttl=300ms"), "short").await.receipt(201, "stored");
    }
    eventually("no copy has a value any more", async || {
        let members = cluster.at(1).get("/cluster").await.json();
        let keys: u64 = members["members"].as_array()?.iter().map(|m| m["keys"].as_u64().unwrap_or(1)).sum();
        (keys == 0).then_some(())
    })
    .await;
    // Row by row, and so slowly that it is asked once.
    let deep = cluster.at(1).get("/cluster/convergence?deep").await.json();
    assert_eq!(deep["status"], "equal", "{deep}");
}

#[tokio::test]
async fn an_end_is_changed_and_taken_away_without_the_value() {
    let cluster = Cluster::of_three().await;
    let node = cluster.at(1);
    let typed = [("content-type", "text/plain")];
    let first = node.ask("PUT", "/kv/k?ttl=1h", &typed, "v").await;
    let etag = first.header("etag").unwrap().to_owned();
    let touched = patch(&cluster.at(2), "/kv/k?ttl=2h", &[("if-match", &etag)]).await;
    let receipt = touched.receipt(200, "touched");
    let end = |receipt: &serde_json::Value| receipt["expires_at_ms"].as_u64();
    assert!(end(&receipt) > end(&first.receipt(201, "stored")));
    let got = cluster.at(3).get("/kv/k").await;
    assert_eq!((&got.body[..], got.header("content-type")), (&b"v"[..], Some("text/plain")));
    assert_eq!(
        (got.header("etag"), got.header("a3-expires-at")),
        (touched.header("etag"), touched.header("a3-expires-at"))
    );
    patch(&node, "/kv/k?ttl=3h", &[("if-match", &etag)]).await.problem(412, "precondition-failed");

    let kept = patch(&node, "/kv/k?ttl=none", &[]).await.receipt(200, "touched");
    assert_eq!(kept.get("expires_at_ms"), None);
    assert_eq!(node.get("/kv/k").await.header("a3-expires-at"), None);
    assert_eq!(node.get("/kv/k?view=record").await.json().get("expires_at_ms"), None);
    patch(&node, "/kv/k?ttl=1h", &[]).await.receipt(200, "touched");
    assert!(node.get("/kv/k?view=record").await.json()["expires_at_ms"].is_u64());
    node.put("/kv/k", "plain").await.receipt(200, "stored");
    assert_eq!(node.get("/kv/k").await.header("a3-expires-at"), None, "a plain write takes it away");

    for path in ["/kv/absent?ttl=1h", "/kv/absent?ttl=none"] {
        patch(&node, path, &[]).await.problem(404, "no-such-key");
    }
    node.delete("/kv/k").await.receipt(200, "deleted");
    patch(&node, "/kv/k?ttl=1h", &[("if-match", "*")]).await.problem(404, "no-such-key");
}

#[tokio::test]
async fn a_touch_under_an_idempotency_key_is_done_once() {
    let cluster = Cluster::of_three().await;
    cluster.at(1).put("/kv/k", "v").await.receipt(201, "stored");
    let once = [("idempotency-key", "once")];
    let first = patch(&cluster.at(1), "/kv/k?ttl=1h", &once).await.receipt(200, "touched");
    let again = patch(&cluster.at(2), "/kv/k?ttl=1h", &once).await.receipt(200, "touched");
    assert_eq!(again["version"], first["version"]);
    patch(&cluster.at(3), "/kv/k?ttl=2h", &once).await.problem(422, "idempotency-key-reused");
}

#[tokio::test]
async fn what_is_no_time_to_live_is_refused() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    for ttl in ["0s", "1", "", "-1s", "10000d", "none"] {
        let refused = node.put(&format!("/kv/k?ttl={ttl}"), "v").await.problem(400, "bad-parameters");
        assert_eq!(refused["parameters"][0]["name"], "ttl", "{ttl}");
    }
    for path in ["/kv/k", "/kv/k?ttl=x", "/kv/k?ttl=1s&consistency=one"] {
        patch(&node, path, &[]).await.problem(400, "bad-parameters");
    }
    node.ask("PATCH", "/kv/k?ttl=1s", &[], "a body").await.problem(400, "bad-request");
    node.get("/kv/k").await.problem(404, "no-such-key");
    let refused = node.ask("DELETE", "/kv/k?ttl=1s", &[], "").await;
    refused.problem(400, "bad-parameters");
}
