//! A development cluster that is changed while it runs: a real one, of one node at first.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use super::{a3, run, told};

/// The command that runs the cluster; its nodes end with it, however it ends.
struct Dev(Child);

impl Dev {
    /// Ready, in that directory.
    fn start(dir: &Path, port: u16) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_a3"));
        command.env_clear().args(["dev", "--nodes", "1", "--rf", "1", "--dir"]).arg(dir);
        command.args(["--base-port", &port.to_string(), "--mesh-base-port", &(port + 8).to_string()]);
        let mut dev = Self(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut lines = BufReader::new(dev.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("Ctrl-C stops")), "it is ready");
        dev
    }

    /// Ctrl-C; its exit code.
    fn interrupt(mut self) -> i32 {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        // Read until its end, or it could not write.
        std::io::copy(&mut self.0.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
        self.0.wait().unwrap().code().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first of sixteen ports that nobody listens on: below those that connections go out from, which come and go.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + (std::process::id() % 1000) as u16 * 16;
    let free = |port: &u16| (*port..port + 16).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    std::iter::repeat_with(|| start + NEXT.fetch_add(16, Ordering::Relaxed)).find(free).unwrap()
}

/// What `a3 dev ls` tells of each node: its number, its process id, and its state.
fn listed(dir: &str) -> Vec<(u64, Option<u64>, String)> {
    let (code, stdout, stderr) = run(&["dev", "ls", "-o", "json", "--dir", dir]);
    assert_eq!(code, 0, "{stderr}");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let row = |row: &serde_json::Value| {
        (row["node"].as_u64().unwrap(), row["pid"].as_u64(), row["state"].as_str().unwrap().to_owned())
    };
    rows.iter().map(row).collect()
}

#[test]
fn nodes_are_stopped_started_and_added_while_dev_runs() {
    let temporary = tempfile::tempdir().unwrap();
    let (dir, port) = (temporary.path().to_str().unwrap(), free_ports());
    let dev = Dev::start(temporary.path(), port);
    let of = |what: &[&str]| run(&[&["dev"], what, &["--dir", dir]].concat());

    assert!(matches!(&listed(dir)[..], [(1, Some(_), state)] if state == "running"), "{:?}", listed(dir));
    let other = free_ports();
    let ports = ["--base-port", &other.to_string(), "--mesh-base-port", &(other + 8).to_string()];
    let (code, _, stderr) = of(&[&["--nodes", "1"], &ports[..]].concat());
    assert_eq!((code, stderr), (1, format!("a3: another a3 dev runs in {dir}\n")));

    for how in [&["stop", "1"][..], &["stop", "1", "--kill"]] {
        assert_eq!(of(how), (0, "n1 has stopped\n".into(), String::new()));
        assert_eq!(listed(dir), [(1, None, "stopped".into())]);
        assert_eq!(of(how), (1, String::new(), "a3: n1 does not run\n".into()));
        let (code, stdout, stderr) = of(&["start", "1"]);
        assert!(code == 0 && stdout.contains(&format!("http://127.0.0.1:{port}/swagger-ui/")), "{stdout}{stderr}");
        assert!(of(&["start", "1"]).2.contains("n1 runs already"));
    }
    assert!(of(&["stop", "9"]).2.contains("there is no n9 here"));

    // It is a port too many for REST, so that the next number is taken.
    let _taken = TcpListener::bind(("127.0.0.1", port + 1)).unwrap();
    let (code, stdout, stderr) = of(&["add", "--zone", "b"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains(&format!("http://127.0.0.1:{}/", port + 2)), "{stdout}");
    assert_eq!(listed(dir).iter().map(|row| row.0).collect::<Vec<_>>(), [1, 3]);

    assert_eq!(dev.interrupt(), 0);
    let (code, _, stderr) = of(&["ls"]);
    assert!(code == 69 && stderr.contains("no a3 dev runs in"), "{stderr}");
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "its nodes ended with it");
}

#[test]
fn one_cluster_that_runs_is_found_without_its_directory() {
    let temporary = tempfile::tempdir().unwrap();
    let of = |what: &[&str]| told(a3(what).env("TMPDIR", temporary.path()).output().unwrap());
    let (code, _, stderr) = of(&["dev", "ls"]);
    assert!(code == 69 && stderr.contains("start one in another terminal"), "{stderr}");
    let [first, second] = ["a3-dev-1", "a3-dev-2"].map(|name| temporary.path().join(name));
    std::fs::create_dir(&first).unwrap();
    std::fs::create_dir(&second).unwrap();
    let dev = Dev::start(&second, free_ports());
    assert_eq!(of(&["dev", "ls"]).0, 0);
    let other = Dev::start(&first, free_ports());
    let (code, _, stderr) = of(&["dev", "ls"]);
    assert!(code == 2 && stderr.contains(first.to_str().unwrap()), "{stderr}");
    assert_eq!((dev.interrupt(), other.interrupt()), (0, 0));
}
