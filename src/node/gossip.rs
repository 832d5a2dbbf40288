//! Membership by gossip: the driver of [`protocol::membership`](crate::protocol::membership).
//!
//! It gives the machine its packets and timers, announces this node to its seeds and to one remembered address for
//! ever, pulls what nodes tell about themselves, and passes on what becomes of the members: where they are to the mesh,
//! whether they live to the coordinator, both to the [`Directory`].
//!
//! Invariants:
//! - Only instances that the topology lists are passed on. Others may gossip, and are nobody.
//! - What the machine says of a member is passed on in the order in which it said so: it is done under its lock.
//! - Gossip changes no ring and stores nothing but addresses to look at after a restart.

mod info;
mod strangers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::Ports;
use super::directory::Directory;
use super::journal::Journal;
use super::routing::Routing;
use super::views::{EventKind, Liveness};
use crate::metrics;
use crate::ports::{Destination, InfoStamp, NodeInfo, PeerError, PeerRequest};
use crate::protocol::membership::{Effects, GossipId, Membership, State, Timer};
use crate::types::limits::GOSSIP_PACKET_BYTES_MAX;
use crate::types::{Identity, Member, NodeNum};

/// Between two announcements, in a small cluster.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(5);
/// From this many members on announcements become rarer, so that a seed is not asked by all of them all the time.
const ANNOUNCE_MEMBERS: usize = 10;
/// Between two exchanges of info numbers with a random peer.
const EXCHANGE_EVERY: Duration = Duration::from_secs(10);
/// A member that was not heard of for so many intervals since this node knows it is called down.
const UNHEARD_INTERVALS: u32 = 10;
/// Packets on their way at once. More are not sent: gossip lives with loss, and memory has an end.
const PACKETS_MAX: usize = 512;
/// Longest wait for those who are told that this node leaves: it has other things to finish.
const LEAVE_WAIT: Duration = Duration::from_secs(1);

/// How a node gossips.
#[derive(Clone, Debug)]
pub struct GossipOptions {
    /// How often a member is probed. A crash is known within about eight of them.
    pub interval: Duration,
    /// `host:port` of the mesh of any members.
    pub seeds: Vec<String>,
    /// Where the other nodes reach this one, `host:port`.
    pub mesh_address: String,
}

/// Told whenever a member's liveness changes. Must not block, nor call back.
pub type OnLiveness = Box<dyn Fn(NodeNum, Liveness) + Send + Sync>;
/// What this node tells about itself now, under that stamp. Must not block, nor call back.
pub type OwnInfo = Box<dyn Fn(InfoStamp) -> NodeInfo + Send + Sync>;

struct Machine {
    membership: Membership,
    timers: BTreeMap<(Instant, u64), Timer>,
    /// Makes timers of one instant differ.
    timer_count: u64,
    /// Set by [`Gossip::leave`]; the machine would come back at the first packet.
    left: bool,
    /// Members that were not heard of yet, and since when they are waited for.
    unheard: BTreeMap<NodeNum, Instant>,
}

/// This node's gossip.
pub struct Gossip {
    options: GossipOptions,
    identity: Identity,
    ports: Ports,
    routing: Arc<Routing>,
    directory: Arc<Directory>,
    on_liveness: OnLiveness,
    own_info: OwnInfo,
    journal: Arc<Journal>,
    machine: Mutex<Machine>,
    own: Mutex<info::Own>,
    /// Whether a member's address changed since they were saved.
    moved: AtomicBool,
    /// Whom to ask about itself: for an info at least that new, or whatever it has to tell.
    wanted: Mutex<BTreeMap<NodeNum, Option<InfoStamp>>>,
    rescheduled: Notify,
    wanting: Notify,
    looked: Mutex<Option<Instant>>,
    in_flight: Arc<()>,
    strangers: Arc<strangers::Strangers>,
    gauges: [(Liveness, Gauge); 3],
    sent: Counter,
    received: Counter,
    rejected: Counter,
    renewals: Counter,
}

