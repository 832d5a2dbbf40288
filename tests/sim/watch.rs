//! A client that watches: all keys, at one node after the other, each time from where the watch before it stood.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use a3::node::watch::{Cursor, Gone, NoWatch, Watching};
use a3::ports::Entropy;
use a3::types::{Key, Version, Watched};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::machine::{Life, Seeded};
use crate::world::World;

/// How long a watch may take to begin.
const TIMEOUT: Duration = Duration::from_secs(1);
/// What a healed world needs until every change was told: a member that restarted covers again some seconds later.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(20);

/// What was told since a watch began without a cursor.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Its place in the order of events.
    pub(crate) began: u64,
    /// The greatest version of each key.
    pub(crate) told: BTreeMap<Key, Version>,
    cursor: Cursor,
}

/// Whether there is one in the world of that seed: drawn apart, so that the others are as they would be without.
pub(crate) fn is_in(seed: u64) -> bool {
    Seeded::new(seed, 6).below(8) == 0
}

/// Watches until the world ends.
pub(crate) async fn client(world: Arc<World>) {
    let random = Seeded::new(world.seed, 7);
    loop {
        let place = &world.places[random.below(world.places.len() as u64) as usize];
        if let Some((node, life)) = place.node() {
            let cursor = world.seen.lock().as_ref().map(|seen| seen.cursor.clone());
            let watched = Watched::Prefix(Bytes::new());
            let begun = node.watch(watched, cursor.as_ref(), Instant::now() + TIMEOUT).await;
            let word = match begun {
                _ if !life.is_alive() => "died",
                Ok(watching) => {
                    world.trace.note(format_args!("a watch begins at {}, from {cursor:?}", place.socket));
                    follow(&world, watching, &life, &random).await
                }
                Err(NoWatch::Gone(gone)) => has_gone(&world, gone),
                Err(NoWatch::Failed { kind, slots, failed }) => {
                    let (many, at) = (slots.count(), place.socket);
                    world
                        .trace
                        .note(format_args!("no watch at {at}, {kind}: {many} slots, {failed:?}, from {cursor:?}"));
                    "not begun"
                }
            };
            world.history.count(&format!("watch: {word}"));
        }
        sleep(Duration::from_millis(random.between(20, 1_000))).await;
    }
}

/// Follows a watch until it is moved, or its node dies.
async fn follow(world: &World, mut watching: Watching, life: &Life, random: &Seeded) -> &'static str {
    let began = world.tick();
    let mut looks = random.between(2, 30);
    let mut until = Instant::now();
    loop {
        let news = watching.next(until).await;
        if !life.is_alive() {
            // What a dying node told is not seen.
            return "died";
        }
        let news = match news {
            Ok(news) => news,
            Err(gone) => return has_gone(world, gone),
        };
        {
            let mut seen = world.seen.lock();
            let first = || Seen { began, told: BTreeMap::new(), cursor: news.cursor.clone() };
            let seen = seen.get_or_insert_with(first);
            seen.cursor = news.cursor.clone();
            for change in &news.changes {
                world.trace.note(format_args!("a watch tells {:?} {:?}", change.key, change.version));
                let last = seen.told.entry(change.key.clone()).or_default();
                *last = change.version.max(*last);
            }
        }
        if !news.changes.is_empty() {
            world.history.count("watch: told");
        }
        looks -= 1;
        if looks == 0 {
            return "moved";
        }
        if random.per_mille(50) {
            // A slow reader.
            sleep(Duration::from_millis(random.between(500, 7_000))).await;
        }
        until = Instant::now() + Duration::from_millis(random.between(10, 1_500));
    }
}

/// It may have missed something: the next one begins anew.
fn has_gone(world: &World, gone: Gone) -> &'static str {
    world.trace.note(format_args!("a watch has gone: {gone}"));
    *world.seen.lock() = None;
    match gone {
        Gone::Forgotten(_) => "forgotten",
        Gone::Epoch { .. } | Gone::Foreign => "another epoch",
    }
}
