//! What nodes tell about themselves: pulled by whoever hears of something newer, and compared with one random peer
//! every ten seconds, so that nothing stays unheard.

use super::{
    BTreeMap, Destination, Duration, EXCHANGE_EVERY, Gossip, InfoStamp, Instant, Liveness, NodeInfo, NodeNum,
    PeerError, PeerRequest, sleep_until,
};
use crate::ports::PeerReply;

/// Between two tellings of changed counters.
const COUNTERS_EVERY: Duration = Duration::from_secs(5);
/// The same where it is asked: somebody may look at it.
const COUNTERS_WHEN_ASKED: Duration = Duration::from_secs(1);
/// While somebody looks at the members, each is asked about itself this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a question waits for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// This node's own info, as last told.
#[derive(Default)]
pub(super) struct Own {
    told: Option<(Instant, NodeInfo)>,
}

/// Whether a counter moved so far that a person who looks at the other nodes would find the old value wrong. The steps
/// grow with it, so that they are few.
fn moved(a: u64, b: u64) -> bool {
    a.abs_diff(b) > a.max(b) / 4
}

/// Whether two infos of one node differ in more than counters, or counters by much.
fn changed(a: &NodeInfo, b: &NodeInfo) -> bool {
    let hints = |info: &NodeInfo| info.hints.iter().map(|(_, count, _)| count).sum();
    if moved(a.keys, b.keys) || moved(hints(a), hints(b)) {
        return true;
    }
    let NodeInfo { mesh_address, http_address, zone, weight, state, program, epoch, .. } = a;
    (mesh_address, http_address, zone, program) != (&b.mesh_address, &b.http_address, &b.zone, &b.program)
        || (*weight, *state, *epoch) != (b.weight, b.state, b.epoch)
}

impl Gossip {
    /// Looks at what this node has to tell, and gives it a new number where it changed: at once where it matters,
    /// every few seconds where only counters moved. Called every interval; call it where a change should not wait.
    pub fn refresh(&self) {
        self.take_own(COUNTERS_EVERY);
    }

    /// Counters are told anew where they were told so long ago.
    fn take_own(&self, counters_every: Duration) {
        let mut own = self.own.lock();
        let mut stamp = InfoStamp {
            node: self.identity.node,
            instance: self.identity.instance,
            generation: self.identity.generation,
            info: 0,
        };
        let now = Instant::now();
        let mut info = (self.own_info)(stamp);
        match &own.told {
            None => stamp.info = InfoStamp::CHANGE,
            Some((_, told)) if changed(told, &info) => {
                stamp.info = (told.stamp.info / InfoStamp::CHANGE + 1) * InfoStamp::CHANGE;
            }
            Some((at, told)) => {
                info.stamp = told.stamp;
                if info == *told || now.duration_since(*at) < counters_every {
                    return;
                }
                stamp.info = told.stamp.info + 1;
            }
        }
        info.stamp = stamp;
        own.told = Some((now, info.clone()));
        let address = self.options.mesh_address.as_str().into();
        self.directory.set(stamp.node, stamp.instance, address, Liveness::Alive);
        self.directory.learn(info);
        drop(own);
        self.machine.lock().membership.set_info(stamp.info);
    }

    /// Answers what this node knows that the asker does not; its own facts always. Where the asker knows more, it is
    /// asked back, so that both are equal in the end.
    pub fn answer_node_info(&self, from: NodeNum, digest: &[InfoStamp]) -> PeerReply {
        self.take_own(COUNTERS_WHEN_ASKED);
        let mut infos = self.directory.lacking(digest);
        if !infos.iter().any(|info| info.stamp.node == self.identity.node) {
            infos.extend(self.directory.info(self.identity.node).map(|info| (*info).clone()));
        }
        let others = digest.iter().filter(|stamp| stamp.node != self.identity.node);
        let newer = |stamp: &InfoStamp| {
            self.listed_info(stamp) && self.directory.info(stamp.node).is_none_or(|own| stamp.newer_than(&own.stamp))
        };
        if others.into_iter().any(newer) {
            self.wanted.lock().insert(from, None);
            self.wanting.notify_one();
        }
        PeerReply::NodeInfo { infos, digest: self.directory.digest() }
    }

