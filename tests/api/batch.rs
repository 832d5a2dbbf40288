//! Several operations in one request.

use serde_json::{Value, json};

use crate::harness::Cluster;

/// The statuses of a batch's results.
fn statuses(told: &Value) -> Vec<u64> {
    told["results"].as_array().unwrap().iter().map(|result| result["status"].as_u64().unwrap()).collect()
}

async fn batch(cluster: &Cluster, number: u16, ops: Value) -> Value {
    let told = cluster.at(number).post("/batch", json!({"ops": ops}).to_string()).await;
    assert_eq!(told.status, 200, "{told:?}");
    told.json()
}

#[tokio::test]
async fn each_operation_is_answered_as_it_would_be_alone() {
    let cluster = Cluster::of_three().await;
    let ops = json!([
        {"op": "put", "key": "a", "value": "1", "content_type": "text/plain"},
        {"op": "put", "key": "a", "value": "2"},
        {"op": "get", "key": "a"},
        {"op": "delete", "key": "a"},
        {"op": "get", "key": "a"},
        {"op": "put", "key_base64": "/w==", "value_base64": "/wA=", "ttl": "1h", "consistency": "all"},
        {"op": "get", "key": "never"},
    ]);
    let told = batch(&cluster, 1, ops).await;
    assert_eq!(statuses(&told), [201, 200, 200, 200, 404, 201, 404], "in the order given: {told}");
    assert_eq!((&told["ok"], &told["done"], &told["failed"]), (&json!(false), &json!(5), &json!(2)));
    let results = &told["results"];
    assert_eq!(results[2]["record"]["value"], "2");
    assert_eq!(results[2]["record"]["version"], results[1]["receipt"]["version"]);
    assert_eq!(results[3]["receipt"]["message"], "deleted");
    assert_eq!(
        (&results[4]["problem"]["code"], &results[4]["version"]),
        (&json!("no-such-key"), &results[3]["receipt"]["version"])
    );
    assert_eq!((&results[6]["version"], &results[6]["problem"]["request_id"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&results[5]["receipt"]["key_base64"], &results[5]["receipt"]["consistency"]),
        (&json!("/w=="), &json!("all"))
    );

    let there = cluster.at(3).get("/kv/%FF").await;
    assert_eq!((there.status, &there.body[..]), (200, &[0xff, 0][..]));
    assert!(there.headers.contains_key("a3-expires-at"));
    let expected = results[5]["receipt"]["version"].as_str().unwrap();
    assert_eq!(there.headers["a3-version"], expected);
}

#[tokio::test]
async fn conditions_are_each_operations_own() {
    let cluster = Cluster::of_three().await;
    let create = json!({"op": "put", "key": "k", "value": "v", "if_none_match": "*", "idempotency_key": "first"});
    let told = batch(&cluster, 1, json!([create])).await;
    assert_eq!(statuses(&told), [201]);
    let version = told["results"][0]["receipt"]["version"].clone();
    let ops = json!([
        create,
        {"op": "put", "key": "k", "value": "w", "if_none_match": "*"},
        {"op": "get", "key": "k", "if_none_match": version},
        {"op": "get", "key": "k", "if_match": "018f3c5a1b2c0000-1-0"},
        {"op": "delete", "key": "k", "if_match": version},
        {"op": "get", "key": "k", "consistency": "linearizable"},
    ]);
    let told = batch(&cluster, 2, ops).await;
    assert_eq!(statuses(&told), [201, 412, 304, 412, 200, 404], "{told}");
    let results = &told["results"];
    assert_eq!(results[0]["receipt"]["version"], version, "its first answer");
    assert_eq!((&results[1]["problem"]["outcome"], &results[1]["version"]), (&json!("not_applied"), &version));
    assert_eq!((&results[2]["version"], &results[3]["version"]), (&version, &version));
}

#[tokio::test]
async fn what_is_wrong_with_one_harms_no_other() {
    let cluster = Cluster::of_three().await;
    let large = "v".repeat(1024 * 1024 + 1);
    let ops = json!([
        {"op": "put", "key": "a", "value": "1"},
        {"op": "put", "key": "b", "value": "1", "ttl": "soon", "color": "red"},
        7,
        {"op": "put", "key": "", "value": "1"},
        {"op": "put", "key": "c", "value": large},
        {"op": "put", "key": "d", "value": "1"},
    ]);
    let told = batch(&cluster, 1, ops).await;
    assert_eq!(statuses(&told), [201, 400, 400, 400, 413, 201], "{told}");
    let named: Vec<&Value> =
        told["results"][1]["problem"]["parameters"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(named, ["ttl", "color"]);
    for (key, status) in [("a", 200), ("b", 404), ("c", 404), ("d", 200)] {
        assert_eq!(cluster.at(2).get(&format!("/kv/{key}")).await.status, status, "{key}");
    }
}

#[tokio::test]
async fn a_body_that_is_no_batch_is_refused_and_nothing_is_done() {
    let cluster = Cluster::of_three().await;
    let node = cluster.at(1);
    node.post("/batch", "").await.problem(400, "bad-request");
    node.post("/batch", r#"{"ops":[{"op":"put","key":"a","value":"1"}],"atomic":true}"#).await.problem(400, "bad-body");
    node.post("/batch?ttl=1s", r#"{"ops":[]}"#).await.problem(400, "bad-parameters");
    node.post("/batch?consistency=most", r#"{"ops":[]}"#).await.problem(400, "bad-parameters");
    let many = json!({"ops": vec![json!({"op": "put", "key": "a", "value": "1"}); 1001]}).to_string();
    node.post("/batch", many).await.problem(400, "bad-body");
    let long = json!({"ops": [{"op": "put", "key": "a", "value": "v".repeat(16 << 20)}]}).to_string();
    node.post("/batch", long).await.problem(413, "body-too-large");
    node.get("/kv/a").await.problem(404, "no-such-key");
    let empty = node.post("/batch", r#"{"ops":[]}"#).await;
    assert_eq!((empty.status, &empty.json()["ok"]), (200, &json!(true)));
}

#[tokio::test]
async fn a_thousand_operations_go_at_once() {
    let cluster = Cluster::of_three().await;
    let puts: Vec<Value> =
        (0..1000).map(|n| json!({"op": "put", "key": format!("k{n}"), "value": format!("v{n}")})).collect();
    let told = batch(&cluster, 1, json!(puts)).await;
    assert_eq!((&told["ok"], &told["done"]), (&json!(true), &json!(1000)), "{}", told["message"]);
    let gets: Vec<Value> = (0..1000).map(|n| json!({"op": "get", "key": format!("k{n}")})).collect();
    let told = batch(&cluster, 3, json!(gets)).await;
    for (n, result) in told["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["record"]["value"], format!("v{n}"));
    }
}

#[tokio::test]
async fn a_batch_reads_so_many_bytes_and_no_more() {
    let cluster = Cluster::of_three().await;
    let value = "v".repeat(1024 * 1024);
    for n in 0..4 {
        cluster.at(1).put(&format!("/kv/k{n}"), value.clone()).await.receipt(201, "stored");
    }
    let gets: Vec<Value> =
        (0..100).map(|n| json!({"op": "get", "key": format!("k{}", n % 4), "consistency": "one"})).collect();
    let told = batch(&cluster, 1, json!(gets)).await;
    let statuses = statuses(&told);
    let read = statuses.iter().filter(|status| **status == 200).count();
    // Four keys are read at once, so up to three more may be under way.
    assert!((16..20).contains(&read), "{read}");
    assert_eq!(statuses.iter().filter(|status| **status == 413).count(), 100 - read);
    let refused = told["results"].as_array().unwrap().iter().find(|r| r["status"] == 413).unwrap();
    assert_eq!(
        (&refused["problem"]["code"], &refused["problem"]["retryable"]),
        (&json!("batch-answer-full"), &json!(true))
    );
}

#[tokio::test]
async fn what_is_not_begun_in_time_is_said_to_be_not_applied() {
    let mut cluster = Cluster::of_three().await;
    cluster.stop(2).await;
    cluster.stop(3).await;
    // Alone each of these takes its whole time; those of one key wait for each other.
    let puts = json!({"ops": vec![json!({"op": "put", "key": "a", "value": "1", "consistency": "all"}); 3]});
    let told = cluster.at(1).post("/batch?timeout=200ms", puts.to_string()).await.json();
    assert_eq!(told["done"], 0);
    for result in told["results"].as_array().unwrap() {
        assert!(matches!(result["status"].as_u64(), Some(503 | 504)), "{result}");
        assert!(result["problem"]["outcome"].is_string());
    }
}