impl Gossip {
    /// The identity is the store's, with the generation of this start. Nothing happens before [`Gossip::start`].
    pub fn new(
        options: GossipOptions,
        ports: Ports,
        routing: Arc<Routing>,
        directory: Arc<Directory>,
        on_liveness: OnLiveness,
        own_info: OwnInfo,
        journal: Arc<Journal>,
    ) -> Arc<Self> {
        let identity = ports.store.identity();
        let me = GossipId {
            node: identity.node,
            instance: identity.instance,
            generation: identity.generation,
            renewal: 0,
            address: options.mesh_address.as_str().into(),
        };
        let membership = Membership::new(me, options.interval, 1, ports.entropy.u64());
        let gauge = |l: Liveness| (l, metrics::gauge(metrics::GOSSIP_MEMBERS, &[("state", l.as_str())]));
        let packets = |way| metrics::counter(metrics::GOSSIP_PACKETS, &[("direction", way)]);
        Arc::new(Self {
            identity,
            ports,
            routing,
            directory,
            on_liveness,
            own_info,
            journal,
            machine: Mutex::new(Machine {
                membership,
                timers: BTreeMap::new(),
                timer_count: 0,
                left: false,
                unheard: BTreeMap::new(),
            }),
            own: Mutex::default(),
            moved: AtomicBool::new(false),
            wanted: Mutex::default(),
            rescheduled: Notify::new(),
            wanting: Notify::new(),
            looked: Mutex::default(),
            in_flight: Arc::new(()),
            strangers: Arc::default(),
            gauges: [gauge(Liveness::Alive), gauge(Liveness::Suspect), gauge(Liveness::Down)],
            sent: packets("sent"),
            received: packets("received"),
            rejected: metrics::counter(metrics::GOSSIP_REJECTED, &[]),
            renewals: metrics::counter(metrics::GOSSIP_RENEWALS, &[]),
            options,
        })
    }

    /// Starts gossiping, with a topology in force: without one, nobody is a member.
    pub fn start(self: &Arc<Self>) {
        self.refresh();
        let gossip = self.clone();
        self.ports.spawn.spawn(Box::pin(async move { gossip.run().await }));
        let gossip = self.clone();
        self.ports.spawn.spawn(Box::pin(async move { gossip.run_infos().await }));
    }

    /// A packet from a peer.
    pub fn handle(&self, packet: &Bytes) {
        self.received.increment(1);
        if packet.len() > GOSSIP_PACKET_BYTES_MAX {
            self.rejected.increment(1);
            return;
        }
        self.step(|membership| membership.on_packet(packet));
    }

    /// Says goodbye to a few members and falls silent. Waits until they have heard it, for an interval or a second at most.
    pub async fn leave(&self) {
        let packets = {
            let mut machine = self.machine.lock();
            if std::mem::replace(&mut machine.left, true) {
                return;
            }
            machine.timers.clear();
            machine.membership.leave().packets
        };
        let sends = packets.into_iter().map(|(to, packet)| self.send(&to, packet));
        timeout(self.options.interval.min(LEAVE_WAIT), join_all(sends)).await.ok();
    }

    /// One step of the machine, and all that follows from it.
    fn step(&self, act: impl FnOnce(&mut Membership) -> Effects) {
        let packets = {
            let mut machine = self.machine.lock();
            if machine.left {
                return;
            }
            let effects = act(&mut machine.membership);
            let now = Instant::now();
            let scheduled = !effects.timers.is_empty();
            for (after, timer) in effects.timers {
                machine.timer_count += 1;
                let key = (now + after, machine.timer_count);
                machine.timers.insert(key, timer);
            }
            if !effects.changes.is_empty() {
                for (id, state) in &effects.changes {
                    self.changed(&mut machine.unheard, id, *state);
                }
                self.count_members();
            }
            self.want(effects.news.into_iter());
            if let Some(why) = effects.rejected {
                self.rejected.increment(1);
                tracing::debug!("a gossip packet was not taken: {why}");
            }
            if effects.renewed {
                self.renewals.increment(1);
                tracing::info!("{} was held down by others and says that it lives", self.identity.node);
            }
            if scheduled {
                self.rescheduled.notify_one();
            }
            effects.packets
        };
        for (to, packet) in packets {
            self.post(&to, packet);
        }
    }

    fn post(&self, to: &str, packet: Bytes) {
        // Every send on its way holds a clone.
        if Arc::strong_count(&self.in_flight) > PACKETS_MAX {
            return;
        }
        let (ticket, send) = (self.in_flight.clone(), self.send(to, packet));
        self.ports.spawn.spawn(Box::pin(async move {
            send.await;
            drop(ticket);
        }));
    }

    /// A packet that is lost is no fault: the machine notices by what does not come back.
    fn send(&self, to: &str, packet: Bytes) -> impl Future<Output = ()> + Send + use<> {
        self.sent.increment(1);
        let deadline = Instant::now() + self.options.interval;
        let answer = self.ports.peers.ask(Destination::Address(to.to_owned()), PeerRequest::Gossip(packet), deadline);
        let (strangers, to) = (self.strangers.clone(), to.to_owned());
        async move { strangers.note(&to, &answer.await) }
    }

