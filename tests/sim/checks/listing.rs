//! What a strict list has: every key that was proved to be there before it began, with at least that version, unless something
//! was written since that takes it away; and nothing that never was.

use super::Verdict;
use super::events::Event;
use super::order::proves;
use crate::listing::List;
use crate::world::World;

pub(super) fn all(world: &World, events: &[Event<'_>]) -> Verdict {
    let lists = world.lists.lock().clone();
    lists.iter().try_for_each(|list| one(world, events, list))
}

fn one(world: &World, events: &[Event<'_>], list: &List) -> Verdict {
    if !list.told.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Err(format!("a list's keys out of order, or one twice: {list:?}"));
    }
    let seen = world.witness.seen();
    for (key, version) in &list.told {
        let version = version.ok_or_else(|| format!("memory is not damaged: {list:?}"))?;
        if seen.get(&(key.clone(), version)).is_none_or(|held| held.text.is_none()) {
            return Err(format!("{key:?} was listed with {version:?}, which is no value: {list:?}"));
        }
    }
    if !list.strict {
        return Ok(());
    }
    for key in world.keys() {
        let told = list.told.iter().find(|(k, _)| k == key).and_then(|(_, version)| *version);
        let of_key = events.iter().filter(|e| e.operation.key() == key && e.ended < list.began);
        let proved = of_key.filter_map(|e| Some((proves(e.operation)?, e.operation))).max_by_key(|(v, _)| *v);
        let Some((version, operation)) = proved else { continue };
        if let Some(told) = told {
            if told < version {
                return Err(format!(
                    "{key:?} was listed with {told:?}, less than was there before:\n  {operation}\n  {list:?}"
                ));
            }
            continue;
        }
        // What it gave way to, at some time: the run's end is not before the list's.
        let newer = seen.range((key.clone(), version)..).take_while(|((k, _), _)| k == key);
        let took_away = newer.clone().any(|(_, held)| held.text.is_none() || held.ttl.is_some());
        if !took_away && newer.count() > 0 {
            return Err(format!("{key:?} was not listed, and was there before:\n  {operation}\n  {list:?}"));
        }
    }
    Ok(())
}
