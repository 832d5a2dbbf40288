//! Versions are totally ordered, so real time can be held against them: cheap, and stricter than [`super::linear`].
//!
//! What a strict request proved to be there before another began, that one sees, or supersedes. A strict request is a
//! linearizable or conditional one, a read that counted home replicas alone, or a write that a majority of them
//! acknowledged.

use std::collections::BTreeMap;

use a3::types::{Key, Version};

use super::Verdict;
use super::events::Event;
use crate::history::{Operation, Wish};

pub(super) fn all(history: &[Operation], events: &[Event<'_>]) -> Verdict {
    sessions_go_forward(history)?;
    real_time_is_kept(events)?;
    what_is_settled_is_seen(events)?;
    conditions_name_the_base(events)?;
    no_version_is_given_twice(events)
}

/// A version that is proved to be there when it ended.
pub(super) fn proves(o: &Operation) -> Option<Version> {
    o.strict_write().or_else(|| o.strict_read().flatten()).or_else(|| o.met().flatten())
}

/// Whether it may come after that version was there.
fn may_follow(o: &Operation, version: Version) -> bool {
    match (o.strict_write(), o.strict_read(), o.met()) {
        (Some(written), _, _) => written > version,
        (_, Some(found), _) => found >= Some(version),
        // Of which tombstone a condition was false is not said.
        (_, _, Some(Some(met))) => met >= version,
        _ => true,
    }
}

/// The next read of a client is not behind what it read or wrote before.
fn sessions_go_forward(history: &[Operation]) -> Verdict {
    let mut last: BTreeMap<(usize, &Key), (Version, &Operation)> = BTreeMap::new();
    for o in history {
        let session = (o.client, o.key());
        if let (Some(found), Some((version, before))) = (o.strict_read(), last.get(&session))
            && found < Some(*version)
        {
            return Err(format!("a client read what it had left behind:\n  {before}\n  {o}"));
        }
        // A write that was repeated is told its old version.
        if let Some(version) = proves(o).filter(|v| last.get(&session).is_none_or(|(before, _)| v > before)) {
            last.insert(session, (version, o));
        }
    }
    Ok(())
}

fn real_time_is_kept(events: &[Event<'_>]) -> Verdict {
    for later in events {
        let earlier = events.iter().filter(|e| before(e, later.operation, later.began));
        let newest = earlier.filter_map(|e| Some((proves(e.operation)?, e.operation))).max_by_key(|(v, _)| *v);
        if let Some((_, earlier)) = newest.filter(|(version, _)| !may_follow(later.operation, *version)) {
            return Err(format!("not after what was there before it began:\n  {earlier}\n  {}", later.operation));
        }
    }
    Ok(())
}

/// What a majority of home replicas had on disk before a strict request began, it sees or supersedes.
fn what_is_settled_is_seen(events: &[Event<'_>]) -> Verdict {
    for later in events {
        let earlier = events.iter().filter(|e| before(e, later.operation, later.began));
        let newest = earlier.filter_map(|e| Some((e.operation.settled?, e.operation))).max_by_key(|(v, _)| *v);
        if let Some((settled, earlier)) = newest.filter(|(version, _)| !may_follow(later.operation, *version)) {
            let later = later.operation;
            return Err(format!("{settled:?} was on a majority of home replicas after\n  {earlier}\n  before {later}"));
        }
    }
    Ok(())
}

/// A conditional success takes the next even count above exactly the version that its condition names.
fn conditions_name_the_base(events: &[Event<'_>]) -> Verdict {
    for o in events.iter().map(|e| e.operation) {
        let (Some(receipt), Some(terms)) = (o.receipt(), &o.request.terms) else { continue };
        let right = match terms.wish {
            Wish::Match(base) => base.conditional() == Some(receipt.version) && !receipt.created,
            Wish::Some => !receipt.created,
            Wish::None => receipt.created,
            Wish::Nothing => true,
        };
        let right = right && !(o.request.touches().is_some() && receipt.created);
        if !right || receipt.version.rmw == 0 || !receipt.version.rmw.is_multiple_of(2) {
            return Err(format!("a conditional write that is not above its condition's version: {o}"));
        }
    }
    Ok(())
}

/// So no two conditional writes succeed on one base.
fn no_version_is_given_twice(events: &[Event<'_>]) -> Verdict {
    let mut given: BTreeMap<(&Key, Version), &Operation> = BTreeMap::new();
    for o in events.iter().map(|e| e.operation) {
        let Some(receipt) = o.receipt() else { continue };
        if let Some(other) = given.insert((o.key(), receipt.version), o) {
            return Err(format!("two writes were told one version:\n  {other}\n  {o}"));
        }
    }
    Ok(())
}

/// In real time: told of before the other began.
fn before(earlier: &Event<'_>, later: &Operation, began: u64) -> bool {
    earlier.operation.key() == later.key() && earlier.ended < began
}
