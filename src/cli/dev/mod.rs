//! `a3 dev`: a cluster on this machine, for trying things out. Its nodes are processes like any other's, so killing one
//! is a fair experiment. While it runs, `a3 dev add` and the like change it from another terminal.

mod cluster;
mod commands;
mod control;
mod plan;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use comfy_table::ContentArrangement;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::client::{self, Client};
use super::views::{self, fetch};
use super::{Fault, output};
use crate::ports::Entropy as _;
use crate::system::{StopSignals, SystemEntropy};
use crate::types::limits::{MEMBERS_MAX, REPLICATION_FACTOR_MAX};
use cluster::{Cluster, LOOK};
use commands::Command;
use control::Control;
use plan::{Node, Plan};

/// Start a cluster on this machine and stop it with Ctrl-C.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Dev {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many nodes found the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=MEMBERS_MAX as i64))]
    nodes: u16,
    /// Copies of each key.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=REPLICATION_FACTOR_MAX as i64))]
    rf: u8,
    /// Keep the data when it stops.
    #[arg(long)]
    keep: bool,
    /// Keep the data here, and go on with what is there [default: a fresh directory, removed at the end].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// REST port of the first node; the others follow.
    #[arg(long, default_value_t = 8001, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    base_port: u16,
    /// Mesh port of the first node [default: 42050 above --base-port].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    mesh_base_port: Option<u16>,
}

