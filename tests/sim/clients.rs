//! The clients: each asks one thing after the other, of any node, and remembers what it was told.

use std::sync::Arc;
use std::time::Duration;

use a3::node::Node;
use a3::node::request::{Get, NewContent, Put};
use a3::ports::{Entropy, Spawn};
use a3::types::{Key, Level};
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::history::{Ask, Operation, Told};
use crate::machine::Seeded;
use crate::world::World;

const TIMEOUT: Duration = Duration::from_secs(1);
/// A node that lives answers at its deadline; this is more than a step later.
const SLACK: Duration = Duration::from_millis(500);

/// One client's work. It ends when the time is up.
pub(crate) async fn client(world: Arc<World>, number: usize, until: Instant) {
    let random = Seeded::new(world.seed, 10 + number as u64);
    let pause_ms = *random.pick(&[50, 200, 600]);
    let mut count = 0;
    while Instant::now() < until {
        count += 1;
        let ask = match random.below(10) {
            0..5 => Ask::Put(format!("c{number}-{count}")),
            5..9 => Ask::Get,
            _ => Ask::Delete,
        };
        let level = match random.below(10) {
            0 => Level::One,
            1 => Level::All,
            _ => Level::Quorum,
        };
        let at = random.below(world.places.len() as u64) as usize;
        let key = random.pick(&world.keys).clone();
        operation(&world, number, at, key, level, ask).await;
        sleep(Duration::from_millis(random.between(1, pause_ms))).await;
    }
}

/// One request, from asking to being told.
pub(crate) async fn operation(world: &World, client: usize, at: usize, key: Key, level: Level, ask: Ask) -> Told {
    let place = &world.places[at];
    let number = place.number;
    let Some((node, life)) = place.node() else { return Told::Died };
    let began = world.history.tick();
    world.trace.note(format_args!("client {client} asks {number}: {ask:?} {key:?} {level}"));
    let (tell, told) = oneshot::channel();
    let work = perform(node, key.clone(), level, ask.clone());
    life.spawn(async move { drop(tell.send(work.await)) }.boxed());
    let told = match timeout(TIMEOUT + SLACK, told).await {
        Ok(Ok(told)) => told,
        Ok(Err(_)) => Told::Died,
        Err(_) => Told::Stuck,
    };
    // An answer that a dying node sent is not seen.
    let told = if life.is_alive() { told } else { Told::Died };
    let ended = world.history.tick();
    let settled = world.settled(&key);
    let mut disks = 0;
    if let Told::Wrote(receipt) = &told {
        disks = world.disks_with(&key, receipt.version);
        world.promise(&receipt.acked, &key, receipt.version);
    }
    let operation =
        Operation { client, node: number, key, level, ask, began, ended, told: told.clone(), settled, disks };
    world.trace.note(&operation);
    world.history.ended(operation);
    told
}

async fn perform(node: Arc<Node>, key: Key, level: Level, ask: Ask) -> Told {
    let deadline = Instant::now() + TIMEOUT;
    let content = match ask {
        Ask::Get => {
            let found = node.get(Get { key, level, deadline, every_copy: false }).await;
            return found.map_or_else(Told::Failed, |found| Told::found(&found));
        }
        Ask::Put(text) => NewContent::Value { bytes: text.into(), content_type: None },
        Ask::Delete => NewContent::Tombstone,
    };
    node.put(Put { key, content, level, deadline }).await.map_or_else(Told::Failed, Told::Wrote)
}
