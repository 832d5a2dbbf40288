//! Membership by gossip: SWIM, through the `foca` machine, which takes bytes or a timer and says what to send, what to
//! be woken for, and who is there.
//!
//! Sources: Das, Gupta, Motivala, "SWIM" (DSN 2002), with its infection-style dissemination and suspicion.
//!
//! A member is known by its instance. Who starts again comes with a higher generation, and who was held down wrongly
//! with a higher renewal; the higher wins, so that addresses may change and even be swapped.
//!
//! Rules on top of the machine, each found by measuring:
//! - Packets may be 64 KiB long: they travel over the mesh, and a feed then holds a whole cluster.
//! - An announcement can go to an address without knowing who listens there (see `wire`).
//! - "You are down" is not said to a member held alive. The machine says it to a suspect that has refuted the
//!   suspicion just before, which would make it renew itself for nothing.
//! - What else is to know of a node is pulled; only the number of its info travels on every packet, outside the
//!   machine's own idea of an identity. As a part of that, each change would look like a restart.
//!
//! Caveat: "alive" and "down" here are opinions. They never change the ring.

mod wire;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foca::{Config, Foca, NoCustomBroadcast, Notification, OwnedNotification, PeriodicParams};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use uuid::Uuid;

pub use foca::State;

use self::wire::Wire;
use crate::types::limits::GOSSIP_PACKET_BYTES_MAX;
use crate::types::{InfoStamp, InstanceId, NodeNum};

/// Whom a packet is gossiped to at once, and who is asked to ping for somebody else.
const FANOUT: NonZeroUsize = NonZeroUsize::new(3).unwrap();
const PACKET_BYTES_MAX: NonZeroUsize = NonZeroUsize::new(GOSSIP_PACKET_BYTES_MAX).unwrap();
/// How long a member that went is remembered, so that stale news of it is recognised.
const DOWN_REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);

/// A member as gossip names it. Small: it is in every packet several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipId {
    pub node: NodeNum,
    pub instance: InstanceId,
    pub generation: u64,
    /// Grows when the member finds itself held down while it lives.
    pub renewal: u32,
    /// Where its mesh listens, `host:port`.
    pub address: Arc<str>,
}

impl GossipId {
    /// Whoever listens there.
    fn anybody_at(address: Arc<str>) -> Self {
        Self { node: NodeNum(0), instance: InstanceId(Uuid::nil()), generation: 0, renewal: 0, address }
    }

    fn is_anybody(&self) -> bool {
        self.instance.0.is_nil()
    }
}

impl foca::Identity for GossipId {
    type Addr = InstanceId;

