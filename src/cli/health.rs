//! `a3 health`: whether the cluster, or one node, can do its work. Fit for a container's health check.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep, timeout_at};

use super::Fault;
use super::client::{Asked, Client, Host, block_on, duration, within};
use super::output::{self, Output};
use super::status::summary;
use super::views::Health as Facts;

/// How often a waiting check asks again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long an answer may take; a node that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// Say whether the cluster can serve every key; exit code 69 where it cannot.
#[derive(Debug, Args)]
pub(super) struct Health {
    /// Ask whether this one node is ready for clients, instead.
    #[arg(long)]
    ready: bool,
    /// Keep asking that long until the answer is good, e.g. 30s.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Health {
    pub(super) fn run(self) -> Result<(), Fault> {
        block_on(async {
            let client = Client::new();
            let deadline = Instant::now() + self.wait.unwrap_or_default();
            loop {
                let Err(fault) = self.ask(&client).await else { return Ok(()) };
                if !matches!(fault, Fault::Unavailable(_)) || Instant::now() >= deadline {
                    return Err(fault);
                }
                // The last question has its whole time; the waits between end on time.
                let _ = timeout_at(deadline, sleep(AGAIN)).await;
            }
        })
    }

    /// One question; the answer is printed where it is good.
    async fn ask(&self, client: &Client) -> Result<(), Fault> {
        let path = if self.ready { "/readyz?verbose" } else { "/cluster/health" };
        let host = &self.asked.host;
        let answer = within(PATIENCE, host, client.get(host, path)).await?.success()?;
        let value = answer.json()?;
        let line = if self.ready {
            "ready".to_owned()
        } else {
            let facts: Facts =
                serde_json::from_value(value.clone()).map_err(|e| Fault::Failed(format!("{path}: {e}")))?;
            if facts.status == "unavailable" {
                return Err(Fault::Unavailable(summary(&facts)));
            }
            summary(&facts)
        };
        if self.output.is_json() { output::json(&value) } else { output::line(&line) }
    }
}

/// Whether a node says that it is ready; else what it waits for, as far as it can be heard within the time.
pub(super) async fn ready(client: &Client, host: &Host, patience: Duration) -> Result<(), Fault> {
    let answer = within(patience, host, client.get(host, "/readyz?verbose")).await?;
    answer.success().map(|_| ())
}
