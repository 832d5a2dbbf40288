//! Requests under an `Idempotency-Key`: whoever repeats one is told what the first was told, wherever it asks, and
//! another request under the same key is refused. (The clients use no more names of a key than are remembered.)

use std::collections::BTreeMap;

use a3::node::request::FailureKind;
use a3::types::{Key, Version};

use super::Verdict;
use crate::history::Operation;
use crate::world::World;

/// What was said for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Wrote { version: Version, created: bool },
    ConditionFailed { met: Option<Version> },
}

fn answer(o: &Operation) -> Option<Answer> {
    let wrote = o.receipt().map(|r| Answer::Wrote { version: r.version, created: r.created });
    wrote.or_else(|| o.met().map(|met| Answer::ConditionFailed { met }))
}

pub(super) fn all(world: &World, history: &[Operation]) -> Verdict {
    let mut named: BTreeMap<(&Key, &str), Vec<&Operation>> = BTreeMap::new();
    for o in history {
        if let Some(name) = o.request.idempotency() {
            named.entry((o.key(), name)).or_default().push(o);
        }
    }
    for ((key, _), of_name) in named {
        // The answers go with the register, once the key is deleted for good: what was told before and after are two things,
        // and what was under way meanwhile may be either.
        let mut forgotten = world.witness.forgotten(key);
        forgotten.push(u64::MAX);
        let mut from = 0;
        for to in forgotten {
            let between: Vec<&Operation> =
                of_name.iter().filter(|o| o.began >= from && o.ended <= to).copied().collect();
            told_once(&between)?;
            from = from.max(to);
        }
    }
    Ok(())
}

fn told_once(of_name: &[&Operation]) -> Verdict {
    let Some((first, said)) = of_name.iter().find_map(|o| Some((*o, answer(o)?))) else { return Ok(()) };
    for o in of_name {
        let reused = o.failure().is_some_and(|f| f.kind == FailureKind::KeyReused);
        let same = o.request == first.request;
        let wrong = match answer(o) {
            Some(_) if !same => Some("two requests were carried out under one Idempotency-Key"),
            Some(again) if again != said => Some("a repeat was told something else"),
            _ if reused && same => Some("a repeat was taken for another request"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(format!("{wrong}:\n  {first}\n  {o}"));
        }
    }
    Ok(())
}
