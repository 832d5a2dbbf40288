//! Which peers the coordinator asks: gossip, the mesh's connections and the answers themselves, put together.
//!
//! One short lock for all peers: every use is a few nanoseconds of arithmetic, less than a lock for each would cost.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::journal::Journal;
use super::views::{EventKind, Liveness};
use crate::ports::Peers;
pub use crate::protocol::reach::Ask;
use crate::protocol::reach::PeerReach;
use crate::types::NodeNum;

/// Shared by the coordinator, handoff and the views. This node itself is always reachable.
pub struct Reach {
    me: NodeNum,
    peers: Arc<dyn Peers>,
    journal: Arc<Journal>,
    started: Instant,
    known: Mutex<BTreeMap<NodeNum, Known>>,
    returned: watch::Sender<BTreeMap<NodeNum, u64>>,
}

#[derive(Default)]
struct Known {
    reach: PeerReach,
    /// `None` until gossip spoke of it.
    liveness: Option<Liveness>,
}

impl Reach {
    pub fn new(peers: Arc<dyn Peers>, me: NodeNum, journal: Arc<Journal>) -> Arc<Self> {
        let (started, returned) = (Instant::now(), watch::Sender::default());
        Arc::new(Self { me, peers, journal, started, known: Mutex::default(), returned })
    }

    /// What happened to this node and its peers.
    pub(super) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Whether to send a request to that node now. Whoever gets [`Ask::Probe`] should send: it is given once a second.
    pub fn ask(&self, node: NodeNum) -> Ask {
        if node == self.me {
            return Ask::Yes;
        }
        if !self.peers.connected(node) {
            return Ask::No;
        }
        let now_us = self.now_us();
        self.known.lock().entry(node).or_default().reach.ask(now_us)
    }

    /// As [`Self::ask`], for those that do not send to whoever they are told to probe, or do not wait for a late answer:
    /// stand-ins and reads. Were they given probes, a node that hung would stay unreachable for as long as they look at it.
    pub fn ask_unprobed(&self, node: NodeNum) -> Ask {
        match (self.is_reachable(node), self.peers.connected(node)) {
            (true, _) => Ask::Yes,
            (false, true) => Ask::Last,
            (false, false) => Ask::No,
        }
    }

    /// Whether [`Self::ask`] would say `Yes`. For views and plans: it takes no probe.
    pub fn is_reachable(&self, node: NodeNum) -> bool {
        node == self.me
            || self.peers.connected(node) && self.known.lock().get(&node).is_none_or(|k| k.reach.is_reachable())
    }

    /// How long to wait for that node before a stand-in is asked beside it: 4 times its usual p99, 50 ms to 1 s.
    pub fn patience(&self, node: NodeNum) -> Duration {
        self.known.lock().get(&node).map_or_else(|| PeerReach::default().patience(), |k| k.reach.patience())
    }

    /// It answered, even if late or with a refusal.
    pub fn answered(&self, node: NodeNum, took: Duration) {
        self.note(node, |reach| reach.answered(took.as_micros() as u64));
    }

    /// It answered, nobody noted after how long.
    pub fn heard(&self, node: NodeNum) {
        self.note(node, PeerReach::heard);
    }

    /// Of this node itself, too: its patience follows its disk's p99, though it is always asked.
    fn note(&self, node: NodeNum, what: impl FnOnce(&mut PeerReach) -> bool) {
        let back = what(&mut self.known.lock().entry(node).or_default().reach);
        if back {
            tracing::info!(%node, "answers again");
            self.journal.note(node, EventKind::Membership, "answers requests again");
            self.note_return(node);
        }
    }

    /// It did not answer within its patience.
    pub fn hung(&self, node: NodeNum) {
        if node == self.me {
            return;
        }
        let now_us = self.now_us();
        if self.known.lock().entry(node).or_default().reach.hung(now_us) {
            tracing::warn!(%node, "does not answer: stand-ins take its place, one probe a second tries it");
            self.journal.note(node, EventKind::Membership, "does not answer requests: stand-ins take its place");
        }
    }

