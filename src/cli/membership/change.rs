//! `a3 change`: the change of the topology that is under way, following it to its end, or taking it back.
//!
//! Whoever follows a change may have asked the member that leaves: it stops when the change ends, and the others are asked
//! from then on.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use hyper::header::HeaderMap;
use serde_json::{Value, json};

use super::wanted::Wanted;
use crate::cli::Fault;
use crate::cli::client::{Asked, Client, Host, block_on, within};
use crate::cli::output::{self, Output};
use crate::cli::views::{Change as Told, ChangeMember, Cluster, fetch, read};
use crate::config::units::{about_bytes, show_duration};

const PATH: &str = "/cluster/change";
/// How often progress is asked for.
const PROGRESS: Duration = Duration::from_secs(1);
/// How long a node may take to say how far the change is; it asks the others for two seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many rounds in which no node answers end the waiting.
const SILENT_MAX: u32 = 10;

/// Show the change of the topology that is under way; exit code 3 where there is none.
#[derive(Debug, Args)]
pub(in crate::cli) struct Change {
    /// Take it back: slots are kept by whom they were kept before it.
    #[arg(long)]
    abort: bool,
    /// Follow it to its end.
    #[arg(long, conflicts_with = "abort")]
    wait: bool,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Change {
    pub(in crate::cli) fn run(self) -> Result<(), Fault> {
        block_on(async {
            let (client, host) = (Client::new(), &self.asked.host);
            let method = if self.abort { Method::DELETE } else { Method::GET };
            let mut told = client.send(method, host, PATH, HeaderMap::new(), Bytes::new()).await?.success()?.json()?;
            if self.abort {
                told["ended"] = json!("taken back");
            } else if self.wait {
                told = ended(&client, host, &told, None).await?;
            }
            if self.output.is_json() { output::json(&told) } else { output::line(&shown(&read(&told)?)) }
        })
    }
}

/// Follows a change until it is under way no more; tells the last that was said of it, and how it ended.
///
/// # Errors
/// [`Fault::Failed`] where the cluster is not as `wanted` then; [`Fault::Unavailable`] where nobody answers any more.
pub(super) async fn ended(
    client: &Client,
    host: &Host,
    begun: &Value,
    wanted: Option<&Wanted>,
) -> Result<Value, Fault> {
    let since = read::<Told>(begun)?.since;
    let mut nodes = Nodes { client, hosts: vec![host.clone()] };
    let line = Line { shown: io::stderr().is_terminal() };
    let (mut told, mut silent) = (begun.clone(), 0);
    let mut followed = None;
    loop {
        line.show(&read(&told)?);
        match nodes.look().await {
            Ok((Some(now), cluster)) if read::<Told>(&now)?.since == since => {
                followed = followed.or_else(|| Wanted::under_way(&now, &cluster));
                (told, silent) = (now, 0);
            }
            // Who has not heard of its beginning does not know of its end.
            Ok((_, cluster)) if cluster.epoch <= since => silent = 0,
            Ok((_, cluster)) => {
                line.clear();
                let wanted = wanted.or(followed.as_ref());
                let kept = wanted.is_none_or(|wanted| wanted.holds(&cluster));
                told["ended"] = json!(match wanted {
                    None => "over",
                    Some(_) if kept => "done",
                    Some(_) => "taken back",
                });
                told["epoch"] = json!(cluster.epoch);
                let text = read::<Told>(&told)?.text;
                return if kept { Ok(told) } else { Err(Fault::Failed(format!("{text}: the change was taken back"))) };
            }
            Err(fault) if silent >= SILENT_MAX => {
                line.clear();
                return Err(fault);
            }
            Err(_) => silent += 1,
        }
        tokio::time::sleep(PROGRESS).await;
    }
}

/// The nodes that may be asked, the one that answered last first.
struct Nodes<'a> {
    client: &'a Client,
    hosts: Vec<Host>,
}

