//! `a3 dev add`, `stop`, `start` and `ls`: what is done to a cluster that another `a3 dev` runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::ContentArrangement;
use tokio::time::{Instant, sleep};

use super::super::client::{self, Client, Host};
use super::super::health::ready;
use super::super::output::{self, Output};
use super::super::{Fault, output::line};
use super::cluster::{LOOK, READY, STOP, failed};
use super::control::{Request, Row, ask, find};
use crate::types::limits::{MEMBERS_MAX, WEIGHT_MAX, ZONE_BYTES_MAX};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start one more node beside those that run; it joins their cluster.
    Add {
        /// Where it stands; the copies of a key are spread over zones.
        #[arg(long, value_parser = zone)]
        zone: Option<String>,
        /// Its share of the data, relative to the others.
        #[arg(long, value_parser = clap::value_parser!(u32).range(0..=i64::from(WEIGHT_MAX)))]
        weight: Option<u32>,
        #[command(flatten)]
        asked: Asked,
    },
    /// Stop a node; it stays a member, and the others stand in for it.
    Stop {
        /// Its number: 2 for n2.
        #[arg(value_name = "NUMBER", value_parser = number())]
        node: u16,
        /// As by kill -9, instead of asking it.
        #[arg(long)]
        kill: bool,
        #[command(flatten)]
        asked: Asked,
    },
    /// Start a node that does not run.
    Start {
        /// Its number: 2 for n2.
        #[arg(value_name = "NUMBER", value_parser = number())]
        node: u16,
        #[command(flatten)]
        asked: Asked,
    },
    /// List the nodes.
    Ls {
        #[command(flatten)]
        asked: Asked,
    },
}

/// Which cluster is meant, and how to print what it says.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// The directory of the cluster [default: of the one that runs without a --dir].
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

fn number() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=MEMBERS_MAX as i64)
}

fn zone(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > ZONE_BYTES_MAX {
        return Err(format!("1 to {ZONE_BYTES_MAX} bytes wanted"));
    }
    Ok(text.to_owned())
}

impl Command {
    pub(super) fn run(self) -> Result<(), Fault> {
        client::block_on(async {
            match self {
                Command::Ls { asked } => {
                    let rows = ask(&asked.dir().await?, &Request::Ls).await?;
                    asked.print(&rows)
                }
                Command::Add { zone, weight, asked } => start(&asked, Request::Add { zone, weight }).await,
                Command::Start { node, asked } => start(&asked, Request::Start { node }).await,
                Command::Stop { node, kill, asked } => {
                    let dir = asked.dir().await?;
                    ask(&dir, &Request::Stop { node, kill }).await?;
                    let row = gone(&dir, node).await?;
                    if asked.output.is_json() { output::json(&[row]) } else { line(&format!("n{node} has stopped")) }
                }
            }
        })
    }
}

impl Asked {
    async fn dir(&self) -> Result<PathBuf, Fault> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => find().await,
        }
    }

    fn print(&self, rows: &[Row]) -> Result<(), Fault> {
        if self.output.is_json() { output::json(&rows) } else { line(&table(rows)) }
    }
}

/// Starts a node and waits until it is ready; shows where it is.
async fn start(asked: &Asked, request: Request) -> Result<(), Fault> {
    let dir = asked.dir().await?;
    let started = ask(&dir, &request).await?;
    let Some(row) = started.into_iter().next() else { return Err(Fault::Failed("no node was started".into())) };
    eprintln!("n{} starts; its log is {}", row.node, row.log.display());
    wait_ready(&dir, &row).await?;
    if asked.output.is_json() {
        return output::json(&[row]);
    }
    let at = format!("http://{}", row.http);
    line(&format!(
        "{}\n\nconsole     {at}/\nSwagger UI  {at}/swagger-ui/\nmetrics     {at}/metrics",
        table(std::slice::from_ref(&row))
    ))
}

/// A node as it stands now.
async fn look(dir: &Path, node: u16) -> Result<Row, Fault> {
    let rows = ask(dir, &Request::Ls).await?;
    rows.into_iter().find(|row| row.node == node).ok_or_else(|| Fault::Failed(format!("n{node} is not there any more")))
}

async fn wait_ready(dir: &Path, started: &Row) -> Result<(), Fault> {
    let (client, host, node) = (Client::new(), Host(started.http.clone()), started.node);
    let deadline = Instant::now() + READY;
    loop {
        let Err(fault) = ready(&client, &host, Duration::from_secs(1)).await else { return Ok(()) };
        let now = look(dir, node).await?;
        if now.pid != started.pid {
            return Err(failed(&format!("n{node} {} before it was ready", now.state), &now.log));
        }
        if Instant::now() >= deadline {
            let what = format!("n{node} is not ready after {} s, and goes on: {fault}", READY.as_secs());
            return Err(failed(&what, &now.log));
        }
        sleep(LOOK).await;
    }
}

/// Waits until a node that was told to stop has stopped.
async fn gone(dir: &Path, node: u16) -> Result<Row, Fault> {
    let deadline = Instant::now() + STOP;
    loop {
        let now = look(dir, node).await?;
        if now.pid.is_none() {
            return Ok(now);
        }
        if Instant::now() >= deadline {
            let patience = STOP.as_secs();
            return Err(Fault::Failed(format!("n{node} has not stopped after {patience} s; --kill does not ask")));
        }
        sleep(LOOK).await;
    }
}

/// The nodes, a line each.
fn table(rows: &[Row]) -> String {
    let mut table = output::table(&["NODE", "PID", "STATE", "REST", "MESH", "DATA"]);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for row in rows {
        let pid = row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let (name, rest, data) = (format!("n{}", row.node), format!("http://{}", row.http), row.data_dir.display());
        table.add_row([&name, &pid, &row.state, &rest, &row.mesh, &data.to_string()]);
    }
    output::rendered(&table)
}
