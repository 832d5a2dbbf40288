//! Changes of the topology from the command line: what is asked of a node, in which order, and how the command ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::{a3, run, told};

const PLAN: &str = r#"{"text":"n2 leaves","epoch":3,"rf":2,"rf_before":2,"slots":170,"copies":170,"copies_ideal":170,
    "members":[{"node":"n1","weight":1,"slots_before":170,"slots":256,"slots_by_weight":256,"gained":86}],"warnings":[]}"#;
const BEGUN: &str = r#"{"text":"n2 leaves","since":4,"epoch":4,"slots":170,"members":[]}"#;
const RUNS: &str = r#"{"text":"n2 leaves","since":4,"epoch":4,"slots":170,"done":90,"total":170,"members":[]}"#;
const NONE: &str = r#"{"title":"No change of the topology is under way","code":"no-such-change"}"#;
const BEFORE: &str = r#"{"epoch":4,"rf":2,"members":[{"id":"n1","weight":1},{"id":"n2","weight":1}]}"#;
const GONE: &str = r#"{"epoch":5,"rf":2,"members":[{"id":"n1","weight":1}]}"#;
const BACK: &str = r#"{"epoch":5,"rf":2,"members":[{"id":"n1","weight":1},{"id":"n2","weight":1}]}"#;

/// An answer to a request whose first line begins so. Of several for one request each is given once, and the last for ever.
type Scene = (&'static str, u16, &'static str);