impl Nodes<'_> {
    /// The change under way, if there is one, and the cluster, of the first that answers.
    async fn look(&mut self) -> Result<(Option<Value>, Cluster), Fault> {
        let mut fault = Fault::Unavailable("no node is known".into());
        for (at, host) in self.hosts.clone().into_iter().enumerate() {
            match within(PATIENCE, &host, self.ask(&host)).await {
                Ok((change, cluster)) => {
                    self.hosts.swap(0, at);
                    let known = cluster.members.iter().filter_map(|m| m.http_address.parse::<Host>().ok());
                    let new: Vec<Host> = known.filter(|host| !self.hosts.contains(host)).collect();
                    self.hosts.extend(new);
                    return Ok((change, cluster));
                }
                Err(why) => fault = why,
            }
        }
        Err(fault)
    }

    async fn ask(&self, host: &Host) -> Result<(Option<Value>, Cluster), Fault> {
        let answer = self.client.get(host, PATH).await?;
        let change = match answer.status {
            404 => None,
            _ => Some(answer.success()?.json()?),
        };
        // Asked afterwards, it is at least as new.
        Ok((change, fetch(self.client, host, "/cluster").await?))
    }
}

/// A line on the terminal that is written over and over.
struct Line {
    shown: bool,
}

impl Line {
    fn show(&self, told: &Told) {
        if self.shown {
            // A terminal that went away misses nothing.
            let _ = write!(io::stderr(), "\r\x1b[K{}", summary(told));
        }
    }

    fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// A change in a line.
pub(in crate::cli) fn summary(told: &Told) -> String {
    let Told { text, since, epoch, slots, done, total, not_heard, .. } = told;
    match told.ended.as_deref() {
        Some("taken back") => return format!("{text}: taken back"),
        Some(_) => return format!("{text}: done, epoch {epoch}"),
        None => {}
    }
    let mut line = format!("{text}: under way since epoch {since}, {slots} slots move");
    if *total > 0 {
        line.push_str(&format!(", {done} of {total} caught up on"));
    }
    if !not_heard.is_empty() {
        line.push_str(&format!(", {} not heard", not_heard.join(", ")));
    }
    if let Some(left) = told.eta_ms.filter(|left| *left > 0) {
        line.push_str(&format!(", about {} left", show_duration(Duration::from_secs(left.div_ceil(1000)))));
    }
    line
}

/// A change for a person.
pub(super) fn shown(told: &Told) -> String {
    let mut lines = vec![summary(told)];
    if told.ended.is_some() {
        return lines.remove(0);
    }
    let waits = told.waiting_for.iter().map(|waiting| format!("waits for {}: {}", waiting.node, waiting.reason));
    lines.extend(waits);
    if told.members.is_empty() {
        return lines.join("\n");
    }
    let mut table = output::table(&["NODE", "CAUGHT UP", "KEYS", "BYTES", "ERROR"]);
    for member in &told.members {
        let ChangeMember { node, slots, done, keys, bytes, error } = member;
        let slots = if error.is_some() { "not heard".to_owned() } else { format!("{done} of {slots}") };
        let error = error.as_deref().unwrap_or("-");
        table.add_row([node.clone(), slots, keys.to_string(), about_bytes(*bytes), error.to_owned()]);
    }
    format!("{}\n\n{}", lines.join("\n"), output::rendered(&table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_how_far_it_is_and_whom_it_waits_for() {
        let told: Told = read(&json!({
            "text": "n4 joins", "since": 2, "epoch": 2, "slots": 128, "done": 60, "total": 128, "eta_ms": 1500,
            "waiting_for": [{"node": "n4", "reason": "it has caught up on 60 of 128 slots"}],
            "members": [{"node": "n4", "slots": 128, "done": 60, "keys": 9, "bytes": 12, "error": null}],
        }))
        .unwrap();
        let text = shown(&told);
        let lines: Vec<&str> = text.lines().collect();
        let first = "n4 joins: under way since epoch 2, 128 slots move, 60 of 128 caught up on, about 2s left";
        assert_eq!(lines[..2], [first, "waits for n4: it has caught up on 60 of 128 slots"]);
        assert_eq!(lines[4].split_whitespace().collect::<Vec<_>>()[..5], ["n4", "60", "of", "128", "9"]);
        let lost = ChangeMember { node: "n5".into(), slots: 9, error: Some("lost".into()), ..ChangeMember::default() };
        let told = Told { eta_ms: Some(0), not_heard: vec!["n5".into()], members: vec![lost], ..told };
        let text = shown(&told);
        assert!(text.starts_with(&first.replace(", about 2s left", ", n5 not heard\n")), "{text}");
        let row = text.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(row, ["n5", "not", "heard", "0", "0", "B", "lost"]);
        let ended = Told { ended: Some("done".into()), epoch: 3, ..told };
        assert_eq!(shown(&ended), "n4 joins: done, epoch 3");
    }
}
