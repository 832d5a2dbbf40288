//! What a change of the topology would do, and how one is asked for.

use serde_json::{Value, json};

use crate::client::{Answer, Client, names};
use crate::harness::{Cluster, Setup, eventually};

async fn plan(node: &Client, change: Value) -> Answer {
    node.post("/cluster/plan", change.to_string()).await
}

#[tokio::test]
async fn a_plan_tells_what_would_move_and_changes_nothing() {
    let cluster = Cluster::of_three().await;
    let node = cluster.at(1);
    for key in 0..64 {
        node.put(&format!("/kv/{key}?consistency=all"), vec![b'x'; 1000]).await.receipt(201, "stored");
    }
    let told = |node: Client, change: Value| async move {
        eventually("every member told how much it keeps", async || {
            let told = plan(&node, change.clone()).await.json();
            // 128 copies of keys of some 1000 bytes are on three nodes, of which a fourth would get a fourth.
            (told["bytes_estimate"].as_u64().unwrap() > 20_000).then_some(told)
        })
        .await
    };
    let joined = told(node.clone(), json!({"change": "join", "node": "n4", "zone": "b", "weight": 1})).await;
    let expected = json!({"node": "n1", "epoch": 1, "change": "join", "text": "n4 joins", "rf": 2, "rf_before": 2,
        "slots": 128, "copies": 128, "copies_ideal": 128, "even": true, "slots_in_fewer_zones": 0});
    for (member, value) in expected.as_object().unwrap() {
        assert_eq!(&joined[member], value, "{member}: {joined}");
    }
    let members = joined["members"].as_array().unwrap();
    let newcomer = &members[3];
    assert_eq!((&newcomer["node"], &newcomer["zone"]), (&"n4".into(), &"b".into()));
    assert_eq!(
        ["slots_before", "slots", "gained", "given_up"].map(|n| newcomer[n].as_u64().unwrap()),
        [0, 128, 128, 0]
    );
    assert_eq!(newcomer["bytes_estimate"], joined["bytes_estimate"], "nobody else gets anything");
    let warnings = names(&joined["warnings"]);
    assert_eq!(warnings, ["n1, n2, n3 have no zone while others do: each counts as a zone of its own"]);

    let left = told(node, json!({"change": "leave", "node": "n2"})).await;
    assert_eq!((&left["members"][1]["slots"], &left["text"]), (&0.into(), &"n2 leaves".into()));
    assert_eq!((&left["copies"], &left["copies_ideal"]), (&left["members"][1]["given_up"], &left["copies"]));
    for number in 1..=3 {
        assert_eq!(cluster.at(number).get("/cluster").await.json()["epoch"], 1, "nothing was changed");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_says_why() {
    let cluster = Cluster::start(2, Setup::default()).await;
    let node = cluster.at(1);
    let refused = async |change: Value, status: u16, code: &str| {
        let problem = plan(&node, change).await.problem(status, code);
        problem["detail"].as_str().unwrap().to_owned()
    };
    assert_eq!(refused(json!({"change": "leave", "node": "n9"}), 404, "no-such-member").await, "n9 is not a member");
    let few = refused(json!({"change": "leave", "node": "n1"}), 409, "change-unfit").await;
    assert_eq!(few, "2 copies of each key need 2 members that keep slots, and there would be 1");
    refused(json!({"change": "join", "node": "n2"}), 409, "change-unfit").await;
    refused(json!({"change": "weight", "node": "n1", "weight": 1}), 409, "change-unfit").await;
    refused(json!({"change": "weight", "node": "n1", "weight": 1001}), 400, "bad-body").await;
    refused(json!({"change": "replication-factor", "rf": 0}), 400, "bad-body").await;
    refused(json!({"change": "grow"}), 400, "bad-body").await;
    node.post("/cluster/plan", "").await.problem(400, "bad-request");
    node.post("/cluster/plan?dry", "{}").await.problem(400, "bad-parameters");
    node.get("/cluster/plan").await.problem(405, "method-not-allowed");

    for name in ["n9", "n", "n01", "2", "%6e9"] {
        node.post(&format!("/cluster/members/{name}/leave"), "").await.problem(404, "no-such-member");
        node.put(&format!("/cluster/members/{name}"), r#"{"weight":2}"#).await.problem(404, "no-such-member");
    }
    node.post("/cluster/members/n1/leave", "").await.problem(409, "change-unfit");
    node.put("/cluster/members/n1", r#"{"weight":2,"zone":"b"}"#).await.problem(400, "bad-body");
    node.put("/cluster/members/n1", r#"{"weight":1}"#).await.problem(409, "change-unfit");
    node.put("/cluster/replication-factor", r#"{"rf":3}"#).await.problem(409, "change-unfit");
    node.get("/cluster/change").await.problem(404, "no-such-change");
    node.delete("/cluster/change").await.problem(404, "no-such-change");
}

#[tokio::test]
async fn a_change_is_begun_followed_and_over_on_every_node() {
    let cluster = Cluster::of_three().await;
    for key in 0..32 {
        cluster.at(1).put(&format!("/kv/{key}?consistency=all"), "v").await.receipt(201, "stored");
    }
    let begun = cluster.at(2).put("/cluster/replication-factor", r#"{"rf":3}"#).await;
    assert_eq!((begun.status, begun.header("location")), (202, Some("/cluster/change")), "{begun:?}");
    let told = begun.json();
    assert_eq!((&told["change"], &told["slots"]), (&"replication-factor".into(), &256.into()));
    assert_eq!((&told["since"], &told["epoch"], &told["eta_ms"]), (&2.into(), &2.into(), &Value::Null));
    for number in 1..=3 {
        let node = cluster.at(number);
        eventually("the change is over", async || {
            let change = node.get("/cluster/change").await;
            let ring = node.get("/cluster/ring").await.json();
            if change.status == 200 {
                let change = change.json();
                assert_eq!(
                    (&change["since"], &change["change"]),
                    (&2.into(), &"replication-factor".into()),
                    "{change}"
                );
                return None;
            }
            change.problem(404, "no-such-change");
            (ring["epoch"] == 3).then(|| assert_eq!((&ring["rf"], &ring["moving"]), (&3.into(), &Value::Null)))
        })
        .await;
    }
    let record = cluster.at(3).get("/kv/7?view=record").await.json();
    assert_eq!(record["replicas"].as_array().unwrap().len(), 3, "{record}");
    cluster.at(1).put("/cluster/replication-factor", r#"{"rf":3}"#).await.problem(409, "change-unfit");
}

#[tokio::test]
async fn a_change_that_cannot_end_is_seen_in_the_ring_and_taken_back() {
    let mut cluster = Cluster::of_three().await;
    cluster.stop(3).await;
    let node = cluster.at(1);
    let begun = eventually("two of three decide", async || {
        let begun = node.put("/cluster/members/n2", r#"{"weight":2}"#).await;
        (begun.status == 202).then(|| begun.json())
    })
    .await;
    let since = &begun["since"];
    let waits = eventually("it is said whom it waits for", async || {
        let change = node.get("/cluster/change").await.json();
        let waits = |node: &Value| node["node"] == "n3" && !node["reason"].as_str().unwrap().is_empty();
        change["waiting_for"].as_array().unwrap().iter().any(waits).then_some(change)
    })
    .await;
    assert_eq!((&waits["since"], &waits["change"], &waits["eta_ms"]), (since, &"weight".into(), &Value::Null));
    let second = plan(&node, json!({"change": "leave", "node": "n1"})).await.problem(409, "change-under-way");
    assert!(second["detail"].as_str().unwrap().contains("n2 gets another weight"), "{second}");

    let ring = node.get("/cluster/ring").await.json();
    let (moving, slots) = (&ring["moving"], ring["slots"].as_array().unwrap());
    assert_eq!((&moving["since"], &moving["text"]), (since, &"n2 gets another weight".into()));
    let moves: Vec<&Value> = slots.iter().filter(|slot| slot.get("before").is_some()).collect();
    assert_eq!(moving["slots"], moves.len());
    assert!(moves.iter().all(|slot| names(&slot["before"]).len() == 2 && slot["before"] != slot["replicas"]));

    let back = node.delete("/cluster/change").await;
    assert_eq!((back.status, &back.json()["since"]), (200, since), "{back:?}");
    node.delete("/cluster/change").await.problem(404, "no-such-change");
    let ring = node.get("/cluster/ring").await.json();
    assert_eq!((&ring["members"][1]["weight"], &ring["moving"]), (&1.into(), &Value::Null));
}

#[tokio::test]
async fn the_ring_tells_what_each_member_keeps() {
    let cluster = Cluster::of_three().await;
    let ring = cluster.at(3).get("/cluster/ring").await.json();
    assert_eq!((&ring["even"], &ring["slots_in_fewer_zones"]), (&true.into(), &0.into()));
    assert_eq!((&ring["warnings"], &ring["moving"]), (&json!([]), &Value::Null));
    let members = ring["members"].as_array().unwrap();
    assert_eq!(members.iter().map(|m| m["slots"].as_u64().unwrap()).sum::<u64>(), 512);
    for member in members {
        assert_eq!((&member["zone"], &member["weight"]), (&Value::Null, &1.into()));
        assert_eq!(member["slots"], member["slots_by_weight"]);
        assert!((member["share"].as_f64().unwrap() - 1.0 / 3.0).abs() < 0.01, "{member}");
    }
    assert!(ring["slots"].as_array().unwrap().iter().all(|slot| slot.get("before").is_none()));
}
