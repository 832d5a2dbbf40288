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

impl Weather {
    /// `purging`: where tombstones are purged, old messages come up again.
    pub(crate) fn drawn(random: &Seeded, purging: Option<&Seeded>) -> Self {
        let rough = random.per_mille(700);
        Self {
            lost: if rough { *random.pick(&[0, 5, 30]) } else { 0 },
            doubled: *random.pick(&[0, 20, 100]),
            late: *random.pick(&[0, 20, 100]),
            late_ms: *random.pick(&[50, 300, 2_000]),
            haunting: purging.map_or(0, |purging| *purging.pick(&[0, 20, 200])),
        }
    }
}

/// One node's place on the network.
struct Host {
    handler: Arc<dyn PeerHandler>,
    life: Arc<Life>,
}

#[derive(Default)]
struct State {
    hosts: BTreeMap<Socket, Host>,
    /// Since when a node is off the network, or until when a new one is not connected to.
    gone: BTreeMap<Socket, Instant>,
    /// Links that carry nothing in this direction, how many faults cut each, and since when.
    cuts: BTreeMap<(Socket, Socket), (u32, Instant)>,
    /// Nodes whose messages are held back, and until when.
    hung: BTreeMap<Socket, Instant>,
    weather: Weather,
}

pub(crate) struct Network {
    state: Mutex<State>,
    random: Arc<Seeded>,
    trace: Arc<Trace>,
    /// Messages on their way belong to nobody.
    wire: Arc<Life>,
}

/// Where a machine is plugged in. The founders and who joins have that of their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Socket(u16);

impl Socket {
    /// Of the second machine that is given a number.
    const SECOND: u16 = 100;

    pub(crate) fn of(node: NodeNum) -> Self {
        Self(node.0)
    }

    pub(crate) fn second_of(node: NodeNum) -> Self {
        Self(Self::SECOND + node.0)
    }

    pub(crate) fn host(self) -> String {
        format!("10.0.0.{}", self.0)
    }

    pub(crate) fn mesh_address(self) -> String {
        format!("{}:50050", self.host())
    }

    fn at(mesh_address: &str) -> Option<Self> {
        mesh_address.strip_prefix("10.0.0.")?.strip_suffix(":50050")?.parse().ok().map(Self)
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.checked_sub(Self::SECOND) {
            Some(number) => write!(f, "n{number}-second"),
            None => write!(f, "n{}", self.0),
        }
    }
}

/// The two ends of a message's way, and which instance is asked.
#[derive(Clone, Copy)]
struct Way {
    from: Socket,
    to: Socket,
    instance: Option<InstanceId>,
}

