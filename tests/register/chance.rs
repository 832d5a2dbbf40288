//! Random walks through larger worlds: more clients, more ballots, plain writes among them, deletes, repeated requests.

use proptest::prelude::*;

use crate::spec::{Asks, Op};
use crate::world::{Action, World};

/// A client's operations, each with a value of its own; the same `Idempotency-Key` always with the same request.
fn plan(client: u8, kinds: &[u8]) -> Vec<Op> {
    let op = |(at, kind): (usize, &u8)| {
        let value = Some(client * 8 + at as u8 + 1);
        let propose = |asks, value| Op::Propose { asks, value, key: None };
        match kind {
            0 => Op::Read,
            1 => Op::Write(client * 8 + at as u8 + 1),
            2 => propose(Asks::Absent, value),
            3 => propose(Asks::Present, value),
            // Replaced by what it saw last.
            4 | 5 => propose(Asks::Is(0), value),
            6 => propose(Asks::Present, None),
            7 => Op::Propose { asks: Asks::Absent, value: Some(100), key: Some(1) },
            _ => Op::Propose { asks: Asks::Nothing, value: Some(101), key: Some(2) },
        }
    };
    kinds.iter().enumerate().map(op).collect()
}

/// Messages arrive more often than anything else happens.
fn weight(action: &Action) -> usize {
    match action {
        Action::Arrive(..) => 12,
        Action::ArriveLate(..) => 4,
        Action::Start(_) | Action::Retry(_) => 3,
        Action::LosePatience(_) | Action::Repeat(..) => 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn whatever_arrives_when_the_key_is_one_register(
        stored in prop::option::of(Just(200)),
        kinds in prop::collection::vec(prop::collection::vec(0u8..9, 1..4), 2..5),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 30..300),
    ) {
        let plans = kinds.iter().enumerate().map(|(c, kinds)| (plan(c as u8, kinds), 4)).collect();
        let world = World { stored, plans, lean: false };
        let mut state = world.begin();
        let mut walk = Vec::new();
        for choice in choices {
            let possible = world.possible(&state);
            let wheel: Vec<_> = possible.iter().flat_map(|a| std::iter::repeat_n(*a, weight(a))).collect();
            if wheel.is_empty() {
                break;
            }
            let action = *choice.get(&wheel);
            walk.push(action);
            state = world.next(&state, action);
            prop_assert!(state.is_unambiguous() && state.is_durable(), "{:?}", walk);
        }
        prop_assert!(state.is_linearizable(), "{:?} by {:?}", state, walk);
    }
}
