//! The simulated network: one function, [`Network::travel`], says what becomes of a message on its way.
//!
//! Messages are delayed, lost, cut off one way or both, held back while a node hangs, and requests of the hot path may
//! arrive twice, but not once they were refused. What is on its way arrives even if its sender has died or stopped waiting meanwhile. Headers are made
//! and admitted as the mesh does it, both ways.
//!
//! Caveat: messages overtake each other more freely than on the mesh's two streams.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use a3::ports::{
    Answer, Deliveries, Delivery, Destination, Entropy, Header, Inbox, PeerError, PeerHandler, PeerReply, PeerRequest,
    Peers, ReplicaCall, ReplicaReply, ReplyTo, Spawn,
};
use a3::types::{InstanceId, NodeNum, PurgeStep};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::machine::{Life, Seeded, Trace};

/// The deadline of a request that comes without one (the mesh waits longer).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// When a request that arrived comes once more, milliseconds later.
const HAUNTS_AFTER_MS: Range<u64> = 1_000..60_000;
/// A connection over a cut link is noticed to be dead after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// How unruly the network is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Of a thousand messages.
    pub(crate) lost: u64,
    /// Of a thousand requests of the hot path.
    pub(crate) doubled: u64,
    /// Of a thousand messages, how many are late by up to `late_ms`.
    pub(crate) late: u64,
    pub(crate) late_ms: u64,
    /// Of a thousand requests of the hot path that arrived, how many arrive once more when everybody has forgotten them.
    pub(crate) haunting: u64,
}

/// One node's place on the network.
struct Host {
    handler: Arc<dyn PeerHandler>,
    life: Arc<Life>,
}

#[derive(Default)]
struct State {
    hosts: BTreeMap<NodeNum, Host>,
    /// Since when a node is off the network, or until when a new one is not connected to.
    gone: BTreeMap<NodeNum, Instant>,
    /// Links that carry nothing in this direction, how many faults cut each, and since when.
    cuts: BTreeMap<(NodeNum, NodeNum), (u32, Instant)>,
    /// Nodes whose messages are held back, and until when.
    hung: BTreeMap<NodeNum, Instant>,
    weather: Weather,
}

pub(crate) struct Network {
    state: Mutex<State>,
    random: Arc<Seeded>,
    trace: Arc<Trace>,
    /// Messages on their way belong to nobody.
    wire: Arc<Life>,
}

pub(crate) fn address(node: NodeNum) -> String {
    format!("10.0.0.{}:50050", node.0)
}

fn node_at(address: &str) -> Option<NodeNum> {
    address.strip_prefix("10.0.0.")?.strip_suffix(":50050")?.parse().ok().map(NodeNum)
}