    /// Whether the topology lists the instance that an info is of.
    fn listed_info(&self, stamp: &InfoStamp) -> bool {
        let ring = self.routing.ring();
        ring.is_some_and(|r| r.topology().member(stamp.node).is_some_and(|m| m.instance == stamp.instance))
    }

    /// Notes infos that are worth a question at once: of members, and newer by more than counters.
    pub(super) fn want(&self, stamps: impl Iterator<Item = InfoStamp>) {
        let mut wanted = self.wanted.lock();
        let before = wanted.len();
        for stamp in stamps.filter(|stamp| stamp.node != self.identity.node) {
            let known = self.directory.info(stamp.node);
            if known.is_none_or(|known| stamp.changed_since(&known.stamp)) && self.listed_info(&stamp) {
                wanted.entry(stamp.node).or_insert(Some(stamp));
            }
        }
        if wanted.len() > before {
            self.wanting.notify_one();
        }
    }

    pub(super) async fn run_infos(&self) {
        let mut exchange = Instant::now() + self.jitter(EXCHANGE_EVERY);
        loop {
            tokio::select! {
                biased;
                () = self.wanting.notified() => self.pull_wanted().await,
                () = sleep_until(exchange) => {
                    self.exchange().await;
                    exchange = Instant::now() + self.jitter(EXCHANGE_EVERY);
                }
            }
        }
    }

    /// Asks who is wanted, one after the other: an answer often holds what was wanted of others, too.
    async fn pull_wanted(&self) {
        loop {
            let next = self.wanted.lock().pop_first();
            let Some((node, stamp)) = next else { return };
            let known = self.directory.info(node);
            if stamp.is_none_or(|stamp| known.is_none_or(|known| stamp.changed_since(&known.stamp))) {
                self.pull(node).await;
            }
        }
    }

    /// Somebody looks: asks each member that lives about itself, unless that was done a moment ago.
    pub fn look_around(&self) {
        let now = Instant::now();
        let mut looked = self.looked.lock();
        if looked.is_some_and(|at| now.duration_since(at) < LOOK_EVERY) {
            return;
        }
        *looked = Some(now);
        let mut wanted = self.wanted.lock();
        let others = self.directory.all().into_iter().filter(|(node, _)| *node != self.identity.node);
        for (node, _) in others.filter(|(_, entry)| entry.liveness == Liveness::Alive) {
            wanted.entry(node).or_insert(None);
        }
        self.wanting.notify_one();
    }

    /// Compares numbers with one random peer that lives.
    async fn exchange(&self) {
        let alive: BTreeMap<NodeNum, _> = self
            .directory
            .all()
            .into_iter()
            .filter(|(node, e)| *node != self.identity.node && e.liveness == Liveness::Alive)
            .collect();
        let chosen = self.ports.entropy.below(alive.len() as u64) as usize;
        if let Some(node) = alive.keys().nth(chosen) {
            self.pull(*node).await;
        }
    }

    async fn pull(&self, node: NodeNum) {
        let Some(address) = self.directory.get(node).and_then(|e| e.mesh_address) else { return };
        let request = PeerRequest::NodeInfo { digest: self.directory.digest() };
        let deadline = Instant::now() + ANSWER_WITHIN;
        let answer = self.ports.peers.ask(Destination::Address(address.to_string()), request, deadline).await;
        match answer {
            Ok(PeerReply::NodeInfo { infos, digest }) => {
                infos.into_iter().for_each(|info| self.learn(info));
                self.want(digest.into_iter());
            }
            Ok(_) => tracing::debug!(%node, "answered a question about nodes with something else"),
            Err(PeerError::Unreachable | PeerError::TimedOut) => {}
            Err(error) => tracing::debug!(%node, %error, "did not tell about itself"),
        }
    }

    fn learn(&self, info: NodeInfo) {
        if info.stamp.node != self.identity.node && self.listed_info(&info.stamp) {
            self.directory.learn(info);
        }
    }
}
