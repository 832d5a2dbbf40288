//! Requests that meet a newer topology on their way.

use super::*;
use crate::types::{Moving, Slot, TopologyChange};

type Newer = dyn Fn(NodeNum, &ReplicaCall) -> Option<Arc<Topology>> + Send + Sync;

/// The replicas of a world, some of which have a newer topology.
struct Ahead {
    net: Arc<Net>,
    newer: Box<Newer>,
    /// Who was asked to write, and under which epoch.
    writes: Mutex<Vec<(NodeNum, Epoch)>>,
}

impl Peers for Ahead {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        if let ReplicaRequest::Write { .. } = call.request {
            self.writes.lock().push((to, call.epoch));
        }
        match (self.newer)(to, &call).filter(|topology| topology.epoch > call.epoch) {
            Some(topology) => reply_to.send(Ok(ReplicaReply::WrongEpoch { topology })),
            None => self.net.send(to, call, reply_to),
        }
    }

    fn ask(&self, _: Destination, _: PeerRequest, _: Instant) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        async { Err(PeerError::Unreachable) }.boxed()
    }

    fn introduce(&self, _: NodeNum, _: InstanceId, _: &str) {}

    fn connected(&self, _: NodeNum) -> bool {
        true
    }
}

impl World {
    /// The same with replicas that answer so.
    fn ahead(
        self,
        newer: impl Fn(NodeNum, &ReplicaCall) -> Option<Arc<Topology>> + Send + Sync + 'static,
    ) -> (Self, Arc<Ahead>) {
        let ahead = Arc::new(Ahead { net: Arc::clone(&self.net), newer: Box::new(newer), writes: Mutex::default() });
        let (c, peers) = (&self.coordinator, Arc::clone(&ahead) as Arc<dyn Peers>);
        let reach = Reach::new(Arc::clone(&peers), NodeNum(1), journal());
        let coordinator = Coordinator::new(
            NodeNum(1),
            peers,
            Arc::clone(&c.store),
            Arc::clone(&c.routing),
            Arc::clone(&c.clock),
            reach,
        );
        (World { coordinator, ..self }, ahead)
    }
}

const TWO: NodeNum = NodeNum(2);
const THREE: NodeNum = NodeNum(3);

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_outlives_one_change_and_no_more() {
    for (epoch, asked_again) in [(2, false), (3, false), (4, true)] {
        let w = world(3, 2);
        let key = w.key(2);
        let (w, ahead) = w.ahead(move |to, _| (to == THREE).then(|| topology(epoch, 3, 2)));
        let receipt = w.put(&key, "v", Level::Quorum).await.unwrap();
        assert_eq!(receipt.acked, [TWO, THREE]);
        let writes = std::mem::take(&mut *ahead.writes.lock());
        let again = writes.contains(&(TWO, Epoch(epoch)));
        assert_eq!(again, asked_again, "between, it may have lost the slot and begun it from nothing: {writes:?}");
        assert!(writes.contains(&(THREE, Epoch(epoch))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_meets_a_newer_topology_when_it_writes_back_begins_again() {
    let w = world(3, 2);
    let key = w.key(2);
    w.plant(2, &key, ahead(1), "newer");
    w.plant(3, &key, ahead(0), "older");
    let writes = |call: &ReplicaCall| matches!(call.request, ReplicaRequest::Write { .. });
    let (w, ahead) = w.ahead(move |_, call| writes(call).then(|| topology(2, 3, 2)));
    assert_eq!(w.get(&key, Level::Quorum).await.unwrap().unwrap(), "newer");
    assert_eq!(w.on(3, &key), w.on(2, &key));
    let epochs: Vec<u64> = ahead.writes.lock().iter().map(|(_, epoch)| epoch.0).collect();
    assert_eq!((epochs.first(), epochs.last()), (Some(&1), Some(&2)));
}

#[tokio::test(start_paused = true)]
async fn while_a_slot_moves_a_write_needs_a_majority_of_what_was_and_of_what_comes() {
    let w = world(4, 2);
    let key = w.key(2);
    let slot: Slot = w.net.ring.token(&key).slot();
    let mut next = (*topology(2, 4, 2)).clone();
    let change = TopologyChange::Weight { node: NodeNum(4), before: 2 };
    next.moving = Some(Moving { since: Epoch(2), change, rf: 2, ring: next.ring.clone() });
    next.ring[slot.index()] = vec![THREE, NodeNum(4)];
    let next = Arc::new(next);
    let (w, _) = w.ahead(move |_, _| Some(Arc::clone(&next)));
    let receipt = w.put(&key, "v", Level::Linearizable).await.unwrap();
    assert_eq!((receipt.replicas.len(), receipt.acked.len(), receipt.strict), (3, 3, true));
    for gone in [2, 4] {
        w.net.set(gone, Mode::Broken(PeerError::Unreachable));
        let failure = w.put(&key, "w", Level::Linearizable).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unavailable, "without {gone}");
        assert_eq!(failure.sets.map(|sets| sets.map(|set| set.needed)), Some([2, 2]), "without {gone}");
        let read = w.get(&key, Level::All).await.unwrap_err();
        assert!(
            read.sets.as_deref().is_some_and(|sets| sets.iter().any(|set| set.given < set.needed)),
            "without {gone}: {read:?}"
        );
        w.net.set(gone, Mode::Up);
    }
    assert_eq!(w.get(&key, Level::All).await.unwrap().unwrap(), "v");
}
