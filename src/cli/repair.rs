//! `a3 repair`: bring the copies to agree now, or count what differs.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, header};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::Fault;
use super::client::{Answer, Asked, Client, Host, block_on};
use super::output::{self, Output};
use super::views::Operation;
use crate::config::units::{about_bytes, show_duration};

/// How often progress is asked for.
const PROGRESS: Duration = Duration::from_secs(1);

/// Compare what a node shares with its peers, and repair what differs.
///
/// Anti-entropy does the same by itself in time. The repair goes on when this command ends.
#[derive(Debug, Args)]
pub(super) struct Repair {
    /// Count what differs and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Only these of the 16 chunks, e.g. 0,3 [default: all].
    #[arg(long, value_name = "CHUNKS", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..16))]
    chunks: Vec<u8>,
    /// Wait for its end, with its progress on a terminal; exit code 1 if it fails or is aborted.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Repair {
    pub(super) fn run(self) -> Result<(), Fault> {
        block_on(async {
            let (client, host) = (Client::new(), &self.asked.host);
            let answer = client.send(Method::POST, host, "/repair", headers(), self.body()).await?.success()?;
            let begun = if self.wait { wait(&client, host, &answer).await? } else { answer.json()? };
            let operation = read(&begun)?;
            if self.output.is_json() { output::json(&begun) } else { output::line(&told(&operation)) }?;
            match operation.state.as_str() {
                "failed" => Err(Fault::Failed(format!("the repair failed: {}", operation.reason))),
                "aborted" => Err(Fault::Failed("the repair was aborted".into())),
                _ => Ok(()),
            }
        })
    }

    fn body(&self) -> Bytes {
        json!({ "dry_run": self.dry_run, "chunks": self.chunks }).to_string().into()
    }
}

fn headers() -> HeaderMap {
    [(CONTENT_TYPE, HeaderValue::from_static("application/json"))].into_iter().collect()
}

/// Asks until the operation that was begun has ended.
async fn wait(client: &Client, host: &Host, begun: &Answer) -> Result<Value, Fault> {
    let path = begun.header(header::LOCATION.as_str()).unwrap_or_default().to_owned();
    let mut progress = Progress { shown: io::stderr().is_terminal() };
    let mut told = begun.json()?;
    loop {
        let operation = read(&told)?;
        if operation.state != "running" {
            progress.clear();
            return Ok(told);
        }
        progress.show(&operation);
        tokio::time::sleep(PROGRESS).await;
        told = client.get(host, &path).await?.success()?.json()?;
    }
}

fn read(operation: &Value) -> Result<Operation, Fault> {
    Operation::deserialize(operation).map_err(|e| Fault::Failed(format!("that is no operation: {e}")))
}

/// A line on the terminal that is written over and over.
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&mut self, operation: &Operation) {
        if self.shown {
            // A terminal that went away misses nothing.
            let _ = write!(io::stderr(), "\r\x1b[K{}", told(operation));
        }
    }

    fn clear(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// An operation in a line.
fn told(operation: &Operation) -> String {
    let Operation { id, kind, state, dry_run, done, differing, sent, received, bytes, .. } = operation;
    let kind = if *dry_run { format!("{kind} (dry run)") } else { kind.clone() };
    let total = operation.total.map_or_else(String::new, |total| format!(" of {total}"));
    let mut line = format!("{kind} {id} {state}: {done}{total} leaves compared, {differing} records differ");
    if !dry_run {
        line.push_str(&format!(", {sent} sent, {received} received"));
    }
    line.push_str(&format!(", {} moved", about_bytes(*bytes)));
    if state == "running" {
        line.push_str(&format!(", {:.0} records a second", operation.per_second));
        if let Some(left) = operation.eta_ms {
            line.push_str(&format!(", {} left", show_duration(Duration::from_secs(left.div_ceil(1000)))));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(state: &str) -> Operation {
        Operation {
            id: "7".into(),
            kind: "repair".into(),
            state: state.into(),
            done: 5,
            differing: 3,
            sent: 2,
            received: 1,
            ..Operation::default()
        }
    }

    #[test]
    fn an_operation_is_told_as_far_as_it_is_known() {
        let begun = operation("running");
        assert!(told(&begun).starts_with("repair 7 running: 5 leaves compared, 3 records differ, 2 sent, 1 received"));
        let known = Operation { total: Some(9), per_second: 12.4, eta_ms: Some(1500), ..begun };
        assert!(told(&known).contains("5 of 9 leaves") && told(&known).ends_with("12 records a second, 2s left"));
        let counted = Operation { dry_run: true, ..operation("done") };
        assert_eq!(told(&counted), "repair (dry run) 7 done: 5 leaves compared, 3 records differ, 0 B moved");
    }

    #[test]
    fn a_poorer_answer_still_shows() {
        let operation = read(&json!({"id": "7", "state": "done", "news": 1})).unwrap();
        assert_eq!((operation.id.as_str(), operation.total), ("7", None));
    }
}
