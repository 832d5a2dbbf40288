//! The processes of a development cluster: started, waited for, watched, stopped.
//!
//! Invariant: no node outlives this process. On the ways out that run code it stops them; should it be killed, each
//! node sees the pipe on its stdin close (`serve --parent-pipe`). They have process groups of their own, so that a
//! Ctrl-C in the terminal reaches this process alone and it can stop them in order.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout_at};

use super::super::client::Client;
use super::super::health::ready;
use super::super::{Fault, output};
use super::plan::Node;
use crate::system::StopSignals;

/// All nodes are ready by then, or something is wrong.
const READY: Duration = Duration::from_secs(60);
/// A node that was told to stop has that long for it.
const STOP: Duration = Duration::from_secs(10);
/// How often it is looked whether nodes are ready, or still there.
const LOOK: Duration = Duration::from_millis(50);
/// How much of a log is shown when a node fails.
const TAIL_LINES: usize = 20;
/// Settings that would contradict what is planned here. The others reach the nodes from the environment.
const NOT_INHERITED: &[&str] = &["BIND_ADDR", "ADVERTISE_ADDR", "GOSSIP_PORT", "ZONE", "SEEDS", "CLUSTER_SIZE"];

/// A node's process.
struct Process {
    node: Node,
    child: Child,
    pid: u32,
    /// Held open as long as the node shall live.
    _pipe: Option<ChildStdin>,
    /// Set once its end was seen.
    ended: bool,
}

pub(super) struct Cluster {
    program: PathBuf,
    processes: Vec<Process>,
}

impl Cluster {
    /// Starts every node; those started before a failure are killed.
    pub(super) fn start(program: PathBuf, nodes: Vec<Node>) -> Result<Self, Fault> {
        let mut processes = Vec::new();
        for node in nodes {
            let started = start(&program, &node);
            let mut child = started.map_err(|e| Fault::Failed(format!("cannot start {}: {e}", node.name)))?;
            let pid = child.id().ok_or_else(|| Fault::Failed(format!("{} ended at once", node.name)))?;
            processes.push(Process { node, pid, _pipe: child.stdin.take(), child, ended: false });
        }
        Ok(Self { program, processes })
    }

    /// Every node with its process id.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Node, u32)> {
        self.processes.iter().map(|p| (&p.node, p.pid))
    }

    /// Waits until every node is ready.
    ///
    /// # Errors
    /// When one ends or is not ready in time; the text shows the end of its log.
    pub(super) async fn wait_ready(&mut self) -> Result<(), Fault> {
        let client = Client::new();
        let deadline = Instant::now() + READY;
        for at in 0..self.processes.len() {
            loop {
                for process in &mut self.processes {
                    if let Some(status) = process.try_wait()? {
                        return Err(failed(&process.node, &format!("{} at the start", told(status))));
                    }
                }
                // `at` is below the number of processes, which does not change.
                let node = &self.processes[at].node;
                let Err(fault) = ready(&client, &node.http(), Duration::from_secs(1)).await else { break };
                if Instant::now() >= deadline {
                    return Err(failed(node, &format!("is not ready after {} s: {fault}", READY.as_secs())));
                }
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Tells of every node that ends, once, with how to start it again. Runs until it is dropped.
    pub(super) async fn watch(&mut self) -> Result<(), Fault> {
        loop {
            for process in &mut self.processes {
                if let Some(status) = process.try_wait()? {
                    let Process { node, pid, .. } = process;
                    let again = node.command_line(&self.program);
                    output::line(&format!(
                        "{} (pid {pid}) {}; to start it again:\n  {again}",
                        node.name,
                        told(status)
                    ))?;
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Stops every node: asks, waits, and after [`STOP`] or another signal kills.
    pub(super) async fn stop(&mut self, signals: &mut StopSignals) {
        for process in self.processes.iter().filter(|p| !p.ended) {
            // It may have ended by itself by now; then there is nobody to ask.
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        }
        let deadline = Instant::now() + STOP;
        for process in self.processes.iter_mut().filter(|p| !p.ended) {
            let gone = tokio::select! {
                biased;
                waited = timeout_at(deadline, process.child.wait()) => waited.is_ok(),
                () = signals.next() => false,
            };
            if !gone {
                eprintln!("a3: {} did not stop in time and is killed", process.node.name);
                // Fails only for a process that is gone.
                let _ = process.child.kill().await;
            }
            process.ended = true;
        }
    }

    /// Nodes that somebody started again outside and that still run.
    pub(super) fn running_elsewhere(&self) -> Vec<&str> {
        self.nodes().filter(|(node, _)| node.check_ports().is_err()).map(|(node, _)| node.name.as_str()).collect()
    }
}

impl Process {
    /// How it ended, the first time that this is seen.
    fn try_wait(&mut self) -> Result<Option<ExitStatus>, Fault> {
        if self.ended {
            return Ok(None);
        }
        let status = self.child.try_wait().map_err(|e| Fault::Failed(format!("{}: {e}", self.node.name)))?;
        self.ended = status.is_some();
        Ok(status)
    }
}

fn start(program: &Path, node: &Node) -> std::io::Result<Child> {
    let log = File::options().create(true).append(true).open(&node.log)?;
    let mut command = Command::new(program);
    command.args(&node.arguments).arg("--parent-pipe");
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    if std::env::var_os("LOG_FORMAT").is_none() {
        // These logs are read by the person who started this.
        command.env("LOG_FORMAT", "text");
    }
    command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    command.process_group(0).kill_on_drop(true).spawn()
}

/// How a process ended, in words.
fn told(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

fn failed(node: &Node, what: &str) -> Fault {
    let log = std::fs::read(&node.log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
    Fault::Failed(format!("{} {what}\n  {tail}\n  (the end of {})", node.name, node.log.display()))
}
