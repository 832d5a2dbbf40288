//! What must hold of a run, whatever befell it. Each check answers with the first thing that is wrong.
//!
//! Not checked, as nothing promises it: that all copies are equal (a write without an acknowledgement may be left on a
//! minority until it is read; there is no anti-entropy yet), and reads at `one`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use a3::node::request::Outcome;
use a3::types::{Key, Level, NodeNum, Version, majority};
use tokio::time::sleep;

use crate::clients::operation;
use crate::history::{Ask, Operation, Told};
use crate::world::World;

type Verdict = Result<(), String>;

/// Of a world that was healed.
pub(crate) async fn all(world: &World) -> Verdict {
    let history = world.history.operations();
    every_request_ended(&history)?;
    world.broken.lock().first().map_or(Ok(()), |broken| Err(broken.clone()))?;
    versions_and_contents_match(world, &history)?;
    not_applied_is_nowhere(world, &history)?;
    receipts_count_disks(world, &history)?;
    strict_writes_are_ordered(&history)?;
    strict_reads_see_strict_writes(&history)?;
    what_is_settled_is_seen(&history)?;
    reads_are_of_writes(&history)?;
    let copies: BTreeMap<&Key, Vec<Option<Version>>> = world.keys.iter().map(|k| (k, world.copies(k))).collect();
    for write in history.iter().filter(|o| o.ask != Ask::Get) {
        acknowledged_is_kept(world, write, &copies[&write.key])?;
    }
    for (key, copies) in &copies {
        reading_settles(world, key, copies).await?;
    }
    Ok(())
}

fn every_request_ended(history: &[Operation]) -> Verdict {
    none(history.iter().filter(|o| matches!(o.told, Told::Stuck)), "never ended")
}

/// No version with two contents anywhere, receipts and reads agree with the disks, and no write has more than the two
/// stamps that it may have.
fn versions_and_contents_match(world: &World, history: &[Operation]) -> Verdict {
    if let Some(conflict) = world.witness.conflicts().first() {
        return Err(conflict.clone());
    }
    let seen = world.witness.seen();
    for o in history {
        let said = match &o.told {
            Told::Wrote(receipt) => o.content().map(|content| (receipt.version, content)),
            Told::Found { version: Some(version), text, .. } => Some((*version, text.clone())),
            _ => None,
        };
        let Some((version, content)) = said else { continue };
        // A write that was superseded everywhere before it came is acknowledged, and on no disk.
        let never = o.receipt().is_some();
        if seen.get(&(o.key.clone(), version)).map_or(!never, |held| *held != content) {
            return Err(format!("a version that no disk ever held with this content: {o}"));
        }
    }
    let mut stamps: BTreeMap<&str, BTreeSet<Version>> = BTreeMap::new();
    for ((_, version), text) in &seen {
        if let Some(text) = text {
            stamps.entry(text).or_default().insert(*version);
        }
    }
    match stamps.iter().find(|(_, versions)| versions.len() > 2) {
        Some((text, versions)) => Err(format!("{text} was stamped more than twice: {versions:?}")),
        None => Ok(()),
    }
}

/// Of values: nothing tells one tombstone from another.
fn not_applied_is_nowhere(world: &World, history: &[Operation]) -> Verdict {
    let seen: BTreeSet<Option<String>> = world.witness.seen().into_values().collect();
    let lied = |o: &&Operation| {
        let value = o.content().filter(Option::is_some);
        o.outcome() == Some(Outcome::NotApplied) && value.is_some_and(|v| seen.contains(&v))
    };
    none(history.iter().filter(lied), "said not_applied, and some disk had it")
}

/// A receipt names as many disks as its level asks for, none of them twice, and so many had it.
fn receipts_count_disks(world: &World, history: &[Operation]) -> Verdict {
    for o in history {
        let Some(receipt) = o.receipt() else { continue };
        let needed = o.level.needed(world.copies(&o.key).len());
        let holders = receipt.hinted.iter().map(|(_, holder)| holder);
        let named: BTreeSet<&NodeNum> = receipt.acked.iter().chain(holders).collect();
        if named.len() < needed || o.disks < needed {
            let (named, disks) = (named.len(), o.disks);
            return Err(format!("{needed} disks are needed, {named} are named, {disks} had it: {o}"));
        }
    }
    Ok(())
}

