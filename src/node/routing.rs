//! The topology in force: one ring at a time, replaced whole, read by every request.
//!
//! Invariants:
//! - A slot that a change gives to this member begins from nothing here. What it may hold of one that it kept in earlier
//!   epochs is dropped before the topology is in force in which it answers for it again: purged keys would come back from there,
//!   and promises that were given in its absence are not in it. What it gives up is dropped only while the topology is in force
//!   in which others keep it ([`Routing::give_up`]): what it acknowledged under a later one stays.
//! - An instance whose place another one has acts for nobody: the topology says its number, and means the other. It has no ring.
//! - Whatever is sent under a topology goes to the instances that this one lists: they are introduced before it is in force, and
//!   nobody introduces afterwards what only an older one lists ([`Routing::introduce`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::ports::{PeerError, PeerReply, Peers, Store, StoreError};
use crate::protocol::ring::Ring;
use crate::types::{Epoch, InstanceId, NodeNum, Slot, SlotSet, Topology};

/// The newest topology that this node has.
#[derive(Debug)]
struct Newest {
    ring: Arc<Ring>,
    /// It lists another instance under this node's number.
    fenced_out: bool,
}

/// Holds the ring. It only ever moves to a higher epoch.
#[derive(Debug)]
pub struct Routing {
    newest: RwLock<Option<Newest>>,
    /// This node's slots are not all here yet: see `rebuild`.
    rebuilding: AtomicBool,
    epoch: watch::Sender<Epoch>,
    /// One topology is adopted at a time: what it drops must not be what is written under it.
    adopting: tokio::sync::Mutex<()>,
    /// Held from the look at the topology in force to the introduction of what it lists.
    introducing: Mutex<()>,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            newest: RwLock::new(None),
            rebuilding: AtomicBool::new(false),
            epoch: watch::Sender::new(Epoch::default()),
            adopting: tokio::sync::Mutex::default(),
            introducing: Mutex::default(),
        }
    }
}

impl Routing {
    /// What requests are computed from and checked against. `None` before the node has found or founded its cluster, and once
    /// another instance has its place.
    pub fn ring(&self) -> Option<Arc<Ring>> {
        let newest = self.newest.read();
        newest.as_ref().filter(|newest| !newest.fenced_out).map(|newest| Arc::clone(&newest.ring))
    }

    /// The newest topology that this node has, also where it lists another instance in its place.
    pub fn topology(&self) -> Option<Arc<Topology>> {
        self.newest.read().as_ref().map(|newest| Arc::clone(newest.ring.topology()))
    }

    /// Whether this node must not answer for its slots. Set before the topology is put in force that lists it.
    pub fn is_rebuilding(&self) -> bool {
        self.rebuilding.load(Ordering::Relaxed)
    }

    pub fn set_rebuilding(&self, rebuilding: bool) {
        self.rebuilding.store(rebuilding, Ordering::Relaxed);
    }

    /// Epoch 0 before there is a topology.
    pub fn epoch(&self) -> Epoch {
        *self.epoch.borrow()
    }

    /// Whether this member may tell that one what it holds, asked under that epoch. One that is being rebuilt may lack what it
    /// is asked about.
    ///
    /// # Errors
    /// What is answered instead.
    pub fn opens(&self, me: NodeNum, from: NodeNum, epoch: Epoch) -> Result<(), Result<PeerReply, PeerError>> {
        let refused = |why: &str| Err(Err(PeerError::Refused(why.to_owned())));
        let Some(ring) = self.ring().filter(|_| !self.is_rebuilding()) else {
            return refused("the node is not ready");
        };
        let is_member = |node| ring.topology().member(node).is_some();
        if !is_member(from) || !is_member(me) {
            return refused("the node is not a member of the topology");
        }
        if epoch < ring.epoch() { Err(Ok(PeerReply::WrongEpoch { epoch: ring.epoch() })) } else { Ok(()) }
    }

    /// Puts a topology in force that lists this instance, which the caller has on disk. An epoch that is not higher changes
    /// nothing.
    pub fn install(&self, topology: Arc<Topology>) {
        self.put_in_force(topology, false);
    }

    fn put_in_force(&self, topology: Arc<Topology>, fenced_out: bool) {
        let mut newest = self.newest.write();
        if newest.as_ref().is_some_and(|newest| newest.ring.epoch() >= topology.epoch) {
            return;
        }
        let epoch = topology.epoch;
        *newest = Some(Newest { ring: Arc::new(Ring::new(topology)), fenced_out });
        drop(newest);
        self.epoch.send_replace(epoch);
    }

