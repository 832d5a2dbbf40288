//! What a node can tell of its cluster at a glance: views gathered from memory, nothing asked of anybody.

use std::sync::Arc;

use crate::node::Node;
use crate::node::views::{
    Check, ClusterHealth, ClusterView, Event, EventKind, HealthView, HintsView, Liveness, MemberView, PlacementView,
    Readiness, RingView,
};
use crate::ports::NodeState;
use crate::protocol::ring::{Ring, SlotHealth};
use crate::protocol::spread::Spread;
use crate::types::{Key, Member, NodeNum, Slot};

impl Node {
    /// The members, as this node sees them. `None` before there is a topology.
    pub fn cluster(&self) -> Option<ClusterView> {
        let ring = self.routing.ring()?;
        let topology = ring.topology();
        Some(ClusterView {
            asked: self.identity.node,
            cluster_id: topology.cluster_id,
            epoch: topology.epoch,
            rf: topology.rf,
            members: topology.members.iter().map(|m| self.member(&ring, m)).collect(),
        })
    }

    fn member(&self, ring: &Ring, member: &Member) -> MemberView {
        let node = member.node;
        let told = self.directory.info(node);
        // What this node told last may be seconds old.
        let info = if node == self.identity.node { told.map(|i| Arc::new(self.own.info(i.stamp))) } else { told };
        let slots = Slot::all().filter(|s| ring.topology().home_replicas(*s).contains(&node)).count();
        let owed =
            |kept: &[(NodeNum, u64, u64)]| kept.iter().filter(|(n, ..)| *n == node).map(|(_, c, _)| c).sum::<u64>();
        let others = ring.topology().members.iter().filter(|m| m.node != self.identity.node);
        let told: u64 = others.filter_map(|m| self.directory.info(m.node)).map(|i| owed(&i.hints)).sum();
        let here: u64 = self.store.hint_totals().iter().filter(|(n, _)| *n == node).map(|(_, t)| t.count).sum();
        MemberView {
            node,
            instance: member.instance,
            liveness: self.liveness(node),
            reachable: self.reach.is_reachable(node),
            slots,
            mesh_address: info.as_ref().map_or_else(|| member.mesh_address.clone(), |i| i.mesh_address.clone()),
            http_address: info.as_ref().map_or_else(|| member.http_address.clone(), |i| i.http_address.clone()),
            zone: member.zone.clone(),
            weight: member.weight,
            info: info.as_deref().cloned(),
            hints_owed: told + here,
        }
    }

    fn liveness(&self, node: NodeNum) -> Liveness {
        if node == self.identity.node { Liveness::Alive } else { self.reach.liveness(node) }
    }

    /// Whether the cluster can do its work, by what this node can reach. `None` before there is a topology.
    pub fn health(&self) -> Option<HealthView> {
        let ring = self.routing.ring()?;
        let members = &ring.topology().members;
        let reachable: Vec<NodeNum> = members.iter().map(|m| m.node).filter(|n| self.reach.is_reachable(*n)).collect();
        let of = |slot: Slot| ring.placement(slot).health(|n| reachable.contains(&n));
        let (mut full, mut quorum, mut lost) = (0, 0, 0);
        for slot in Slot::all() {
            match of(slot) {
                SlotHealth::Full => (full, quorum) = (full + 1, quorum + 1),
                SlotHealth::Quorum => quorum += 1,
                SlotHealth::StoodIn => {}
                SlotHealth::Lost => lost += 1,
            }
        }
        let health = match (full, lost) {
            (Slot::COUNT, _) => ClusterHealth::Healthy,
            (_, 0) => ClusterHealth::Degraded,
            _ => ClusterHealth::Unavailable,
        };
        Some(HealthView {
            health,
            slots_full: full,
            slots_at_quorum: quorum,
            slots_unavailable: lost,
            slots_total: Slot::COUNT,
            members_down: members.iter().map(|m| m.node).filter(|n| !reachable.contains(n)).collect(),
            hints_pending: self.hints_pending(members),
        })
    }

    /// Hints that wait on this node and, as far as they told, on the others.
    fn hints_pending(&self, members: &[Member]) -> u64 {
        let here: u64 = self.store.hint_totals().iter().map(|(_, totals)| totals.count).sum();
        let others = members.iter().map(|m| m.node).filter(|n| *n != self.identity.node);
        let told = |node| self.directory.info(node).map_or(0, |i| i.hints.iter().map(|(_, count, _)| count).sum());
        here + others.map(told).sum::<u64>()
    }

    /// The ring. `None` before there is a topology.
    pub fn ring(&self) -> Option<RingView> {
        let topology = Arc::clone(self.routing.ring()?.topology());
        Some(RingView { spread: Spread::of(&topology), topology })
    }

    /// Where a key lives. `None` before there is a topology.
    pub fn placement(&self, key: &Key) -> Option<PlacementView> {
        let ring = self.routing.ring()?;
        let token = ring.token(key);
        let placement = ring.placement(token.slot());
        let home_replicas = placement.home_replicas().to_vec();
        let listed = home_replicas.iter().chain(&placement.fallbacks);
        Some(PlacementView {
            key: key.clone(),
            token,
            slot: token.slot(),
            reachable: listed.copied().filter(|n| self.reach.is_reachable(*n)).collect(),
            fallbacks: placement.fallbacks.clone(),
            home_replicas,
        })
    }

    /// The hints kept here.
    pub fn hints(&self) -> HintsView {
        HintsView { asked: self.identity.node, targets: self.store.hint_totals() }
    }

    /// What happened since this node's event of that number, oldest first; 0: all that it remembers.
    pub fn events(&self, after: u64) -> Vec<Event> {
        self.journal.after(after)
    }

    /// Notes what became of this node.
    pub(super) fn note(&self, text: &str) {
        self.journal.note(self.identity.node, EventKind::Membership, text);
    }

    /// Its wall clock, milliseconds since 1970.
    pub fn wall_ms(&self) -> u64 {
        self.clock.wall_ms()
    }

    /// Where this node is in its life.
    pub fn state(&self) -> NodeState {
        self.own.state()
    }

    /// Whether it has begun to stop, for whatever reason.
    pub fn is_stopping(&self) -> bool {
        self.own.is_stopping()
    }

    /// A person looks at the members now: what they tell of themselves is asked of them more often than gossip does.
    pub fn look_around(&self) {
        self.gossip.look_around();
    }

    /// Whether clients are answered, and what is waited for.
    pub fn readiness(&self) -> Readiness {
        let state = self.own.state();
        let totals = self.store.totals();
        let founded = self.routing.ring().is_some();
        let joined = founded && self.own.has_joined();
        let check = |name, ok, detail: String| Check { name, ok, detail };
        let checks = vec![
            check(
                "storage",
                totals.writable,
                if totals.writable { "takes writes" } else { "has stopped writing" }.into(),
            ),
            check(
                "cluster",
                joined,
                match (founded, joined) {
                    (_, true) => format!("epoch {}", self.routing.epoch()),
                    (true, false) => {
                        self.rebuild.waiting().unwrap_or_else(|| "compares its clock with the other members'".into())
                    }
                    (false, false) => self.founding.waiting(),
                },
            ),
            check(
                "draining",
                state != NodeState::Draining,
                if state == NodeState::Draining { "finishing" } else { "no" }.into(),
            ),
        ];
        Readiness { ready: checks.iter().all(|c| c.ok), checks }
    }
}
