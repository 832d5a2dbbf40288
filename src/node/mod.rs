//! The drivers: asynchronous, over `protocol` and the ports. They send and wait; decisions are made by folds.
//!
//! [`Node`] puts them together: it is the node as its clients see it (`service`, and the views of `survey`) and, as
//! [`PeerHandler`], as its peers see it.
//!
//! Invariants: a node's tasks are started through [`Spawn`] and die with it; nothing here iterates a hash map, blocks a
//! thread or reads a clock of its own, so that a seed replays.

pub mod answers;
pub mod anti_entropy;
mod backup;
pub mod batch;
mod behind;
pub mod change;
pub mod clock;
pub mod conditional;
pub mod coordinator;
pub mod directory;
mod events;
#[cfg(test)]
mod fakes;
pub mod founding;
pub mod gossip;
pub mod handoff;
pub mod healing;
pub mod import;
pub mod journal;
pub mod listing;
pub mod operations;
pub mod options;
pub mod own;
mod pace;
pub mod parts;
mod plan;
pub mod purge;
pub mod reach;
mod reaper;
pub mod rebuild;
pub mod replica;
pub mod request;
pub mod routing;
mod service;
pub mod succession;
mod survey;
pub mod trace;
pub mod views;
pub mod watch;
#[cfg(test)]
mod world;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tracing::Instrument as _;

use crate::ports::{
    Clock, Deliveries, Entropy, Header, NodeState, PeerError, PeerHandler, PeerReply, PeerRequest, Peers, Spawn, Store,
    StoreError,
};
use crate::protocol::founding::Place;
use crate::types::{ClusterId, Identity, InstanceId, Level, NodeNum, Topology};

use anti_entropy::AntiEntropy;
use change::Changer;
use clock::NodeClock;
use conditional::Conditional;
use coordinator::Coordinator;
use directory::Directory;
use founding::{Founding, FoundingError};
use gossip::Gossip;
use handoff::Handoff;
use journal::Journal;
use listing::Lister;
use operations::Operations;
pub use options::Options;
use own::Own;
use parts::Parts;
use purge::Purge;
use reach::Reach;
use rebuild::Rebuild;
use replica::Replica;
use routing::Routing;
use succession::Succession;
use watch::Watches;

