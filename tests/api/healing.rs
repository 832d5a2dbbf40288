//! Whether the copies agree, repairing them, and following that work.

use serde_json::{Value, json};

use crate::client::{Answer, names};
use crate::harness::{Cluster, eventually};

const UNKNOWN: &str = "/operations/00000000-0000-0000-0000-000000000000";

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_every_fault() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let listed = |problem: &Value| {
        let parameters = problem["parameters"].as_array().unwrap();
        parameters.iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let problem = node.get("/cluster/convergence?keys=1&deep=yes&level=all").await.problem(400, "bad-parameters");
    assert_eq!(listed(&problem), ["level", "keys", "deep"]);
    for path in ["/operations?all", "/operations/7?x=1", "/operations/7/events?x=1"] {
        node.get(path).await.problem(400, "bad-parameters");
    }
    let problem =
        node.post("/repair", r#"{"chunks":[3,16],"dry_run":"yes","slots":[]}"#).await.problem(400, "bad-body");
    assert_eq!(listed(&problem), ["chunks", "dry_run", "slots"]);
    assert_eq!(problem["outcome"], "not_applied");
    node.post("/repair", "everything").await.problem(400, "bad-request");
    node.post("/repair?dry_run=true", "").await.problem(400, "bad-parameters");
    node.get("/repair").await.problem(405, "method-not-allowed");
    let elsewhere = [("origin", "https://evil.example")];
    node.ask("POST", "/repair", &elsewhere, "").await.problem(403, "cross-site");
    for path in ["/operations/7", "/operations/n1/events"] {
        node.get(path).await.problem(404, "no-such-operation");
    }
    node.delete("/operations/7").await.problem(404, "no-such-operation");
}

#[tokio::test]
async fn an_operation_that_is_not_known_is_404() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    assert_eq!(node.get("/operations").await.json(), json!({"node": "n1", "operations": []}));
    node.get(UNKNOWN).await.problem(404, "no-such-operation");
    node.get(&format!("{UNKNOWN}/events")).await.problem(404, "no-such-operation");
    node.delete(UNKNOWN).await.problem(404, "no-such-operation");
}

#[tokio::test]
async fn copies_that_agree_say_so() {
    let cluster = Cluster::of_three().await;
    for n in 0..50 {
        cluster.at(1).put(&format!("/kv/k{n}?consistency=all"), "v").await.receipt(201, "stored");
    }
    for (number, query) in [(1, ""), (2, "?keys"), (3, "?deep=true")] {
        let node = cluster.at(number);
        // What was just written is under way.
        let told = eventually("all copies are equal", async || {
            let told = node.get(&format!("/cluster/convergence{query}")).await.json();
            (told["status"] == "equal").then_some(told)
        })
        .await;
        assert_eq!(told["node"], format!("n{number}"));
        let pairs = told["pairs"].as_array().unwrap();
        let nodes: Vec<_> = pairs.iter().map(|pair| names(&pair["nodes"])).collect();
        assert_eq!(nodes, [["n1", "n2"], ["n1", "n3"], ["n2", "n3"]]);
        for pair in pairs {
            let chunks = pair["chunks"].as_array().unwrap();
            assert!(!chunks.is_empty() && chunks.iter().all(|chunk| chunk["status"] == "equal"), "{pair}");
            let named = (!query.is_empty()).then(|| (json!(0), json!([])));
            assert_eq!((pair.get("differing").cloned()).zip(pair.get("keys").cloned()), named, "{pair}");
        }
    }
}

#[tokio::test]
async fn a_repair_is_followed_to_its_end_and_remembered() {
    let cluster = Cluster::of_three().await;
    let node = cluster.at(1);
    node.put("/kv/k?consistency=all", "v").await.receipt(201, "stored");
    for (body, dry_run) in [("", false), (r#"{"dry_run":true,"chunks":[0,1,2]}"#, true)] {
        let begun = node.post("/repair", body).await;
        assert_eq!(begun.status, 202, "{begun:?}");
        let operation = begun.json();
        let path = begun.header("location").unwrap().to_owned();
        assert_eq!(path, format!("/operations/{}", operation["id"].as_str().unwrap()));
        assert_eq!((&operation["kind"], &operation["dry_run"]), (&"repair".into(), &dry_run.into()));

        let told = events(&node.get(&format!("{path}/events")).await);
        let (last, before) = told.split_last().unwrap();
        assert!(before.iter().all(|(name, body)| name == "progress" && body["state"] == "running"), "{told:?}");
        assert_eq!((last.0.as_str(), &last.1["state"]), ("end", &"done".into()), "{told:?}");
        assert_eq!(node.get(&path).await.json(), last.1);
        assert_eq!(node.get("/operations").await.json()["operations"][0], last.1, "the newest first");
        assert_eq!(node.delete(&path).await.json(), last.1, "what has ended is left as it is");
        cluster.at(2).get(&path).await.problem(404, "no-such-operation");
    }
}

/// The names and bodies of an answer's events.
fn events(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")), "{answer:?}");
    let text = std::str::from_utf8(&answer.body).unwrap();
    let field = |event: &str, name: &str| event.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    let event = |event: &str| Some((field(event, "event: ")?, serde_json::from_str(&field(event, "data: ")?).unwrap()));
    text.split("\n\n").filter_map(event).collect()
}