    /// The topology's member behind a gossip identity; none for strangers and for this node.
    fn listed(&self, id: &GossipId) -> bool {
        id.node != self.identity.node
            && self.routing.ring().is_some_and(|ring| {
                ring.topology().member(id.node).is_some_and(|member| member.instance == id.instance)
            })
    }

    /// Passes on what the machine now holds of a member.
    fn changed(&self, unheard: &mut BTreeMap<NodeNum, Instant>, id: &GossipId, state: State) {
        if !self.listed(id) {
            return;
        }
        unheard.remove(&id.node);
        let liveness = match state {
            State::Alive => Liveness::Alive,
            State::Suspect => Liveness::Suspect,
            State::Down => Liveness::Down,
        };
        let before = self.directory.set(id.node, id.instance, id.address.clone(), liveness);
        let moved = before.as_ref().and_then(|e| e.mesh_address.as_deref()) != Some(&*id.address);
        if moved && liveness != Liveness::Down {
            // Another one may have got its place since it was looked at.
            self.routing.introduce(&*self.ports.peers, (id.node, id.instance), &id.address);
        }
        if moved {
            self.moved.store(true, Ordering::Relaxed);
        }
        let was = before.as_ref().filter(|e| e.mesh_address.is_some()).map(|e| e.liveness);
        if was != Some(liveness) {
            (self.on_liveness)(id.node, liveness);
            self.tell(id, was, liveness, before.and_then(|e| e.info));
        } else if moved {
            tracing::debug!(target: "a3::events", node = %id.node, address = %id.address, "member moved");
            self.journal.note(id.node, EventKind::Membership, format!("moved to {}", id.address));
        }
        // Whoever comes, or comes again, has something to tell.
        if liveness == Liveness::Alive {
            let stamp = InfoStamp { node: id.node, instance: id.instance, generation: id.generation, info: 0 };
            if self.directory.info(id.node).is_none_or(|info| stamp.changed_since(&info.stamp)) {
                self.want(std::iter::once(stamp));
            }
        }
    }

    fn tell(&self, id: &GossipId, was: Option<Liveness>, now: Liveness, info: Option<Arc<NodeInfo>>) {
        let (node, address) = (id.node, &id.address);
        let leaving = info.is_some_and(|info| info.state == crate::ports::NodeState::Draining);
        match now {
            Liveness::Alive if was == Some(Liveness::Suspect) => {
                tracing::debug!(target: "a3::events", %node, "member answers again");
            }
            Liveness::Alive => tracing::debug!(target: "a3::events", %node, %address, "member discovered"),
            Liveness::Suspect => tracing::debug!(target: "a3::events", %node, "member suspected"),
            Liveness::Down if leaving => tracing::debug!(target: "a3::events", %node, "member left"),
            Liveness::Down => tracing::debug!(target: "a3::events", %node, "member down"),
        }
        let text = match now {
            Liveness::Alive if was == Some(Liveness::Suspect) => "answers again".to_owned(),
            Liveness::Alive => format!("is up, at {address}"),
            Liveness::Suspect => "did not answer a probe: it is suspected".to_owned(),
            Liveness::Down if leaving => "has stopped, and said so".to_owned(),
            Liveness::Down => "is down".to_owned(),
        };
        self.journal.note(node, EventKind::Membership, text);
    }

    fn count_members(&self) {
        for (liveness, gauge) in &self.gauges {
            gauge.set(self.directory.count(self.identity.node, *liveness) as f64);
        }
    }

    async fn run(&self) {
        let mut epoch = self.routing.subscribe();
        self.meet();
        let mut tick = Instant::now();
        let mut announce = Instant::now();
        loop {
            self.fire_timers();
            let now = Instant::now();
            if now >= tick {
                tick = now + self.options.interval;
                self.refresh();
                self.give_up_unheard();
                if now >= announce || self.alone() {
                    self.announce();
                    announce = now + self.jitter(self.announce_every());
                }
                self.remember().await;
            }
            let timer = self.machine.lock().timers.keys().next().map_or(tick, |(at, _)| *at);
            tokio::select! {
                biased;
                Ok(()) = epoch.changed() => self.meet(),
                () = self.rescheduled.notified() => {}
                () = sleep_until(timer.min(tick)) => {}
            }
        }
    }

    fn fire_timers(&self) {
        loop {
            let due = {
                let mut machine = self.machine.lock();
                let first = machine.timers.first_entry().filter(|first| first.key().0 <= Instant::now());
                first.map(|first| first.remove())
            };
            let Some(timer) = due else { return };
            self.step(|membership| membership.on_timer(timer));
        }
    }

