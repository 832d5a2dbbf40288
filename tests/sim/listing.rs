//! A client that lists: all keys, page by page, at one node.

use std::sync::Arc;
use std::time::Duration;

use a3::node::Node;
use a3::node::listing::{ListingFailure, Question};
use a3::ports::{Entropy, Spawn};
use a3::types::{Key, Version};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::machine::Seeded;
use crate::world::World;

const TIMEOUT: Duration = Duration::from_secs(1);
/// Pages of a list, each with a time-out of its own.
const PAGES: usize = 5;

/// A list that came to its end.
#[derive(Clone, Debug)]
pub(crate) struct List {
    /// Its place in the order of events.
    pub(crate) began: u64,
    /// No page counted a stand-in.
    pub(crate) strict: bool,
    /// In the order in which they were told.
    pub(crate) told: Vec<(Key, Option<Version>)>,
}

/// Whether there is one in the world of that seed: drawn apart, so that the others are as they would be without.
pub(crate) fn is_in(seed: u64) -> bool {
    Seeded::new(seed, 4).below(8) == 0
}

/// Lists until the time is up, at whichever node.
pub(crate) async fn client(world: Arc<World>, until: Instant) {
    let random = Seeded::new(world.seed, 5);
    while Instant::now() < until {
        sleep(Duration::from_millis(random.between(50, 1_500))).await;
        let at = random.below(world.places.len() as u64) as usize;
        let limit = random.between(1, 3) as usize;
        list(&world, at, limit).await;
    }
}

async fn list(world: &World, at: usize, limit: usize) {
    let place = &world.places[at];
    let Some((node, life)) = place.node() else { return };
    let began = world.tick();
    world.trace.note(format_args!("a client lists at {}, {limit} keys a page", place.socket));
    let (tell, told) = oneshot::channel();
    let work = pages(node, limit);
    life.spawn(async move { drop(tell.send(work.await)) }.boxed());
    let told = timeout(TIMEOUT * PAGES as u32 + Duration::from_millis(500), told).await;
    let Ok(told) = told else {
        return world.broken.lock().push(format!("a list at {} never ended", place.socket));
    };
    let word = match told.map_err(drop).map(|told| told.map_err(|failure| failure.kind)) {
        // An answer that a dying node sent is not seen.
        _ if !life.is_alive() => "died",
        Err(()) => "died",
        Ok(Err(_)) => "not listed",
        Ok(Ok((told, strict))) => {
            let list = List { began, strict, told };
            world.trace.note(format_args!("{} listed: {list:?}", place.socket));
            world.lists.lock().push(list);
            if strict { "listed" } else { "listed, not strict" }
        }
    };
    world.history.count(&format!("list: {word}"));
}

type Told = (Vec<(Key, Option<Version>)>, bool);

async fn pages(node: Arc<Node>, limit: usize) -> Result<Told, ListingFailure> {
    let (mut told, mut strict, mut from) = (Vec::new(), true, Bytes::new());
    for _ in 0..PAGES {
        let question = Question {
            prefix: Bytes::new(),
            delimiter: Bytes::new(),
            from: from.clone(),
            limit,
            values: false,
            partial: false,
        };
        let page = node.list(question, Instant::now() + TIMEOUT).await?;
        strict &= page.strict;
        told.extend(page.items.into_iter().map(|item| (item.key, item.outline.map(|outline| outline.version))));
        let Some(next) = page.next else { return Ok((told, strict)) };
        from = next;
    }
    // Many short pages: what was listed is no whole list.
    Err(ListingFailure {
        kind: a3::node::request::FailureKind::TimedOut,
        slots: a3::types::SlotSet::NONE,
        failed: Vec::new(),
    })
}
