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
use super::control::{Reply, Request, Row, is_found};
use super::plan::{Node, Plan, Remembered, quoted};
use crate::system::StopSignals;
use crate::types::limits::MEMBERS_MAX;

/// All nodes are ready by then, or something is wrong.
pub(super) const READY: Duration = Duration::from_secs(60);
/// A node that was told to stop has that long for it.
pub(super) const STOP: Duration = Duration::from_secs(10);
/// How often it is looked whether nodes are ready, or still there.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// How much of a log is shown when a node fails.
const TAIL_LINES: usize = 20;
/// How many numbers are tried for a node that is added: the ports that follow from one may be taken.
const NUMBERS: u16 = 16;
/// Settings that would contradict what is planned here. The others reach the nodes from the environment.
const NOT_INHERITED: &[&str] = &["BIND_ADDR", "ADVERTISE_ADDR", "GOSSIP_PORT", "ZONE", "SEEDS", "CLUSTER_SIZE"];

/// A process that runs, as far as was seen.
struct Running {
    child: Child,
    pid: u32,
    /// Held open as long as the node shall live.
    _pipe: Option<ChildStdin>,
    /// Somebody asked for its end.
    told_to_stop: bool,
}

/// A node, whether it runs or not.
struct Member {
    node: Node,
    /// For the next start of all.
    remembered: Remembered,
    running: Option<Running>,
    /// How its last process ended.
    ended: String,
}

pub(super) struct Cluster {
    program: PathBuf,
    plan: Plan,
    members: Vec<Member>,
}

impl Cluster {
    /// Starts every node but those that are remembered as stopped, and all where that would be none; those started before a
    /// failure are killed.
    pub(super) fn start(program: PathBuf, plan: Plan) -> Result<Self, Fault> {
        let remembered = plan.remembered()?;
        let mut members = Vec::new();
        for node in plan.nodes()? {
            let before = remembered.iter().find(|r| r.node == node.number).cloned();
            let fresh = Remembered { node: node.number, ..Remembered::default() };
            members.push(Member::new(node, before.unwrap_or(fresh)));
        }
        for added in remembered.into_iter().filter(|r| r.node > plan.founders) {
            let beside: Vec<Node> = members.iter().map(|m| m.node.clone()).collect();
            members.push(Member::new(plan.addition(&added, &beside)?, added));
        }
        if members.iter().all(|m| m.remembered.stopped) {
            members.iter_mut().for_each(|m| m.remembered.stopped = false);
        }
        let mut cluster = Self { program, plan, members };
        for at in 0..cluster.members.len() {
            if !cluster.members[at].remembered.stopped {
                cluster.launch(at)?;
            }
        }
        Ok(cluster)
    }

    /// Starts a node that does not run.
    fn launch(&mut self, at: usize) -> Result<u32, Fault> {
        let Member { node, running, .. } = &mut self.members[at];
        node.check_ports().map_err(|(port, e)| Fault::Failed(format!("port {port} for {}: {e}", node.name)))?;
        let started = start(&self.program, node);
        let mut child = started.map_err(|e| Fault::Failed(format!("cannot start {}: {e}", node.name)))?;
        let pid = child.id().ok_or_else(|| Fault::Failed(format!("{} ended at once", node.name)))?;
        *running = Some(Running { pid, _pipe: child.stdin.take(), child, told_to_stop: false });
        Ok(pid)
    }