/// A node that answers what it is told to, and remembers what it was asked.
struct Actor {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Actor {
    #[expect(clippy::disallowed_methods, reason = "a server for this test alone, outside any node")]
    fn start(scenes: &[Scene]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (mut scenes, notes) = (scenes.to_vec(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that breaks off ends its connection, not the server.
                let _ = answer(&stream.unwrap(), &mut scenes, &notes);
            }
        });
        Self { address, asked }
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        run(&[arguments, &["--host", &self.address]].concat())
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn answer(stream: &TcpStream, scenes: &mut Vec<Scene>, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body)?;
    let line = head.split(" HTTP").next().unwrap_or_default().to_owned();
    asked.lock().unwrap().push(format!("{line} {}", String::from_utf8_lossy(&body)).trim_end().to_owned());
    let mut fitting = scenes.iter().enumerate().filter(|(_, (wanted, ..))| line == *wanted);
    let (at, (_, status, text)) = fitting.next().map_or((None, ("", 404, NONE)), |(at, scene)| (Some(at), *scene));
    let more = fitting.next().is_some();
    if let Some(at) = at.filter(|_| more) {
        scenes.remove(at);
    }
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
    let mut stream = stream;
    stream.write_all(&[head.as_bytes(), text.as_bytes()].concat())
}

#[test]
fn a_plan_is_shown_and_nothing_else_is_asked() {
    let node = Actor::start(&[("POST /cluster/plan", 200, PLAN)]);
    let (code, stdout, stderr) = node.run(&["plan", "leave", "n2"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.starts_with("plan: n2 leaves (from epoch 3)\n170 of 256 slots get other replicas\n"), "{stdout}");
    assert_eq!(node.asked(), [r#"POST /cluster/plan {"change":"leave","node":"n2"}"#]);
    let (code, stdout, _) = node.run(&["plan", "join", "4", "--zone", "b", "-o", "json"]);
    assert_eq!((code, serde_json::from_str::<serde_json::Value>(&stdout).unwrap()["copies"].as_u64()), (0, Some(170)));
    let asked: serde_json::Value = serde_json::from_str(node.asked()[0].split_once("plan ").unwrap().1).unwrap();
    assert_eq!(asked, serde_json::json!({"change": "join", "node": "n4", "weight": 1, "zone": "b"}));
    for (arguments, sent) in [
        (&["plan", "rf", "3"][..], r#"{"change":"replication-factor","rf":3}"#),
        (&["plan", "zone", "n1", "--none"], r#"{"change":"zone","node":"n1","zone":null}"#),
        (&["plan", "weight", "n1", "3"], r#"{"change":"weight","node":"n1","weight":3}"#),
    ] {
        assert_eq!(node.run(arguments).0, 0);
        assert_eq!(node.asked(), [format!("POST /cluster/plan {sent}")]);
    }
}

#[test]
fn a_change_is_planned_begun_and_followed_to_its_end() {
    let ends = |last| {
        Actor::start(&[
            ("POST /cluster/plan", 200, PLAN),
            ("POST /cluster/members/n2/leave", 202, BEGUN),
            ("GET /cluster/change", 200, RUNS),
            ("GET /cluster/change", 404, NONE),
            ("GET /cluster", 200, BEFORE),
            ("GET /cluster", 200, last),
        ])
    };
    let node = ends(GONE);
    let (code, stdout, stderr) = node.run(&["leave", "n2", "--wait"]);
    assert_eq!((code, stdout.as_str()), (0, "n2 leaves: done, epoch 5\n"), "{stderr}");
    assert!(stderr.starts_with("plan: n2 leaves"), "what would move is shown first: {stderr}");
    let asked = node.asked();
    assert_eq!(asked[1..4], ["POST /cluster/members/n2/leave", "GET /cluster/change", "GET /cluster"], "{asked:?}");
    let (code, stdout, stderr) = ends(BACK).run(&["leave", "n2", "--wait"]);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.ends_with("a3: n2 leaves: the change was taken back\n"), "{stderr}");
    let (code, stdout, stderr) = ends(GONE).run(&["leave", "n2", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, told["since"].as_u64(), stderr.as_str()), (0, Some(4), ""));
}

#[test]
fn what_is_refused_is_not_begun_and_says_why_by_its_exit_code() {
    for (status, code, exit) in
        [(404, "no-such-member", 3), (409, "change-unfit", 1), (409, "change-under-way", 69), (503, "not-ready", 69)]
    {
        let problem: &'static str = format!(r#"{{"title":"T","detail":"why","code":"{code}"}}"#).leak();
        let node = Actor::start(&[("POST /cluster/plan", status, problem)]);
        let (code, stdout, stderr) = node.run(&["weight", "n2", "3", "--yes"]);
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (exit, "", "a3: T: why\n"));
        assert_eq!(node.asked().len(), 1, "it is planned, and that is all");
    }
}

#[test]
fn the_change_under_way_is_shown_followed_and_taken_back() {
    let node = Actor::start(&[("GET /cluster/change", 200, RUNS), ("DELETE /cluster/change", 200, BEGUN)]);
    let shown = "n2 leaves: under way since epoch 4, 170 slots move, 90 of 170 caught up on\n";
    assert_eq!(node.run(&["change"]), (0, shown.to_owned(), String::new()));
    assert_eq!(node.run(&["change", "--abort"]), (0, "n2 leaves: taken back\n".into(), String::new()));
    let none = Actor::start(&[]);
    let (code, stdout, stderr) = none.run(&["change"]);
    assert_eq!((code, stdout.as_str()), (3, ""));
    assert_eq!(stderr, "a3: No change of the topology is under way\n");
}

#[test]
fn a_directory_that_is_a_members_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (of_n3, id) = (dir.path().join("n3"), "018f3c5a-1b2c-7000-8000-000000000001");
    std::fs::create_dir(&of_n3).unwrap();
    let identity = format!(r#"{{"node":3,"instance":"{id}","cluster":"{id}","generation":1}}"#);
    std::fs::write(of_n3.join("identity"), identity).unwrap();
    let directory = of_n3.to_str().unwrap();
    let mut command = a3(&["replace", "n3", "--seeds", "127.0.0.1:1", "--data-dir", directory]);
    let (code, stdout, stderr) = told(command.output().unwrap());
    assert_eq!((code, stdout.as_str()), (78, ""));
    assert!(stderr.contains("is not empty: it is n3") && stderr.contains("a3 serve"), "{stderr}");
}