impl Network {
    pub(crate) fn new(random: Arc<Seeded>, trace: Arc<Trace>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), random, trace, wire: Life::new() })
    }

    pub(crate) fn plug(&self, node: NodeNum, handler: Arc<dyn PeerHandler>, life: Arc<Life>) {
        let mut state = self.state.lock();
        state.gone.remove(&node);
        state.hosts.insert(node, Host { handler, life });
    }

    pub(crate) fn unplug(&self, node: NodeNum) {
        let mut state = self.state.lock();
        state.hosts.remove(&node);
        state.gone.insert(node, Instant::now());
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    pub(crate) fn cut(&self, links: &BTreeSet<(NodeNum, NodeNum)>) {
        let mut state = self.state.lock();
        for link in links {
            state.cuts.entry(*link).or_insert((0, Instant::now())).0 += 1;
        }
    }

    pub(crate) fn mend(&self, links: &BTreeSet<(NodeNum, NodeNum)>) {
        let mut state = self.state.lock();
        for link in links {
            if let Some((faults, _)) = state.cuts.get_mut(link) {
                *faults -= 1;
            }
        }
        state.cuts.retain(|_, (faults, _)| *faults > 0);
    }

    pub(crate) fn hang(&self, node: NodeNum, until: Instant) {
        self.state.lock().hung.insert(node, until);
    }

    /// Ends what is on its way, and forgets the nodes.
    pub(crate) fn close(&self) {
        self.wire.end();
        self.state.lock().hosts.clear();
    }

    fn host(&self, node: NodeNum) -> Option<(Arc<dyn PeerHandler>, Arc<Life>)> {
        let state = self.state.lock();
        let host = state.hosts.get(&node).filter(|host| host.life.is_alive())?;
        Some((host.handler.clone(), host.life.clone()))
    }

    /// Ends when the message arrives; false where it never does.
    async fn travel(&self, from: NodeNum, to: NodeNum) -> bool {
        let (delay, lost) = {
            let state = self.state.lock();
            let late = self.random.per_mille(state.weather.late);
            let late_ms = if late { self.random.below(state.weather.late_ms) } else { 0 };
            let lost = self.random.per_mille(state.weather.lost) || state.cuts.contains_key(&(from, to));
            (Duration::from_millis(1 + self.random.below(3) + late_ms), lost)
        };
        sleep(delay).await;
        loop {
            let held = {
                let state = self.state.lock();
                let until = |n: NodeNum| state.hung.get(&n).copied();
                until(from).max(until(to)).filter(|until| *until > Instant::now())
            };
            match held {
                Some(until) => sleep_until(until).await,
                None => return !lost && !self.state.lock().cuts.contains_key(&(from, to)),
            }
        }
    }

    /// Takes a request of the hot path there, and its answer back. `None`: something was lost on the way.
    async fn carry(self: &Arc<Self>, from: Header, to: (NodeNum, InstanceId), call: ReplicaCall) -> Option<Answer> {
        let doubled = self.random.per_mille(self.state.lock().weather.doubled);
        let refused = Arc::new(AtomicBool::new(false));
        if doubled {
            let (network, call, refused) = (self.clone(), call.clone(), refused.clone());
            let again = async move {
                // The mesh itself sends a request once. So one that was refused is not done later, by a copy of it.
                if network.arrives(from, to, &call).await && !refused.load(Ordering::SeqCst) {
                    drop(network.answered(from, to, call).await);
                }
            };
            self.wire.spawn(again.boxed());
        }
        let haunting = self.state.lock().weather.haunting;
        let haunts = (haunting > 0 && self.random.per_mille(haunting)).then(|| call.clone());
        let answer = self.once(from, to, call).await;
        refused.store(was_refused(answer.as_ref()), Ordering::SeqCst);
        if let Some(call) = haunts.filter(|_| matches!(answer, Some(Ok(_))) && !was_refused(answer.as_ref())) {
            let (network, after) = (self.clone(), self.random.between(HAUNTS_AFTER_MS.start, HAUNTS_AFTER_MS.end));
            let again = async move {
                sleep(Duration::from_millis(after)).await;
                network.trace.note(format_args!("once more: {:?} from {} to {}", call.request.key(), from.node, to.0));
                drop(network.once(from, to, call).await);
            };
            self.wire.spawn(again.boxed());
        }
        answer
    }

    async fn once(self: &Arc<Self>, from: Header, to: (NodeNum, InstanceId), call: ReplicaCall) -> Option<Answer> {
        if self.arrives(from, to, &call).await { self.answered(from, to, call).await } else { None }
    }

    /// The way there.
    async fn arrives(&self, from: Header, to: (NodeNum, InstanceId), call: &ReplicaCall) -> bool {
        let arrives = self.travel(from.node, to.0).await;
        if !arrives {
            let key = call.request.key();
            self.trace.note(format_args!("lost: a request of {key:?} from {} to {}", from.node, to.0));
        }
        arrives
    }

    /// What is done there, and the way back.
    async fn answered(self: &Arc<Self>, from: Header, to: (NodeNum, InstanceId), call: ReplicaCall) -> Option<Answer> {
        let key = call.request.key().clone();
        let Some((handler, life)) = self.host(to.0) else { return Some(Err(PeerError::Lost)) };
        if let Err(error) = handler.admit(&from, Some(to.1)) {
            return Some(Err(error));
        }
        let (inbox, answer) = OneAnswer::new();
        let call = ReplicaCall { deadline: None, ..call };
        handler.deliver(from.node, Deliveries::from_iter([Delivery { call, reply_to: ReplyTo::new(inbox, 0) }]));
        let answer = answer.await.unwrap_or(Err(PeerError::Lost));
        if !life.is_alive() {
            return Some(Err(PeerError::Lost));
        }
        let header = handler.header();
        if !self.travel(to.0, from.node).await {
            self.trace.note(format_args!("lost: an answer about {key:?} from {} to {}", to.0, from.node));
            return None;
        }
        let (caller, _) = self.host(from.node)?;
        Some(caller.admit(&header, Some(from.instance)).and(answer))
    }

    async fn carry_rare(
        self: Arc<Self>,
        from: Header,
        to: NodeNum,
        instance: Option<InstanceId>,
        request: PeerRequest,
    ) -> Option<Result<PeerReply, PeerError>> {
        if !self.travel(from.node, to).await {
            return None;
        }
        let Some((handler, life)) = self.host(to) else { return Some(Err(PeerError::Unreachable)) };
        let reply = match handler.admit(&from, instance) {
            Ok(()) => {
                let (tell, reply) = oneshot::channel();
                let handler = handler.clone();
                life.spawn(async move { drop(tell.send(handler.answer(from, request).await)) }.boxed());
                reply.await.unwrap_or(Err(PeerError::Lost))
            }
            // For the caller, the foreign cluster is that of the node it asked.
            Err(PeerError::ForeignCluster(theirs)) => {
                Err(PeerError::ForeignCluster(handler.header().cluster.unwrap_or(theirs)))
            }
            Err(error) => Err(error),
        };
        let header = handler.header();
        if !self.travel(to, from.node).await {
            return None;
        }
        let (caller, _) = self.host(from.node)?;
        Some(caller.admit(&header, Some(from.instance)).and(reply))
    }
}

