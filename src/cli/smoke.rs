//! `a3 smoke`: does this cluster do what it says? One key, written at one node, read at all, deleted, gone; another one
//! created at one node where it is absent, and refused at another because it is not.

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use hyper::header::{HeaderMap, HeaderValue, IF_NONE_MATCH};
use serde_json::Value;

use super::Fault;
use super::client::{Answer, Asked, Client, Host, block_on, key_path};
use super::output;
use super::views::{Cluster, fetch};
use crate::ports::Entropy as _;
use crate::system::SystemEntropy;

/// Write at one node, read at all, delete, see that it is gone, and create a key only once; prints each check.
#[derive(Debug, Args)]
pub(super) struct Smoke {
    /// The nodes to use [default: all members that the node --host knows].
    #[arg(long, value_delimiter = ',', value_name = "HOST,...")]
    hosts: Vec<Host>,
    #[command(flatten)]
    asked: Asked,
}

/// A node under test: its name for people, and where it is.
struct Node {
    name: String,
    host: Host,
}

impl Smoke {
    pub(super) fn run(self) -> Result<(), Fault> {
        block_on(async {
            let client = Client::new();
            let hosts = if self.hosts.is_empty() { members(&client, &self.asked.host).await? } else { self.hosts };
            let mut check = Checks { client, failed: 0 };
            check.all(&hosts).await?;
            match check.failed {
                0 => output::line("all is well"),
                1 => Err(Fault::Failed("1 check failed".into())),
                n => Err(Fault::Failed(format!("{n} checks failed"))),
            }
        })
    }
}

async fn members(client: &Client, host: &Host) -> Result<Vec<Host>, Fault> {
    let cluster: Cluster = fetch(client, host, "/cluster").await?;
    let hosts = cluster.members.iter().map(|m| m.http_address.parse());
    hosts.collect::<Result<_, String>>().map_err(|e| Fault::Failed(format!("a member's address: {e}")))
}

/// Prints each check as it ends, and counts those that failed.
struct Checks {
    client: Client,
    failed: usize,
}

impl Checks {
    async fn all(&mut self, hosts: &[Host]) -> Result<(), Fault> {
        let nodes = self.nodes(hosts).await?;
        let (Some(first), Some(last)) = (nodes.first(), nodes.last()) else { return Ok(()) };
        let id = format!("{:016x}", SystemEntropy::default().u64());
        let (key, value) = (format!("smoke-{id}"), Bytes::from(format!("value-{id}")));
        let path = key_path(key.as_bytes());
        let written = self.client.send(Method::PUT, &first.host, &path, HeaderMap::new(), value.clone()).await;
        let Some(receipt) = self.note(format!("wrote {key} at {}", first.name), written_receipt(written))? else {
            return Ok(());
        };
        for node in &nodes {
            let seen = self.client.get(&node.host, &path).await.and_then(|answer| same(answer, &value, &receipt));
            self.note(format!("read the same at {}", node.name), seen)?;
        }
        let deleted = self.client.send(Method::DELETE, &last.host, &path, HeaderMap::new(), Bytes::new()).await;
        if self.note(format!("deleted it at {}", last.name), written_receipt(deleted))?.is_some() {
            for node in &nodes {
                let gone = self.client.get(&node.host, &path).await.and_then(gone);
                self.note(format!("gone at {}", node.name), gone)?;
            }
        }
        self.only_once(first, last, &format!("smoke-{id}-once")).await
    }

    /// Of two who create a key where it is absent, the second is refused. The key is deleted afterwards.
    async fn only_once(&mut self, first: &Node, second: &Node, key: &str) -> Result<(), Fault> {
        let path = key_path(key.as_bytes());
        let absent: HeaderMap = [(IF_NONE_MATCH, HeaderValue::from_static("*"))].into_iter().collect();
        let created = self.client.send(Method::PUT, &first.host, &path, absent.clone(), "first".into()).await;
        let created = created.and_then(|answer| status_is(answer, 201));
        if self.note(format!("created {key} at {}, where it is absent", first.name), created)?.is_none() {
            return Ok(());
        }
        let refused = self.client.send(Method::PUT, &second.host, &path, absent, "second".into()).await;
        let refused = refused.and_then(|answer| status_is(answer, 412));
        self.note(format!("not again at {}", second.name), refused)?;
        let deleted = self.client.send(Method::DELETE, &first.host, &path, HeaderMap::new(), Bytes::new()).await;
        self.note(format!("deleted it at {}", first.name), written_receipt(deleted)).map(drop)
    }

    /// The nodes that answer, with the names they give themselves; all must belong to one cluster.
    async fn nodes(&mut self, hosts: &[Host]) -> Result<Vec<Node>, Fault> {
        let mut nodes = Vec::new();
        let mut clusters: Vec<String> = Vec::new();
        for host in hosts {
            let cluster = fetch::<Cluster>(&self.client, host, "/cluster").await;
            let cluster = cluster.and_then(|c| match clusters.first() {
                Some(first) if *first != c.cluster_id => Err(Fault::Failed(format!(
                    "{host}: it belongs to cluster {}, the first one to {first}",
                    c.cluster_id
                ))),
                _ => Ok(c),
            });
            // A complaint begins with the host itself.
            let up = cluster.as_ref().map_or_else(|_| "a node is up".into(), |c| format!("{} ({host}) is up", c.node));
            if let Some(cluster) = self.note(up, cluster)? {
                clusters.push(cluster.cluster_id);
                nodes.push(Node { name: cluster.node, host: host.clone() });
            }
        }
        Ok(nodes)
    }

    /// Prints a check. What went wrong goes beside it, since the list is what was asked for.
    fn note<T>(&mut self, what: String, result: Result<T, Fault>) -> Result<Option<T>, Fault> {
        match result {
            Ok(value) => output::line(&format!("ok    {what}")).map(|()| Some(value)),
            Err(fault) => {
                self.failed += 1;
                output::line(&format!("FAIL  {what}: {fault}")).map(|()| None)
            }
        }
    }
}

fn written_receipt(answer: Result<Answer, Fault>) -> Result<Value, Fault> {
    answer?.success()?.json()
}

/// The bytes written, under the version that the receipt names.
fn same(answer: Answer, value: &Bytes, receipt: &Value) -> Result<(), Fault> {
    let answer = answer.success()?;
    if answer.body != value {
        return Err(Fault::Failed(format!("{:?} instead of {value:?}", answer.body)));
    }
    let version = answer.header("a3-version").unwrap_or_default();
    match receipt["version"].as_str() {
        Some(written) if written == version => Ok(()),
        written => Err(Fault::Failed(format!("version {version:?} instead of {written:?}"))),
    }
}

fn status_is(answer: Answer, wanted: u16) -> Result<(), Fault> {
    match answer.status {
        status if status == wanted => Ok(()),
        status @ 200..300 => Err(Fault::Failed(format!("the node answered {status} instead of {wanted}"))),
        status => Err(Fault::of_answer(status, &answer.body)),
    }
}

fn gone(answer: Answer) -> Result<(), Fault> {
    match answer.status {
        404 => Ok(()),
        200..300 => Err(Fault::Failed("it is still there".into())),
        status => Err(Fault::of_answer(status, &answer.body)),
    }
}