    /// Saves a newer topology of this node's cluster and puts it in force, and introduces the instances that are new in it; any
    /// other changes nothing.
    ///
    /// # Errors
    /// When it could not be saved; the one before stays in force.
    pub async fn adopt(&self, store: &dyn Store, peers: &dyn Peers, topology: Arc<Topology>) -> Result<(), StoreError> {
        let _one = self.adopting.lock().await;
        let before = self.topology();
        let ours = before.as_ref().is_none_or(|before| before.cluster_id == topology.cluster_id);
        if ours && topology.epoch > self.epoch() {
            let identity = store.identity();
            let begun = before.as_ref().and_then(|before| before.moving.as_ref()).map(|moving| moving.since);
            if topology.moving.as_ref().is_some_and(|moving| Some(moving.since) != begun) {
                store.drop_slots(gained(&topology, identity.node)).await?;
            }
            store.save_topology(Arc::clone(&topology)).await?;
            let listed = topology.member(identity.node).map(|member| member.instance);
            let fenced_out = listed.is_some_and(|instance| instance != identity.instance);
            let _one = self.introducing.lock();
            introduce(peers, identity.node, before.as_deref(), &topology);
            self.put_in_force(topology, fenced_out);
        }
        Ok(())
    }

    /// Tells the mesh where that instance is, if the topology in force lists it.
    pub fn introduce(&self, peers: &dyn Peers, (node, instance): (NodeNum, InstanceId), mesh_address: &str) {
        let _one = self.introducing.lock();
        let member = self.ring().and_then(|ring| ring.topology().member(node).map(|member| member.instance));
        if member == Some(instance) {
            peers.introduce(node, instance, mesh_address);
        }
    }

    /// Drops these slots, which others keep by the topology of that epoch, as long as it is the one in force; how many records and
    /// registers went.
    ///
    /// # Errors
    /// When the store failed. It may be done again.
    pub async fn give_up(&self, store: &dyn Store, epoch: Epoch, slots: SlotSet) -> Result<u64, StoreError> {
        let mut gone = 0;
        for slot in slots.iter() {
            // No later topology, which may give the slot back, comes into force meanwhile; it waits for one slot and not for all.
            let _one = self.adopting.lock().await;
            if self.epoch() != epoch {
                break;
            }
            gone += store.drop_slots(SlotSet::from_iter([slot])).await?;
        }
        Ok(gone)
    }

    /// Wakes at each new epoch.
    pub fn subscribe(&self) -> watch::Receiver<Epoch> {
        self.epoch.subscribe()
    }
}

/// Where the new instances are is known from the topology until gossip knows better.
fn introduce(peers: &dyn Peers, me: NodeNum, before: Option<&Topology>, now: &Topology) {
    let known = |node| before.and_then(|before| before.member(node)).map(|member| member.instance);
    for m in now.members.iter().filter(|m| m.node != me && known(m.node) != Some(m.instance)) {
        peers.introduce(m.node, m.instance, &m.mesh_address);
    }
}

