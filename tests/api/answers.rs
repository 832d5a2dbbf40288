//! Statuses, versions, receipts: what an answer says of itself.

use serde_json::{Value, json};

use crate::client::{Client, names};
use crate::harness::{Cluster, eventually};

#[tokio::test]
async fn a_value_is_created_replaced_deleted_and_created_again() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let mut versions = Vec::new();
    for (body, status) in [("1", 201), ("2", 200)] {
        let receipt = node.put("/kv/k", body).await.receipt(status, "stored");
        let whole = json!({
            "ok": true, "message": "stored", "key": "k", "version": receipt["version"], "consistency": "quorum",
            "replicas": ["n1"], "acked": ["n1"], "hinted": {}, "strict": true,
        });
        assert_eq!(receipt, whole);
        versions.push(receipt["version"].as_str().unwrap().to_owned());
    }
    for _ in 0..2 {
        let receipt = node.delete("/kv/k").await.receipt(200, "deleted");
        versions.push(receipt["version"].as_str().unwrap().to_owned());
        let gone = node.get("/kv/k").await;
        gone.problem(404, "no-such-key");
        assert_eq!((gone.header("a3-deleted"), gone.header("a3-version")), (Some("true"), receipt["version"].as_str()));
    }
    node.put("/kv/k", "3").await.receipt(201, "stored");
    assert!(versions.is_sorted() && versions.windows(2).all(|pair| pair[0] != pair[1]), "{versions:?}");

    let never = node.get("/kv/never").await;
    never.problem(404, "no-such-key");
    assert_eq!((never.header("a3-deleted"), never.header("a3-version")), (None, None));
    node.delete("/kv/never").await.receipt(200, "deleted");
}

#[tokio::test]
async fn an_etag_saves_the_body() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let put = node.ask("PUT", "/kv/k", &[("content-type", "text/html")], "<b>hi</b>").await;
    let etag = put.header("etag").unwrap();
    let got = node.get("/kv/k").await;
    assert_eq!((got.header("etag"), &got.body[..]), (Some(etag), &b"<b>hi</b>"[..]));
    let guards = ["x-content-type-options", "content-security-policy", "cache-control"].map(|name| got.header(name));
    assert_eq!(guards, [Some("nosniff"), Some("sandbox"), Some("no-cache")]);
    assert!(got.header("last-modified").is_some_and(|date| date.ends_with(" GMT")), "{got:?}");

    for names_it in [etag.to_owned(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
        for method in ["GET", "HEAD"] {
            let unchanged = node.ask(method, "/kv/k", &[("if-none-match", &names_it)], "").await;
            assert_eq!((unchanged.status, unchanged.body.len()), (304, 0), "{method} {names_it}");
            assert_eq!(unchanged.header("etag"), Some(etag));
        }
    }
    let changed = node.ask("GET", "/kv/k", &[("if-none-match", "\"other\"")], "").await;
    assert_eq!((changed.status, changed.body), (200, got.body.clone()));

    let head = node.ask("HEAD", "/kv/k", &[], "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    for name in ["content-length", "content-type", "etag", "a3-version", "a3-strict", "last-modified"] {
        assert!(head.header(name).is_some() && head.header(name) == got.header(name), "{name}: {head:?}");
    }
    let absent = node.ask("HEAD", "/kv/none", &[], "").await;
    assert_eq!((absent.status, absent.body.len()), (404, 0));
}

#[tokio::test]
async fn the_record_and_each_replicas_copy_are_shown_side_by_side() {
    let cluster = Cluster::of_three().await;
    let node = cluster.at(1);
    let put = node.ask("PUT", "/kv/k", &[("content-type", "text/plain")], "hello").await.receipt(201, "stored");
    // The second home replica may be a moment behind the answer.
    let shown = eventually("both replicas hold it", async || {
        let record = cluster.at(2).get("/kv/k?view=record").await.json();
        let copies = record["copies"].as_array().unwrap();
        (copies.len() == 2 && copies.iter().all(|c| c["version"] == put["version"])).then_some(record)
    })
    .await;
    let fields = ["key", "value", "bytes", "content_type", "version", "replicas"].map(|name| shown[name].clone());
    let version = put["version"].clone();
    let expected = [json!("k"), json!("hello"), json!(5), json!("text/plain"), version, put["replicas"].clone()];
    assert_eq!(fields, expected);
    let mut holders: Vec<&Value> = shown["copies"].as_array().unwrap().iter().map(|copy| &copy["node"]).collect();
    let mut homes: Vec<&Value> = put["replicas"].as_array().unwrap().iter().collect();
    holders.sort_by_key(|name| name.to_string());
    homes.sort_by_key(|name| name.to_string());
    assert_eq!(holders, homes);

    node.put("/kv/raw", vec![0xff, 0]).await.receipt(201, "stored");
    let raw = node.get("/kv/raw?view=record").await.json();
    assert_eq!((&raw["value_base64"], raw.get("value")), (&"/wA=".into(), None));
}

/// Every level writes and reads what the others wrote, and its receipt counts.
#[tokio::test]
async fn every_level_is_served_and_receipts_count_replies() {
    let cluster = Cluster::of_three().await;
    for (i, level) in ["one", "quorum", "all", "linearizable"].into_iter().enumerate() {
        let path = format!("/kv/{level}?consistency={level}&timeout=30s");
        let receipt =
            eventually("the level is met", async || written(&cluster.at(i as u16 % 3 + 1), &path).await).await;
        assert_eq!(receipt["consistency"], level);
        let (homes, acked) = (names(&receipt["replicas"]), names(&receipt["acked"]));
        assert_eq!(homes.len(), 2);
        assert!(acked.iter().all(|node| homes.contains(node)), "{receipt}");
        assert!(level != "all" || acked.len() == 2, "{receipt}");
        for home in homes {
            let hinted = receipt["hinted"].get(home).is_some();
            assert!(!(hinted && acked.contains(&home)), "a copy is counted once: {receipt}");
        }
        for (reader, read) in [(1, "quorum"), (2, "linearizable"), (3, "quorum")] {
            let got = cluster.at(reader).get(&format!("/kv/{level}?consistency={read}&timeout=30s")).await;
            assert_eq!((got.status, &got.body[..]), (200, &b"v"[..]), "{level} at n{reader}");
        }
    }
}

/// The receipt of a write, unless a busy machine kept a replica from answering.
async fn written(node: &Client, path: &str) -> Option<Value> {
    let answer = node.put(path, "v").await;
    (answer.status < 300).then(|| answer.json())
}

#[tokio::test]
async fn a_request_keeps_its_names() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for path in ["/livez", "/kv/none", "/nowhere"] {
        let named = node.ask("GET", path, &[("x-request-id", "mine-1"), ("traceparent", trace)], "").await;
        assert_eq!((named.header("x-request-id"), named.header("traceparent")), (Some("mine-1"), Some(trace)));
        let (one, other) = (node.get(path).await, node.get(path).await);
        assert!(one.header("x-request-id").is_some() && one.header("x-request-id") != other.header("x-request-id"));
    }
}
