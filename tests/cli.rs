//! The command line as a process: exit codes, what goes to stdout and what to stderr.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cli/dev.rs"]
mod dev;
#[path = "cli/moving.rs"]
mod moving;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::Duration;

use assert_cmd::Command;

/// The binary, without what this test's own environment could tell it.
fn a3(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_a3"));
    command.env_clear().args(arguments);
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    told(a3(arguments).output().unwrap())
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A node as far as these tests need one: a map behind `/kv/` that knows conditions, and a cluster of one.
struct FakeNode {
    address: String,
}

impl FakeNode {
    /// `keeps`: whether deleted keys stay deleted.
    #[expect(clippy::disallowed_methods, reason = "a server for this test alone, outside any node")]
    fn start(cluster: &str, keeps: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cluster =
            format!(r#"{{"node":"n1","cluster_id":"{cluster}","members":[{{"id":"n1","http_address":"{address}"}}]}}"#);
        std::thread::spawn(move || {
            let mut kept = Kept::default();
            for stream in listener.incoming() {
                // A client that breaks off ends its connection, not the server.
                let _ = serve(stream.unwrap(), &cluster, &mut kept, keeps);
            }
        });
        Self { address }
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        run(&[arguments, &["--host", &self.address]].concat())
    }
}

/// Values by path, each with its version, and how many versions there were.
#[derive(Default)]
struct Kept {
    values: BTreeMap<String, (Vec<u8>, String)>,
    versions: u64,
}

/// Answers one request and closes.
fn serve(stream: TcpStream, cluster: &str, kept: &mut Kept, keeps: bool) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let header = |name: &str| head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix(name).map(str::to_owned));
    let mut body = vec![0; header("content-length: ").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body)?;
    let now = kept.values.get(&path).map(|(_, version)| version.clone());
    let wanted = header("if-match: ").map(|tag| tag.trim().trim_matches('"').to_owned());
    let refused = (header("if-none-match: ").is_some() && now.is_some()) || (wanted.is_some() && wanted != now);
    let receipt = |version: &str| {
        format!(r#"{{"message":"stored","version":"{version}","acked":["n1","n2"],"hinted":{{"n3":"n1"}}}}"#)
            .into_bytes()
    };
    let mut version = now.unwrap_or_default();
    let (status, answer) = match (method, kept.values.get(&path)) {
        ("GET", _) if path == "/cluster" => (200, cluster.as_bytes().to_vec()),
        ("GET", _) if path.starts_with("/kv?") => {
            let (key, next) = if path.contains("cursor=more") { ("b", "null") } else { ("a", "\"more\"") };
            let page = format!(
                r#"{{"items":[{{"key":"{key}","version":"v1","bytes":1}}],"common_prefixes":[],"next":{next},"strict":true}}"#
            );
            (200, page.into_bytes())
        }
        ("GET", _) if path == "/readyz?verbose" => {
            (503, br#"{"title":"Not ready","checks":[{"name":"joined","ok":false,"detail":"n2 is missing"}]}"#.to_vec())
        }
        ("PUT", _) if path.ends_with("full") => {
            (503, br#"{"title":"Unavailable","outcome":"not_applied","required":2,"acked":[]}"#.to_vec())
        }
        _ if refused => (412, br#"{"title":"False","code":"precondition-failed","outcome":"not_applied"}"#.to_vec()),
        ("PUT", _) => {
            kept.versions += 1;
            version = format!("v{}", kept.versions);
            // What a request is named by is told again as its version.
            version = header("idempotency-key: ").unwrap_or(version);
            kept.values.insert(path, (body, version.clone()));
            (201, receipt(&version))
        }
        // Told again as the version: what is asked of whom.
        ("PATCH", _) => (200, receipt(&path)),
        ("DELETE", _) => {
            if keeps {
                kept.values.remove(&path);
            }
            (200, receipt("v0"))
        }
        (_, Some((value, _))) => (200, value.clone()),
        (_, None) => (404, br#"{"title":"The key has no value","code":"no-such-key"}"#.to_vec()),
    };
    let (length, close) = (answer.len(), "Connection: close");
    let head = format!(
        "HTTP/1.1 {status} X\r\nA3-Version: {version}\r\nETag: \"{version}\"\r\nContent-Length: {length}\r\n{close}\r\n\r\n"
    );
    (&stream).write_all(&[head.as_bytes(), &answer].concat())
}

#[test]
fn a_wrong_command_line_is_2_and_says_what_was_meant() {
    for wrong in [
        &["prt"][..],
        &["put"],
        &["serve", "--http-prot", "1"],
        &["get", "k", "--consistency", "most"],
        &["get", "k", "--host", "https://n1:1"],
        &["put", "k", "@/nowhere/at/all"],
        &["dev", "--nodes", "0"],
        &["dev", "--base-port", "65535"],
        &["dev", "--nodes", "2", "add"],
        &["dev", "add", "--zone", ""],
        &["dev", "add", "--weight", "1001"],
        &["dev", "stop"],
        &["dev", "stop", "0"],
        &["bench", "--connections", "0"],
        &["bench", "--op", "cas", "--etcd"],
        &["bench", "--op", "cas-hot", "--consistency", "one"],
        &["put", "k", "v", "--if-absent", "--if-match", "*"],
        &["put", "k", "v", "--idempotency-key", "a\nb"],
        &["touch", "k"],
        &["touch", "k", "soon"],
    ] {
        let (code, stdout, stderr) = run(wrong);
        assert_eq!((code, stdout.as_str()), (2, ""), "{wrong:?}: {stderr}");
        assert!(!stderr.is_empty());
    }
    assert!(run(&["serve", "--http-prot", "1"]).2.contains("--http-port"));
}

#[test]
fn wrong_settings_are_78_and_start_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a3.toml");
    std::fs::write(&file, "weight = 1\nreplicaton_factor = 3\n").unwrap();
    let file = file.to_str().unwrap();
    for (command, wanted) in [
        (a3(&["serve", "--gc-grace", "24"]), "--gc-grace is \"24\""),
        (a3(&["serve", "--config", file]), ":2: replicaton_factor is not a setting; did you mean replication_factor?"),
        (a3(&["config", "--config", "/nowhere.toml"]), "/nowhere.toml: "),
        (a3(&["serve", "--bind-addr", "0.0.0.0", "--mesh-insecure"]), "ADVERTISE_ADDR"),
        (a3(&["serve", "--seeds", "127.0.0.1:1"]), "NODE_NUM must be set"),
    ] {
        let mut command = command;
        let (code, stdout, stderr) = told(command.current_dir(dir.path()).output().unwrap());
        assert_eq!((code, stdout.as_str()), (78, ""), "{stderr}");
        assert!(stderr.contains(wanted), "{stderr}");
    }
    assert!(!dir.path().join("data").exists());
}

#[test]
fn config_prints_each_value_and_where_it_came_from() {
    let mut command = a3(&["config", "-o", "json", "--weight", "9"]);
    let (code, stdout, stderr) = told(command.env("NODE_NUM", "3").env("REPLICATON_FACTOR", "3").output().unwrap());
    assert_eq!(code, 0);
    assert!(stderr.contains("REPLICATION_FACTOR is"));
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let row = |name: &str| {
        let row = rows.iter().find(|r| r["name"] == name).unwrap();
        (row["value"].as_str().unwrap().to_owned(), row["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(row("WEIGHT"), ("9".into(), "flag".into()));
    assert_eq!(row("NODE_NUM"), ("3".into(), "environment".into()));
    assert_eq!(row("HTTP_PORT"), ("8003".into(), "default".into()));
    assert_eq!(row("DATA_DIR"), ("data/node3".into(), "default".into()));
    assert_eq!(rows.len(), a3::config::table::TABLE.len());
}

#[test]
fn nobody_there_is_69() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for command in ["status", "ring", "health", "smoke"] {
        let (code, stdout, stderr) = run(&[command, "--host", &free]);
        assert_eq!((code, stdout.as_str()), (69, ""), "{command}: {stderr}");
        assert!(stderr.contains("cannot connect"));
    }
    let (code, _, stderr) = run(&["health", "--ready", "--wait", "200ms", "--host", &free]);
    assert_eq!(code, 69, "{stderr}");
    assert_eq!(run(&["smoke", "--hosts", &free]).0, 1);
}

/// As a node does that was paused: the system accepts for it, and nobody answers.
#[test]
fn a_node_that_hangs_is_69_before_anybody_loses_patience() {
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hangs.local_addr().unwrap().to_string();
    for command in [&["status"][..], &["health"], &["health", "--ready", "--wait", "1s"]] {
        let arguments = [command, &["--host", &address]].concat();
        let hung = a3(&arguments).timeout(Duration::from_secs(20)).output().unwrap();
        assert_eq!(hung.status.code(), Some(69), "{command:?} waits on");
        let (_, stdout, stderr) = told(hung);
        assert_eq!((stdout.as_str(), stderr), ("", format!("a3: {address}: no answer within 3s\n")), "{command:?}");
    }
}

#[test]
fn values_go_in_and_come_out_byte_for_byte() {
    let node = FakeNode::start("c", true);
    let every: Vec<u8> = (0..=255).collect();
    let put = a3(&["put", "a/b %", "--host", &node.address]).write_stdin(every.clone()).output().unwrap();
    assert_eq!(told(put), (0, "stored version v1 on n1, n2, hint kept by n1 for n3\n".into(), String::new()));
    let get = a3(&["get", "a/b %", "--host", &node.address]).output().unwrap();
    assert_eq!((get.status.code(), get.stdout), (Some(0), every));
    assert_eq!(node.run(&["put", "k", ""]).0, 0);
    assert_eq!(node.run(&["get", "k"]), (0, String::new(), String::new()));
    assert_eq!(node.run(&["put", "k", "-1"]).0, 0);
    assert_eq!(node.run(&["get", "k"]).1, "-1");
    assert_eq!(node.run(&["delete", "k"]).0, 0);
    assert_eq!(node.run(&["get", "k"]), (3, String::new(), "a3: The key has no value\n".into()));
}

#[test]
fn a_false_condition_is_4_and_a_version_is_taken_as_it_is_printed() {
    let node = FakeNode::start("c", true);
    assert_eq!(node.run(&["put", "k", "1", "--if-absent"]).0, 0);
    let (code, stdout, stderr) = node.run(&["put", "k", "2", "--if-absent"]);
    assert_eq!((code, stdout.as_str()), (4, ""));
    assert_eq!(stderr, "a3: False\n  outcome: not_applied (nothing was written)\n");
    assert_eq!(node.run(&["put", "k", "2", "--if-match", "v9"]).0, 4);
    assert_eq!(node.run(&["put", "k", "2", "--if-match", "v1"]).0, 0);
    assert_eq!(node.run(&["get", "k", "--if-match", "v1"]).0, 4);
    assert_eq!(node.run(&["get", "k", "--if-match", "\"v2\""]).1, "2");
    assert_eq!(node.run(&["delete", "k", "--if-match", "v1"]).0, 4);
    assert_eq!(node.run(&["delete", "k", "--if-match", "v2"]).0, 0);
    assert!(node.run(&["put", "k", "3", "--idempotency-key", "once-1"]).1.contains("version once-1"));
}

#[test]
fn keys_are_listed_page_by_page() {
    let node = FakeNode::start("c", true);
    let more = "there may be more: --all lists them, --after KEY goes on\n".to_owned();
    assert_eq!(node.run(&["ls", "--limit", "1"]), (0, "a\n".into(), more));
    assert_eq!(node.run(&["ls", "--limit", "2"]), (0, "a\nb\n".into(), String::new()));
    let (code, stdout, _) = node.run(&["ls", "--all", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, told["items"].as_array().unwrap().len(), &told["next"]), (0, 2, &serde_json::Value::Null));
    assert_eq!(node.run(&["ls", "--limit", "0"]).0, 2);
}

#[test]
fn a_touch_sends_a_time_and_no_value() {
    let node = FakeNode::start("c-1", true);
    for (asked, sent) in [("90s", "/kv/a%2Fb?ttl=90000ms"), ("none", "/kv/a%2Fb?ttl=none")] {
        let (code, stdout, stderr) = node.run(&["touch", "a/b", asked]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.contains(sent), "{stdout}");
    }
    assert_eq!(node.run(&["touch", "k", "90s", "--if-match", "v1"]).0, 4);
}

#[test]
fn a_refusal_is_told_with_its_outcome() {
    let node = FakeNode::start("c", true);
    let (code, stdout, stderr) = node.run(&["put", "full", "x"]);
    assert_eq!((code, stdout.as_str()), (69, ""));
    assert_eq!(stderr, "a3: Unavailable\n  outcome: not_applied (nothing was written)\n  required: 2, acked: none\n");
    let (code, _, stderr) = node.run(&["health", "--ready"]);
    assert_eq!((code, stderr.as_str()), (69, "a3: Not ready\n  joined: n2 is missing\n"));
}

#[test]
fn smoke_passes_only_where_all_is_well() {
    let well = FakeNode::start("c", true);
    let (code, stdout, _) = well.run(&["smoke"]);
    assert_eq!((code, stdout.lines().last()), (0, Some("all is well")));
    assert_eq!(stdout.lines().filter(|l| l.starts_with("ok ")).count(), 8, "{stdout}");
    let forgetful = FakeNode::start("c", false);
    let (code, stdout, _) = forgetful.run(&["smoke"]);
    assert_eq!(code, 1);
    assert!(stdout.contains("FAIL  gone at n1: it is still there"), "{stdout}");
    let foreign = FakeNode::start("d", true);
    let (code, stdout, _) = run(&["smoke", "--hosts", &format!("{},{}", well.address, foreign.address)]);
    assert_eq!(code, 1);
    assert!(stdout.contains("it belongs to cluster d"), "{stdout}");
}

#[test]
fn bench_counts_what_is_answered() {
    let node = FakeNode::start("c", true);
    let arguments = ["bench", "--hosts", &node.address, "--op", "mix", "--load", "--keys", "20", "--connections", "2"];
    let (code, stdout, stderr) = run(&[&arguments[..], &["--warmup", "0", "--seconds", "0.3", "-o", "json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &report["errors"]), (0, &serde_json::json!({})), "{stderr}");
    assert!(report["operations"].as_u64().unwrap() > 0 && stderr.contains("loaded 20 keys"));
}

#[test]
fn bench_changes_keys_by_their_etags() {
    let node = FakeNode::start("c", true);
    // Another run was here before: its keys refuse to be created, and that is no error.
    for key in ["0000000000", "0000000001"] {
        assert_eq!(node.run(&["put", &format!("bench-{key}"), "x"]).0, 0);
    }
    for (op, connections) in [("cas", "2"), ("cas-hot", "1")] {
        let arguments = ["bench", "--hosts", &node.address, "--op", op, "--keys", "4", "--connections", connections];
        let (code, stdout, stderr) =
            run(&[&arguments[..], &["--warmup", "0", "--seconds", "0.3", "-o", "json"]].concat());
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((code, &report["errors"]), (0, &serde_json::json!({})), "{op}: {stderr}");
        assert!(report["operations"].as_u64().unwrap() > 4, "{report}");
    }
}

#[test]
fn a_taken_port_ends_dev_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // The mesh's base is out of REST's way; dev looks at REST's port first.
    let mesh = if port.starts_with('1') { "20000" } else { "10000" };
    let temporary = tempfile::tempdir().unwrap();
    let mut command = a3(&["dev", "--nodes", "1", "--base-port", &port, "--mesh-base-port", mesh]);
    let (code, stdout, stderr) = told(command.env("TMPDIR", temporary.path()).output().unwrap());
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains(&format!("port {port} for n1")) && stderr.contains("--base-port"), "{stderr}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, stdout, _) = run(&["completions", shell]);
        assert!(code == 0 && stdout.contains("smoke"), "{shell}");
    }
}