/// What a majority of home replicas had on disk before a strict request began, a read sees and a write supersedes.
fn what_is_settled_is_seen(history: &[Operation]) -> Verdict {
    for later in history {
        let least = |settled: Option<Version>| match &later.told {
            Told::Found { version, strict: true, .. } if later.level != Level::One => *version >= settled,
            _ => later.strict_write().is_none_or(|version| Some(version) > settled),
        };
        if let Some(earlier) = history.iter().find(|o| before(o, later) && !least(o.settled)) {
            let settled = earlier.settled;
            return Err(format!("{settled:?} was on a majority of home replicas after\n  {earlier}\n  before {later}"));
        }
    }
    Ok(())
}

/// A strict write supersedes every strict write that was acknowledged before it began.
fn strict_writes_are_ordered(history: &[Operation]) -> Verdict {
    for later in history {
        let Some(version) = later.strict_write() else { continue };
        let lost = history.iter().find(|o| before(o, later) && o.strict_write().is_some_and(|v| v >= version));
        if let Some(earlier) = lost {
            return Err(format!("acknowledged and yet superseded by the write before it:\n  {earlier}\n  {later}"));
        }
    }
    Ok(())
}

/// A strict read at quorum or above returns no version below a strict write acknowledged before it began.
fn strict_reads_see_strict_writes(history: &[Operation]) -> Verdict {
    for read in history.iter().filter(|o| o.level != Level::One) {
        let Told::Found { version, strict: true, .. } = read.told else { continue };
        let missed = history.iter().find(|o| before(o, read) && o.strict_write().is_some_and(|v| Some(v) > version));
        if let Some(write) = missed {
            return Err(format!("a strict read missed a strict write:\n  {write}\n  {read}"));
        }
    }
    Ok(())
}

/// Nothing is read that nobody had begun to write.
fn reads_are_of_writes(history: &[Operation]) -> Verdict {
    let writers: BTreeMap<(&Key, &str), &Operation> = history
        .iter()
        .filter_map(|o| if let Ask::Put(text) = &o.ask { Some(((&o.key, text.as_str()), o)) } else { None })
        .collect();
    let odd = |o: &&Operation| match &o.told {
        Told::Found { text: Some(text), .. } => {
            writers.get(&(&o.key, text.as_str())).is_none_or(|write| write.began > o.ended)
        }
        _ => false,
    };
    none(history.iter().filter(odd), "read what nobody wrote")
}

/// An acknowledged write, or something newer, is on a majority of home replicas; at `one`, on some home replica; at
/// `all`, on each.
fn acknowledged_is_kept(world: &World, write: &Operation, copies: &[Option<Version>]) -> Verdict {
    let (version, needed) = match (&write.told, write.outcome()) {
        (Told::Wrote(receipt), _) => (receipt.version, write.level.needed(copies.len())),
        (_, Some(Outcome::Applied)) => {
            let content = write.content();
            let stamps = world.witness.seen().into_iter().filter(|((key, _), _)| *key == write.key);
            // Of a tombstone the stamp is not known.
            let stamp =
                stamps.filter(|(_, text)| text.is_some() && Some(text) == content.as_ref()).map(|((_, v), _)| v);
            let Some(stamp) = stamp.min() else { return Ok(()) };
            (stamp, majority(copies.len()))
        }
        _ => return Ok(()),
    };
    let kept = copies.iter().filter(|copy| **copy >= Some(version)).count();
    if kept < needed {
        return Err(format!("acknowledged and lost: on {kept} of {needed} disks, which hold {copies:?}\n  {write}"));
    }
    Ok(())
}

/// A read at `all` returns the newest version there is, and leaves it on every home replica.
async fn reading_settles(world: &World, key: &Key, before: &[Option<Version>]) -> Verdict {
    let newest = before.iter().max().copied().flatten();
    let told = operation(world, usize::MAX, 0, key.clone(), Level::All, Ask::Get).await;
    let Told::Found { version, .. } = told else { return Err(format!("no read at all after healing: {key:?}")) };
    if version != newest {
        return Err(format!("a read at all of {key:?} found {version:?}, and the disks hold {before:?}"));
    }
    // A majority has it when the read is answered, the others soon after.
    sleep(Duration::from_secs(1)).await;
    let after = world.copies(key);
    if after.iter().any(|copy| *copy != newest) {
        return Err(format!("a read at all of {key:?} left the disks with {after:?}"));
    }
    Ok(())
}

/// In real time: told of before the other began.
fn before(earlier: &Operation, later: &Operation) -> bool {
    earlier.key == later.key && earlier.ended < later.began
}

fn none<'a>(mut found: impl Iterator<Item = &'a Operation>, what: &str) -> Verdict {
    found.next().map_or(Ok(()), |operation| Err(format!("{what}: {operation}")))
}
