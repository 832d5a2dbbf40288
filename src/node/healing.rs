//! Healing as people see it: how the copies agree, and repairs they start, follow and end.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::Node;
use super::anti_entropy::{AntiEntropy, Stop};
use super::operations::Progress;
use super::views::{
    ConvergenceView, EventKind, MemberTombstones, OperationState, OperationView, RepairRequest, TombstonesView,
};
use crate::types::{Look, NodeNum};

/// Repairs that run at a time; more are refused, as they would only wait for each other.
pub const REPAIRS_MAX: usize = 4;

/// Why a repair was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    #[error("the node has no cluster yet")]
    NoCluster,
    #[error("{REPAIRS_MAX} repairs run at this node already")]
    TooMany,
}

impl Node {
    /// How the copies on each pair of members agree, asked of one of the two, anew. `None` before the node has its cluster.
    pub async fn convergence(&self, look: Look) -> Option<ConvergenceView> {
        self.anti_entropy.convergence(look).await
    }

    /// Starts a repair of what this node shares with its peers.
    ///
    /// # Errors
    /// See [`NotBegun`]. Nothing was started.
    pub fn repair(&self, request: RepairRequest) -> Result<OperationView, NotBegun> {
        let ring = self.routing.ring().ok_or(NotBegun::NoCluster)?;
        let peers = self.anti_entropy.partners(&ring);
        if self.operations.running() >= REPAIRS_MAX {
            return Err(NotBegun::TooMany);
        }
        let (clock, operations) = (Arc::clone(&self.clock), Arc::clone(&self.operations));
        let id = self.ports.entropy.uuid();
        let (view, progress) = operations.begin(id, "repair", request.dry_run, clock.wall_ms());
        let driver = Arc::clone(&self.anti_entropy);
        let (journal, me) = (Arc::clone(&self.journal), self.identity.node);
        let what = if request.dry_run { "dry run of a repair" } else { "repair" };
        journal.note(me, EventKind::Repair, format!("begins a {what}, as a client asked: {}", view.id));
        self.ports.spawn.spawn(Box::pin(async move {
            let state = run(&driver, &peers, &request, &progress).await;
            journal.note(me, EventKind::Repair, format!("ended the {what} {id}: {}", how(&state)));
            operations.end(id, state, clock.wall_ms());
        }));
        Ok(view)
    }

    /// What every member says of its tombstones, and whom they wait for. `None` before the node has its cluster.
    pub async fn tombstones(&self) -> Option<TombstonesView> {
        let said = self.purge.statuses().await?;
        let some = |n: u64| Some(n).filter(|n| *n > 0);
        let mut waiting_for = BTreeMap::new();
        let mut members = Vec::with_capacity(said.len());
        for (node, status) in said {
            members.push(match status {
                Ok(status) => {
                    waiting_for.extend(status.waiting_for);
                    MemberTombstones {
                        node,
                        tombstones: Some(status.tombstones),
                        oldest_ms: some(status.oldest_ms),
                        purged: Some(status.purged),
                        raised_ms: some(status.raised_ms),
                    }
                }
                Err(why) => {
                    waiting_for.insert(node, why);
                    MemberTombstones { node, tombstones: None, oldest_ms: None, purged: None, raised_ms: None }
                }
            });
        }
        if members.iter().filter_map(|member| member.tombstones).sum::<u64>() == 0 {
            // There is nothing that could wait.
            waiting_for.clear();
        }
        Some(TombstonesView { asked: self.identity.node, members, waiting_for: waiting_for.into_iter().collect() })
    }

    /// This node's long-running operations, newest first; the last hundred that ended are remembered.
    pub fn operations(&self) -> Vec<OperationView> {
        self.operations.views()
    }

    pub fn operation(&self, id: Uuid) -> Option<OperationView> {
        self.operations.view(id)
    }

    /// Ends an operation early; what it did stays done. `None` where there is no such operation; one that ended is left
    /// as it is.
    pub fn abort(&self, id: Uuid) -> Option<OperationView> {
        self.operations.abort(id)
    }
}

/// How it ended, for a person.
fn how(state: &OperationState) -> &str {
    match state {
        OperationState::Running => "running",
        OperationState::Done => "done",
        OperationState::Aborted => "aborted",
        OperationState::Failed(why) => why,
    }
}

/// One peer after the other. A peer that cannot be had does not keep the others from being repaired; the repair has failed
/// all the same, and says where.
async fn run(driver: &AntiEntropy, peers: &[NodeNum], request: &RepairRequest, progress: &Progress) -> OperationState {
    let mut failed = Vec::new();
    progress.expect_peers(peers.len() as u64);
    for (peer, compared) in peers.iter().zip(1..) {
        let ended = if request.dry_run {
            driver.look(*peer, Look::Keys, &request.chunks, progress).await.map(drop)
        } else {
            driver.repair(*peer, &request.chunks, progress).await
        };
        match ended {
            Ok(()) => {}
            Err(Stop::Aborted) => return OperationState::Aborted,
            Err(stop) => failed.push(format!("{peer}: {stop}")),
        }
        if progress.compared() < compared {
            progress.expect(0);
        }
    }
    if failed.is_empty() { OperationState::Done } else { OperationState::Failed(failed.join("; ")) }
}
