//! What deleted keys leave behind, and for whom it waits.

use serde_json::{Value, json};

use crate::harness::{Cluster, eventually};

fn counts(told: &Value) -> Vec<&Value> {
    told["members"].as_array().unwrap().iter().map(|member| &member["tombstones"]).collect()
}

#[tokio::test]
async fn every_member_is_asked_how_many_it_keeps() {
    let cluster = Cluster::of_three().await;
    let told = cluster.at(2).get("/tombstones").await;
    assert_eq!(told.status, 200);
    let told = told.json();
    assert_eq!((&told["node"], &told["tombstones"], &told["waiting_for"]), (&json!("n2"), &json!(0), &json!([])));
    let fresh = json!({"node": "n1", "tombstones": 0, "oldest_ms": null, "purged": 0, "floor_raised_ms": null});
    assert_eq!(told["members"][0], fresh);

    cluster.at(1).put("/kv/k", "v").await.receipt(201, "stored");
    cluster.at(1).delete("/kv/k?consistency=all").await.receipt(200, "deleted");
    for number in 1..=3 {
        let told = cluster.at(number).get("/tombstones").await.json();
        assert_eq!((&told["tombstones"], &told["waiting_for"]), (&json!(2), &json!([])), "two home replicas");
        assert_eq!(counts(&told).iter().filter(|count| **count == &json!(1)).count(), 2, "{told}");
    }
    cluster.at(1).get("/tombstones?all").await.problem(400, "bad-parameters");
}

#[tokio::test]
async fn a_member_that_is_gone_is_waited_for_until_it_is_back() {
    let mut cluster = Cluster::of_three().await;
    cluster.stop(3).await;
    let told = cluster.at(1).get("/tombstones").await.json();
    assert_eq!(
        (&told["waiting_for"], counts(&told)[2]),
        (&json!([]), &Value::Null),
        "there is nothing that could wait"
    );

    for n in 0..8 {
        cluster.at(1).put(&format!("/kv/k{n}"), "v").await;
        cluster.at(1).delete(&format!("/kv/k{n}")).await;
    }
    eventually("it is named", async || {
        let told = cluster.at(2).get("/tombstones").await.json();
        assert_eq!(counts(&told)[2], &Value::Null);
        (told["waiting_for"] == json!([{"node": "n3", "reason": "unreachable"}])).then_some(())
    })
    .await;
    cluster.restart(3).await;
    eventually("it is not named any more", async || {
        let told = cluster.at(2).get("/tombstones").await.json();
        (told["waiting_for"] == json!([]) && counts(&told)[2].is_u64()).then_some(())
    })
    .await;
}