    fn renew(&self) -> Option<Self> {
        Some(Self { renewal: self.renewal.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> InstanceId {
        self.instance
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        (self.generation, self.renewal, &self.address) > (other.generation, other.renewal, &other.address)
    }
}

/// Something to be woken for; what it means is the machine's business. One that comes too late does nothing.
#[derive(Clone, Debug)]
pub struct Timer(foca::Timer<GossipId>);

/// What a step asks of its driver.
#[derive(Debug, Default)]
pub struct Effects {
    /// To which address, what.
    pub packets: Vec<(Arc<str>, Bytes)>,
    /// After how long, what.
    pub timers: Vec<(Duration, Timer)>,
    /// Members of which something else is held than before, a new address too.
    pub changes: Vec<(GossipId, State)>,
    /// Infos heard of that are newer than any heard of before.
    pub news: Vec<InfoStamp>,
    /// This node was held down by others and came back under a new renewal.
    pub renewed: bool,
    /// Why the packet was not understood; what came before the fault in it may have had effects.
    pub rejected: Option<String>,
}

/// The machine: what this node holds of its peers.
pub struct Membership {
    foca: Foca<GossipId, Wire, Random, NoCustomBroadcast>,
    wire: Wire,
    interval: Duration,
    told: BTreeMap<InstanceId, (GossipId, State)>,
    /// How many of those are suspects.
    suspects: usize,
}

impl Membership {
    /// `interval`: how often a member is probed. `members`: how many are expected. `seed` is all its randomness.
    pub fn new(me: GossipId, interval: Duration, members: usize, seed: u64) -> Self {
        let wire = Wire::new(me.clone());
        let random = Random(SmallRng::seed_from_u64(seed));
        let foca = Foca::new(me, config(interval, members), random, wire.clone());
        Self { foca, wire, interval, told: BTreeMap::new(), suspects: 0 }
    }

    pub fn me(&self) -> &GossipId {
        self.foca.identity()
    }

    /// What is held of each member heard of, in order; this node is not among them.
    pub fn members(&self) -> impl Iterator<Item = &(GossipId, State)> {
        self.told.values()
    }

    /// How many members there are to reach: news are repeated the more often.
    pub fn expect_members(&mut self, members: usize) {
        // Only what may change at any time differs, so it is accepted.
        self.foca.set_config(config(self.interval, members)).ok();
    }

    /// The number of this node's own info, which its packets carry from now on.
    pub fn set_info(&mut self, info: u64) {
        self.wire.set_own_info(info);
    }

    pub fn on_packet(&mut self, packet: &[u8]) -> Effects {
        let wire = self.wire.clone();
        self.step(|foca, out| {
            foca.handle_data(packet, &mut *out)?;
            // Whoever holds this node down hears of its new name at once, instead of at the next announcement: so two
            // sides of a cut grow together from their first contact.
            match wire.sender().filter(|_| out.renewed) {
                Some(sender) => foca.announce(GossipId::anybody_at(sender), out),
                None => Ok(()),
            }
        })
    }

    pub fn on_timer(&mut self, timer: Timer) -> Effects {
        self.step(|foca, out| {
            // A probe that failed makes a suspect without notice.
            out.notified = true;
            foca.handle_timer(timer.0, out)
        })
    }

    /// Says "here I am" to whoever listens there, and so asks who else is.
    pub fn announce(&mut self, address: &str) -> Effects {
        self.step(|foca, out| foca.announce(GossipId::anybody_at(address.into()), out))
    }

    /// Says goodbye. The machine is of no use afterwards.
    pub fn leave(&mut self) -> Effects {
        self.step(|foca, out| foca.leave_cluster(out))
    }

    fn step(
        &mut self,
        act: impl FnOnce(&mut Foca<GossipId, Wire, Random, NoCustomBroadcast>, &mut Collected) -> Result<(), foca::Error>,
    ) -> Effects {
        let mut out = Collected::default();
        let rejected = act(&mut self.foca, &mut out).err().map(|error| error.to_string());
        self.wire.set_own(self.foca.identity());
        let mut effects = Effects { timers: out.timers, renewed: out.renewed, rejected, ..Effects::default() };
        let read = self.wire.take_read();
        effects.news = read.news;
        // Most packets bring nothing new of anybody.
        if out.notified || read.members || self.suspects > 0 {
            self.compare(&mut effects);
        }
        let alive = |id: &GossipId| self.told.get(&id.instance).is_some_and(|(_, state)| *state != State::Down);
        let sent = out.packets.into_iter().filter(|(to, packet)| !(wire::is_turn_undead(packet) && alive(to)));
        effects.packets = sent.map(|(to, packet)| (to.address, packet)).collect();
        effects
    }

    /// The machine tells of ups and downs, but not of suspicion; so what it holds is compared with what was told.
    fn compare(&mut self, effects: &mut Effects) {
        let me = self.foca.identity().instance;
        for member in self.foca.iter_membership_state().filter(|m| m.id().instance != me) {
            let (id, state) = (member.id(), member.state());
            let told = self.told.get(&id.instance);
            if told.is_none_or(|(told_id, told_state)| told_id != id || *told_state != state) {
                self.told.insert(id.instance, (id.clone(), state));
                effects.changes.push((id.clone(), state));
            }
        }
        self.suspects = self.told.values().filter(|(_, state)| *state == State::Suspect).count();
    }
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("me", self.me()).field("members", &self.told).finish_non_exhaustive()
    }
}

/// From a failed probe to "down" it takes a suspicion of three intervals, in which a member that lives can object. Until
/// somebody happens to probe a member that crashed takes another on average, whatever the number of members, and five
/// in one of a hundred crashes.
fn config(interval: Duration, members: usize) -> Config {
    let doublings = usize::BITS - members.max(2).leading_zeros();
    Config {
        probe_period: interval,
        probe_rtt: interval * 2 / 5,
        num_indirect_probes: FANOUT,
        max_transmissions: NonZeroU8::MIN.saturating_add(3 + 2 * doublings as u8),
        suspect_to_down_after: interval * 3,
        remove_down_after: Some(DOWN_REMEMBERED_FOR),
        max_packet_size: PACKET_BYTES_MAX,
        notify_down_members: true,
        // The driver announces itself, also when nobody is left, which the machine would not.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams { frequency: interval / 5, num_members: FANOUT }),
    }
}

/// What the machine asked for during a step.
#[derive(Default)]
struct Collected {
    packets: Vec<(GossipId, Bytes)>,
    timers: Vec<(Duration, Timer)>,
    notified: bool,
    renewed: bool,
}

impl foca::Runtime<GossipId> for Collected {
    fn notify(&mut self, notification: Notification<'_, GossipId>) {
        self.notified = true;
        self.renewed |= matches!(notification.to_owned(), OwnedNotification::Rejoin(_));
    }

    fn send_to(&mut self, to: GossipId, data: &[u8]) {
        self.packets.push((to, Bytes::copy_from_slice(data)));
    }

    fn submit_after(&mut self, event: foca::Timer<GossipId>, after: Duration) {
        self.timers.push((after, Timer(event)));
    }
}

/// The generator in the dress that the machine wants.
struct Random(SmallRng);

impl rand_core::TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill_bytes(dst);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
