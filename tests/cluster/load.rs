//! Clients that write and read while something is done to the nodes, and remember what was acknowledged.
//!
//! Each key has one client, which writes ever greater numbers to it, one request at a time: whatever is read must be a
//! number that was sent, and none below the last acknowledged one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::join_all;

use crate::nodes::{Answer, Node, eventually};

const CLIENTS: usize = 4;
const KEYS: usize = 48;

pub(crate) struct Key {
    pub(crate) name: String,
    sent: u64,
    pub(crate) acked: u64,
}

impl Key {
    pub(crate) fn path(&self, query: &str) -> String {
        format!("/kv/{}{query}", self.name)
    }

    pub(crate) async fn put(&mut self, node: &Node) -> Answer {
        self.sent += 1;
        let answer = node.ask("PUT", &self.path(""), format!("{} {}", self.name, self.sent)).await;
        if answer.ok() {
            self.acked = self.sent;
        }
        answer
    }

    /// Reads it; what was acknowledged must be there, or something later.
    pub(crate) async fn get(&self, node: &Node, query: &str) -> Answer {
        let acked = self.acked;
        let answer = node.ask("GET", &self.path(query), "").await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        match answer.status {
            200 => {
                let number = text.strip_prefix(&format!("{} ", self.name)).and_then(|n| n.parse::<u64>().ok());
                let right = number.is_some_and(|n| (acked..=self.sent).contains(&n));
                assert!(right, "{} at {}: {text:?}, acknowledged {acked}, sent {}", self.name, node.name, self.sent);
            }
            404 => assert_eq!(acked, 0, "{} at {}: nothing, acknowledged {acked}", self.name, node.name),
            _ => {}
        }
        answer
    }
}

pub(crate) struct Load {
    pub(crate) keys: Vec<Key>,
    going: AtomicBool,
    done: AtomicU64,
}

impl Load {
    pub(crate) fn new() -> Self {
        let key = |n| Key { name: format!("key-{n}"), sent: 0, acked: 0 };
        Self { keys: (0..KEYS).map(key).collect(), going: AtomicBool::new(true), done: AtomicU64::new(0) }
    }

    pub(crate) fn acked(&self) -> u64 {
        self.keys.iter().map(|key| key.acked).sum()
    }

    /// Writes and reads at these nodes until `meanwhile` ends, which is told how many requests were answered so far.
    /// The requests that failed.
    pub(crate) async fn run(&mut self, nodes: &[&Node], meanwhile: impl AsyncFnOnce(&Progress<'_>)) -> Vec<String> {
        let Self { keys, going, done } = self;
        going.store(true, Ordering::Relaxed);
        let (going, done) = (&*going, &*done);
        let clients = keys.chunks_mut(KEYS.div_ceil(CLIENTS)).map(async |keys| {
            let mut failed = Vec::new();
            for turn in 0.. {
                for (at, key) in keys.iter_mut().enumerate() {
                    if !going.load(Ordering::Relaxed) {
                        return failed;
                    }
                    let node = nodes[(turn + at) % nodes.len()];
                    for answer in [key.put(node).await, key.get(node, "").await] {
                        done.fetch_add(1, Ordering::Relaxed);
                        if !answer.ok() {
                            failed.push(format!("{} at {}: {answer:?}", key.name, node.name));
                        }
                    }
                }
            }
            failed
        });
        let meanwhile = async {
            meanwhile(&Progress(done)).await;
            going.store(false, Ordering::Relaxed);
        };
        let (failed, ()) = tokio::join!(join_all(clients), meanwhile);
        failed.concat()
    }
}

/// How far a load is.
pub(crate) struct Progress<'a>(&'a AtomicU64);

impl Progress<'_> {
    /// Until so many more requests were answered or failed.
    pub(crate) async fn more(&self, requests: u64) {
        let until = self.0.load(Ordering::Relaxed) + requests;
        eventually("the load goes on", async || (self.0.load(Ordering::Relaxed) >= until).then_some(())).await;
    }
}