    /// What gossip holds of it now.
    pub fn gossip(&self, node: NodeNum, liveness: Liveness) {
        let mut known = self.known.lock();
        let entry = known.entry(node).or_default();
        entry.liveness = Some(liveness);
        let back = entry.reach.gossip(liveness == Liveness::Down);
        drop(known);
        if back {
            self.note_return(node);
        }
    }

    /// What gossip holds of it; suspect where it never spoke of it.
    pub fn liveness(&self, node: NodeNum) -> Liveness {
        if node == self.me {
            return Liveness::Alive;
        }
        self.known.lock().get(&node).and_then(|k| k.liveness).unwrap_or(Liveness::Suspect)
    }

    /// How often each node could be asked again after it could not. Changes whenever one can.
    pub fn returns(&self) -> watch::Receiver<BTreeMap<NodeNum, u64>> {
        self.returned.subscribe()
    }

    fn note_return(&self, node: NodeNum) {
        self.returned.send_modify(|returns| *returns.entry(node).or_default() += 1);
    }

    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reach").field("me", &self.me).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fakes::{FakePeers, journal};
    use crate::ports::PeerError;

    const ME: NodeNum = NodeNum(1);
    const OTHER: NodeNum = NodeNum(2);

    fn world() -> (Arc<FakePeers>, Arc<Reach>) {
        let peers = FakePeers::new();
        peers.set(OTHER, |_| Err(PeerError::TimedOut));
        (Arc::clone(&peers), Reach::new(peers, ME, journal()))
    }

    #[tokio::test(start_paused = true)]
    async fn connection_gossip_and_hangs_each_rule_a_peer_out() {
        let (peers, reach) = world();
        let mut returns = reach.returns();
        assert_eq!((reach.ask(OTHER), reach.liveness(OTHER)), (Ask::Yes, Liveness::Suspect));
        peers.remove(OTHER);
        assert_eq!((reach.ask(OTHER), reach.is_reachable(OTHER)), (Ask::No, false));
        peers.set(OTHER, |_| Err(PeerError::TimedOut));

        reach.gossip(OTHER, Liveness::Down);
        assert_eq!((reach.ask(OTHER), reach.is_reachable(OTHER)), (Ask::Last, false));
        assert!(!returns.has_changed().unwrap());
        reach.gossip(OTHER, Liveness::Alive);
        assert!(returns.has_changed().unwrap());
        returns.mark_unchanged();

        for _ in 0..3 {
            assert_eq!(reach.ask(OTHER), Ask::Yes);
            tokio::time::sleep(reach.patience(OTHER)).await;
            reach.hung(OTHER);
        }
        assert_eq!(reach.ask(OTHER), Ask::Last);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!reach.is_reachable(OTHER));
        assert_eq!((reach.ask(OTHER), reach.ask(OTHER)), (Ask::Probe, Ask::Last));
        reach.answered(OTHER, Duration::from_millis(1));
        assert_eq!(reach.ask(OTHER), Ask::Yes);
        assert!(returns.has_changed().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn this_node_is_always_asked() {
        let (_, reach) = world();
        for _ in 0..5 {
            reach.hung(ME);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        reach.gossip(ME, Liveness::Down);
        assert_eq!((reach.ask(ME), reach.liveness(ME)), (Ask::Yes, Liveness::Alive));
        assert!(reach.is_reachable(ME));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_of_its_own_is_given_time_too() {
        let (_, reach) = world();
        for _ in 0..1_000 {
            reach.answered(ME, Duration::from_millis(100));
        }
        assert!(reach.patience(ME) >= Duration::from_millis(300));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_wait_for_a_late_answer_takes_no_probe() {
        let (_, reach) = world();
        for _ in 0..3 {
            tokio::time::sleep(reach.patience(OTHER)).await;
            reach.hung(OTHER);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(reach.ask_unprobed(OTHER), Ask::Last);
        assert_eq!(reach.ask(OTHER), Ask::Probe, "the probe is still there for who sends it");
    }
}
