//! The topology in force, and the next one: who votes on it, who proposes it, and who hears of it.
//!
//! The driver of [`protocol::succession`](crate::protocol::succession). Any member proposes: for a newcomer that asks it for a
//! place, and for a change that a person asks for or that has come to its end (`node::change`). What is decided is told to all,
//! and whoever missed it sees the epoch in what the others tell about themselves and fetches it.
//!
//! Invariants:
//! - A vote is on disk before it is told, and votes are given one at a time.
//! - The member that is replaced cannot be alive, as far as anybody can know: the newcomer holds its data directory, or it
//!   has been down for [`DOWN_FOR`] here and a direct call to it fails. One that lives all the same is fenced out: nobody
//!   counts an answer of another instance than the topology lists, and once it hears of the epoch it serves nobody and stops.

mod propose;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Ports;
use super::clock::NodeClock;
use super::directory::Directory;
use super::journal::Journal;
use super::routing::Routing;
use super::views::{EventKind, Liveness};
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest};
use crate::protocol::ring::Ring;
use crate::protocol::succession;
use crate::types::{Ballot, Epoch, InstanceId, Member, NodeNum, Topology};

/// A member that cannot be proven dead must have been down for so long before another instance takes its place.
pub const DOWN_FOR: Duration = Duration::from_secs(60);
/// What a newcomer is told whose place is not free.
pub(super) const LIVES: &str = "lives as instance";
/// How long a member is waited for.
const WITHIN: Duration = Duration::from_secs(1);
/// How often the members are looked at, and this node's vote.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For so many looks a vote may stay open before it is taken for abandoned.
const OPEN_LOOKS: u32 = 3;

/// How late a look may come. After a longer pause of this node it is not known who was down meanwhile, and the time begins anew.
const LOOK_LATE: Duration = Duration::from_secs(5);

/// A member that is held down.
#[derive(Clone, Copy)]
struct Down {
    since: Instant,
    /// When it was seen to be last.
    looked: Instant,
}

impl Down {
    fn is_watched(&self) -> bool {
        self.looked.elapsed() <= LOOK_LATE
    }
}

/// Decides with the other members what comes next.
pub struct Succession {
    me: NodeNum,
    ports: Ports,
    routing: Arc<Routing>,
    clock: Arc<NodeClock>,
    directory: Arc<Directory>,
    journal: Arc<Journal>,
    voting: tokio::sync::Mutex<()>,
    proposing: tokio::sync::Mutex<()>,
    /// Members that are down.
    down: Mutex<BTreeMap<InstanceId, Down>>,
}

impl Succession {
    pub fn new(
        me: NodeNum,
        ports: &Ports,
        routing: &Arc<Routing>,
        clock: &Arc<NodeClock>,
        directory: &Arc<Directory>,
        journal: &Arc<Journal>,
    ) -> Arc<Self> {
        Arc::new(Self {
            me,
            ports: ports.clone(),
            routing: Arc::clone(routing),
            clock: Arc::clone(clock),
            directory: Arc::clone(directory),
            journal: Arc::clone(journal),
            voting: tokio::sync::Mutex::default(),
            proposing: tokio::sync::Mutex::default(),
            down: Mutex::default(),
        })
    }

