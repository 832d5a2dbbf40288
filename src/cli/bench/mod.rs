//! `a3 bench`: a load generator over keep-alive HTTP/1.1, for a3 and, so that both are measured by one ruler, for etcd.
//!
//! It is closed-loop (each connection waits for its answer) unless `--rate` is given. It shares the machine with the
//! servers, so it is built to cost little; figures still belong to the machine they were taken on.

mod load;
mod report;
mod requests;
mod wire;

use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::Instant;

use super::Fault;
use super::client::Host;
use super::output::{self, Output};
use crate::types::Level;
use load::{Phase, Work};
use report::{Report, Tally};
use requests::{Dialect, Shape};

/// Load a cluster with requests and print how many it answered, and how fast.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// The nodes to load; connections are spread over them.
    #[arg(
        long,
        env = "A3_HOST",
        value_delimiter = ',',
        value_name = "HOST,...",
        default_value = "http://127.0.0.1:8001"
    )]
    hosts: Vec<Host>,
    /// What each request does.
    #[arg(long, value_enum, default_value_t)]
    op: Operation,
    /// Connections at once; each has one request under way.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// How long it is measured.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// How many seconds of requests go before, uncounted.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    warmup: f64,
    /// How long each value is.
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Keys are drawn among this many, evenly; with --op cas each connection has at most 16 of its own.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..10_000_000_000))]
    keys: u64,
    /// Put every key once before.
    #[arg(long)]
    load: bool,
    /// What the keys begin with.
    #[arg(long, default_value = "bench-")]
    prefix: String,
    /// Ask for one, quorum, all or linearizable instead of the node's default; with --etcd, `one` means a serializable
    /// read.
    #[arg(long)]
    consistency: Option<Level>,
    /// Requests per second over all connections, instead of as many as they are answered.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Threads that the connections are spread over.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Speak to etcd's JSON gateway.
    #[arg(long)]
    etcd: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Operation {
    #[default]
    Put,
    Get,
    /// Half of each.
    Mix,
    /// Each connection changes keys of its own by If-Match with the ETag of its last answer: one request each, nobody in
    /// the way.
    Cas,
    /// All connections change one key: GET, then If-Match with what it told. Who comes too late is counted under 412 or
    /// 409.
    CasHot,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), Fault> {
        self.check()?;
        let mut builder = match self.threads {
            1 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = builder.worker_threads(usize::from(self.threads)).enable_all().build();
        let runtime = runtime.map_err(|e| Fault::Failed(format!("cannot start: {e}")))?;
        let report = runtime.block_on(self.measure())?;
        if self.output.is_json() {
            output::json(&report)?;
        } else {
            output::line(&report.text())?;
        }
        match report.operations {
            0 => Err(Fault::Unavailable("no request was answered with success".into())),
            _ => Ok(()),
        }
    }

    /// What clap cannot know.
    fn check(&self) -> Result<(), Fault> {
        let is_conditional = matches!(self.op, Operation::Cas | Operation::CasHot);
        if is_conditional && self.etcd {
            return Err(Fault::Usage("--op cas and cas-hot speak to a3 only".into()));
        }
        if is_conditional && matches!(self.consistency, Some(Level::One | Level::All)) {
            return Err(Fault::Usage("a write with a condition is linearizable: quorum or linearizable wanted".into()));
        }
        Ok(())
    }

    async fn measure(&self) -> Result<Report, Fault> {
        if self.load {
            let began = Instant::now();
            let loaded = load::run(self.phase(Work::Load, began, None), tally()?).await;
            let loaded = loaded.lock().report(began.elapsed());
            eprintln!("loaded {} keys, {:.0} a second", loaded.operations, loaded.operations_per_second);
            if loaded.operations < self.keys {
                return Err(Fault::Failed(format!("not every key could be put\n{}", loaded.text())));
            }
        }
        let work = match self.op {
            Operation::Put => Work::Put,
            Operation::Get => Work::Get,
            Operation::Mix => Work::Mix,
            Operation::Cas => Work::Cas,
            Operation::CasHot => Work::CasHot,
        };
        let measured = Duration::from_secs_f64(self.seconds);
        let from = Instant::now() + Duration::from_secs_f64(self.warmup);
        let tally = load::run(self.phase(work, from, Some(from + measured)), tally()?).await;
        let report = tally.lock().report(measured);
        Ok(report)
    }

    fn phase(&self, work: Work, measure_from: Instant, until: Option<Instant>) -> Phase {
        let consistency = self.consistency.map(|level| level.to_string());
        let connections = usize::from(self.connections);
        let rate = self.rate.filter(|_| work != Work::Load);
        Phase {
            work,
            shape: Shape {
                dialect: if self.etcd { Dialect::Etcd } else { Dialect::A3 },
                prefix: self.prefix.clone(),
                value_bytes: self.value_bytes,
                consistency: consistency.filter(|_| work != Work::Load),
            },
            hosts: self.hosts.iter().map(|host| host.0.clone()).collect(),
            connections,
            keys: self.keys,
            pace: rate.map(|rate| Duration::from_secs_f64(connections as f64 / f64::from(rate))),
            measure_from,
            until,
        }
    }
}

fn tally() -> Result<Tally, Fault> {
    Tally::new().map_err(|e| Fault::Failed(format!("cannot measure: {e}")))
}

/// A whole or broken number of seconds, at most a day.
fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| (0.0..=86_400.0).contains(n));
    number.ok_or_else(|| "a number of seconds wanted, up to 86400".into())
}
