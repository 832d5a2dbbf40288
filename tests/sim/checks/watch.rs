//! What a watch told: of every write that began after it and was acknowledged, that version or a later one.

use super::Verdict;
use super::events::Event;
use crate::world::World;

pub(super) fn misses_nothing(world: &World, events: &[Event<'_>]) -> Verdict {
    let Some(seen) = world.seen.lock().clone() else { return Ok(()) };
    let held = world.witness.seen();
    if let Some((key, version)) =
        seen.told.iter().find(|(key, version)| !held.contains_key(&((*key).clone(), **version)))
    {
        return Err(format!("a watch told {version:?} of {key:?}, which no disk ever held"));
    }
    for event in events.iter().filter(|event| event.began > seen.began) {
        let Some(receipt) = event.operation.receipt() else { continue };
        // Where a disk was lost, what fewer than a majority held may be gone with it.
        if !receipt.strict && world.wiped().is_some() {
            continue;
        }
        let told = seen.told.get(event.operation.key());
        if told < Some(&receipt.version) {
            let key = event.operation.key();
            return Err(format!(
                "{key:?}: a watch told {told:?} at last, and not what was written:\n  {}",
                event.operation
            ));
        }
    }
    Ok(())
}