/// The world a node lives in.
#[derive(Clone)]
pub struct Ports {
    pub peers: Arc<dyn Peers>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub spawn: Arc<dyn Spawn>,
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

/// How long a start waits for another member's clock before it trusts its own.
const COMPARE_WAIT: Duration = Duration::from_secs(2);
/// How often it looks.
const COMPARE_EVERY: Duration = Duration::from_millis(20);

/// One node.
pub struct Node {
    identity: Identity,
    store: Arc<dyn Store>,
    routing: Arc<Routing>,
    clock: Arc<NodeClock>,
    reach: Arc<Reach>,
    directory: Arc<Directory>,
    coordinator: Arc<Coordinator>,
    conditional: Arc<Conditional>,
    replica: Arc<Replica>,
    succession: Arc<Succession>,
    rebuild: Arc<Rebuild>,
    changer: Arc<Changer>,
    lister: Lister,
    watches: Arc<Watches>,
    founding: Arc<Founding>,
    gossip: Arc<Gossip>,
    own: Arc<Own>,
    anti_entropy: Arc<AntiEntropy>,
    purge: Arc<Purge>,
    operations: Arc<Operations>,
    journal: Arc<Journal>,
    ports: Ports,
    /// Once there is one it stays, and every message asks for it.
    cluster: OnceLock<ClusterId>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Node {
    /// Puts a node together over its world and starts its tasks. It serves nobody before [`Self::join`] ended.
    ///
    /// # Errors
    /// When the store cannot say up to where the clock was reserved. Nothing was written.
    pub async fn start(options: Options, ports: Ports) -> Result<Arc<Self>, StoreError> {
        let Ports { peers, store, .. } = ports.clone();
        let (identity, routing) = (store.identity(), Arc::new(Routing::default()));
        let me = identity.node;
        let clock = NodeClock::new(ports.clock.clone(), options.clock_skew_max, store.clock_reservation().await?);
        let journal = Journal::new(Arc::clone(&ports.clock));
        let reach = Reach::new(Arc::clone(&peers), me, Arc::clone(&journal));
        let coordinator = Coordinator::new(
            me,
            Arc::clone(&peers),
            Arc::clone(&store),
            Arc::clone(&routing),
            Arc::clone(&clock),
            Arc::clone(&reach),
        );
        let conditional =
            Conditional::new(me, &ports, Arc::clone(&clock), Arc::clone(&reach), Arc::clone(&coordinator));
        let own = Own::new(&options, Arc::clone(&store), Arc::clone(&routing), Arc::clone(&coordinator));
        let parts = Parts::of(&ports, &reach, &routing, &clock);
        let replica = Replica::new(options.replica(me), &parts);
        let handoff = Handoff::new(options.handoff(), parts.clone());
        let anti_entropy = AntiEntropy::new(options.anti_entropy(), parts.clone());
        let purge = Purge::new(options.purge(), parts, &replica, &conditional, &anti_entropy);
        let founding = Founding::new(
            options.founding(),
            Arc::clone(&peers),
            Arc::clone(&store),
            Arc::clone(&routing),
            Arc::clone(&ports.entropy),
        );
        let directory = Arc::<Directory>::default();
        let succession = Succession::new(me, &ports, &routing, &clock, &directory, &journal);
        let rebuild = Rebuild::new(me, &ports, &routing, &replica, &succession);
        let (heard, told) = (Arc::clone(&reach), Arc::clone(&own));
        let (heard, told) =
            (Box::new(move |node, liveness| heard.gossip(node, liveness)), Box::new(move |stamp| told.info(stamp)));
        let (known, log) = (Arc::clone(&directory), Arc::clone(&journal));
        let gossip = Gossip::new(options.gossip(), ports.clone(), Arc::clone(&routing), known, heard, told, log);
        let node = Arc::new(Self {
            lister: Lister::new(&ports, (&routing, &clock, &reach), &coordinator, &succession),
            watches: Watches::new(me, &ports, &routing, &succession),
            changer: Changer::new(me, &ports, &routing, &succession, &directory, &rebuild),
            identity,
            store,
            routing,
            clock,
            reach,
            directory,
            coordinator,
            conditional,
            replica,
            succession,
            rebuild,
            founding,
            gossip,
            own,
            anti_entropy,
            purge,
            operations: Arc::default(),
            journal,
            ports,
            cluster: OnceLock::new(),
        });
        node.start_tasks(handoff);
        Ok(node)
    }

    fn start_tasks(&self, handoff: Arc<Handoff>) {
        let spawn = &*self.ports.spawn;
        spawn.spawn(Box::pin(Arc::clone(&self.clock).keep_reserved(Arc::clone(&self.store))));
        spawn.spawn(Box::pin(handoff.run()));
        self.anti_entropy.start(spawn);
        spawn.spawn(Box::pin(Arc::clone(&self.purge).run()));
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        spawn.spawn(Box::pin(reaper::run(store, clock, Arc::clone(&self.own))));
        spawn.spawn(Box::pin(Arc::clone(&self.succession).run()));
        spawn.spawn(Box::pin(Arc::clone(&self.own).keep_rates()));
        let behind = Arc::clone(self.replica.behind());
        spawn.spawn(Box::pin(behind.run(Arc::clone(&self.replica), Arc::clone(&self.succession))));
        spawn.spawn(Box::pin(Arc::clone(&self.changer).run()));
        self.coordinator.start(spawn);
        self.watches.start(spawn);
    }

    /// Finds the node's cluster, or founds it, and from then on serves clients.
    ///
    /// # Errors
    /// When the start cannot go on without a person, or the store failed.
    pub async fn join(&self) -> Result<(), FoundingError> {
        self.join_at(Place::Any).await
    }

    /// The same, where a person has said which place it is to ask a cluster for.
    ///
    /// # Errors
    /// As [`Self::join`], and where there is no such place.
    pub async fn join_at(&self, place: Place) -> Result<(), FoundingError> {
        self.founding.run(place).await?;
        self.gossip.start();
        let others = self.routing.ring().is_some_and(|r| r.topology().members.len() > 1);
        // A clock that is off must be known to be before anything is stamped by it; a node that nobody answers goes on.
        let until = Instant::now() + COMPARE_WAIT;
        while others && !self.clock.is_compared() && Instant::now() < until {
            sleep(COMPARE_EVERY).await;
        }
        if self.routing.is_rebuilding() {
            self.note("is a new instance: it fetches its slots from the others before it serves");
        }
        self.clock.trust();
        self.rebuild.run().await?;
        self.ports.spawn.spawn(Box::pin(Arc::clone(&self.rebuild).keep_up()));
        self.own.set_state(NodeState::Serving);
        self.note("serves clients");
        self.gossip.refresh();
        Ok(())
    }

    /// Takes leave: readiness ends, and the other members are told.
    pub async fn leave(&self) {
        self.note("is stopping: it takes no new requests");
        self.own.set_state(NodeState::Draining);
        self.conditional.retire();
        self.gossip.leave().await;
    }

    /// The last of a life in good order, when nothing runs any more: the next one need not begin above what was reserved.
    ///
    /// # Errors
    /// When the store could not note it down; then it begins there, up to two seconds ahead.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.store.release_clock(self.clock.close()).await
    }

