//! First start: from a data directory to a topology in force.
//!
//! The driver of [`protocol::founding`](crate::protocol::founding). It announces the node to its seeds and to whoever
//! it hears of, proposes when the fold says so, and answers the announcements and proposals of others, also long after
//! its own start: a late node gets the topology here.
//!
//! Invariants:
//! - A topology is on disk before it is in force, and a proposal before it is accepted.
//! - The topology is stored before the identity names its cluster. The other way round, a crash in between would leave
//!   the only committer with a cluster that nobody knows.
//! - One decision at a time reaches the disk (`deciding`), so that no proposal is accepted beside a commit.

mod member;
mod place;
mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::routing::Routing;
use crate::ports::{
    Announcement, Destination, Entropy, Header, PeerError, PeerReply, PeerRequest, Peers, Store, StoreError,
};
use crate::protocol::founding::{self, Gathering, Place, Stop};
use crate::types::{ClusterId, NodeNum, Topology};

/// How long a request waits for its answer.
const WITHIN: Duration = Duration::from_secs(1);
/// How often a proposal is sent to those that did not accept it, before the founders are looked at again.
const PROPOSALS: usize = 3;
/// For so long the seeds may all be of another cluster before a member's start is refused: its own members may be
/// starting as well, beside a stranger that took over the port of one.
const FOREIGN_FOR: Duration = Duration::from_secs(3);
/// Between two rounds of announcements, in milliseconds: at least, and with how much jitter.
const PAUSE_MS: u64 = 200;
const PAUSE_JITTER_MS: u64 = 300;

/// How a node starts.
#[derive(Clone, Debug)]
pub struct FoundingOptions {
    /// `host:port` of the mesh of any members; none: the node founds a cluster of its own.
    pub seeds: Vec<String>,
    /// How many instances found the cluster together.
    pub cluster_size: u16,
    /// Copies of each key in the cluster to found. An existing topology wins over it.
    pub rf: u8,
    pub zone: Option<String>,
    pub weight: u32,
    /// Where the other nodes reach this one, `host:port`.
    pub mesh_address: String,
    /// Where clients reach it, `host:port`.
    pub http_address: String,
}

