//! Values with an end: by the clock of the node that answers, once for all, and with one tombstone everywhere.
//!
//! That what has ended does not come back is, for strict requests, among what `order` and `linear` look at: the tombstone
//! has a version of its own, above the value's.

use a3::types::{Key, Version, majority};

use super::events::Event;
use super::{Verdict, none};
use crate::history::{Operation, Told};
use crate::world::World;

pub(super) fn all(world: &World, history: &[Operation]) -> Verdict {
    tombstones_are_those_of_their_values(world)?;
    told_ends_are_of_values(world, history)?;
    a_node_does_not_tell_what_it_told_to_have_ended(history)?;
    told_before_their_time_was_up(world, history)
}

/// The value that ended, of the version of its tombstone.
fn value_of(end: Version) -> Version {
    Version { rmw: end.rmw & !1, ..end }
}

/// Whoever writes the tombstone of an end, and whenever, writes the same.
fn tombstones_are_those_of_their_values(world: &World) -> Verdict {
    let ends = world.witness.ends();
    for ((key, version), end) in world.witness.records().iter().filter(|((_, version), _)| version.is_end()) {
        if !ends.contains(&(key.clone(), *version, end.checksum)) {
            return Err(format!("not the tombstone of its value: {key:?} {end:?}"));
        }
    }
    Ok(())
}

/// Only of a value that has an end it is told that it has ended; and where that is told
/// strictly a majority of disks has its tombstone by then, or something newer.
fn told_ends_are_of_values(world: &World, history: &[Operation]) -> Verdict {
    let ends = world.witness.ends();
    for o in history {
        let Some(end) = ended(o) else { continue };
        if !ends.iter().any(|(key, version, _)| (key, *version) == (o.key(), end)) {
            return Err(format!("told to have ended, and never had an end: {o}"));
        }
        let (needed, disks) = (majority(world.replicas(o.key())), o.disks);
        if !world.changes() && o.strict_read().is_some() && disks + world.forgiven(o) < needed {
            return Err(format!("told to have ended, and {disks} disks had its tombstone, not {needed}: {o}"));
        }
    }
    Ok(())
}

fn ended(o: &Operation) -> Option<Version> {
    if let Told::Found { version, .. } = &o.told { version.filter(Version::is_end) } else { None }
}

fn read(o: &Operation) -> Option<Version> {
    if let Told::Found { version, .. } = &o.told { *version } else { None }
}

/// Not at any level, though its clock be set back; in its next life it may.
fn a_node_does_not_tell_what_it_told_to_have_ended(history: &[Operation]) -> Verdict {
    for (at, first) in history.iter().enumerate() {
        let Some(end) = ended(first) else { continue };
        let value = value_of(end);
        let same = |o: &&Operation| (o.at, o.life, o.key()) == (first.at, first.life, first.key());
        let again = history[at..].iter().filter(same).find(|o| o.began > first.ended && read(o) == Some(value));
        if let Some(again) = again {
            return Err(format!("a node told what it had told to have ended:\n  {first}\n  {again}"));
        }
    }
    Ok(())
}

/// Where the wall clock of a node had come to a value's end when it was asked, that node does not tell the value. Not asked
/// where clocks are off by more than is allowed, nor of one that was set back meanwhile, nor of a node that did not serve:
/// it does not trust its clock yet.
fn told_before_their_time_was_up(world: &World, history: &[Operation]) -> Verdict {
    if !world.clocks_are_near() {
        return Ok(());
    }
    let records = world.witness.records();
    let late = |o: &&Operation| {
        let found = read(o).and_then(|version| records.get(&(o.key().clone(), version)));
        let [asked_ms, told_ms] = o.wall_ms;
        o.served && told_ms >= asked_ms && found.and_then(|r| r.expires_at_ms()).is_some_and(|at| at <= asked_ms)
    };
    none(history.iter().filter(late), "told though its time was up")
}

/// A strict read at quorum or `all` may tell an end while a conditional write upon the value is under way, and that may
/// still be done. Nothing that begins later is built upon the value.
pub(super) fn nothing_is_built_on_what_ended(events: &[Event<'_>]) -> Verdict {
    for told in events.iter().map(|e| e.operation) {
        let Some(end) = ended(told).filter(|_| told.strict_read().is_some()) else { continue };
        let builds = |o: &Operation| {
            let upon: Option<(&Key, Version)> = o.receipt().filter(|r| !r.created).map(|r| (o.key(), r.version));
            o.request.terms.is_some() && end.conditional().is_some_and(|next| upon == Some((told.key(), next)))
        };
        if let Some(later) = events.iter().find(|e| e.began > told.ended && builds(e.operation)) {
            return Err(format!("built upon a value that was told to have ended:\n  {told}\n  {}", later.operation));
        }
    }
    Ok(())
}
