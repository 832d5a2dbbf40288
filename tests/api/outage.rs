//! A home replica is gone: what is still served, what is refused, and what is made good when it returns.

use serde_json::{Value, json};

use crate::client::{Client, names};
use crate::harness::{Cluster, eventually};

fn number(name: &str) -> u16 {
    name.trim_start_matches('n').parse().unwrap()
}

/// The key's home replicas and the third node, as the cluster places it.
async fn placed(node: &Client, key: &str) -> (u16, u16, u16) {
    let placement = node.get(&format!("/cluster/placement?key={key}")).await.json();
    let of = |list: &Value, i: usize| number(names(list)[i]);
    (of(&placement["home_replicas"], 0), of(&placement["home_replicas"], 1), of(&placement["fallbacks"], 0))
}

#[tokio::test]
async fn without_a_home_replica_defaults_are_served_and_all_is_refused() {
    let mut cluster = Cluster::of_three().await;
    let (kept, gone, other) = placed(&cluster.at(1), "k").await;
    let (kept_name, gone_name, other_name) = (format!("n{kept}"), format!("n{gone}"), format!("n{other}"));
    cluster.at(kept).put("/kv/k", "before").await.receipt(201, "stored");
    cluster.stop(gone).await;

    for asked in [kept, other] {
        let node = cluster.at(asked);
        eventually("it is known to be gone", async || {
            let health = node.get("/cluster/health").await.json();
            (health["members_down"] == json!([gone_name])).then(|| assert_eq!(health["status"], "degraded"))
        })
        .await;

        let refused = node.put("/kv/k?consistency=all", "never").await.problem(503, "unavailable");
        assert_eq!((&refused["outcome"], &refused["retryable"]), (&"not_applied".into(), &true.into()));
        assert_nobody_was_asked(&refused, &gone_name, &kept_name);
        let refused = node.get("/kv/k?consistency=all").await.problem(503, "unavailable");
        assert_eq!(refused.get("outcome"), None);
        assert_nobody_was_asked(&refused, &gone_name, &kept_name);
        let refused = node.delete("/kv/k?consistency=all").await.problem(503, "unavailable");
        assert_eq!(refused["outcome"], "not_applied");

        // On a busy machine the other home replica may be stood in for too, the first time.
        eventually("a write is kept by the one and hinted for the other", async || {
            let receipt = node.put("/kv/k", format!("by n{asked}")).await.receipt(200, "stored");
            assert_eq!((&receipt["strict"], &receipt["hinted"][&gone_name]), (&false.into(), &(*other_name).into()));
            (receipt["acked"] == json!([kept_name])).then_some(())
        })
        .await;
        for reader in [kept, other] {
            let got = cluster.at(reader).get("/kv/k").await;
            assert_eq!((got.status, &got.body[..]), (200, format!("by n{asked}").as_bytes()), "n{reader}");
            assert_eq!(got.header("a3-strict"), Some("false"), "a stand-in was counted");
        }
        eventually("the home replica that is left is enough for one", async || {
            let one = node.get("/kv/k?consistency=one").await;
            (one.status == 200 && one.header("a3-strict") == Some("true")).then_some(())
        })
        .await;
    }
    views_of_an_outage(&cluster, kept, &gone_name, other).await;

    cluster.restart(gone).await;
    eventually("the hint is delivered", async || {
        (cluster.at(other).get("/hints").await.json()["pending"] == 0).then_some(())
    })
    .await;
    cluster.stop(kept).await;
    cluster.stop(other).await;
    let returned = cluster.at(gone).get("/kv/k?consistency=one").await;
    assert_eq!((returned.status, returned.body), (200, format!("by n{other}").into()));
}

/// The problem of a level that could not be met from the start: who is gone, and that the other was left alone.
#[track_caller]
fn assert_nobody_was_asked(problem: &Value, gone: &str, kept: &str) {
    assert_eq!((&problem["required"], &problem["acked"]), (&2.into(), &json!([])), "{problem}");
    let reason = |node: &str| {
        let failed = problem["failed"].as_array().unwrap().iter().find(|f| f["node"] == node);
        failed.unwrap()["reason"].as_str().unwrap().to_owned()
    };
    assert!(reason(gone).contains("reach"), "{problem}");
    assert!(reason(kept).starts_with("not asked"), "{problem}");
}

async fn views_of_an_outage(cluster: &Cluster, kept: u16, gone: &str, other: u16) {
    let hints = cluster.at(other).get("/hints").await.json();
    let kept_for = hints["targets"].as_array().unwrap().iter().find(|target| target["node"] == gone).unwrap();
    assert_eq!(kept_for["count"], 1, "{hints}");
    assert!(kept_for["oldest_ms"].as_u64().is_some_and(|ms| ms > 0), "{hints}");
    eventually("the others know of the hint", async || {
        let health = cluster.at(kept).get("/cluster/health").await.json();
        (health["hints_pending"].as_u64() >= Some(1)).then_some(())
    })
    .await;
    let health = cluster.at(other).get("/cluster/health").await.json();
    assert_eq!((&health["slots_unavailable"], &health["slots_total"]), (&0.into(), &256.into()), "{health}");
    assert!(health["slots_full"].as_u64().is_some_and(|full| full < 256), "{health}");

    let member = cluster.at(kept).get("/cluster").await.json()["members"].clone();
    let member = member.as_array().unwrap().iter().find(|m| m["id"] == gone).unwrap().clone();
    assert_eq!(member["reachable"], false, "{member}");
    let placement = cluster.at(kept).get("/cluster/placement?key=k").await.json();
    assert!(!names(&placement["reachable"]).contains(&gone), "{placement}");
    let record = cluster.at(kept).get("/kv/k?view=record").await.json();
    let holders: Vec<_> = record["copies"].as_array().unwrap().iter().map(|c| c["node"].clone()).collect();
    assert!(!holders.contains(&gone.into()) && holders.contains(&format!("n{kept}").into()), "{record}");
    // Whether it answers clients has nothing to do with its peers.
    for path in ["/livez", "/readyz"] {
        assert_eq!(cluster.at(kept).get(path).await.status, 200, "{path}");
    }
}
