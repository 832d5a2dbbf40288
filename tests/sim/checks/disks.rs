//! What clients were told is held against the disks.
//!
//! A wiped disk took with it what it alone held: of each acknowledgement one copy less is owed then.

use std::collections::BTreeSet;
use std::time::Duration;

use a3::node::request::{Get, Outcome};
use a3::types::{Key, Level, NodeNum, Version, majority};
use tokio::time::{Instant, sleep};

use super::Verdict;
use crate::history::{Ask, Operation, Told};
use crate::world::World;

/// Reads before all copies were heard once.
const TRIES: usize = 10;

fn lost(world: &World) -> usize {
    usize::from(world.wiped().is_some())
}

/// A receipt names as many disks as its level asks for, none of them twice, and so many had it.
pub(super) fn receipts_count_disks(world: &World, history: &[Operation]) -> Verdict {
    for o in history {
        let Some(receipt) = o.receipt() else { continue };
        // Where the number of copies changes nobody knows here how many it were then.
        let replicas = if world.changes() { 1 } else { world.replicas(o.key()) };
        let needed = o.request.level.needed(replicas);
        let holders = receipt.hinted.iter().map(|(_, holder)| holder);
        let named: BTreeSet<&NodeNum> = receipt.acked.iter().chain(holders).collect();
        if o.request.level == Level::One && world.predecessor.is_some() {
            // Its own disk is enough for one that does not know yet that it has been replaced.
            continue;
        }
        if named.len() < needed || o.disks + world.forgiven(o) < needed {
            let (named, disks) = (named.len(), o.disks);
            return Err(format!("{needed} disks are needed, {named} are named, {disks} had it: {o}"));
        }
    }
    Ok(())
}

/// An acknowledged write, or something newer, is on a majority of home replicas; at `one`, on some home replica; at
/// `all`, on each.
pub(super) fn acknowledged_is_kept(world: &World, history: &[Operation]) -> Verdict {
    for write in history.iter().filter(|o| o.request.ask != Ask::Get) {
        if world.changes() && write.request.level == Level::One {
            // Whoever alone had it may have been out of reach when its slot went to others.
            continue;
        }
        let replicas = world.replicas(write.key());
        let (version, needed) = match (&write.told, write.outcome()) {
            (Told::Wrote(receipt), _) => (receipt.version, write.request.level.needed(replicas)),
            (_, Some(Outcome::Applied)) => match first_stamp(world, write) {
                Some(stamp) => (stamp, majority(replicas)),
                None => continue,
            },
            _ => continue,
        };
        let copies = world.copies(write.key());
        let kept = copies.iter().filter(|copy| **copy >= Some(version)).count();
        if kept + lost(world) < needed {
            let what = "acknowledged and lost";
            return Err(format!("{what}: on {kept} of {needed} disks, which hold {copies:?}\n  {write}"));
        }
    }
    Ok(())
}

/// The least version a value was seen with. Of a tombstone it is not known.
fn first_stamp(world: &World, write: &Operation) -> Option<Version> {
    let text = write.request.text()?;
    let seen = world.witness.seen();
    let of_it = seen.iter().filter(|((key, _), held)| key == write.key() && held.text.as_deref() == Some(text));
    of_it.map(|((_, version), _)| *version).min()
}

/// Copies are compared by sums, so these are those of the rows, on every disk.
pub(super) fn sums_are_of_rows(world: &World) -> Verdict {
    for (place, slot) in world.places.iter().flat_map(|place| world.slots().into_iter().map(move |slot| (place, slot)))
    {
        if !place.disk.sums_are_of_rows(slot) {
            return Err(format!("the sums of {slot} on {} are not those of its rows", place.number));
        }
    }
    Ok(())
}

/// Reads at `all`, until every home replica is heard: one that was silent lately is not asked at once.
async fn read_every_copy(world: &World, key: &Key, copies: usize) -> Result<Option<Version>, String> {
    let Some((node, _)) = world.places.iter().find_map(|p| p.node()) else { return Err("no node is up".into()) };
    let level = Level::All;
    for _ in 0..TRIES {
        let deadline = Instant::now() + Duration::from_secs(1);
        world.trace.note(format_args!("the last read of {key:?}, at {level}"));
        match node.get(Get { key: key.clone(), level, deadline, every_copy: true }).await {
            Ok(found) if found.copies.len() >= copies => {
                let buried = world.witness.buried(key).map(|(version, _)| version);
                return Ok(found.record.map(|r| r.version).or(buried));
            }
            Ok(_) => sleep(Duration::from_secs(1)).await,
            Err(failure) => return Err(format!("no read at {level} after healing: {key:?}: {failure:?}")),
        }
    }
    let held = node.cluster().into_iter().flat_map(|cluster| cluster.members);
    let held: Vec<_> = held.map(|m| (m.node, m.liveness, m.reachable)).collect();
    Err(format!("a home replica of {key:?} is up, and not asked any more by {:?}: {held:?}", node.identity().node))
}

/// A read of every copy returns the newest version there is, and leaves it on every home replica. At `all`, where all
/// are left.
pub(super) async fn reading_settles(world: &World, key: &Key) -> Verdict {
    let before = world.copies(key);
    let newest = before.iter().max().copied().flatten();
    let found = read_every_copy(world, key, before.len()).await?;
    // Its time may be up meanwhile.
    let records = world.witness.records();
    let ends = newest.and_then(|v| records.get(&(key.clone(), v))).and_then(|record| record.expires_at_ms());
    let or_ended =
        |version: Option<Version>| version == newest || ends.is_some() && version == newest.map(|v| v.ended());
    if !or_ended(found) {
        return Err(format!("a read of every copy of {key:?} found {found:?}, and the disks hold {before:?}"));
    }
    // A majority has it when the read is answered, the others soon after.
    sleep(Duration::from_secs(1)).await;
    let after = world.copies(key);
    if after.iter().any(|copy| !or_ended(*copy)) {
        return Err(format!("a read of every copy of {key:?} left the disks with {after:?}"));
    }
    Ok(())
}
