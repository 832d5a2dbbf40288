//! The topology in force: one ring at a time, replaced whole, read by every request.
//!
//! Invariant: a slot that a change gives to this member begins from nothing here. What it may hold of one that it kept in earlier
//! epochs is dropped before the topology is in force in which it answers for it again: purged keys would come back from there,
//! and promises that were given in its absence are not in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::ports::{PeerError, PeerReply, Store, StoreError};
use crate::protocol::ring::Ring;
use crate::types::{Epoch, NodeNum, Slot, SlotSet, Topology};

/// Holds the ring. It only ever moves to a higher epoch.
#[derive(Debug)]
pub struct Routing {
    ring: RwLock<Option<Arc<Ring>>>,
    /// This node's slots are not all here yet: see `rebuild`.
    rebuilding: AtomicBool,
    epoch: watch::Sender<Epoch>,
    /// One topology is adopted at a time: what it drops must not be what is written under it.
    adopting: tokio::sync::Mutex<()>,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            ring: RwLock::new(None),
            rebuilding: AtomicBool::new(false),
            epoch: watch::Sender::new(Epoch::default()),
            adopting: tokio::sync::Mutex::default(),
        }
    }
}

impl Routing {
    /// `None` before the node has found or founded its cluster.
    pub fn ring(&self) -> Option<Arc<Ring>> {
        self.ring.read().clone()
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

    /// Puts a topology in force, which the caller has on disk. An epoch that is not higher changes nothing.
    pub fn install(&self, topology: Arc<Topology>) {
        let mut ring = self.ring.write();
        if ring.as_ref().is_some_and(|r| r.epoch() >= topology.epoch) {
            return;
        }
        let epoch = topology.epoch;
        *ring = Some(Arc::new(Ring::new(topology)));
        drop(ring);
        self.epoch.send_replace(epoch);
    }

    /// Saves a newer topology of this node's cluster and puts it in force; any other changes nothing.
    ///
    /// # Errors
    /// When it could not be saved; the one before stays in force.
    pub async fn adopt(&self, store: &dyn Store, topology: Arc<Topology>) -> Result<(), StoreError> {
        let _one = self.adopting.lock().await;
        let before = self.ring();
        let ours = before.as_ref().is_none_or(|ring| ring.topology().cluster_id == topology.cluster_id);
        if ours && topology.epoch > self.epoch() {
            let begun = before.as_ref().and_then(|ring| ring.topology().moving.as_ref()).map(|moving| moving.since);
            if topology.moving.as_ref().is_some_and(|moving| Some(moving.since) != begun) {
                store.drop_slots(gained(&topology, store.identity().node)).await?;
            }
            store.save_topology(Arc::clone(&topology)).await?;
            self.install(topology);
        }
        Ok(())
    }

    /// Wakes at each new epoch.
    pub fn subscribe(&self) -> watch::Receiver<Epoch> {
        self.epoch.subscribe()
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
    use crate::node::fakes::{FakeStore, topology};
    use crate::protocol::succession::change::{Wish, abort, begin};
    use crate::types::{Content, Hlc, Key, Record, Version, Writer};

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
        routing.adopt(&*store, Arc::new(moving.clone())).await.unwrap();
        assert_eq!((store.record(&key), routing.epoch()), (None, moving.epoch));
        // What is written under it stays, also when a member is replaced meanwhile.
        store.put(before.token(&key), &key, record(&key));
        let mut replaced = moving.clone();
        replaced.epoch.0 += 1;
        routing.adopt(&*store, Arc::new(replaced)).await.unwrap();
        assert!(store.record(&key).is_some());
        let mut back = abort(&moving).unwrap();
        back.epoch.0 += 1;
        routing.adopt(&*store, Arc::new(back.clone())).await.unwrap();
        assert!(store.record(&key).is_some(), "it is given up later, by itself");
        let again = begin(&back, &Wish::ReplicationFactor(2)).unwrap();
        let gets = again.home_replicas(slot).contains(&store.identity().node);
        routing.adopt(&*store, Arc::new(again)).await.unwrap();
        assert_eq!(store.record(&key).is_none(), gets);
    }
}
