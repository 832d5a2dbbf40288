//! What is refused, how, and that nothing was written.

use crate::client::{Answer, Client};
use crate::harness::Cluster;

/// A write that must be refused as this problem, and leave nothing under the key that it named.
async fn refused(node: &Client, answer: Answer, status: u16, code: &str) -> serde_json::Value {
    let problem = answer.problem(status, code);
    assert_eq!((&problem["outcome"], &problem["retryable"]), (&"not_applied".into(), &false.into()), "{problem}");
    let about = node.get(problem["type"].as_str().unwrap()).await;
    assert!(about.status == 200 && about.header("content-type").unwrap().starts_with("text/html"), "{about:?}");
    problem
}

async fn is_empty(node: &Client, path: &str) {
    let got = node.get(path).await;
    got.problem(404, "no-such-key");
    assert_eq!(got.header("a3-version"), None, "no tombstone either");
}

#[tokio::test]
async fn sizes_have_limits() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    node.put("/kv/fits", vec![7; 1024 * 1024]).await.receipt(201, "stored");
    let answer = node.put("/kv/large", vec![7; 1024 * 1024 + 1]).await;
    let problem = refused(&node, answer, 413, "value-too-large").await;
    assert!(problem["detail"].as_str().unwrap().contains("1048576"), "{problem}");
    is_empty(&node, "/kv/large").await;

    let (longest, longer) = (format!("/kv/{}", "k".repeat(1024)), format!("/kv/{}", "k".repeat(1025)));
    node.put(&longest, "1").await.receipt(201, "stored");
    let answer = node.put(&longer, "1").await;
    refused(&node, answer, 414, "key-too-long").await;
    node.get(&longer).await.problem(414, "key-too-long");
    let encoded = format!("/kv/{}", "%6B".repeat(1024));
    assert_eq!(node.get(&encoded).await.body, "1", "the limit counts decoded bytes");
    node.get(&format!("/kv/{}", "%6B".repeat(2800))).await.problem(414, "uri-too-long");
    let header = "v".repeat(16 * 1024);
    node.ask("GET", "/livez", &[("x-long", &header)], "").await.problem(431, "headers-too-large");
}

#[tokio::test]
async fn keys_and_parameters_that_are_not_understood_are_refused() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    for path in ["/kv/", "/kv/%", "/kv/%4", "/kv/%zz", "/kv/a%2"] {
        let answer = node.put(path, "1").await;
        refused(&node, answer, 400, "bad-key").await;
        node.get(path).await.problem(400, "bad-key");
    }
    let queries = [
        ("consistency=most", "consistency"),
        ("consistency=", "consistency"),
        ("timeout=1h", "timeout"),
        ("timeout=49ms", "timeout"),
        ("timeout=5", "timeout"),
        ("consistency=one&consistency=all", "consistency"),
        ("consistensy=one", "consistensy"),
        ("timeout=%zz", "timeout"),
        ("view=record", "view"),
    ];
    for (query, named) in queries {
        let answer = node.put(&format!("/kv/k?{query}"), "1").await;
        let problem = refused(&node, answer, 400, "bad-parameters").await;
        assert_eq!(problem["parameters"][0]["name"], named, "{problem}");
        refused(&node, node.delete(&format!("/kv/k?{query}")).await, 400, "bad-parameters").await;
    }
    is_empty(&node, "/kv/k").await;
    let all = node.get("/kv/k?view=x&timeout=x&consistency=x&wait=x").await.problem(400, "bad-parameters");
    let mut listed: Vec<_> =
        all["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    listed.sort_unstable();
    assert_eq!(listed, ["consistency", "timeout", "view", "wait"]);
    for path in ["/livez?x", "/readyz?verbose=1", "/cluster?x=1", "/cluster/placement", "/cluster/placement?key=%f"] {
        node.get(path).await.problem(400, "bad-parameters");
    }
    node.get("/cluster/placement?key=").await.problem(400, "bad-key");
}

#[tokio::test]
async fn routes_and_methods_that_do_not_exist_are_problems_too() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    for path in ["/nowhere", "/KV/k", "/cluster/", "/problems/none", "/swagger-ui/none.js", "//kv/k"] {
        node.get(path).await.problem(404, "no-such-page");
    }
    for method in ["POST", "BREW"] {
        let answer = node.ask(method, "/kv/k", &[], "1").await;
        let allow = answer.header("allow").unwrap().to_owned();
        assert!(["GET", "HEAD", "PUT", "PATCH", "DELETE"].iter().all(|m| allow.contains(m)), "{allow}");
        refused(&node, answer, 405, "method-not-allowed").await;
    }
    for path in ["/cluster", "/livez", "/metrics", "/openapi.json", "/hints"] {
        let answer = node.put(path, "1").await;
        refused(&node, answer, 405, "method-not-allowed").await;
    }
    is_empty(&node, "/kv/k").await;
}

#[tokio::test]
async fn what_is_not_kept_is_refused_and_not_ignored() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let etag = node.put("/kv/old", "1").await.header("etag").unwrap().to_owned();
    let answer = node.ask("PUT", "/kv/new", &[("content-encoding", "gzip")], "2").await;
    refused(&node, answer, 415, "unsupported-encoding").await;
    let answer = node.ask("PUT", "/kv/new", &[("content-range", "bytes 0-1/2")], "2").await;
    refused(&node, answer, 400, "bad-request").await;
    is_empty(&node, "/kv/new").await;
    assert_eq!(node.get("/kv/old").await.header("etag"), Some(etag.as_str()));
}