/// Why the start failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoundingError {
    /// A person has to decide. Nothing was stored.
    #[error(transparent)]
    Stop(#[from] Stop),
    /// The store failed; what was decided may be on disk, and a restart resumes from there.
    #[error("while the cluster was being found: {0}")]
    Store(#[from] StoreError),
}

/// What is known so far.
struct State {
    gathering: Gathering,
    /// Whether the disk was read: before, nothing may be accepted.
    loaded: bool,
    /// The proposal that this instance holds.
    accepted: Option<Arc<Topology>>,
    /// Why the last proposal of this node was not accepted by all.
    unaccepted: Option<String>,
    /// There is a cluster, and what it asks its members for.
    asks: Option<String>,
}

/// Finds the node's cluster, or founds it.
pub struct Founding {
    options: FoundingOptions,
    me: Announcement,
    peers: Arc<dyn Peers>,
    store: Arc<dyn Store>,
    routing: Arc<Routing>,
    entropy: Arc<dyn Entropy>,
    started: Instant,
    state: Mutex<State>,
    deciding: tokio::sync::Mutex<()>,
}

impl Founding {
    pub fn new(
        options: FoundingOptions,
        peers: Arc<dyn Peers>,
        store: Arc<dyn Store>,
        routing: Arc<Routing>,
        entropy: Arc<dyn Entropy>,
    ) -> Arc<Self> {
        let identity = store.identity();
        let me = Announcement {
            node: identity.node,
            instance: identity.instance,
            zone: options.zone.clone(),
            weight: options.weight,
            mesh_address: options.mesh_address.clone(),
            http_address: options.http_address.clone(),
            cluster_size: options.cluster_size,
            rf: options.rf,
        };
        let gathering = Gathering::new(me.clone());
        let state = Mutex::new(State { gathering, loaded: false, accepted: None, unaccepted: None, asks: None });
        let deciding = tokio::sync::Mutex::new(());
        Arc::new(Self { options, me, peers, store, routing, entropy, started: Instant::now(), state, deciding })
    }

    /// What the node waits for, for a person to read; empty once it has its topology.
    pub fn waiting(&self) -> String {
        if self.routing.ring().is_some() {
            return String::new();
        }
        let state = self.state.lock();
        if let Some(cluster) = self.store.identity().cluster {
            let looks = format!("looks for the members of its cluster {cluster}");
            return state.unaccepted.iter().fold(looks, |looks, why| format!("{looks}; {why}"));
        }
        if let Some(asks) = &state.asks {
            return asks.clone();
        }
        let gathering = state.gathering.waiting();
        match (&state.accepted, &state.unaccepted) {
            (_, Some(why)) => format!("{gathering}; {why}"),
            (Some(topology), None) => {
                let members = founding::list(topology.members.iter().map(|m| &m.node));
                let proposer = topology.members.first().map_or(self.me.node, |m| m.node);
                format!(
                    "waits for {proposer} to complete the founding of {members} (if its data directory is lost, remove \
                     those of the others, which hold no data yet); {gathering}"
                )
            }
            (None, None) => gathering,
        }
    }

    /// Ends when a topology is in force. `place`: what it asks the members for, where it is none yet.
    ///
    /// # Errors
    /// When the start cannot go on without a person, or the store failed.
    pub async fn run(&self, place: Place) -> Result<(), FoundingError> {
        let identity = self.store.identity();
        self.routing.set_rebuilding(identity.rebuilding);
        if let Some(topology) = self.store.topology().await? {
            let listed = self.accept_as_ours(&topology, "the data directory");
            if let Err(stop @ Stop::Foreign { .. }) = listed {
                return Err(stop.into());
            }
            let newer = self.meet(&topology).await?;
            // The newest decides: one that was removed meanwhile does not come back even for a moment, and one that was let in again does.
            newer.as_ref().map_or(listed.clone(), |newer| self.check_listed(newer))?;
            if listed.is_ok() {
                self.put_in_force(Arc::new(topology)).await?;
            }
            if let Some(newer) = newer {
                self.routing.adopt(&*self.store, &*self.peers, newer).await?;
            }
            return Ok(());
        }
        let accepted = self.store.proposal().await?.map(Arc::new);
        {
            let mut state = self.state.lock();
            state.accepted = accepted.clone();
            state.loaded = true;
        }
        if let Some(cluster) = identity.cluster {
            if identity.rebuilding {
                return self.come_back(cluster).await;
            }
            return Err(Stop::DatabaseLost { cluster }.into());
        }
        if self.options.seeds.is_empty() {
            return self.found_alone(accepted).await;
        }
        self.gather(place).await
    }

    /// Without seeds: a cluster of its own.
    async fn found_alone(&self, accepted: Option<Arc<Topology>>) -> Result<(), FoundingError> {
        if self.options.cluster_size != 1 {
            return Err(Stop::Alone { cluster_size: self.options.cluster_size }.into());
        }
        if let Some(topology) = accepted {
            let members = founding::list(topology.members.iter().map(|m| &m.node));
            return Err(Stop::Promised { members }.into());
        }
        let topology = founding::first_topology(std::slice::from_ref(&self.me), ClusterId(self.entropy.uuid()));
        tracing::info!(cluster = %topology.cluster_id, "{} founds a cluster of its own: it has no SEEDS", self.me.node);
        self.commit(Arc::new(topology)).await
    }

    /// With seeds: announce, hear, propose, until somebody has a topology.
    async fn gather(&self, place: Place) -> Result<(), FoundingError> {
        let mut told = String::new();
        while self.routing.ring().is_none() {
            let known = self.store.identity().known_addresses;
            let targets = {
                let mut state = self.state.lock();
                state.gathering.expire(self.started.elapsed());
                state.gathering.addresses(self.options.seeds.iter().chain(&known))
            };
            let announce = |address: String| async move {
                let request = PeerRequest::Announce(self.me.clone());
                (self.ask(&address, request, WITHIN).await, address)
            };
            for (answer, address) in join_all(targets.into_iter().map(announce)).await {
                if let Some(topology) = self.hear(&address, answer)? {
                    return self.take(topology, &address, place).await;
                }
            }
            let ready = self.state.lock().gathering.ready(self.started.elapsed());
            self.state.lock().unaccepted = None;
            if let Some(founders) = ready {
                self.propose(&founders).await?;
            }
            let waiting = self.waiting();
            if waiting != told && !waiting.is_empty() {
                tracing::info!("{} {waiting}", self.me.node);
                told = waiting;
            }
            self.pause().await;
        }
        Ok(())
    }

    /// Folds one answer to an announcement in; a topology in it ends the gathering.
    fn hear(&self, address: &str, answer: Result<PeerReply, PeerError>) -> Result<Option<Arc<Topology>>, Stop> {
        let gathering = &mut self.state.lock().gathering;
        match answer {
            Ok(PeerReply::Announced { topology: Some(topology), .. }) => return Ok(Some(topology)),
            Ok(PeerReply::Announced { topology: None, heard }) => {
                gathering.answered(address, heard, self.started.elapsed())?;
            }
            Ok(_) => gathering.failed(address, "answered something else".to_owned()),
            Err(error) => gathering.failed(address, error.to_string()),
        }
        Ok(None)
    }

    /// One attempt to found a cluster from exactly these.
    async fn propose(&self, founders: &[Announcement]) -> Result<(), FoundingError> {
        let Some(proposal) = self.accept_own(founders).await? else { return Ok(()) };
        let others = || proposal.members.iter().filter(|m| m.node != self.me.node);
        let mut missing: BTreeMap<NodeNum, String> = others().map(|m| (m.node, m.mesh_address.clone())).collect();
        for _ in 0..PROPOSALS {
            let found = missing.iter().map(|(node, address)| {
                let request = PeerRequest::Found { topology: proposal.clone() };
                async move { (*node, self.ask(address, request, WITHIN).await) }
            });
            let mut unaccepted = None;
            for (node, answer) in join_all(found).await {
                match answer {
                    Ok(_) => drop(missing.remove(&node)),
                    Err(error) => unaccepted = Some(format!("{node} did not accept the founding: {error}")),
                }
            }
            self.state.lock().unaccepted = unaccepted;
            if missing.is_empty() {
                break;
            }
            self.pause().await;
        }
        if !missing.is_empty() {
            return Ok(());
        }
        self.commit(proposal.clone()).await?;
        // Whoever does not hear this asks.
        let founded = others().map(|m| {
            let request = PeerRequest::Founded { topology: proposal.clone() };
            self.ask(&m.mesh_address, request, WITHIN)
        });
        join_all(founded).await;
        Ok(())
    }

    /// Puts this node's own proposal on its disk. None when it holds somebody else's.
    async fn accept_own(&self, founders: &[Announcement]) -> Result<Option<Arc<Topology>>, FoundingError> {
        let _deciding = self.deciding.lock().await;
        let accepted = self.state.lock().accepted.clone();
        let proposal = founding::first_topology(founders, ClusterId(self.entropy.uuid()));
        if let Some(held) = accepted {
            if held.members == proposal.members && held.rf == proposal.rf {
                return Ok(Some(held));
            }
            let me = (self.me.node, self.me.instance);
            if let Err(why) = founding::may_accept(&self.me, me, &proposal, Some(&held)) {
                self.state.lock().unaccepted = Some(why);
                return Ok(None);
            }
        }
        let proposal = Arc::new(proposal);
        self.store.save_proposal(proposal.clone()).await?;
        self.state.lock().accepted = Some(proposal.clone());
        Ok(Some(proposal))
    }

    fn accept_as_ours(&self, topology: &Topology, there: &str) -> Result<(), Stop> {
        founding::may_serve(&self.me, self.store.identity().cluster, topology, there)
    }

    /// A committed topology from somebody else.
    async fn take(&self, topology: Arc<Topology>, there: &str, place: Place) -> Result<(), FoundingError> {
        match self.accept_as_ours(&topology, there) {
            Err(stop @ Stop::Replaced { .. }) => self.wait_for_place(&topology, stop, place).await,
            Err(Stop::NotListed { cluster, .. }) => self.join_members(cluster, place).await,
            accepted => {
                accepted?;
                let founded = self.state.lock().accepted.as_ref().is_some_and(|a| a.cluster_id == topology.cluster_id);
                if founded { self.commit(topology).await } else { self.enter(topology).await }
            }
        }
    }

    /// Whether a topology in force lists this instance.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn check_listed(&self, topology: &Topology) -> Result<(), Stop> {
        founding::may_serve(&self.me, Some(topology.cluster_id), topology, "the topology")
    }

    async fn commit(&self, topology: Arc<Topology>) -> Result<(), FoundingError> {
        let _deciding = self.deciding.lock().await;
        if self.routing.ring().is_some() {
            return Ok(());
        }
        self.store.save_topology(topology.clone()).await?;
        self.put_in_force(topology).await
    }

    /// The topology is on disk: names the cluster in the identity, tells the mesh who is where, and lets requests in.
    async fn put_in_force(&self, topology: Arc<Topology>) -> Result<(), FoundingError> {
        let others = || topology.members.iter().filter(|m| m.node != self.me.node);
        let mut identity = self.store.identity();
        if identity.cluster.is_none() {
            identity.cluster = Some(topology.cluster_id);
            identity.known_addresses = others().map(|m| m.mesh_address.clone()).collect();
            self.store.save_identity(identity).await?;
        }
        others().for_each(|m| self.peers.introduce(m.node, m.instance, &m.mesh_address));
        let members = founding::list(topology.members.iter().map(|m| &m.node));
        tracing::info!(cluster = %topology.cluster_id, epoch = %topology.epoch, "{} is a member of {members}", self.me.node);
        settings::without_effect(&self.me, &topology).iter().for_each(|line| tracing::warn!("{line}"));
        self.routing.install(topology);
        Ok(())
    }

    /// Answers what other nodes ask about the cluster and its founding, before and after this node has its topology.
    ///
    /// # Errors
    /// `Refused` with the reason; nothing was stored. `Protocol` for a request that is none of these.
    pub async fn answer(&self, from: Header, request: PeerRequest) -> Result<PeerReply, PeerError> {
        let topology = self.routing.topology();
        match request {
            PeerRequest::Topology => Ok(PeerReply::Topology { topology }),
            PeerRequest::Announce(other) => self.answer_announce(from, other, topology),
            PeerRequest::Found { topology: proposal } => self.answer_found(from, proposal).await,
            PeerRequest::Founded { topology: committed } => self.answer_founded(from, committed).await,
            _ => Err(PeerError::Protocol("not a question about the cluster's founding".into())),
        }
    }

    fn answer_announce(
        &self,
        from: Header,
        other: Announcement,
        topology: Option<Arc<Topology>>,
    ) -> Result<PeerReply, PeerError> {
        if (from.node, from.instance) != (other.node, other.instance) {
            return Err(PeerError::Protocol("an announcement on behalf of somebody else".into()));
        }
        if topology.is_none()
            && let Some(cluster) = self.store.identity().cluster
        {
            return Err(PeerError::Refused(format!("it belongs to cluster {cluster} and looks for its topology")));
        }
        let gathering = &mut self.state.lock().gathering;
        if topology.is_none() {
            let now = self.started.elapsed();
            gathering.expire(now);
            gathering.announced(other, now);
        }
        Ok(PeerReply::Announced { topology, heard: gathering.heard() })
    }

    async fn answer_found(&self, from: Header, proposal: Arc<Topology>) -> Result<PeerReply, PeerError> {
        let _deciding = self.deciding.lock().await;
        if let Some(answer) = self.settled(&proposal) {
            return answer;
        }
        let accepted = self.state.lock().accepted.clone();
        founding::may_accept(&self.me, (from.node, from.instance), &proposal, accepted.as_deref())
            .map_err(PeerError::Refused)?;
        if accepted.as_ref() != Some(&proposal) {
            self.store.save_proposal(proposal.clone()).await.map_err(refused)?;
            self.state.lock().accepted = Some(proposal);
        }
        Ok(PeerReply::Done)
    }

    async fn answer_founded(&self, from: Header, committed: Arc<Topology>) -> Result<PeerReply, PeerError> {
        let accepted = {
            let _deciding = self.deciding.lock().await;
            if let Some(answer) = self.settled(&committed) {
                return answer;
            }
            self.state.lock().accepted.clone()
        };
        if !founding::may_commit(&self.me, (from.node, from.instance), &committed, accepted.as_deref()) {
            return Err(PeerError::Refused("the commit of a proposal that was not accepted here".into()));
        }
        self.commit(committed).await.map_err(refused)?;
        Ok(PeerReply::Done)
    }

    /// The answer to a proposal or commit where nothing is left to decide.
    fn settled(&self, topology: &Topology) -> Option<Result<PeerReply, PeerError>> {
        let refuse = |why: String| Some(Err(PeerError::Refused(why)));
        if !self.state.lock().loaded && self.routing.ring().is_none() {
            return refuse("it is starting".to_owned());
        }
        match (self.routing.ring(), self.store.identity().cluster) {
            (Some(ring), _) if ring.topology().cluster_id == topology.cluster_id => Some(Ok(PeerReply::Done)),
            (Some(ring), _) => refuse(format!("it is a member of cluster {}", ring.topology().cluster_id)),
            (None, Some(cluster)) => refuse(format!("it belongs to cluster {cluster}")),
            (None, None) => None,
        }
    }

    async fn ask(&self, address: &str, request: PeerRequest, within: Duration) -> Result<PeerReply, PeerError> {
        self.peers.ask(Destination::Address(address.to_owned()), request, Instant::now() + within).await
    }

    /// Until the next round, or until a topology came in from outside.
    async fn pause(&self) {
        let mut epoch = self.routing.subscribe();
        let pause = Duration::from_millis(PAUSE_MS + self.entropy.below(PAUSE_JITTER_MS));
        if self.routing.ring().is_some() {
            return;
        }
        tokio::select! {
            biased;
            _ = epoch.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

impl std::fmt::Debug for Founding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Founding").field("options", &self.options).finish_non_exhaustive()
    }
}

fn refused(error: impl std::fmt::Display) -> PeerError {
    PeerError::Refused(error.to_string())
}

#[cfg(test)]
mod tests;