    /// Resolves when the topology lists another instance under this node's number: it must not go on.
    pub async fn replaced(&self) -> FoundingError {
        let mut epoch = self.routing.subscribe();
        loop {
            if let Some(topology) = self.routing.topology()
                && let Err(stop) = self.founding.check_listed(&topology)
            {
                return stop.into();
            }
            // The sender lives in `routing`, which we hold.
            let _ = epoch.changed().await;
        }
    }

    /// Whether it is of the cluster whose topology is in force here.
    fn is_of_ours(&self, topology: &Topology) -> bool {
        self.routing.ring().is_some_and(|ring| ring.topology().cluster_id == topology.cluster_id)
    }

    pub fn identity(&self) -> Identity {
        self.store.identity()
    }

    fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster.get().copied().or_else(|| {
            let cluster = self.store.identity().cluster?;
            Some(*self.cluster.get_or_init(|| cluster))
        })
    }
}

impl PeerHandler for Node {
    fn header(&self) -> Header {
        Header {
            cluster: self.cluster_id(),
            node: self.identity.node,
            instance: self.identity.instance,
            hlc: self.clock.now(),
            wall_ms: self.clock.wall_ms(),
        }
    }

    fn admit(&self, from: &Header, to: Option<InstanceId>) -> Result<(), PeerError> {
        if to.is_some_and(|instance| instance != self.identity.instance) {
            return Err(PeerError::WrongRecipient);
        }
        if let (Some(ours), Some(theirs)) = (self.cluster_id(), from.cluster)
            && ours != theirs
        {
            return Err(PeerError::ForeignCluster(theirs));
        }
        self.clock.observe(from.hlc);
        self.clock.heard(from.node, from.wall_ms);
        Ok(())
    }

    fn deliver(&self, from: NodeNum, batch: Deliveries) {
        self.replica.deliver(from, batch);
    }

