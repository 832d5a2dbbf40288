//! What must hold of a run, whatever befell it. Each check answers with the first thing that is wrong.
//!
//! - [`contents`]: versions and values are functions of each other, and what was not applied is nowhere.
//! - [`disks`]: what was acknowledged is on as many disks as was said, and stays; healed copies are equal.
//! - [`order`]: versions follow real time; conditional writes build on what their condition names.
//! - [`ends`]: values end by the clock, once for all, and leave one tombstone everywhere.
//! - [`repeats`]: a request under an `Idempotency-Key` is carried out once, and always told the same.
//! - [`linear`]: each key has a linear history.
//! - [`listing`]: lists have what was there.
//! - [`watch`]: watches tell what was written.
//!
//! Not checked, as nothing promises it: what reads at `one` find.

mod contents;
mod disks;
mod ends;
mod events;
mod linear;
mod listing;
mod order;
mod repeats;
mod watch;

use crate::history::{Operation, Told};
use crate::world::World;

type Verdict = Result<(), String>;

/// Of a world that was healed.
pub(crate) async fn all(world: &World) -> Verdict {
    let history = world.history.operations();
    none(history.iter().filter(|o| matches!(o.told, Told::Stuck)), "never ended")?;
    world.broken.lock().first().map_or(Ok(()), |broken| Err(broken.clone()))?;
    contents::all(world, &history)?;
    disks::receipts_count_disks(world, &history)?;
    disks::acknowledged_is_kept(world, &history)?;
    disks::sums_are_of_rows(world)?;
    repeats::all(world, &history)?;
    ends::all(world, &history)?;
    let events = events::of(&history);
    order::all(&history, &events)?;
    ends::nothing_is_built_on_what_ended(&events)?;
    listing::all(world, &events)?;
    watch::misses_nothing(world, &events)?;
    linear::all(world, &events)?;
    for key in world.keys() {
        disks::reading_settles(world, key).await?;
    }
    Ok(())
}

fn none<'a>(mut found: impl Iterator<Item = &'a Operation>, what: &str) -> Verdict {
    found.next().map_or(Ok(()), |operation| Err(format!("{what}: {operation}")))
}
