//! `a3 leave`, `a3 weight`, `a3 zone`, `a3 replication-factor`: changes of the topology; and `a3 plan` and `a3 change`, which
//! say what one would do and how far it is.
//!
//! Invariant: what would move is shown before anything is begun, and on a terminal a person says yes to it.

mod change;
mod plan;
mod wanted;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::Args;
use serde_json::{Value, json};

use super::Fault;
use super::client::{Asked, Client, Host, block_on};
use super::output::{self, Output};
use super::views::{Plan as Planned, read};
use crate::types::limits::{REPLICATION_FACTOR_MAX, WEIGHT_MAX};
pub(super) use change::{Change, summary};
pub(super) use plan::Plan;
pub(super) use wanted::NodeName;
use wanted::Wanted;

/// Have a member hand over what it keeps, and go. It serves until the others have it; it may be dead.
#[derive(Debug, Args)]
pub(super) struct Leave {
    /// Who leaves, e.g. n2.
    node: NodeName,
    #[command(flatten)]
    how: How,
}

/// Give a member another share of the slots.
#[derive(Debug, Args)]
pub(super) struct Weight {
    /// Which member, e.g. n1.
    node: NodeName,
    /// Its share, relative to the others', 0 to 1000; 0: it keeps nothing and stays a member.
    #[arg(value_parser = clap::value_parser!(u32).range(..=i64::from(WEIGHT_MAX)))]
    weight: u32,
    #[command(flatten)]
    how: How,
}

/// Say that a member stands in another zone. Copies of a key are spread over zones.
#[derive(Debug, Args)]
pub(super) struct Zone {
    /// Which member, e.g. n1.
    node: NodeName,
    /// The zone's name, 1 to 64 bytes.
    #[arg(required_unless_present = "none")]
    zone: Option<String>,
    /// It stands in no zone.
    #[arg(long, conflicts_with = "zone")]
    none: bool,
    #[command(flatten)]
    how: How,
}

/// Keep another number of copies of each key.
#[derive(Debug, Args)]
pub(super) struct ReplicationFactor {
    /// How many, 1 to 16; as many members must keep slots.
    #[arg(value_parser = clap::value_parser!(u8).range(1..=REPLICATION_FACTOR_MAX as i64))]
    copies: u8,
    #[command(flatten)]
    how: How,
}

impl Leave {
    pub(super) fn run(self) -> Result<(), Fault> {
        self.how.run(&Wanted::Leave { node: self.node })
    }
}

impl Weight {
    pub(super) fn run(self) -> Result<(), Fault> {
        self.how.run(&Wanted::Weight { node: self.node, weight: self.weight })
    }
}

impl Zone {
    pub(super) fn run(self) -> Result<(), Fault> {
        self.how.run(&Wanted::Zone { node: self.node, zone: self.zone })
    }
}

impl ReplicationFactor {
    pub(super) fn run(self) -> Result<(), Fault> {
        self.how.run(&Wanted::ReplicationFactor { rf: self.copies })
    }
}

/// How a change is begun.
#[derive(Debug, Args)]
struct How {
    /// Follow it to its end; exit code 1 if it is taken back.
    #[arg(long)]
    wait: bool,
    /// Begin without asking.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl How {
    fn run(self, wanted: &Wanted) -> Result<(), Fault> {
        block_on(async {
            let (client, host) = (Client::new(), &self.asked.host);
            let planned = planned(&client, host, wanted).await?;
            if !self.output.is_json() {
                // The answer is what came of it; this is what is asked about.
                eprintln!("{}\n", plan::shown(&read(&planned)?));
            }
            if !self.yes && !agreed(&read(&planned)?)? {
                return Err(Fault::Failed("nothing was begun".into()));
            }
            let begun = wanted.begin(&client, host).await?;
            let told = if self.wait { change::ended(&client, host, &begun, Some(wanted)).await? } else { begun };
            if self.output.is_json() { output::json(&told) } else { output::line(&change::shown(&read(&told)?)) }
        })
    }
}

/// What a node says that a change would do.
async fn planned(client: &Client, host: &Host, wanted: &Wanted) -> Result<Value, Fault> {
    wanted.plan(client, host).await?.json()
}

/// Whether a person says yes. Where there is none to be asked, whoever started the command has said it.
fn agreed(plan: &Planned) -> Result<bool, Fault> {
    let (stdin, mut stderr) = (io::stdin(), io::stderr());
    if !(stdin.is_terminal() && stderr.is_terminal()) {
        return Ok(true);
    }
    let failed = |e: io::Error| Fault::Failed(format!("the terminal: {e}"));
    write!(stderr, "{}: begin? [y/N] ", plan.text).and_then(|()| stderr.flush()).map_err(failed)?;
    let mut line = String::new();
    stdin.lock().read_line(&mut line).map_err(failed)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// A body of a request.
fn body(members: &[(&str, Value)]) -> Value {
    members.iter().fold(json!({}), |mut body, (name, value)| {
        body[*name] = value.clone();
        body
    })
}