    /// There is a new topology: who is listed now counts, and whoever was heard of already is passed on.
    fn meet(&self) {
        let mut machine = self.machine.lock();
        let others = self.others();
        machine.membership.expect_members(others.len() + 1);
        let now = Instant::now();
        let waited = std::mem::take(&mut machine.unheard);
        machine.unheard = others
            .iter()
            .filter(|m| self.directory.get(m.node).is_none_or(|e| e.instance != m.instance || e.mesh_address.is_none()))
            .map(|m| (m.node, waited.get(&m.node).copied().unwrap_or(now)))
            .collect();
        let members: Vec<(GossipId, State)> = machine.membership.members().cloned().collect();
        for (id, state) in members {
            self.changed(&mut machine.unheard, &id, state);
        }
        self.count_members();
        self.moved.store(true, Ordering::Relaxed);
    }

    fn others(&self) -> Vec<Member> {
        let ring = self.routing.ring();
        let members = ring.iter().flat_map(|ring| ring.topology().members.iter());
        members.filter(|m| m.node != self.identity.node).cloned().collect()
    }

    /// Members of which nobody knows anything are down, too.
    fn give_up_unheard(&self) {
        let patience = self.options.interval * UNHEARD_INTERVALS;
        let unheard = &mut self.machine.lock().unheard;
        unheard.retain(|node, since| {
            let waits = since.elapsed() < patience;
            if !waits {
                (self.on_liveness)(*node, Liveness::Down);
                tracing::debug!(target: "a3::events", %node, "member not heard of");
                self.journal.note(*node, EventKind::Membership, "was not heard of: it counts as down");
            }
            waits
        });
    }

    fn alone(&self) -> bool {
        let count = |liveness| self.directory.count(self.identity.node, liveness);
        count(Liveness::Alive) + count(Liveness::Suspect) == 0
    }

    fn jitter(&self, about: Duration) -> Duration {
        about * 4 / 5 + Duration::from_millis(self.ports.entropy.below(about.as_millis() as u64 * 2 / 5))
    }

    fn announce_every(&self) -> Duration {
        let members = self.routing.ring().map_or(1, |ring| ring.topology().members.len());
        let crowd = members.max(ANNOUNCE_MEMBERS) as f64 / ANNOUNCE_MEMBERS as f64;
        ANNOUNCE_EVERY.mul_f64(crowd.sqrt())
    }

    /// Where members may be: as gossip has it, as the topology guessed, as remembered from before.
    fn addresses_of(&self, members: &[Member]) -> BTreeSet<String> {
        let live = |m: &Member| {
            let entry = self.directory.get(m.node).filter(|e| e.instance == m.instance);
            entry.and_then(|e| e.mesh_address).map(|address| address.to_string())
        };
        members.iter().flat_map(|m| [Some(m.mesh_address.clone()), live(m)]).flatten().collect()
    }

    /// Says "here I am" to the seeds and to one remembered address; to every address there is while nobody answers.
    /// The remembered one is of a member held down, if there is one: that is how two sides of a cut find each other.
    fn announce(&self) {
        let members = self.others();
        let mut targets: BTreeSet<String> = self.options.seeds.iter().cloned().collect();
        if self.alone() {
            targets.extend(self.addresses_of(&members));
            targets.extend(self.ports.store.identity().known_addresses);
        } else {
            let down: Vec<Member> =
                members.iter().filter(|m| self.directory.liveness(m.node) == Liveness::Down).cloned().collect();
            let known = self.addresses_of(if down.is_empty() { &members } else { &down });
            let chosen = self.ports.entropy.below(known.len() as u64) as usize;
            targets.extend(known.into_iter().nth(chosen));
        }
        targets.remove(&self.options.mesh_address);
        for address in targets {
            self.step(|membership| membership.announce(&address));
        }
    }

    /// Keeps the members' addresses in the identity file, for a start at which nothing else leads to them.
    async fn remember(&self) {
        if !self.moved.swap(false, Ordering::Relaxed) {
            return;
        }
        let known: Vec<String> = {
            let live = |m: &Member| self.directory.get(m.node).and_then(|e| e.mesh_address).map(|a| a.to_string());
            self.others().iter().map(|m| live(m).unwrap_or_else(|| m.mesh_address.clone())).collect()
        };
        let mut identity = self.ports.store.identity();
        if known.is_empty() || identity.known_addresses == known {
            return;
        }
        identity.known_addresses = known;
        if let Err(error) = self.ports.store.save_identity(identity).await {
            tracing::warn!("the addresses of the members could not be saved: {error}");
            self.moved.store(true, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
