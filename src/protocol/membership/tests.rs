//! The machine alone: its packets, and the rules that are the adapter's own.

use super::*;
use foca::Identity;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn id(node: u16, generation: u64) -> GossipId {
    GossipId {
        node: NodeNum(node),
        instance: InstanceId(Uuid::from_u128(u128::from(node))),
        generation,
        renewal: 0,
        address: format!("n{node}:50050").into(),
    }
}

fn machine(node: u16) -> Membership {
    Membership::new(id(node, 1), SECOND, 3, u64::from(node))
}

/// Delivers packets between machines until none is left; collects timers and changes of the first.
fn settle(machines: &mut [&mut Membership], mut packets: Vec<(Arc<str>, Bytes)>) -> Effects {
    let mut of_first = Effects::default();
    while let Some((to, packet)) = packets.pop() {
        for (i, machine) in machines.iter_mut().enumerate().filter(|(_, m)| m.me().address == to) {
            let effects = machine.on_packet(&packet);
            assert_eq!(effects.rejected, None);
            packets.extend(effects.packets);
            if i == 0 {
                of_first.timers.extend(effects.timers);
                of_first.changes.extend(effects.changes);
                of_first.news.extend(effects.news);
            }
        }
    }
    of_first
}

#[test]
fn an_announcement_needs_only_an_address() {
    let (mut a, mut b) = (machine(1), machine(2));
    b.set_info(17);
    let packets = a.announce("n2:50050").packets;
    let effects = settle(&mut [&mut a, &mut b], packets);
    assert_eq!(effects.changes, [(id(2, 1), State::Alive)]);
    assert_eq!(effects.news.last().map(|s| (s.node, s.info)), Some((NodeNum(2), 17)), "the info's number comes along");
    assert_eq!(b.members().collect::<Vec<_>>(), [&(id(1, 1), State::Alive)]);
}

#[test]
fn a_feed_of_the_largest_cluster_is_one_packet() {
    let mut seed = machine(1);
    for node in 2..=256 {
        let mut other = machine(node);
        let packets = other.announce("n1:50050").packets;
        settle(&mut [&mut seed, &mut other], packets);
    }
    let mut late = machine(300);
    let packets = late.announce("n1:50050").packets;
    let effects = settle(&mut [&mut late, &mut seed], packets);
    assert_eq!(effects.changes.len(), 256);
}

#[test]
fn a_higher_life_wins_and_a_lower_one_is_history() {
    let (mut a, mut b) = (machine(1), machine(2));
    let packets = a.announce("n2:50050").packets;
    settle(&mut [&mut a, &mut b], packets);
    let moved = GossipId { address: "elsewhere:1".into(), ..id(2, 2) };
    let mut again = Membership::new(moved.clone(), SECOND, 3, 9);
    let packets = again.announce("n1:50050").packets;
    settle(&mut [&mut a, &mut again], packets);
    assert_eq!(a.members().collect::<Vec<_>>(), [&(moved, State::Alive)]);
    let packets = b.announce("n1:50050").packets;
    settle(&mut [&mut a, &mut b], packets);
    assert_eq!(a.members().map(|(id, _)| id.generation).collect::<Vec<_>>(), [2], "the old life says nothing new");
    assert!(id(2, 2).win_addr_conflict(&id(2, 1).renew().unwrap()), "a start outranks every renewal before it");
}

/// The suspect objects in the last moment; when the suspicion runs out, nothing is said to it.
#[test]
fn who_refuted_a_suspicion_is_not_told_that_it_is_down() {
    let (mut a, mut b) = (machine(1), machine(2));
    let packets = a.announce("n2:50050").packets;
    // Probes into the void, until one has failed.
    let mut waiting = settle(&mut [&mut a, &mut b], packets).timers;
    let suspicion_ends = loop {
        waiting.sort_by_key(|(due, _)| std::cmp::Reverse(*due));
        let (now, timer) = waiting.pop().expect("the machine always waits for something");
        let timers = a.on_timer(timer).timers;
        if let Some((_, timer)) = timers.iter().find(|(after, _)| *after == SECOND * 3) {
            break timer.clone();
        }
        waiting.extend(timers.into_iter().map(|(after, timer)| (now + after, timer)));
    };
    assert_eq!(a.members().map(|(_, state)| *state).collect::<Vec<_>>(), [State::Suspect]);
    // The word reaches B with a periodic gossip, and its objection reaches A.
    let gossip = waiting.iter().position(|(_, t)| matches!(t.0, foca::Timer::PeriodicGossip(_))).expect("it gossips");
    let packets = a.on_timer(waiting.swap_remove(gossip).1).packets;
    assert!(!packets.is_empty());
    settle(&mut [&mut a, &mut b], packets);
    assert_eq!(a.members().map(|(_, state)| *state).collect::<Vec<_>>(), [State::Alive]);
    let effects = a.on_timer(suspicion_ends);
    assert!(effects.packets.is_empty(), "{effects:?}");
    settle(&mut [&mut a, &mut b], effects.packets);
    assert_eq!(b.me().renewal, 0);
}

#[test]
fn who_is_held_down_comes_back_and_says_so_at_once() {
    let (mut a, mut b) = (machine(1), machine(2));
    let packets = a.announce("n2:50050").packets;
    settle(&mut [&mut a, &mut b], packets);
    // B leaves by mistake of a wire, say: A takes it for gone, while another start of B's machine goes on.
    let goodbye = b.leave().packets;
    settle(&mut [&mut a], goodbye);
    assert_eq!(a.members().map(|(_, state)| *state).collect::<Vec<_>>(), [State::Down]);
    let mut b = machine(2);
    let packets = b.announce("n1:50050").packets;
    settle(&mut [&mut a, &mut b], packets);
    assert_eq!(b.me().renewal, 1);
    assert_eq!(a.members().collect::<Vec<_>>(), [&(b.me().clone(), State::Alive)]);
}

#[test]
fn stamps_tell_changes_from_counters() {
    let stamp =
        |generation, info| InfoStamp { node: NodeNum(1), instance: InstanceId(Uuid::from_u128(1)), generation, info };
    let base = stamp(1, InfoStamp::CHANGE + 5);
    assert!(stamp(1, InfoStamp::CHANGE + 6).newer_than(&base) && !stamp(1, InfoStamp::CHANGE + 6).changed_since(&base));
    assert!(stamp(1, 2 * InfoStamp::CHANGE).changed_since(&base));
    assert!(stamp(2, 0).changed_since(&base) && !base.newer_than(&base));
}

proptest! {
    /// Bytes from anywhere are taken or rejected, and never more.
    #[test]
    fn no_packet_breaks_the_machine(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut a, mut b, mut c) = (machine(1), machine(2), machine(3));
        let packets = b.announce("n1:50050").packets;
        settle(&mut [&mut a, &mut b], packets);
        a.on_packet(&noise);
        let real = c.announce("n1:50050").packets.remove(0).1;
        let feed = a.on_packet(&real).packets.remove(0).1;
        for packet in [real, feed] {
            let mut bent = packet.to_vec();
            let position = at.index(bent.len());
            bent[position] ^= noise.first().copied().unwrap_or(1) | 1;
            a.on_packet(&bent);
            c.on_packet(&bent);
            bent.truncate(cut.index(bent.len()));
            a.on_packet(&bent);
            c.on_packet(&bent);
        }
    }
}
