//! Changes of the topology: how one begins, who brings it to its end, and how far it is.
//!
//! What a change does is done by each member for itself: it catches up on the slots that it is to keep (`rebuild::catch_up`), and
//! one that leaves hands over its hints (`handoff`). What is left to drive is the end: the lowest-numbered member that lives asks the
//! others how far they are, and when all are there it proposes the topology without what was before. Whoever it is may crash at
//! any time: the next one asks anew, and two that propose propose the same.
//!
//! Invariants:
//! - A change ends only when each member that keeps a slot which moves has said, in the epoch in force, that it has caught up; and
//!   when one that leaves has no hints left, unless it has been down for a minute (`Succession::is_given_up`) and cannot be asked.
//! - One change at a time: none begins while another is under way (`protocol::succession::change`).

mod progress;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Node;
use super::Ports;
use super::directory::Directory;
use super::rebuild::Rebuild;
use super::routing::Routing;
use super::succession::Succession;
use super::views::{ChangeView, Liveness};
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest};
use crate::protocol::ring::Ring;
use crate::protocol::succession::change::{self, Unfit, Wish};
use crate::types::{CatchUp, NodeNum, Topology};

use progress::Unsaid;

/// How often it is looked whether a change has come to its end.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a member is waited for that is asked how far it is.
const WITHIN: Duration = Duration::from_secs(2);

/// Why a change did not begin, or end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeFailure {
    /// Nothing was changed.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Nothing was changed.
    #[error("the node has not joined its cluster yet")]
    NotReady,
    /// It may be decided all the same, or have been.
    #[error("no majority of the members answered in time")]
    Undecided,
    /// Nothing was changed.
    #[error("no change of the topology is under way")]
    None,
}

/// The driver.
pub struct Changer {
    me: NodeNum,
    ports: Ports,
    routing: Arc<Routing>,
    succession: Arc<Succession>,
    directory: Arc<Directory>,
    rebuild: Arc<Rebuild>,
}

impl Changer {
    pub(super) fn new(
        me: NodeNum,
        ports: &Ports,
        routing: &Arc<Routing>,
        succession: &Arc<Succession>,
        directory: &Arc<Directory>,
        rebuild: &Arc<Rebuild>,
    ) -> Arc<Self> {
        Arc::new(Self {
            me,
            ports: ports.clone(),
            routing: Arc::clone(routing),
            succession: Arc::clone(succession),
            directory: Arc::clone(directory),
            rebuild: Arc::clone(rebuild),
        })
    }

