//! What a page of another origin may do: nothing, unless its origin is configured.

use crate::client::{Answer, Client};
use crate::harness::{Cluster, Setup};

const OURS: &str = "https://app.example";
const ALIEN: &str = "https://evil.example";

async fn preflight(node: &Client, origin: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "content-type"),
    ];
    node.ask("OPTIONS", "/kv/k", &headers, "").await
}

async fn write(node: &Client, origin: &str) -> Answer {
    node.ask("PUT", "/kv/k", &[("origin", origin), ("sec-fetch-site", "cross-site")], "1").await
}

#[tokio::test]
async fn a_configured_origin_may_use_the_api_and_no_other() {
    let mut setup = Setup::default();
    setup.http.cors_origins = vec![OURS.into()];
    let cluster = Cluster::start(1, setup).await;
    let node = cluster.at(1);
    let allowed = preflight(&node, OURS).await;
    assert!((200..300).contains(&allowed.status), "{allowed:?}");
    assert_eq!(allowed.header("access-control-allow-origin"), Some(OURS));
    assert!(allowed.header("access-control-allow-methods").unwrap().contains("PUT"), "{allowed:?}");
    assert!(allowed.header("access-control-allow-headers").unwrap().contains("content-type"), "{allowed:?}");

    let written = write(&node, OURS).await;
    written.receipt(201, "stored");
    assert_eq!(written.header("access-control-allow-origin"), Some(OURS));
    let exposed = written.header("access-control-expose-headers").unwrap();
    assert!(["etag", "retry-after"].iter().all(|name| exposed.contains(name)), "{written:?}");
    let missing = node.ask("GET", "/kv/none", &[("origin", OURS)], "").await;
    missing.problem(404, "no-such-key");
    assert_eq!(missing.header("access-control-allow-origin"), Some(OURS), "a page must see why it failed");

    assert_eq!(preflight(&node, ALIEN).await.header("access-control-allow-origin"), None);
    write(&node, ALIEN).await.problem(403, "cross-site");
    assert_eq!(node.ask("GET", "/kv/k", &[("origin", ALIEN)], "").await.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn without_configuration_no_other_origin_may() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let refused = preflight(&node, OURS).await;
    assert!(!refused.headers.keys().any(|name| name.as_str().starts_with("access-control-")), "{refused:?}");
    let problem = write(&node, OURS).await.problem(403, "cross-site");
    assert_eq!(problem["outcome"], "not_applied");
    node.get("/kv/k").await.problem(404, "no-such-key");
    let own = format!("http://{}", cluster.client_address(1));
    node.ask("PUT", "/kv/k", &[("origin", &own), ("sec-fetch-site", "same-origin")], "1").await.receipt(201, "stored");
}