fn was_refused(answer: Option<&Answer>) -> bool {
    matches!(answer, Some(Ok(ReplicaReply::Refused(_) | ReplicaReply::WrongEpoch { .. })))
}

/// Where the answer to one delivery goes.
struct OneAnswer(Mutex<Option<oneshot::Sender<Answer>>>);

impl OneAnswer {
    fn new() -> (Arc<Self>, oneshot::Receiver<Answer>) {
        let (tell, answer) = oneshot::channel();
        (Arc::new(Self(Mutex::new(Some(tell)))), answer)
    }
}

impl Inbox for OneAnswer {
    fn deliver(&self, _: u64, answer: Answer) {
        if let Some(tell) = self.0.lock().take() {
            // Whoever died is not told.
            let _ = tell.send(answer);
        }
    }
}

/// The network as one life of a node sees it.
pub(crate) struct SimPeers {
    pub(crate) network: Arc<Network>,
    pub(crate) me: NodeNum,
    pub(crate) life: Arc<Life>,
    introduced: Mutex<BTreeMap<NodeNum, InstanceId>>,
}

impl SimPeers {
    pub(crate) fn new(network: &Arc<Network>, me: NodeNum, life: &Arc<Life>) -> Arc<Self> {
        Arc::new(Self { network: network.clone(), me, life: life.clone(), introduced: Mutex::default() })
    }

    fn header(&self) -> Option<Header> {
        self.network.host(self.me).map(|(handler, _)| handler.header())
    }
}

