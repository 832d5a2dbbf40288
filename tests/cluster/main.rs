//! A few real processes: what a person sees who kills nodes, restarts them and mixes them up. `scripts/check-faults`
//! does the same at length.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backup;
mod load;
mod nodes;

use std::time::Duration;

use load::Load;
use nodes::{Cluster, Node, eventually};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

#[tokio::test]
async fn a_killed_node_is_stood_in_for_and_gets_what_it_missed() {
    let mut cluster = Cluster::start().await;
    assert_eq!(cluster.nodes[0].ask("PUT", "/kv/name", "anas").await.status, 201);
    for node in &cluster.nodes {
        assert_eq!(node.ask("GET", "/kv/name", "").await.body, "anas", "{}", node.name);
    }

    let mut load = Load::new();
    let [first, second, victim] = &mut cluster.nodes[..] else { panic!("three nodes") };
    let failed = load
        .run(&[first, second], async |progress| {
            progress.more(100).await;
            victim.kill().await;
            progress.more(200).await;
        })
        .await;
    assert_eq!(failed, [] as [&str; 0], "the other two answer everything");

    let mut homes = Vec::new();
    for key in &mut load.keys {
        let receipt = key.put(first).await.json();
        if receipt["replicas"].as_array().unwrap().contains(&"n3".into()) {
            assert!(receipt["hinted"]["n3"].is_string(), "{receipt}");
            assert_eq!(receipt["strict"], false, "{receipt}");
            homes.push(key);
        }
    }
    let refused = first.ask("PUT", &homes[0].path("?consistency=all"), "x").await;
    assert_eq!((refused.status, &refused.json()["outcome"]), (503, &"not_applied".into()));
    assert!(refused.json()["failed"].as_array().unwrap().iter().any(|f| f["node"] == "n3"), "{refused:?}");

    victim.start();
    victim.ready().await;
    for node in [&*first, &*second] {
        node.healthy().await;
    }
    assert_eq!((first.stop().await, second.stop().await), (0, 0));
    for key in homes {
        let answer = key.get(victim, "?consistency=one").await;
        assert_eq!(answer.body, format!("{} {}", key.name, key.acked), "alone with its own copy");
    }
}

#[tokio::test]
async fn all_killed_at_once_lose_nothing_acknowledged() {
    let mut cluster = Cluster::start().await;
    let mut load = Load::new();
    for _ in 0..2 {
        let before = load.acked();
        // The clients hold on to the nodes, so the processes are killed by their ids.
        let nodes: Vec<&Node> = cluster.nodes.iter().collect();
        load.run(&nodes, async |progress| {
            progress.more(200).await;
            nodes.iter().for_each(|node| node.kill_now());
            progress.more(20).await;
        })
        .await;
        assert!(load.acked() > before);
        for node in &mut cluster.nodes {
            node.kill().await;
            node.start();
        }
        cluster.healthy().await;
        for node in &cluster.nodes {
            for key in &load.keys {
                let answer = key.get(node, "").await;
                assert!(answer.ok() || key.acked == 0, "{} at {}: {answer:?}", key.name, node.name);
            }
        }
    }
}