/// The slots that a change gives to that member.
fn gained(topology: &Topology, node: NodeNum) -> SlotSet {
    let gains = |slot: &Slot| {
        let had = topology.replicas_before(*slot).is_none_or(|before| before.contains(&node));
        !had && topology.home_replicas(*slot).contains(&node)
    };
    Slot::all().filter(gains).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fakes::{FakePeers, FakeStore, topology};
    use crate::protocol::succession::change::{Wish, abort, begin};
    use crate::types::{Content, Hlc, InstanceId, Key, Record, Version, Writer};

    const ME: NodeNum = NodeNum(1);
    const TWO: NodeNum = NodeNum(2);

    /// This node's store, with a key in a slot that it does not keep.
    fn left_over(routing: &Routing) -> (Arc<FakeStore>, Slot, Key) {
        let (store, ring) = (FakeStore::new(), routing.ring().unwrap());
        let me = store.identity().node;
        let key = (0u32..).map(|n| Key::new(format!("k{n}")).unwrap());
        let key = key.into_iter().find(|key| !ring.placement(ring.token(key).slot()).is_home(me)).unwrap();
        let token = ring.token(&key);
        store.put(token, &key, record(&key));
        (store, token.slot(), key)
    }

    fn record(key: &Key) -> Record {
        Record::seal(key, Version::plain(Hlc(5), Writer(1)), Hlc(5), Content::value("v"))
    }

    #[tokio::test]
    async fn a_slot_that_comes_back_begins_from_nothing_and_once_in_a_change() {
        let routing = Routing::default();
        routing.install(topology(1, 3, 1));
        let (store, slot, key) = left_over(&routing);
        let before = routing.ring().unwrap();
        let moving = begin(before.topology(), &Wish::ReplicationFactor(3)).unwrap();
        assert!(moving.home_replicas(slot).contains(&store.identity().node), "all keep everything");
        routing.adopt(&*store, &*FakePeers::new(), Arc::new(moving.clone())).await.unwrap();
        assert_eq!((store.record(&key), routing.epoch()), (None, moving.epoch));
        // What is written under it stays, also when a member is replaced meanwhile.
        store.put(before.token(&key), &key, record(&key));
        let mut replaced = moving.clone();
        replaced.epoch.0 += 1;
        routing.adopt(&*store, &*FakePeers::new(), Arc::new(replaced)).await.unwrap();
        assert!(store.record(&key).is_some());
        let mut back = abort(&moving).unwrap();
        back.epoch.0 += 1;
        routing.adopt(&*store, &*FakePeers::new(), Arc::new(back.clone())).await.unwrap();
        assert!(store.record(&key).is_some(), "it is given up later, by itself");
        let again = begin(&back, &Wish::ReplicationFactor(2)).unwrap();
        let gets = again.home_replicas(slot).contains(&store.identity().node);
        routing.adopt(&*store, &*FakePeers::new(), Arc::new(again)).await.unwrap();
        assert_eq!(store.record(&key).is_none(), gets);
    }

    #[tokio::test]
    async fn what_it_gives_up_goes_only_while_others_keep_it() {
        let routing = Routing::default();
        routing.install(topology(1, 3, 1));
        let (store, slot, key) = left_over(&routing);
        let slots = SlotSet::from_iter([slot]);
        routing.install(topology(2, 3, 3));
        assert_eq!(routing.give_up(&*store, Epoch(1), slots).await, Ok(0), "it may have it again by now");
        assert!(store.record(&key).is_some());
        routing.install(topology(3, 3, 1));
        assert_eq!(routing.give_up(&*store, Epoch(3), slots).await, Ok(1));
        assert_eq!(store.record(&key), None);
    }

    /// Epoch 2, in which that member is another instance.
    fn replaced(node: NodeNum) -> (Topology, InstanceId) {
        let mut next = (*topology(2, 3, 2)).clone();
        let member = next.members.iter_mut().find(|member| member.node == node).unwrap();
        member.instance = InstanceId(uuid::Uuid::from_u128(99));
        let instance = member.instance;
        (next, instance)
    }

    #[tokio::test]
    async fn another_instance_is_introduced_before_anything_is_sent_to_its_number() {
        let (routing, store, peers) = (Routing::default(), FakeStore::new(), FakePeers::new());
        routing.install(topology(1, 3, 2));
        let (next, instance) = replaced(TWO);
        routing.adopt(&*store, &*peers, Arc::new(next.clone())).await.unwrap();
        assert_eq!((routing.epoch(), peers.introduced()), (Epoch(2), vec![(TWO, instance)]));
        let third = Topology { epoch: Epoch(3), ..next };
        routing.adopt(&*store, &*peers, Arc::new(third)).await.unwrap();
        assert_eq!(peers.introduced().len(), 1, "it is known");
    }

    #[tokio::test]
    async fn nobody_introduces_what_another_one_has_the_place_of() {
        let (routing, store, peers) = (Arc::new(Routing::default()), FakeStore::new(), FakePeers::new());
        routing.install(topology(1, 3, 2));
        let before = routing.ring().unwrap().topology().member(TWO).unwrap().instance;
        let told = |instance| routing.introduce(&*peers, (TWO, instance), "h:1");
        told(before);
        let (next, after) = replaced(TWO);
        told(after);
        assert_eq!(peers.introduced(), [(TWO, before)], "as the topology in force says");
        let (looks, waits) = (routing.clone(), Arc::new(Mutex::new(false)));
        let seen = waits.clone();
        peers.set_meanwhile(move || *seen.lock() = looks.introducing.is_locked());
        routing.adopt(&*store, &*peers, Arc::new(next)).await.unwrap();
        told(before);
        assert_eq!(peers.introduced(), [(TWO, before), (TWO, after)]);
        assert!(*waits.lock(), "who looks at the older one meanwhile introduces it before, or looks again");
    }

    #[tokio::test]
    async fn an_instance_whose_place_another_one_has_acts_for_nobody() {
        let (routing, store) = (Routing::default(), FakeStore::new());
        routing.install(topology(1, 3, 2));
        let (next, _) = replaced(ME);
        routing.adopt(&*store, &*FakePeers::new(), Arc::new(next.clone())).await.unwrap();
        assert!(routing.ring().is_none() && routing.opens(ME, TWO, Epoch(2)).is_err());
        assert_eq!((routing.epoch(), routing.topology().as_deref()), (Epoch(2), Some(&next)), "it knows why");
        let without = Topology { members: next.members[1..].to_vec(), epoch: Epoch(3), ..next };
        routing.adopt(&*store, &*FakePeers::new(), Arc::new(without)).await.unwrap();
        assert!(
            routing.ring().is_some(),
            "nobody answers as it, and it keeps nothing: it passes requests on until it stops"
        );
    }
}