    /// Keeps an eye on the members and their epochs. Runs for the node's life.
    pub async fn run(self: Arc<Self>) {
        let mut epoch = self.routing.subscribe();
        let mut known = self.routing.ring();
        let mut open = None;
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // The sender lives in `routing`, which we hold.
                _ = epoch.changed() => {
                    let ring = self.routing.ring();
                    if let (Some(before), Some(now)) = (&known, &ring) {
                        self.note_members(before, now);
                    }
                    known = ring;
                }
                _ = tick.tick() => {
                    self.note_who_is_down();
                    self.fetch_newer().await;
                    open = self.look_at_vote(open).await;
                }
            }
        }
    }

    fn note_members(&self, before: &Ring, now: &Ring) {
        self.journal.note(self.me, EventKind::Topology, format!("has epoch {} in force", now.epoch()));
        let new = |m: &&Member| before.topology().member(m.node).is_none() && m.node != self.me;
        for m in now.topology().members.iter().filter(new) {
            self.journal.note(m.node, EventKind::Topology, format!("is a member since epoch {}", now.epoch()));
        }
        for node in succession::gone(before.topology(), now.topology()) {
            if let Some(m) = now.topology().member(node).filter(|m| m.node != self.me) {
                tracing::info!(epoch = %now.epoch(), instance = %m.instance, "{node} is another instance from now on");
                let text = format!("is another instance since epoch {}: {}", now.epoch(), m.instance);
                self.journal.note(node, EventKind::Topology, text);
            }
        }
    }

    fn note_who_is_down(&self) {
        let Some(ring) = self.routing.ring() else { return };
        let now = Instant::now();
        let mut down = self.down.lock();
        let before = std::mem::take(&mut *down);
        let others = ring.topology().members.iter().filter(|m| m.node != self.me);
        *down = others
            .filter(|m| self.directory.liveness(m.node) == Liveness::Down)
            .map(|m| {
                let since = before.get(&m.instance).filter(|down| down.is_watched()).map_or(now, |down| down.since);
                (m.instance, Down { since, looked: now })
            })
            .collect();
    }

    /// Whether every member has that topology in force, or a newer one, as far as is known.
    pub(super) fn is_everywhere(&self, ring: &Ring) -> bool {
        let others = ring.topology().members.iter().filter(|m| m.node != self.me);
        others.into_iter().all(|m| self.directory.info(m.node).is_some_and(|info| info.epoch >= ring.epoch()))
    }

    /// How long that instance has been held down here.
    fn down_for(&self, instance: InstanceId) -> Duration {
        self.down
            .lock()
            .get(&instance)
            .filter(|down| down.is_watched())
            .map_or(Duration::ZERO, |down| down.since.elapsed())
    }

    /// Whether that member has been down for so long that nobody waits for it any more where it is to leave.
    pub(super) fn is_given_up(&self, topology: &Topology, node: NodeNum) -> bool {
        let member = topology.member(node).filter(|m| m.node != self.me);
        member.is_some_and(|m| self.down_for(m.instance) >= DOWN_FOR)
    }

    /// What this node accepted, and for how many looks it has been neither decided nor superseded as far as is known here: whoever
    /// proposed it may be gone. Then it is brought to its end.
    async fn look_at_vote(&self, open: Option<(Epoch, u32)>) -> Option<(Epoch, u32)> {
        let vote = self.ports.store.vote().await.ok().flatten()?;
        let is_open = vote.accepted.is_some() && vote.epoch.0 == self.routing.epoch().0 + 1;
        let looks = open.filter(|(epoch, _)| *epoch == vote.epoch).map_or(0, |(_, looks)| looks + 1);
        if !is_open {
            return None;
        }
        if looks >= OPEN_LOOKS && self.ports.entropy.below(2) == 0 {
            self.finish().await;
        }
        Some((vote.epoch, looks))
    }

    /// Members told of a higher epoch than this node's: one of them has it, though others may be gone by now.
    async fn fetch_newer(&self) {
        let ours = self.routing.epoch();
        let told = self.directory.all().into_iter();
        let ahead = told.filter(|(_, e)| e.info.as_deref().is_some_and(|info| info.epoch > ours));
        let (live, silent): (Vec<_>, Vec<_>) = ahead.partition(|(_, e)| e.liveness == Liveness::Alive);
        for (node, _) in live.into_iter().chain(silent) {
            self.fetch_from(node).await;
            if self.routing.epoch() > ours {
                return;
            }
        }
    }

    /// Takes over the topology of a member that is ahead.
    pub(super) async fn fetch_from(&self, node: NodeNum) {
        if let Ok(PeerReply::Topology { topology: Some(topology) }) = self.ask(node, PeerRequest::Topology).await {
            self.adopt(topology).await;
        }
    }

    /// A decided topology: on disk and in force when this ends. One that cannot be stored is fetched again later.
    pub(super) async fn adopt(&self, topology: Arc<Topology>) {
        if let Err(error) = self.routing.adopt(&*self.ports.store, &*self.ports.peers, topology).await {
            tracing::warn!(%error, "a newer topology could not be adopted");
        }
    }

    /// Tells members of the topology in force here.
    pub(super) async fn tell(&self, to: impl Iterator<Item = NodeNum>) {
        if let Some(ring) = self.routing.ring() {
            self.tell_of(ring.topology(), to).await;
        }
    }

    /// Tells members of a topology that was decided; how many have it on their disks.
    async fn tell_of(&self, topology: &Arc<Topology>, to: impl Iterator<Item = NodeNum>) -> usize {
        let told = to.filter(|node| *node != self.me).map(|node| {
            let topology = Arc::clone(topology);
            // Whoever does not hear it sees the epoch later, and asks.
            async move { self.ask(node, PeerRequest::Founded { topology }).await == Ok(PeerReply::Done) }
        });
        join_all(told).await.into_iter().filter(|stored| *stored).count()
    }

    // ------------------------------------------------------------------------------------------------------- voting

    /// Votes on the epoch after the one in force.
    ///
    /// # Errors
    /// `Refused` where it is not the next one here, or the vote could not be stored. Nothing was promised.
    pub async fn answer_vote(
        &self,
        epoch: Epoch,
        ballot: Ballot,
        proposal: Option<Arc<Topology>>,
    ) -> Result<PeerReply, PeerError> {
        let refused = |why: String| PeerError::Refused(why);
        let _voting = self.voting.lock().await;
        let held = self.ports.store.vote().await.map_err(|e| refused(e.to_string()))?;
        let ring = self.routing.ring().ok_or_else(|| refused("it has no topology".into()))?;
        match succession::vote(ring.topology(), held, epoch, ballot, proposal.as_deref()) {
            Ok(vote) => {
                self.ports.store.save_vote(vote.clone()).await.map_err(|e| refused(e.to_string()))?;
                Ok(PeerReply::Voted(Box::new(vote)))
            }
            Err(Some(stands)) => Ok(PeerReply::Voted(stands)),
            Err(None) => Err(refused(format!("epoch {epoch} does not follow from epoch {}", ring.epoch()))),
        }
    }

    async fn ask(&self, node: NodeNum, request: PeerRequest) -> Result<PeerReply, PeerError> {
        self.ports.peers.ask(Destination::Member(node), request, Instant::now() + WITHIN).await
    }
}

impl fmt::Debug for Succession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Succession").field("me", &self.me).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