#[tokio::test]
async fn a_request_has_one_name_in_the_lines_of_all_nodes() {
    let cluster = Cluster::start_with(&[("DEBUG_LOG", "true".into())]).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let plain = [("x-request-id", "a-plain-write"), ("traceparent", parent)];
    let condition = [("x-request-id", "a-condition"), ("traceparent", parent), ("if-none-match", "*")];
    for key in 0..16 {
        // Of sixteen keys some are at home elsewhere, and some conditions are decided elsewhere.
        for (name, headers) in [("plain", &plain[..]), ("condition", &condition[..])] {
            let answer = cluster.nodes[0].ask_with("PUT", &format!("/kv/{name}-{key}"), headers, "x").await;
            assert_eq!(answer.status, 201, "{answer:?}");
        }
    }
    let lines = [(1, "replicate from n1 stored"), (2, "replicate from n1 stored"), (1, "write to "), (2, "write to ")];
    for (node, line) in lines {
        let (node, name) = (&cluster.nodes[node], if line == "write to " { "a-condition" } else { "a-plain-write" });
        eventually(&format!("{name} in a line of {}: {line}", node.name), async || {
            let said = node.said();
            let mut lines = said.lines().filter(|l| l.contains(line));
            lines.any(|l| l.contains(&format!("\"id\":\"{name}\"")) && l.contains(parent)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_stop_is_clean_and_what_cannot_be_right_is_refused() {
    let mut cluster = Cluster::start().await;
    let seeds = cluster.nodes.iter().map(|n| n.mesh.clone()).collect::<Vec<_>>().join(",");
    let member = |number, dir| {
        let settings = [("SEEDS", seeds.clone()), ("CLUSTER_SIZE", "3".into()), ("REPLICATION_FACTOR", "2".into())];
        Node::new(number, dir, &settings)
    };

    let same = cluster.dir.path().join("twin");
    std::os::unix::fs::symlink(&cluster.nodes[1].dir, &same).unwrap();
    let mut twin = member(2, same);
    twin.start();
    assert_eq!(twin.ended().await, 78);
    assert!(twin.said().contains("another process"), "{}", twin.said());

    let mut double = member(2, cluster.dir.path().join("double"));
    double.start();
    assert_eq!(double.ended().await, 78);
    assert!(double.said().contains("has n2 as instance"), "{}", double.said());

    let mut foreign = Node::new(4, cluster.dir.path().join("foreign"), &[]);
    foreign.start();
    foreign.ready().await;
    assert_eq!(foreign.stop().await, 0);
    foreign.set("SEEDS", seeds);
    foreign.start();
    assert_eq!(foreign.ended().await, 78);
    assert!(foreign.said().lines().last().unwrap().contains("belongs to cluster"), "{}", foreign.said());

    for node in &mut cluster.nodes {
        assert_eq!(node.stop().await, 0, "{}", node.said());
    }
}

/// As when its log is on the disk that is full.
#[tokio::test]
async fn a_node_whose_lines_cannot_be_written_works_on_and_tells_by_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(1, dir.path().join("node1"), &[("DEBUG_LOG", "true".into())]);
    node.log = "/dev/full".into();
    node.start();
    node.ready().await;
    assert_eq!(node.ask("PUT", "/kv/name", "anas").await.status, 201);
    assert_eq!(node.ask("GET", "/kv/name", "").await.body, "anas");
    assert_eq!(node.stop().await, 0);
    node.set("NODE_NUM", "2".into());
    node.start();
    assert_eq!(node.ended().await, 78, "the directory is another node's");
}

#[tokio::test]
async fn who_asks_twice_for_a_stop_does_not_wait_for_clients() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(1, dir.path().join("node1"), &[]);
    for (first, then) in [(Signal::TERM, &[Signal::TERM][..]), (Signal::HUP, &[Signal::INT]), (Signal::INT, &[])] {
        node.start();
        node.ready().await;
        let mut client = TcpStream::connect(&node.http).await.unwrap();
        client.write_all(b"PUT /kv/k HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
        eventually("half of a request is under way, beside this one", async || {
            let metrics = node.ask("GET", "/metrics", "").await.body;
            let metrics = String::from_utf8_lossy(&metrics).into_owned();
            metrics.lines().any(|line| line == "a3_http_requests_in_flight 2").then_some(())
        })
        .await;
        let stops = |node: &Node| node.said().matches("stopping").count();
        let (began, before) = (Instant::now(), stops(&node));
        node.signal(first);
        // Who signals a process and its group means one stop.
        node.signal(first);
        // A busy machine tells it late of a signal: it must not take the next one for the same.
        eventually("it stops", async || (stops(&node) > before).then_some(())).await;
        for signal in then {
            sleep(Duration::from_millis(500)).await;
            node.signal(*signal);
        }
        assert_eq!(node.ended().await, 0, "the store was closed in order\n{}", node.said());
        let waited = began.elapsed() > Duration::from_secs(5);
        assert_eq!(waited, then.is_empty(), "{first:?} {then:?}: {:?}", began.elapsed());
    }
    let said = node.said();
    assert_eq!(said.matches("told to stop once more").count(), 2, "{said}");
    assert_eq!(said.matches("the last stop saved are taken over").count(), 2, "each later start found them: {said}");
}
