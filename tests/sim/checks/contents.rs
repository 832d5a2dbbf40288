//! Versions and values: an ETag names one value for the key's whole life, a value has the versions it may have, and
//! what was said not to be written is nowhere.

use std::collections::{BTreeMap, BTreeSet};

use a3::types::{Level, Version};

use super::{Verdict, none};
use crate::history::{Contents, Held, Operation, Told};
use crate::world::World;

pub(super) fn all(world: &World, history: &[Operation]) -> Verdict {
    let seen = world.witness.seen();
    match_the_disks(world, history, &seen)?;
    values_have_few_versions(world, history, &seen)?;
    not_applied_is_nowhere(world, history, &seen)?;
    reads_are_of_writes(history)
}

/// No version with two contents anywhere, ever; receipts, reads and refusals agree with the disks. What a condition met,
/// or a linearizable read that came upon an end, may have been decided, and superseded before it came to a row.
fn match_the_disks(world: &World, history: &[Operation], seen: &Contents) -> Verdict {
    if let Some(conflict) = world.witness.conflicts().first() {
        return Err(conflict.clone());
    }
    let held = |o: &Operation, version: Version| seen.get(&(o.key().clone(), version));
    let accepted = world.witness.ever_accepted();
    let decided = |o: &Operation, version: Version, content: &dyn Fn(&Held) -> bool| {
        accepted.iter().any(|(key, v, held)| (key, *v) == (o.key(), version) && content(held))
    };
    for o in history {
        let agrees = match &o.told {
            // A write that was superseded everywhere before it came is acknowledged, and on no disk.
            Told::Wrote(receipt) => held(o, receipt.version).is_none_or(|held| o.request.made(held)),
            // Of these `ends` knows more.
            Told::Found { version: Some(version), text, .. } if version.is_end() => text.is_none(),
            Told::Found { version: Some(version), text, .. } => {
                let on_disk = held(o, *version).is_some_and(|held| held.text == *text);
                let settled = || o.request.level == Level::Linearizable;
                on_disk || settled() && decided(o, *version, &|held| held.text == *text)
            }
            Told::Found { version: None, .. } => true,
            _ => o.met().flatten().is_none_or(|version| {
                held(o, version).is_some_and(|held| held.text.is_some())
                    || decided(o, version, &|held| held.text.is_some())
            }),
        };
        if !agrees {
            return Err(format!("a version that no disk ever held with this content: {o}"));
        }
    }
    Ok(())
}

/// A touch gives a value another version. Apart from that, a plain write may be stamped twice, any other once; the second
/// time for a reason: above its first stamp some disk held another write's. What it wrote itself, and what was built upon
/// that, is none, or it would overwrite those who saw it under its first.
fn values_have_few_versions(world: &World, history: &[Operation], seen: &Contents) -> Verdict {
    let mut stamps: BTreeMap<&str, BTreeSet<Version>> = BTreeMap::new();
    for ((_, version), held) in seen.iter().filter(|(_, held)| !held.is_touched()) {
        if let Some(text) = &held.text {
            stamps.entry(text).or_default().insert(*version);
        }
    }
    for o in history {
        if o.request.idempotency().is_some() && !world.witness.forgotten(o.key()).is_empty() {
            // Repeated after its key was deleted for good it is another request.
            continue;
        }
        let Some(versions) = o.request.text().and_then(|text| stamps.get(text)) else { continue };
        let allowed = if o.request.level == Level::Linearizable { 1 } else { 2 };
        if versions.len() > allowed {
            return Err(format!("stamped more than {allowed} times, {versions:?}: {o}"));
        }
        let (Some(first), Some(second)) = (versions.first(), versions.iter().nth(1)) else { continue };
        let between = seen.range((o.key().clone(), *first)..(o.key().clone(), *second));
        // A replica that purged something refuses what is older than that, as if it were newer.
        let purged = o.floor >= *first;
        if !purged && !between.into_iter().any(|((_, version), _)| !version.same_stamp(first)) {
            return Err(format!("stamped {second:?} after {first:?}, though no other write was in its way: {o}"));
        }
    }
    Ok(())
}

/// Of values: nothing tells one tombstone from another. A request that was sent several times may have been applied
/// another time. What ended with a false condition may have been accepted by a minority before, and was outbid for good.
fn not_applied_is_nowhere(world: &World, history: &[Operation], seen: &Contents) -> Verdict {
    let stored: BTreeSet<&str> = seen.values().filter_map(|held| held.text.as_deref()).collect();
    let accepted = world.witness.ever_accepted();
    let accepted: BTreeSet<&str> = accepted.iter().filter_map(|(_, _, held)| held.text.as_deref()).collect();
    let maybe: BTreeSet<&str> =
        history.iter().filter(|o| !o.without_effect()).filter_map(|o| o.request.text()).collect();
    let refused: BTreeSet<&str> =
        history.iter().filter(|o| o.met().is_some()).filter_map(|o| o.request.text()).collect();
    let lied = |o: &&Operation| {
        let text = o.request.text().filter(|text| !maybe.contains(text));
        let traces = |text| stored.contains(text) || accepted.contains(text) && !refused.contains(text);
        o.without_effect() && text.is_some_and(traces)
    };
    none(history.iter().filter(lied), "said to have no effect, and some disk had it")?;
    let maybe: BTreeSet<u64> =
        history.iter().filter(|o| !o.without_effect()).filter_map(|o| o.request.touches()).collect();
    let touched: BTreeSet<u64> = seen.values().filter_map(|held| held.ttl).collect();
    let lied = |o: &&Operation| {
        let ttl = o.request.touches().filter(|ttl| !maybe.contains(ttl));
        o.without_effect() && ttl.is_some_and(|ttl| touched.contains(&ttl))
    };
    none(history.iter().filter(lied), "a touch that was said to have no effect, and some disk had it")
}

/// Nothing is read that nobody had begun to write.
fn reads_are_of_writes(history: &[Operation]) -> Verdict {
    let mut began: BTreeMap<&str, u64> = BTreeMap::new();
    for o in history {
        if let Some(text) = o.request.text() {
            let first = began.entry(text).or_insert(o.began);
            *first = o.began.min(*first);
        }
    }
    let odd = |o: &&Operation| match &o.told {
        Told::Found { text: Some(text), .. } => began.get(text.as_str()).is_none_or(|began| *began > o.ended),
        _ => false,
    };
    none(history.iter().filter(odd), "read what nobody wrote")
}