impl Network {
    pub(crate) fn new(random: Arc<Seeded>, trace: Arc<Trace>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), random, trace, wire: Life::new() })
    }

    pub(crate) fn plug(&self, at: Socket, handler: Arc<dyn PeerHandler>, life: Arc<Life>) {
        let mut state = self.state.lock();
        state.gone.remove(&at);
        state.hosts.insert(at, Host { handler, life });
    }

    pub(crate) fn unplug(&self, at: Socket) {
        let mut state = self.state.lock();
        state.hosts.remove(&at);
        state.gone.insert(at, Instant::now());
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    pub(crate) fn cut(&self, links: &BTreeSet<(Socket, Socket)>) {
        let mut state = self.state.lock();
        for link in links {
            state.cuts.entry(*link).or_insert((0, Instant::now())).0 += 1;
        }
    }

    pub(crate) fn mend(&self, links: &BTreeSet<(Socket, Socket)>) {
        let mut state = self.state.lock();
        for link in links {
            if let Some((faults, _)) = state.cuts.get_mut(link) {
                *faults -= 1;
            }
        }
        state.cuts.retain(|_, (faults, _)| *faults > 0);
    }

    pub(crate) fn hang(&self, at: Socket, until: Instant) {
        self.state.lock().hung.insert(at, until);
    }

    /// Ends what is on its way, and forgets the nodes.
    pub(crate) fn close(&self) {
        self.wire.end();
        self.state.lock().hosts.clear();
    }

    fn host(&self, at: Socket) -> Option<(Arc<dyn PeerHandler>, Arc<Life>)> {
        let state = self.state.lock();
        let host = state.hosts.get(&at).filter(|host| host.life.is_alive())?;
        Some((host.handler.clone(), host.life.clone()))
    }

    /// Ends when the message arrives; false where it never does.
    async fn travel(&self, from: Socket, to: Socket) -> bool {
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
                let until = |at: Socket| state.hung.get(&at).copied();
                until(from).max(until(to)).filter(|until| *until > Instant::now())
            };
            match held {
                Some(until) => sleep_until(until).await,
                None => return !lost && !self.state.lock().cuts.contains_key(&(from, to)),
            }
        }
    }

    /// Takes a request of the hot path there, and its answer back. `None`: something was lost on the way.
    async fn carry(self: &Arc<Self>, from: Header, way: Way, call: ReplicaCall) -> Option<Answer> {
        let doubled = self.random.per_mille(self.state.lock().weather.doubled);
        let refused = Arc::new(AtomicBool::new(false));
        if doubled {
            let (network, call, refused) = (self.clone(), call.clone(), refused.clone());
            let again = async move {
                // The mesh itself sends a request once. So one that was refused is not done later, by a copy of it.
                if network.arrives(way, &call).await && !refused.load(Ordering::SeqCst) {
                    drop(network.answered(from, way, call).await);
                }
            };
            self.wire.spawn(again.boxed());
        }
        let haunting = self.state.lock().weather.haunting;
        let haunts = (haunting > 0 && self.random.per_mille(haunting)).then(|| call.clone());
        let answer = self.once(from, way, call).await;
        refused.store(was_refused(answer.as_ref()), Ordering::SeqCst);
        if let Some(call) = haunts.filter(|_| matches!(answer, Some(Ok(_))) && !was_refused(answer.as_ref())) {
            let (network, after) = (self.clone(), self.random.between(HAUNTS_AFTER_MS.start, HAUNTS_AFTER_MS.end));
            let again = async move {
                sleep(Duration::from_millis(after)).await;
                network.trace.note(format_args!("once more: {:?} from {} to {}", call.request.key(), way.from, way.to));
                drop(network.once(from, way, call).await);
            };
            self.wire.spawn(again.boxed());
        }
        answer
    }

    async fn once(self: &Arc<Self>, from: Header, way: Way, call: ReplicaCall) -> Option<Answer> {
        if self.arrives(way, &call).await { self.answered(from, way, call).await } else { None }
    }

    /// The way there.
    async fn arrives(&self, way: Way, call: &ReplicaCall) -> bool {
        let arrives = self.travel(way.from, way.to).await;
        if !arrives {
            let key = call.request.key();
            self.trace.note(format_args!("lost: a request of {key:?} from {} to {}", way.from, way.to));
        }
        arrives
    }

    /// What is done there, and the way back.
    async fn answered(self: &Arc<Self>, from: Header, way: Way, call: ReplicaCall) -> Option<Answer> {
        let key = call.request.key().clone();
        let Some((handler, life)) = self.host(way.to) else { return Some(Err(PeerError::Lost)) };
        if let Err(error) = handler.admit(&from, way.instance) {
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
        if !self.travel(way.to, way.from).await {
            self.trace.note(format_args!("lost: an answer about {key:?} from {} to {}", way.to, way.from));
            return None;
        }
        let (caller, _) = self.host(way.from)?;
        Some(caller.admit(&header, Some(from.instance)).and(answer))
    }

    async fn carry_rare(
        self: Arc<Self>,
        from: Header,
        way: Way,
        request: PeerRequest,
    ) -> Option<Result<PeerReply, PeerError>> {
        if !self.travel(way.from, way.to).await {
            return None;
        }
        let Some((handler, life)) = self.host(way.to) else { return Some(Err(PeerError::Unreachable)) };
        let reply = match handler.admit(&from, way.instance) {
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
        if !self.travel(way.to, way.from).await {
            return None;
        }
        let (caller, _) = self.host(way.from)?;
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
    network: Arc<Network>,
    me: NodeNum,
    at: Socket,
    life: Arc<Life>,
    introduced: Mutex<BTreeMap<NodeNum, (InstanceId, Socket)>>,
}

impl SimPeers {
    pub(crate) fn new(network: &Arc<Network>, (me, at): (NodeNum, Socket), life: &Arc<Life>) -> Arc<Self> {
        Arc::new(Self { network: network.clone(), me, at, life: life.clone(), introduced: Mutex::default() })
    }

    /// The way to whom it was introduced to under that number.
    fn way(&self, to: NodeNum) -> Option<Way> {
        let introduced = self.introduced.lock();
        introduced.get(&to).map(|(instance, at)| Way { from: self.at, to: *at, instance: Some(*instance) })
    }

    fn header(&self) -> Option<Header> {
        self.network.host(self.at).map(|(handler, _)| handler.header())
    }
}

impl Peers for SimPeers {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        if !self.life.is_alive() {
            return;
        }
        if to == self.me {
            match self.network.host(self.at) {
                Some((handler, _)) => handler.deliver(to, Deliveries::from_iter([Delivery { call, reply_to }])),
                None => reply_to.send(Err(PeerError::Unreachable)),
            }
            return;
        }
        let (Some(way), Some(from), true) = (self.way(to), self.header(), self.connected(to)) else {
            return reply_to.send(Err(PeerError::Unreachable));
        };
        let network = self.network.clone();
        let deadline = call.deadline.unwrap_or_else(|| Instant::now() + REQUEST_TIMEOUT);
        let task = async move {
            let mut carried = Box::pin(network.carry(from, way, call));
            match timeout_at(deadline, &mut carried).await {
                Ok(Some(answer)) => reply_to.send(answer),
                Ok(None) => {
                    sleep_until(deadline).await;
                    reply_to.send(Err(PeerError::TimedOut));
                }
                Err(_) => {
                    reply_to.send(Err(PeerError::TimedOut));
                    carried.await;
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
        let way = match &to {
            Destination::Address(address) => Socket::at(address).map(|to| Way { from: self.at, to, instance: None }),
            Destination::Member(node) => self.way(*node),
        };
        let (Some(way), Some(from)) = (way, self.header()) else {
            return async { Err(PeerError::Unreachable) }.boxed();
        };
        if !matches!(request, PeerRequest::Gossip(_) | PeerRequest::NodeInfo { .. } | PeerRequest::Changes { .. }) {
            self.network.trace.note(format_args!("{} asks {} for {}", way.from, way.to, Named(&request)));
        }
        let (network, (tell, reply)) = (self.network.clone(), oneshot::channel());
        let carried = network.clone().carry_rare(from, way, request);
        network.wire.spawn(
            async move {
                if let Some(reply) = carried.await {
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

    fn introduce(&self, node: NodeNum, instance: InstanceId, mesh_address: &str) {
        if let Some(at) = Socket::at(mesh_address) {
            self.introduced.lock().insert(node, (instance, at));
        }
    }

    fn connected(&self, to: NodeNum) -> bool {
        if to == self.me {
            return true;
        }
        let Some(Way { from, to, .. }) = self.way(to) else { return false };
        let state = self.network.state.lock();
        let noticed = Duration::from_millis(50);
        let up = state.gone.get(&to).is_none_or(|since| since.elapsed() < noticed);
        let dead = |link| state.cuts.get(&link).is_some_and(|(_, since)| since.elapsed() > KEEP_ALIVE);
        up && !dead((from, to)) && !dead((to, from))
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