    fn answer(self: Arc<Self>, from: Header, request: PeerRequest) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        Box::pin(async move {
            match request {
                PeerRequest::Gossip(packet) => {
                    self.gossip.handle(&packet);
                    Ok(PeerReply::Done)
                }
                PeerRequest::NodeInfo { digest } => Ok(self.gossip.answer_node_info(from.node, &digest)),
                PeerRequest::Propose { proposal, timeout_ms, trace } => {
                    self.check_joined(Level::Linearizable).map_err(|f| PeerError::Refused(f.kind.to_string()))?;
                    let span = trace::span(trace.as_deref());
                    let trace = trace::within(&span, trace);
                    let answer = self.conditional.answer(*proposal, Duration::from_millis(timeout_ms));
                    trace::carried(trace, answer).instrument(span).await
                }
                PeerRequest::GetChunkHash { epoch, left_out, spans } => {
                    self.anti_entropy.answer_chunk_hash(from.node, epoch, left_out, &spans)
                }
                PeerRequest::FetchRange(exchange) => self.anti_entropy.answer_fetch_range(exchange).await,
                PeerRequest::Converge { with, look } => self.anti_entropy.answer_converge(with, look).await,
                PeerRequest::CompareSlot { epoch, slot, digests } => {
                    self.rebuild.answer_compare(epoch, slot, &digests).await
                }
                PeerRequest::FetchSlot { epoch, slot, leaves, after } => {
                    self.rebuild.answer(epoch, slot, leaves, after).await
                }
                PeerRequest::CatchUp { epoch } => self.rebuild.answer_catch_up(epoch).await,
                PeerRequest::Scan { epoch, scan } => self.lister.answer(from.node, epoch, scan).await,
                PeerRequest::Changes { epoch, ask } => self.watches.answer(from.node, epoch, ask).await,
                PeerRequest::Purge { epoch, step } => self.purge.answer(from.node, epoch, step).await,
                PeerRequest::Vote { epoch, ballot, proposal } => {
                    self.succession.answer_vote(epoch, ballot, proposal).await
                }
                PeerRequest::Replace { epoch, newcomer, succeeds } => {
                    if (from.node, from.instance) != newcomer.who() {
                        return Err(PeerError::Protocol("on behalf of somebody else".into()));
                    }
                    self.check_joined(Level::Linearizable).map_err(|f| PeerError::Refused(f.kind.to_string()))?;
                    self.succession.answer_replace(epoch, newcomer, succeeds).await
                }
                PeerRequest::Founded { topology } if self.is_of_ours(&topology) => {
                    self.succession.adopt(topology).await;
                    Ok(PeerReply::Done)
                }
                request => self.founding.answer(from, request).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::fakes::{FakeClock, FakePeers, topology};
    use super::request::{FailureKind, NewContent, Outcome, Put};
    use super::world::{Disk, DiskStore, Seeded, Tasks};
    use super::*;
    use crate::types::Key;

    /// Node 1 of three that has its topology, and hears nobody.
    async fn node(tasks: &Arc<Tasks>) -> Arc<Node> {
        let disk = Disk::fresh(1, 1);
        *disk.topology.lock() = Some((*topology(1, 3, 2)).clone());
        let options = Options {
            seeds: Vec::new(),
            cluster_size: 3,
            rf: 2,
            zone: None,
            weight: 1,
            mesh_address: "127.0.0.1:50051".into(),
            http_address: "127.0.0.1:8001".into(),
            gossip_interval: Duration::from_secs(1),
            clock_skew_max: Duration::from_secs(300),
            value_bytes_max: 1024,
            hint_window: Duration::from_secs(3600),
            anti_entropy_interval: Duration::from_secs(30),
            gc_grace: Duration::from_secs(86_400),
        };
        let ports = Ports {
            peers: FakePeers::new(),
            store: Arc::new(DiskStore(disk)),
            clock: FakeClock::at(1_700_000_000_000),
            entropy: Seeded::new(1),
            spawn: Arc::clone(tasks) as Arc<dyn Spawn>,
        };
        Node::start(options, ports).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_stamped_before_the_clock_was_compared() {
        let tasks = Arc::new(Tasks::default());
        let node = node(&tasks).await;
        let put = || Put {
            key: Key::new("k").unwrap(),
            content: NewContent::Tombstone,
            level: Level::Quorum,
            deadline: Instant::now() + Duration::from_millis(100),
        };
        let joining = node.join();
        tokio::pin!(joining);
        assert!(tokio::time::timeout(COMPARE_WAIT / 2, &mut joining).await.is_err(), "it waits to hear a clock");
        assert!(node.ring().is_some() && !node.readiness().ready);
        let failure = node.put(put()).await.unwrap_err();
        assert_eq!((failure.kind, failure.outcome), (FailureKind::NotReady, Some(Outcome::NotApplied)));
        joining.await.unwrap();
        assert_ne!(node.put(put()).await.unwrap_err().kind, FailureKind::NotReady);
        tasks.crash();
    }
}
