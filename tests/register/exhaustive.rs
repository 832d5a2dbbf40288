//! All that can happen in small cases.
//!
//! A case is small: with one more ballot or client its states are ten times as many. Those here were chosen by the faults
//! that they find, each of which was put in by hand: see the names of the tests.

use stateright::{Checker, Model};

use crate::spec::{Asks, Op};
use crate::world::World;

fn propose(asks: Asks, value: u8) -> Op {
    Op::Propose { asks, value: Some(value), key: None }
}

/// Searches everything, and says how much that was.
fn search(world: World) {
    let found = world.checker().spawn_dfs().join();
    println!(
        "{} states, {} of them distinct, {} deep",
        found.state_count(),
        found.unique_state_count(),
        found.max_depth()
    );
    found.assert_properties();
}

/// A promise that is forgotten, an accept that ignores it, an answer before the write's majority: two create.
#[test]
fn of_two_that_create_one_is_told_so() {
    let plans = vec![(vec![propose(Asks::Absent, 1)], 2), (vec![propose(Asks::Absent, 2)], 1)];
    search(World { stored: None, plans, lean: true });
}
