//! Comparing while slots move to other members.

use super::*;
use crate::types::{Moving, TopologyChange};

impl Two {
    /// The epoch after this one, in which the slots of these keys move from the first node to both; or in which nothing moves.
    fn next_epoch(&self, moving: &[&str]) {
        let epoch = Epoch(self.routing.epoch().0 + 1);
        let mut topology = (*topology(epoch.0, 2, 2)).clone();
        if !moving.is_empty() {
            let mut before = topology.ring.clone();
            moving.iter().for_each(|name| before[self.slot(name)] = vec![ONE]);
            let change = TopologyChange::Weight { node: OTHER, before: 7 };
            topology.moving = Some(Moving { since: epoch, change, rf: 2, ring: before });
        }
        self.routing.install(Arc::new(topology));
    }

    fn slot(&self, name: &str) -> usize {
        self.wire.ring.get().unwrap().token(&Key::new(name.to_owned()).unwrap()).slot().index()
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_moves_is_compared_when_it_has_moved() {
    let two = two();
    two.put(ONE, "k", 1, "x");
    two.put(ONE, "other", 1, "x");
    assert_ne!(two.slot("k"), two.slot("other"));
    two.next_epoch(&["k"]);
    let view = two.drivers[&ONE].convergence(Look::Keys).await.unwrap();
    assert_eq!(view.moving, 1);
    let [(ONE, OTHER, Ok(told))] = &view.pairs[..] else { panic!("{view:?}") };
    assert_eq!((told.differing, told.keys.as_slice()), (1, &[Key::new("other").unwrap()][..]));
    assert_eq!(two.round().await, (1, 0));
    assert_eq!((two.record(OTHER, "k"), two.record(OTHER, "other").is_some()), (None, true), "it comes another way");
    two.next_epoch(&[]);
    assert_eq!(two.round().await, (1, 0));
    assert!(two.record(OTHER, "k").is_some());
    assert_eq!(two.drivers[&ONE].convergence(Look::Keys).await.unwrap().moving, 0);
}

#[tokio::test(start_paused = true)]
async fn two_that_share_only_what_moves_are_not_compared() {
    let two = two();
    two.put(ONE, "k", 1, "x");
    let mut all = (*topology(2, 2, 2)).clone();
    let before = vec![vec![ONE]; all.ring.len()];
    let change = TopologyChange::ReplicationFactor;
    all.moving = Some(Moving { since: Epoch(2), change, rf: 1, ring: before });
    two.routing.install(Arc::new(all));
    assert_eq!(two.drivers[&ONE].partners(&two.routing.ring().unwrap()), []);
    let view = two.drivers[&ONE].convergence(Look::Keys).await.unwrap();
    assert!(view.pairs.is_empty() && view.moving == 256, "{view:?}");
    assert_eq!(two.round().await, (0, 0), "whoever asks for it all the same");
    assert_eq!(two.look(Look::Deep).await.chunks, []);
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_in_a_slot_that_moves_is_mended_and_a_lost_promise_waits() {
    let two = two();
    for node in [ONE, OTHER] {
        two.put(node, "k", 1, "x");
        two.put(node, "lost", 1, "x");
    }
    two.hurt(ONE, "k", false);
    two.hurt(ONE, "lost", true);
    two.next_epoch(&["k", "lost"]);
    two.scrub(ONE).await;
    assert!(two.wire.stores[&ONE].damaged().is_empty() && two.record(ONE, "k") == two.record(OTHER, "k"));
    assert!(!two.wire.stores[&ONE].is_condemned(), "the others do not surely have what is here");
    two.next_epoch(&[]);
    two.scrub(ONE).await;
    assert!(two.wire.stores[&ONE].is_condemned());
}
