//! The simulator: whole clusters in one thread and in virtual time. The nodes are the real ones; their disks, clocks,
//! network and randomness are simulated, and a seed decides everything, so that a failure replays.
//!
//! One seed is one run: a cluster is founded, clients read and write while nodes crash, hang, are cut off and have
//! their clocks set; then all of it is healed and checked (`checks`).
//!
//! `SIM_SEEDS=first..last` runs other seeds than the usual ones (the last is not run).
//!
//! Not simulated: the SQL engine, the mesh's streams and batches, HTTP, wiped or full disks, changes of the topology.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checks;
mod clients;
mod disk;
mod history;
mod machine;
mod network;
mod world;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use a3::ports::Spawn;
use futures_util::FutureExt;
use tokio::time::{Instant, sleep, sleep_until};

use world::World;

/// What `cargo test` runs.
const SEEDS: Range<u64> = 0..200;
/// How long clients and faults are at work, virtual seconds.
const STORM: Range<u64> = 2..7;
/// Lines of the trace that a failure shows.
const SHOWN: usize = 120;

struct Run {
    verdict: Result<(), String>,
    trace: Vec<String>,
}

/// One seed, from nothing to the checks.
fn run(seed: u64) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::new(seed);
        let verdict = live(&world).await;
        world.close();
        Run { verdict, trace: world.trace.lines() }
    })
}

async fn live(world: &Arc<World>) -> Result<(), String> {
    world.found().await?;
    let until = Instant::now() + Duration::from_secs(world.random.between(STORM.start, STORM.end));
    world.life.spawn(world::faults(world.clone(), until).boxed());
    for number in 0..world.random.between(2, 4) as usize {
        world.life.spawn(clients::client(world.clone(), number, until).boxed());
    }
    sleep_until(until).await;
    // The requests under way, and nodes that start again.
    sleep(Duration::from_secs(2)).await;
    world.heal().await?;
    checks::all(world).await
}

/// `SIM_SEEDS`, or the usual ones.
fn seeds() -> Range<u64> {
    let Ok(wanted) = std::env::var("SIM_SEEDS") else { return SEEDS };
    let parsed = wanted.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("SIM_SEEDS={wanted} is not like 0..200"))
}

/// The last events that concern the key a verdict names, or all.
fn transcript(trace: &[String], why: &str) -> String {
    let key = why.find("Key(").and_then(|at| why[at..].split_inclusive(')').next());
    let concerns = |line: &&String| key.is_none_or(|key| line.contains(key) || !line.contains("Key("));
    let mut last: Vec<&str> = trace.iter().rev().filter(concerns).take(SHOWN).map(String::as_str).collect();
    last.reverse();
    last.join("\n")
}

#[test]
fn a_seed_replays() {
    for seed in [1, 2, 3] {
        let (once, again) = (run(seed).trace, run(seed).trace);
        assert!(once.len() > 100, "{once:#?}");
        let differs = once.iter().zip(&again).position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!("seed {seed} went another way at line {at}:\n{}\n{}", once[..=at].join("\n"), again[at]);
        }
        assert_eq!(once.len(), again.len());
    }
}

#[test]
fn every_seed_holds() {
    for seed in seeds() {
        let Run { verdict, trace } = run(seed);
        if let Err(why) = verdict {
            let last = transcript(&trace, &why);
            let replay = format!("SIM_SEEDS={seed}..{} cargo test --test sim every_seed_holds", seed + 1);
            panic!("{last}\n\nseed {seed}: {why}\n\nreplay it: {replay}");
        }
    }
}
