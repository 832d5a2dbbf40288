//! Backups through the command line, of a real node.

use std::process::{Command, Output};

use crate::nodes::{Node, eventually};

fn a3(node: &Node, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_a3"));
    command.env_clear().env("A3_HOST", format!("http://{}", node.http)).current_dir(node.dir.parent().unwrap());
    command.args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn the_only_node_comes_back_from_its_backup() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(1, dir.path().join("node1"), &[]);
    node.start();
    node.ready().await;
    assert_eq!(node.ask("PUT", "/kv/name", "anas").await.status, 201);
    let condition = [("if-none-match", "*")];
    assert_eq!(node.ask_with("PUT", "/kv/once", &condition, "first").await.status, 201);
    assert_eq!(node.ask("PUT", "/kv/gone", "x").await.status, 201);
    assert_eq!(node.ask("DELETE", "/kv/gone", "").await.status, 200);

    let taken = a3(&node, &["backup", "-o", "json"]);
    assert!(taken.status.success(), "{}", text(&taken.stderr));
    let told: serde_json::Value = serde_json::from_slice(&taken.stdout).unwrap();
    let file = told["file"].as_str().unwrap().to_owned();
    assert!(file.starts_with("a3-n1-") && file.ends_with(".db"), "{file}");
    let path = dir.path().join(&file);
    assert_eq!(told["bytes"], path.metadata().unwrap().len());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{left:?}");
    let metrics = text(&node.ask("GET", "/metrics", "").await.body);
    assert!(metrics.contains("a3_backups_total{result=\"done\"} 1"), "{metrics}");

    assert_eq!(node.ask("PUT", "/kv/later", "lost").await.status, 201);
    let data = node.dir.display().to_string();
    let refused = a3(&node, &["restore", &file, "--data-dir", &data]);
    assert_eq!(refused.status.code(), Some(78), "{}", text(&refused.stderr));
    node.kill().await;
    std::fs::remove_dir_all(&node.dir).unwrap();
    let other = a3(&node, &["restore", &file, "--data-dir", &data, "--node-num", "2"]);
    assert!(other.status.code() == Some(78) && text(&other.stderr).contains("of n1"), "{}", text(&other.stderr));
    let restored = a3(&node, &["restore", &file, "--data-dir", &data]);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    assert!(text(&restored.stdout).contains("a3 serve"), "{}", text(&restored.stdout));

    node.start();
    node.ready().await;
    assert_eq!(node.ask("GET", "/kv/name", "").await.body, "anas");
    assert_eq!(node.ask("GET", "/kv/gone", "?consistency=linearizable").await.status, 404);
    assert_eq!(node.ask("GET", "/kv/later", "").await.status, 404);
    // What the register held goes on: created once, and changed on what is there.
    assert_eq!(node.ask_with("PUT", "/kv/once", &condition, "second").await.status, 412);
    assert_eq!(node.ask_with("PUT", "/kv/once", &[("if-match", "*")], "third").await.status, 200);
    assert_eq!(node.ask("PUT", "/kv/name", "again").await.status, 200);
    let cluster = node.ask("GET", "/cluster", "").await.json();
    assert_eq!(cluster["epoch"], 2);
    eventually("the copies are equal, as there is one", async || {
        (node.ask("GET", "/cluster/health", "").await.json()["status"] == "healthy").then_some(())
    })
    .await;
    assert_eq!(node.stop().await, 0);
}

#[tokio::test]
async fn a_node_that_is_not_there_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(1, dir.path().join("node1"), &[]);
    let failed = a3(&node, &["backup", "kept.db"]);
    assert_eq!(failed.status.code(), Some(69), "{}", text(&failed.stderr));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
