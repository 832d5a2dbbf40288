//! Nodes as processes of the real program, on ports of loopback that were free a moment ago. They die with the test,
//! also when it is killed: the pipe on their stdin closes.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// Longer than any state needs to be reached, also on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = attempt().await {
            return answer;
        }
        assert!(Instant::now() < until, "{what}: not in time");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What a node answered; status 0 where it did not.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// One node: what it is started with, and its process while it lives.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) mesh: String,
    /// Where its stderr goes.
    pub(crate) log: PathBuf,
    pub(crate) http: String,
    settings: Vec<(&'static str, String)>,
    client: HyperClient<HttpConnector, Full<Bytes>>,
    process: Option<Child>,
}

impl Node {
    /// Not started yet.
    pub(crate) fn new(number: u16, dir: PathBuf, settings: &[(&'static str, String)]) -> Self {
        let [http, mesh] = free_ports();
        let own = [
            ("NODE_NUM", number.to_string()),
            ("HTTP_PORT", http.to_string()),
            ("GRPC_PORT", mesh.to_string()),
            ("DATA_DIR", dir.display().to_string()),
            // A busy machine must not turn an answer into a time-out.
            ("REQUEST_TIMEOUT", "10s".to_owned()),
        ];
        Self {
            name: format!("n{number}"),
            log: dir.with_extension("log"),
            dir,
            mesh: format!("127.0.0.1:{mesh}"),
            http: format!("127.0.0.1:{http}"),
            settings: own.into_iter().chain(settings.iter().cloned()).collect(),
            client: HyperClient::builder(TokioExecutor::new()).build_http(),
            process: None,
        }
    }

    /// Changes a setting of the next start.
    pub(crate) fn set(&mut self, name: &'static str, value: String) {
        self.settings.retain(|(n, _)| *n != name);
        self.settings.push((name, value));
    }

    pub(crate) fn start(&mut self) {
        let log = File::options().append(true).create(true).open(&self.log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_a3"));
        command.args(["serve", "--parent-pipe"]).env_clear().envs(self.settings.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        self.process = Some(command.spawn().unwrap());
    }

    /// What it wrote on stderr, over all its starts.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it ends; its exit code.
    pub(crate) async fn ended(&mut self) -> i32 {
        let mut process = self.process.take().unwrap();
        // Waiting closes the pipe on stdin, which alone would end the node.
        let _pipe = process.stdin.take();
        let status = timeout(PATIENCE, process.wait()).await;
        status.unwrap_or_else(|_| panic!("{} goes on:\n{}", self.name, self.said())).unwrap().code().unwrap()
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        self.process.take().unwrap().kill().await.unwrap();
    }

    /// `kill -9`, without waiting for the end.
    pub(crate) fn kill_now(&self) {
        self.signal(Signal::KILL);
    }

    /// SIGTERM; the exit code.
    pub(crate) async fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.ended().await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.process.as_ref().and_then(Child::id).unwrap();
        kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), signal).unwrap();
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        self.ask_with(method, path, &[], body).await
    }

    pub(crate) async fn ask_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.http));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = match self.client.request(request.body(Full::new(body.into())).unwrap()).await {
            Ok(answer) => answer,
            Err(error) => return Answer { status: 0, body: error.to_string().into() },
        };
        let status = answer.status().as_u16();
        match answer.into_body().collect().await {
            Ok(body) => Answer { status, body: body.to_bytes() },
            Err(error) => Answer { status: 0, body: error.to_string().into() },
        }
    }

    pub(crate) async fn ready(&self) {
        eventually(&format!("{} is ready", self.name), async || {
            (self.ask("GET", "/readyz", "").await.status == 200).then_some(())
        })
        .await;
    }

    /// Until it holds all members alive, and keeps no hint.
    pub(crate) async fn healthy(&self) {
        eventually(&format!("all is well at {}", self.name), async || {
            let health = self.ask("GET", "/cluster/health", "").await;
            (health.ok() && health.json()["status"] == "healthy" && health.json()["hints_pending"] == 0).then_some(())
        })
        .await;
    }
}

fn free_ports() -> [u16; 2] {
    // Both are held until both are known.
    let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// Nodes that found a cluster together.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) dir: TempDir,
}

impl Cluster {
    /// Three nodes, two copies of each key; ready.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(settings: &[(&'static str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = |number: u16| {
            let dir = dir.path().join(format!("node{number}"));
            Node::new(number, dir, &[("CLUSTER_SIZE", "3".into()), ("REPLICATION_FACTOR", "2".into())])
        };
        let mut nodes: Vec<Node> = (1..=3).map(node).collect();
        let seeds = nodes.iter().map(|n| n.mesh.clone()).collect::<Vec<_>>().join(",");
        for node in &mut nodes {
            node.set("SEEDS", seeds.clone());
            settings.iter().for_each(|(name, value)| node.set(name, value.clone()));
            node.start();
        }
        let cluster = Self { nodes, dir };
        cluster.healthy().await;
        cluster
    }

    pub(crate) async fn healthy(&self) {
        for node in &self.nodes {
            node.ready().await;
        }
        for node in &self.nodes {
            node.healthy().await;
        }
    }
}
