//! Requests under an `Idempotency-Key`: whoever repeats one is told what the first was told, wherever it asks, and
//! another request under the same key is refused. (The clients use no more names of a key than are remembered.)

use std::collections::BTreeMap;

use a3::node::request::FailureKind;
use a3::types::{Key, Version};

use super::Verdict;
use crate::history::Operation;

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

pub(super) fn all(history: &[Operation]) -> Verdict {
    let mut named: BTreeMap<(&Key, &str), Vec<&Operation>> = BTreeMap::new();
    for o in history {
        if let Some(name) = o.request.idempotency() {
            named.entry((o.key(), name)).or_default().push(o);
        }
    }
    named.into_values().try_for_each(|of_name| told_once(&of_name))
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