impl Peers for SimPeers {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        if !self.life.is_alive() {
            return;
        }
        if to == self.me {
            match self.network.host(to) {
                Some((handler, _)) => handler.deliver(to, Deliveries::from_iter([Delivery { call, reply_to }])),
                None => reply_to.send(Err(PeerError::Unreachable)),
            }
            return;
        }
        let instance = self.introduced.lock().get(&to).copied();
        let (Some(instance), Some(from), true) = (instance, self.header(), self.connected(to)) else {
            return reply_to.send(Err(PeerError::Unreachable));
        };
        let network = self.network.clone();
        let deadline = call.deadline.unwrap_or_else(|| Instant::now() + REQUEST_TIMEOUT);
        let task = async move {
            let mut way = Box::pin(network.carry(from, (to, instance), call));
            match timeout_at(deadline, &mut way).await {
                Ok(Some(answer)) => reply_to.send(answer),
                Ok(None) => {
                    sleep_until(deadline).await;
                    reply_to.send(Err(PeerError::TimedOut));
                }
                Err(_) => {
                    reply_to.send(Err(PeerError::TimedOut));
                    way.await;
                }
            }
        };
        self.network.wire.spawn(task.boxed());
    }

    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let target = match &to {
            Destination::Address(address) => node_at(address).map(|node| (node, None)),
            Destination::Member(node) => self.introduced.lock().get(node).map(|i| (*node, Some(*i))),
        };
        let (Some((to, instance)), Some(from)) = (target, self.header()) else {
            return async { Err(PeerError::Unreachable) }.boxed();
        };
        if !matches!(request, PeerRequest::Gossip(_) | PeerRequest::NodeInfo { .. } | PeerRequest::Changes { .. }) {
            self.network.trace.note(format_args!("{} asks {to} for {}", self.me, Named(&request)));
        }
        let (network, (tell, reply)) = (self.network.clone(), oneshot::channel());
        let way = network.clone().carry_rare(from, to, instance, request);
        network.wire.spawn(
            async move {
                if let Some(reply) = way.await {
                    drop(tell.send(reply));
                } else {
                    sleep_until(deadline).await;
                    drop(tell.send(Err(PeerError::TimedOut)));
                }
            }
            .boxed(),
        );
        async move {
            let reply = timeout_at(deadline, reply).await;
            reply.map_or(Err(PeerError::TimedOut), |reply| reply.unwrap_or(Err(PeerError::Lost)))
        }
        .boxed()
    }

    fn introduce(&self, node: NodeNum, instance: InstanceId, _: &str) {
        self.introduced.lock().insert(node, instance);
    }

    fn connected(&self, to: NodeNum) -> bool {
        if to == self.me {
            return true;
        }
        let state = self.network.state.lock();
        let noticed = Duration::from_millis(50);
        let up = state.gone.get(&to).is_none_or(|since| since.elapsed() < noticed);
        let dead = |link| state.cuts.get(&link).is_some_and(|(_, since)| since.elapsed() > KEEP_ALIVE);
        up && !dead((self.me, to)) && !dead((to, self.me)) && self.introduced.lock().contains_key(&to)
    }
}

/// What is asked for, in the trace.
struct Named<'a>(&'a PeerRequest);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            PeerRequest::Gossip(_) => "gossip",
            PeerRequest::NodeInfo { .. } => "its facts",
            PeerRequest::Topology => "its topology",
            PeerRequest::Announce(_) => "its announcement",
            PeerRequest::CatchUp { .. } => "how far it is",
            PeerRequest::Found { .. } => "its acceptance",
            PeerRequest::Founded { .. } => "its commit",
            PeerRequest::Replace { .. } => "replace",
            PeerRequest::Vote { epoch, ballot, proposal } => {
                let what = proposal.as_ref().map_or("a promise", |_| "an acceptance");
                return write!(f, "{what} of epoch {epoch} under {ballot:?}");
            }
            PeerRequest::GetChunkHash { .. } => "get-chunk-hash",
            PeerRequest::FetchRange(_) => "fetch-range",
            PeerRequest::Purge { step, .. } => return write!(f, "a step of purging: {}", step_name(step)),
            PeerRequest::Converge { .. } => "converge",
            PeerRequest::CompareSlot { .. } => "compare-slot",
            PeerRequest::FetchSlot { .. } => "fetch-slot",
            PeerRequest::Scan { .. } => "a scan",
            PeerRequest::Changes { .. } => "its changes",
            PeerRequest::Propose { proposal, .. } => {
                return write!(f, "a verdict on {:?}: {}", proposal.key, proposal.op);
            }
        };
        f.write_str(name)
    }
}

fn step_name(step: &PurgeStep) -> &'static str {
    match step {
        PurgeStep::Survey { .. } => "survey",
        PurgeStep::Seal { .. } => "seal",
        PurgeStep::Hints { .. } => "hints",
        PurgeStep::Raise { .. } => "raise",
        PurgeStep::Drop { .. } => "drop",
        PurgeStep::Status => "status",
    }
}