impl Dev {
    pub(super) fn run(mut self) -> Result<ExitCode, Fault> {
        match self.command.take() {
            Some(command) => command.run()?,
            None => self.run_cluster()?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn run_cluster(self) -> Result<(), Fault> {
        let program = std::env::current_exe().map_err(|e| Fault::Failed(format!("this program's own path: {e}")))?;
        let temporary = self.dir.is_none() && !self.keep;
        let dir = match &self.dir {
            Some(dir) => std::path::absolute(dir).map_err(|e| Fault::Usage(format!("{}: {e}", dir.display())))?,
            None => {
                std::env::temp_dir().join(format!("{}{:08x}", control::PREFIX, SystemEntropy::default().u64() as u32))
            }
        };
        let plan = Plan::new(self.nodes, self.rf, self.base_port, self.mesh_base_port, &dir)?;
        for node in plan.nodes()? {
            node.check_ports().map_err(|(port, e)| {
                Fault::Failed(format!("port {port} for {}: {e}; --base-port moves all ports", node.name))
            })?;
        }
        create(&dir, self.dir.is_some())?;
        client::block_on(async {
            let mut signals = StopSignals::install().map_err(|e| Fault::Failed(format!("signals: {e}")))?;
            let control = Control::listen(&dir).await?;
            eprintln!("starting in {}", dir.display());
            let mut cluster = Mutex::new(Cluster::start(program, plan)?);
            let lived = self.live(&mut cluster, &control, &mut signals, &dir, temporary).await;
            let cluster = cluster.get_mut();
            cluster.stop(&mut signals).await;
            drop(control);
            if let Err(fault) = lived {
                eprintln!("a3: the data and logs stay in {}", dir.display());
                return Err(fault);
            }
            if temporary { clear(cluster, &dir) } else { output::line(&format!("stopped; kept {}", dir.display())) }
        })
    }

    /// From the start of the processes until a signal comes.
    async fn live(
        &self,
        cluster: &mut Mutex<Cluster>,
        control: &Control,
        signals: &mut StopSignals,
        dir: &Path,
        temporary: bool,
    ) -> Result<(), Fault> {
        let began = Instant::now();
        let starting = cluster.get_mut();
        tokio::select! {
            biased;
            () = signals.next() => return Ok(()),
            ready = starting.wait_ready() => ready?,
        }
        let count = starting.nodes().count();
        let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
        let rf = copies(starting).await?;
        let copies = if rf == 1 { "copy" } else { "copies" };
        let seconds = began.elapsed().as_secs_f64();
        output::line(&format!("a3.store: {nodes}, {rf} {copies} of each key, ready in {seconds:.1} s\n"))?;
        output::line(&welcome(starting, dir, temporary))?;
        tokio::select! {
            biased;
            () = signals.next() => Ok(()),
            fault = watch(cluster) => fault,
            fault = obey(cluster, control) => fault,
        }
    }
}

/// How many copies the cluster keeps: in a directory that was used before it need not be what is asked for now.
async fn copies(cluster: &Cluster) -> Result<u64, Fault> {
    let (node, _) = cluster.nodes().next().ok_or_else(|| Fault::Failed("no node runs".into()))?;
    Ok(fetch::<views::Cluster>(&Client::new(), &node.http(), "/cluster").await?.rf)
}

/// Tells of every node that ends. Runs until it is dropped.
async fn watch(cluster: &Mutex<Cluster>) -> Result<(), Fault> {
    loop {
        cluster.lock().look()?;
        sleep(LOOK).await;
    }
}

/// Does what other terminals ask for. Runs until it is dropped.
async fn obey(cluster: &Mutex<Cluster>, control: &Control) -> Result<(), Fault> {
    loop {
        let next = control.next().await;
        let (request, stream) = next.map_err(|e| Fault::Failed(format!("waiting for requests: {e}")))?;
        let reply = cluster.lock().answer(request);
        control::answer(stream, &reply).await;
    }
}

/// A fresh directory that only its owner reads; a named one may be there already.
fn create(dir: &Path, named: bool) -> Result<(), Fault> {
    let created = std::fs::DirBuilder::new().mode(0o700).recursive(named).create(dir);
    created.map_err(|e| Fault::Failed(format!("{}: {e}", dir.display())))
}

/// Removes a temporary directory, unless a node that was started by hand still works in it.
fn clear(cluster: &Cluster, dir: &Path) -> Result<(), Fault> {
    let running = cluster.running_elsewhere();
    if !running.is_empty() {
        return output::line(&format!("stopped; {} runs on, so {} stays", running.join(", "), dir.display()));
    }
    std::fs::remove_dir_all(dir).map_err(|e| Fault::Failed(format!("{}: {e}", dir.display())))?;
    output::line(&format!("stopped; removed {}", dir.display()))
}

/// What a newcomer sees: who is there, where to look, and what to try.
fn welcome(cluster: &Cluster, dir: &Path, temporary: bool) -> String {
    let mut table = output::table(&["NODE", "PID", "REST", "MESH", "DATA"]);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for (node, pid) in cluster.nodes() {
        let rest = format!("http://{}", node.http());
        table.add_row([&node.name, &pid.to_string(), &rest, &node.mesh(), &node.data_dir.display().to_string()]);
    }
    let at = |index: usize| cluster.nodes().nth(index).or_else(|| cluster.nodes().last());
    let url = |index: usize| at(index).map_or_else(String::new, |(node, _)| format!("http://{}", node.http()));
    let (first, second) = (url(0), url(1));
    let last_pid = cluster.nodes().last().map_or_else(String::new, |(_, pid)| pid.to_string());
    let (add, ls) = (cluster.command_line("add"), cluster.command_line("ls"));
    let again = |node: &Node| {
        format!("{} does not run; {} starts it\n", node.name, cluster.command_line(&format!("start {}", node.number)))
    };
    let stopped: String = cluster.stopped().map(again).collect();
    let (dir, end) = (dir.display(), if temporary { "removes" } else { "keeps" });
    format!(
        "{}\n{stopped}\n\
         console     {first}/\n\
         Swagger UI  {first}/swagger-ui/\n\
         metrics     {first}/metrics\n\
         logs        {dir}/node1.log ...\n\n\
         Paste into another terminal:\n\
         \x20 curl -X PUT {first}/kv/name -d anas\n\
         \x20 curl {second}/kv/name\n\
         \x20 kill -9 {last_pid}\n\
         \x20 {add}\n\
         \x20 {ls}\n\n\
         Ctrl-C stops the nodes and {end} {dir}",
        output::rendered(&table)
    )
}
