//! What a node tells of itself, its cluster and its API.

use serde_json::{Value, json};

use crate::client::names;
use crate::harness::{Cluster, METRICS, eventually};

#[tokio::test]
async fn every_node_tells_the_same_cluster() {
    let cluster = Cluster::of_three().await;
    let told = |number: u16| {
        let node = cluster.at(number);
        async move {
            // What members say of themselves arrives by gossip, a moment after they are ready.
            eventually("all members have told of themselves", async || {
                let view = node.get("/cluster").await.json();
                let whole = |m: &Value| m["state"] == "serving" && m["liveness"] == "alive" && m["reachable"] == true;
                view["members"].as_array().unwrap().iter().all(whole).then_some(view)
            })
            .await
        }
    };
    let views = [told(1).await, told(2).await, told(3).await];
    for (i, view) in views.iter().enumerate() {
        assert_eq!(view["node"], format!("n{}", i + 1));
        assert_eq!((&view["epoch"], &view["rf"]), (&1.into(), &2.into()));
        assert_eq!(view["cluster_id"], views[0]["cluster_id"]);
        let members = view["members"].as_array().unwrap();
        for (n, member) in members.iter().enumerate() {
            assert_eq!(member["id"], format!("n{}", n + 1));
            assert_eq!(member["instance"], views[0]["members"][n]["instance"]);
            assert_eq!(member["http_address"], cluster.client_address(n as u16 + 1));
            assert_eq!((&member["epoch"], &member["program"]), (&1.into(), &env!("CARGO_PKG_VERSION").into()));
        }
        let slots: u64 = members.iter().map(|m| m["slots"].as_u64().unwrap()).sum();
        assert_eq!(slots, 512, "256 slots, two home replicas each");
    }
}

#[tokio::test]
async fn the_ring_and_a_placement_agree() {
    let cluster = Cluster::of_three().await;
    let ring = cluster.at(1).get("/cluster/ring").await.json();
    assert_eq!(ring, cluster.at(3).get("/cluster/ring").await.json());
    let slots = ring["slots"].as_array().unwrap();
    assert_eq!((slots.len(), &slots[255]["slot"]), (256, &"ff".into()));
    for (number, key) in [(1, "name"), (2, "a+b"), (3, "%ff%00")] {
        let placement = cluster.at(number).get(&format!("/cluster/placement?key={key}")).await.json();
        let slot = placement["slot"].as_str().unwrap();
        assert!(placement["token"].as_str().unwrap().starts_with(slot), "{placement}");
        let at = usize::from_str_radix(slot, 16).unwrap();
        assert_eq!(placement["home_replicas"], slots[at]["replicas"], "{placement}");
        let mut everyone = names(&placement["home_replicas"]);
        everyone.extend(names(&placement["fallbacks"]));
        everyone.sort_unstable();
        assert_eq!(everyone, ["n1", "n2", "n3"]);
    }
    let placement = cluster.at(1).get("/cluster/placement?key=a+b").await.json();
    assert_eq!(placement["key"], "a b", "a query's plus is a space");
    let receipt = cluster.at(2).put("/kv/name", "v").await.receipt(201, "stored");
    let placement = cluster.at(1).get("/cluster/placement?key=name").await.json();
    assert_eq!(receipt["replicas"], placement["home_replicas"]);
}

#[tokio::test]
async fn a_node_alone_is_well_and_says_so() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let health = json!({
        "status": "healthy", "slots_full": 256, "slots_at_quorum": 256, "slots_unavailable": 0, "slots_total": 256,
        "members_down": [], "hints_pending": 0,
    });
    assert_eq!(node.get("/cluster/health").await.json(), health);
    assert_eq!(node.get("/hints").await.json(), json!({"node": "n1", "pending": 0, "targets": []}));
    assert_eq!(node.get("/livez").await.json(), json!({"live": true}));
    assert_eq!(node.get("/readyz").await.json(), json!({"ready": true}));
    for path in ["/readyz?verbose", "/readyz?verbose=true"] {
        let ready = node.get(path).await;
        assert_eq!(ready.header("cache-control"), Some("no-store"));
        let checks = ready.json()["checks"].clone();
        let checks = checks.as_array().unwrap();
        assert!(checks.len() >= 3 && checks.iter().all(|c| c["ok"] == true), "{checks:?}");
        let named: Vec<_> = checks.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert!(["storage", "cluster"].iter().all(|name| named.contains(name)), "{named:?}");
    }
    let metrics = node.get("/metrics").await;
    assert_eq!((metrics.status, &metrics.body[..]), (200, METRICS.as_bytes()));
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let index = node.get("/").await.json();
    assert_eq!((&index["name"], &index["node"]), (&"a3.store".into(), &"n1".into()));
    for (name, path) in index["links"].as_object().unwrap() {
        let path = path.as_str().unwrap().replace("{key}", "k");
        assert_eq!(node.get(&path).await.status, if name == "kv" { 404 } else { 200 }, "{path}");
    }
}

#[tokio::test]
async fn the_description_is_served_and_tried_without_leaving_the_host() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let described = node.get("/openapi.json").await;
    assert_eq!(described.body, a3::http::openapi_json());
    for (path, item) in described.json()["paths"].as_object().unwrap() {
        // Not all of them end: a watch does not.
        let served = node.open(&path.replace("{key}", "k").replace("{code}", "internal"), &[]).await;
        assert!(served.headers().contains_key("content-type"), "{path}");
        let status = match item["get"]["operationId"].as_str() {
            Some("getValue" | "getOperation" | "getOperationEvents" | "getChange") => 404,
            Some("getPlacement") => 400,
            Some(_) => 200,
            None => 405,
        };
        assert_eq!(served.status(), status, "{path}");
    }
    let page = node.get("/swagger-ui/").await;
    assert!(page.status == 200 && page.header("content-type").unwrap().starts_with("text/html"), "{page:?}");
    let text = std::str::from_utf8(&page.body).unwrap();
    assert!(!text.contains("://"), "the page loads from elsewhere: {text}");
    let bare = node.get("/swagger-ui").await;
    assert!((300..400).contains(&bare.status), "{bare:?}");
    assert_eq!(bare.header("location"), Some("/swagger-ui/"));
    for asset in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-initializer.js"] {
        assert_eq!(node.get(&format!("/swagger-ui/{asset}")).await.status, 200, "{asset}");
    }
}

#[tokio::test]
async fn json_is_compressed_and_values_never_are() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let accepting = [("accept-encoding", "gzip")];
    for path in ["/cluster/ring", "/openapi.json"] {
        let plain = node.get(path).await;
        assert_eq!(plain.header("content-encoding"), None, "{path}");
        let packed = node.ask("GET", path, &accepting, "").await;
        assert_eq!(packed.header("content-encoding"), Some("gzip"), "{path}");
        assert!(packed.body.starts_with(&[0x1f, 0x8b]) && packed.body.len() < plain.body.len() / 2, "{path}");
        assert!(packed.header("vary").unwrap().contains("accept-encoding"), "{packed:?}");
    }
    let json = vec![b' '; 10_000];
    for kind in ["application/json", "text/plain"] {
        node.ask("PUT", "/kv/k", &[("content-type", kind)], json.clone()).await;
        let value = node.ask("GET", "/kv/k", &accepting, "").await;
        assert_eq!((value.header("content-encoding"), value.body.len()), (None, json.len()), "{kind}");
        assert_eq!(value.header("content-length"), Some("10000"), "{kind}");
    }
}