    /// Every node that runs, with its process id.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Node, u32)> {
        self.members.iter().filter_map(|m| Some((&m.node, m.running.as_ref()?.pid)))
    }

    /// Every node that does not.
    pub(super) fn stopped(&self) -> impl Iterator<Item = &Node> {
        self.members.iter().filter(|m| m.running.is_none()).map(|m| &m.node)
    }

    /// Waits until every node is ready.
    ///
    /// # Errors
    /// When one ends or is not ready in time; the text shows the end of its log.
    pub(super) async fn wait_ready(&mut self) -> Result<(), Fault> {
        let client = Client::new();
        let deadline = Instant::now() + READY;
        let started: Vec<usize> = (0..self.members.len()).filter(|at| self.members[*at].running.is_some()).collect();
        for at in started {
            loop {
                for member in &mut self.members {
                    if let Some((_, status)) = member.try_wait()? {
                        let what = format!("{} {} at the start", member.node.name, told(status));
                        return Err(failed(&what, &member.node.log));
                    }
                }
                // `at` is below the number of members, which does not change meanwhile.
                let node = &self.members[at].node;
                let Err(fault) = ready(&client, &node.http(), Duration::from_secs(1)).await else { break };
                if Instant::now() >= deadline {
                    let what = format!("{} is not ready after {} s: {fault}", node.name, READY.as_secs());
                    return Err(failed(&what, &node.log));
                }
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Tells of every node that ended since the last look.
    pub(super) fn look(&mut self) -> Result<(), Fault> {
        for at in 0..self.members.len() {
            let Some((gone, status)) = self.members[at].try_wait()? else { continue };
            let Node { name, number, .. } = &self.members[at].node;
            let (pid, how) = (gone.pid, told(status));
            output::line(&if gone.told_to_stop {
                format!("{name} (pid {pid}) has stopped")
            } else {
                let again = self.command_line(&format!("start {number}"));
                format!("{name} (pid {pid}) {how}; to start it again:\n  {again}")
            })?;
            // One that gave up, as who left the cluster does, would be in the way of the next start of all. One that was added and
            // stopped stays so.
            let gave_up = status.code().is_some_and(|code| code != 0);
            let stays = if gone.told_to_stop { *number > self.plan.founders } else { gave_up };
            if stays {
                self.members[at].remembered.stopped = true;
                self.remember()?;
            }
        }
        Ok(())
    }

    /// A command for this cluster, to paste into a shell.
    pub(super) fn command_line(&self, command: &str) -> String {
        let word = |path: &Path| quoted(&path.to_string_lossy());
        let dir = &self.plan.dir;
        let which = if is_found(dir) { String::new() } else { format!(" --dir {}", word(dir)) };
        format!("{} dev {command}{which}", word(&self.program))
    }

    fn remember(&self) -> Result<(), Fault> {
        let all = self.members.iter().map(|m| &m.remembered);
        let told: Vec<&Remembered> = all.filter(|r| r.node > self.plan.founders || r.stopped).collect();
        self.plan.remember(&told)
    }

    /// Stops every node: asks, waits, and after [`STOP`] or another signal kills.
    pub(super) async fn stop(&mut self, signals: &mut StopSignals) {
        self.members.iter().filter_map(|m| m.running.as_ref()).for_each(|running| running.signal(Signal::TERM));
        let deadline = Instant::now() + STOP;
        for Member { node, running, .. } in &mut self.members {
            let Some(mut running) = running.take() else { continue };
            let gone = tokio::select! {
                biased;
                waited = timeout_at(deadline, running.child.wait()) => waited.is_ok(),
                () = signals.next() => false,
            };
            if !gone {
                eprintln!("a3: {} did not stop in time and is killed", node.name);
                // Fails only for a process that is gone.
                let _ = running.child.kill().await;
            }
        }
    }

    /// Nodes that somebody started by hand and that still run.
    pub(super) fn running_elsewhere(&self) -> Vec<&str> {
        let elsewhere = |m: &&Member| m.running.is_none() && m.node.check_ports().is_err();
        self.members.iter().filter(elsewhere).map(|m| m.node.name.as_str()).collect()
    }
}

/// What is asked from another terminal. Nothing here waits: who asks looks again until it is so.
impl Cluster {
    pub(super) fn answer(&mut self, request: Request) -> Reply {
        // Who ended a moment ago does not run.
        let done = self.look().and_then(|()| match request {
            Request::Ls => Ok((0..self.members.len()).collect()),
            Request::Add { zone, weight } => self.add(zone, weight).map(|at| vec![at]),
            Request::Start { node } => self.start_again(node).map(|at| vec![at]),
            Request::Stop { node, kill } => self.stop_one(node, kill).map(|at| vec![at]),
        });
        match done {
            Ok(members) => Reply::Nodes(members.into_iter().map(|at| self.members[at].row()).collect()),
            Err(fault) => Reply::Refused(fault.to_string()),
        }
    }

    fn find(&self, node: u16) -> Result<usize, Fault> {
        let at = self.members.iter().position(|m| m.node.number == node);
        at.ok_or_else(|| Fault::Failed(format!("there is no n{node} here; `a3 dev ls` lists the nodes")))
    }

    /// Another node, under the next number whose ports are free.
    fn add(&mut self, zone: Option<String>, weight: Option<u32>) -> Result<usize, Fault> {
        let beside: Vec<Node> = self.members.iter().map(|m| m.node.clone()).collect();
        let first = beside.iter().map(|node| node.number + 1).max().unwrap_or(1);
        let mut taken = Fault::Failed(format!("a cluster has {MEMBERS_MAX} members at most"));
        for number in (first..first + NUMBERS).filter(|number| usize::from(*number) <= MEMBERS_MAX) {
            let added = Remembered { node: number, zone: zone.clone(), weight, stopped: false };
            let node = self.plan.addition(&added, &beside)?;
            if let Err((port, e)) = node.check_ports() {
                taken = Fault::Failed(format!("port {port} for {}: {e}", node.name));
                continue;
            }
            self.members.push(Member::new(node, added));
            let at = self.members.len() - 1;
            let pid = self.launch(at).inspect_err(|_| drop(self.members.pop()))?;
            self.remember()?;
            output::line(&format!("n{number} (pid {pid}) was added"))?;
            return Ok(at);
        }
        Err(taken)
    }

    fn start_again(&mut self, node: u16) -> Result<usize, Fault> {
        let at = self.find(node)?;
        if let Some(Running { pid, .. }) = self.members[at].running {
            return Err(Fault::Failed(format!("n{node} runs already (pid {pid})")));
        }
        let pid = self.launch(at)?;
        self.members[at].remembered.stopped = false;
        self.remember()?;
        output::line(&format!("n{node} (pid {pid}) was started again"))?;
        Ok(at)
    }

    fn stop_one(&mut self, node: u16, kill: bool) -> Result<usize, Fault> {
        let at = self.find(node)?;
        let Some(running) = &mut self.members[at].running else {
            return Err(Fault::Failed(format!("n{node} does not run")));
        };
        running.told_to_stop = true;
        running.signal(if kill { Signal::KILL } else { Signal::TERM });
        Ok(at)
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        // It may have ended by itself by now; then there is nobody to ask.
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}

impl Member {
    fn new(node: Node, remembered: Remembered) -> Self {
        Self { node, remembered, running: None, ended: "stopped".to_owned() }
    }

    /// The process that ended, and how, the first time that this is seen.
    fn try_wait(&mut self) -> Result<Option<(Running, ExitStatus)>, Fault> {
        let Some(running) = &mut self.running else { return Ok(None) };
        let status = running.child.try_wait().map_err(|e| Fault::Failed(format!("{}: {e}", self.node.name)))?;
        let Some(status) = status else { return Ok(None) };
        self.ended = if running.told_to_stop { "stopped".to_owned() } else { told(status) };
        Ok(self.running.take().map(|running| (running, status)))
    }

    fn row(&self) -> Row {
        Row {
            node: self.node.number,
            pid: self.running.as_ref().map(|running| running.pid),
            state: match &self.running {
                Some(running) if running.told_to_stop => "stopping".to_owned(),
                Some(_) => "running".to_owned(),
                None => self.ended.clone(),
            },
            http: self.node.http().0,
            mesh: self.node.mesh(),
            data_dir: self.node.data_dir.clone(),
            log: self.node.log.clone(),
        }
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

/// What a node did that it should not have done, with the end of its log.
pub(super) fn failed(what: &str, path: &Path) -> Fault {
    let log = std::fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
    Fault::Failed(format!("{what}\n  {tail}\n  (the end of {})", path.display()))
}