    /// Brings changes to their ends. Runs for the node's life.
    pub async fn run(self: Arc<Self>) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(ring) = self.routing.ring().filter(|ring| ring.topology().moving.is_some()) else { continue };
            if self.leads(ring.topology()) && self.is_over(&ring).await {
                let since = ring.topology().moving.as_ref().map(|moving| moving.since);
                let same = |topology: &Topology| topology.epoch == ring.epoch();
                let step = |now: &Topology| change::complete(now).filter(|_| same(now)).ok_or(());
                if let Ok(Some(topology)) = self.succession.decide(step).await {
                    tracing::info!(epoch = %topology.epoch, ?since, "the change of the topology has ended");
                }
            }
        }
    }

    /// Whether no member that lives, and has a vote, comes before this one: by number, one that leaves last.
    fn leads(&self, topology: &Topology) -> bool {
        let rank = |node: NodeNum| (topology.leaver() == Some(node), node);
        let mut before = topology.voters().filter(|m| rank(m.node) < rank(self.me));
        let lives = before.any(|m| self.directory.liveness(m.node) == Liveness::Alive);
        !lives && topology.voters().any(|m| m.node == self.me)
    }

    async fn is_over(&self, ring: &Ring) -> bool {
        let said = self.ask_all(ring).await;
        said.iter()
            .all(|(node, said)| progress::waits_for(ring.topology(), *node, said, self.is_dead(ring, *node)).is_none())
    }

    fn is_dead(&self, ring: &Ring, node: NodeNum) -> bool {
        self.succession.is_given_up(ring.topology(), node)
    }

    /// How far each member is that has something to do.
    async fn ask_all(&self, ring: &Ring) -> Vec<(NodeNum, Result<CatchUp, Unsaid>)> {
        let asked = progress::takes_part(ring.topology()).into_iter().map(|node| async move {
            let reply = if node == self.me {
                self.rebuild.answer_catch_up(ring.epoch()).await
            } else {
                let request = PeerRequest::CatchUp { epoch: ring.epoch() };
                self.ports.peers.ask(Destination::Member(node), request, Instant::now() + WITHIN).await
            };
            (node, self.said(node, reply).await)
        });
        join_all(asked).await
    }

    async fn said(&self, node: NodeNum, reply: Result<PeerReply, PeerError>) -> Result<CatchUp, Unsaid> {
        let lives = |why| Err(Unsaid { why, answers: true });
        match reply {
            Ok(PeerReply::CaughtUp(said)) => Ok(said),
            Ok(PeerReply::WrongEpoch { epoch }) if epoch < self.routing.epoch() => {
                self.succession.tell(std::iter::once(node)).await;
                lives(format!("it has epoch {epoch} in force still"))
            }
            Ok(PeerReply::WrongEpoch { epoch }) => {
                self.succession.fetch_from(node).await;
                lives(format!("it has epoch {epoch} in force already"))
            }
            Ok(_) => lives("it answered something else".to_owned()),
            Err(error) => {
                let silent = matches!(error, PeerError::Unreachable | PeerError::TimedOut | PeerError::Lost);
                Err(Unsaid { why: error.to_string(), answers: !silent })
            }
        }
    }

    /// The change under way, and how far each member is.
    async fn view(&self) -> Option<ChangeView> {
        let ring = self.routing.ring().filter(|ring| ring.topology().moving.is_some())?;
        let said = self.ask_all(&ring).await;
        let dead = |node| self.is_dead(&ring, node);
        progress::view(ring.topology(), said, dead)
    }
}

impl Node {
    /// Begins a change of the topology, which then goes on by itself.
    ///
    /// # Errors
    /// Why it did not; whether it may have begun all the same says the failure.
    pub async fn begin_change(&self, wish: Wish) -> Result<ChangeView, ChangeFailure> {
        if !self.own.has_joined() {
            return Err(ChangeFailure::NotReady);
        }
        let decided = self.succession.decide(|topology| self.next(topology, &wish)).await?;
        let topology = decided.ok_or(ChangeFailure::Undecided)?;
        progress::view(&topology, Vec::new(), |_| false).ok_or(ChangeFailure::None)
    }

    /// The topology that begins that change, by what this node knows of who lives.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn next(&self, topology: &Topology, wish: &Wish) -> Result<Topology, Unfit> {
        match wish {
            Wish::Leave(node) if self.is_down(*node) => change::begin_without(topology, *node),
            _ => change::begin(topology, wish),
        }
    }

    fn is_down(&self, node: NodeNum) -> bool {
        node != self.identity.node && self.directory.liveness(node) != Liveness::Alive
    }

    /// Takes the change under way back: slots are kept by whom they were kept before it.
    ///
    /// # Errors
    /// Why it was not; whether it may be all the same says the failure.
    pub async fn abort_change(&self) -> Result<ChangeView, ChangeFailure> {
        if !self.own.has_joined() {
            return Err(ChangeFailure::NotReady);
        }
        let under_way =
            self.routing.ring().filter(|ring| ring.topology().moving.is_some()).ok_or(ChangeFailure::None)?;
        let since = under_way.topology().moving.as_ref().map(|moving| moving.since);
        let this = |topology: &Topology| topology.moving.as_ref().map(|moving| moving.since) == since;
        let step = |now: &Topology| change::abort(now).filter(|_| this(now)).ok_or(ChangeFailure::None);
        self.succession.decide(step).await?.ok_or(ChangeFailure::Undecided)?;
        progress::view(under_way.topology(), Vec::new(), |_| false).ok_or(ChangeFailure::None)
    }

    /// The change of the topology that is under way, and how far it is; it takes up to two seconds where members are silent.
    pub async fn change(&self) -> Option<ChangeView> {
        self.changer.view().await
    }
}

impl fmt::Debug for Changer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changer").field("me", &self.me).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
