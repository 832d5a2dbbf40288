//! The simulator: whole clusters in one thread and in virtual time. The nodes are the real ones; their disks, clocks,
//! network and randomness are simulated, and a seed decides everything, so that a failure replays.
//!
//! One seed is one run: a cluster is founded, clients read and write while nodes crash, hang, are cut off, lose disks and
//! have their clocks set; then all of it is healed and checked (`checks`). `docs/simulation.md` is its description.
//!
//! `SIM_SEEDS=first..last` runs other seeds than the usual ones (the last is not run). `SIM_ONLY=changes` runs only those in which
//! the topology changes, `SIM_ONLY=succession` those in which a member that lives is given a successor. `SIM_LINES` is how many
//! events are shown of a failure, or of a single seed that holds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changes;
mod checks;
mod clients;
mod disk;
mod faults;
mod history;
mod late;
mod listing;
mod machine;
mod network;
mod successor;
mod watch;
mod world;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use a3::ports::Spawn;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use history::Tally;
use world::World;

/// As in the program: a fifth of the time would go to the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What `cargo test` runs.
const SEEDS: Range<u64> = 0..200;
/// How long clients and faults are at work, virtual seconds.
const STORM: Range<u64> = 2..7;
/// The same where two replicas are rivals, which they come to be after some seconds.
const RIVALS_STORM: Range<u64> = 6..10;
/// The same where the topology changes meanwhile: a change takes a second or more.
const CHANGING_STORM: Range<u64> = 6..14;
/// The same where a member gets a successor: which comes after a minute.
const SUCCESSION_STORM: Range<u64> = 86..90;
/// The same where tombstones are purged meanwhile.
const LONG_STORM: Range<u64> = 20..60;
/// Lines of the trace that a failure shows, unless `SIM_LINES` says how many.
const SHOWN: usize = 160;

/// What the usual seeds must have come upon, or they show little.
const MET: [&str; 28] = [
    "touch: written",
    "touch: condition failed",
    "linearizable read: read, ended",
    "conditional: written",
    "conditional: condition failed",
    "conditional: conflict",
    "conditional: key reused",
    "conditional: unknown",
    "conditional: disk full",
    "linearizable read: read",
    "linearizable write: written",
    "linearizable write: clock skew",
    "plain write: written, not strict",
    "plain read: read, not strict",
    "list: listed",
    "list: listed, not strict",
    "watch: told",
    "watch: moved",
    "watch: forgotten",
    "change: a world came to another topology",
    "change: joins",
    "change: leaves",
    "change: taken back",
    "change: moves to a zone",
    "change: copies, 5 to 3",
    "change: copies, 3 to 1",
    "succession: another instance had the place of one that lived",
    "succession: both were asked",
];

struct Run {
    verdict: Result<(), String>,
    tally: Tally,
    trace: Vec<String>,
}

/// One seed, from nothing to the checks.
fn run(seed: u64, traced: bool) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::new(seed, traced);
        let verdict = live(&world).await;
        world.close();
        Run { verdict, tally: world.history.tally(), trace: world.trace.lines() }
    })
}

async fn live(world: &Arc<World>) -> Result<(), String> {
    world.found().await?;
    let storm = match () {
        () if world.predecessor.is_some() => SUCCESSION_STORM,
        () if world.grace.is_some() => LONG_STORM,
        () if world.changes() => CHANGING_STORM,
        () if faults::are_rivals(world) => RIVALS_STORM,
        () => STORM,
    };
    let until = Instant::now() + Duration::from_secs(world.random.between(storm.start, storm.end));
    world.life.spawn(faults::faults(world.clone(), until).boxed());
    for number in 0..world.random.between(2, 5) as usize {
        world.life.spawn(clients::client(world.clone(), number, until).boxed());
    }
    if faults::are_rivals(world) {
        world.life.spawn(faults::rivals(world.clone(), until).boxed());
    }
    world.life.spawn(successor::succeed(world.clone(), until).boxed());
    if world.changes() {
        world.life.spawn(changes::changes(world.clone(), until).boxed());
        world.life.spawn(late::hearers(world.clone(), until).boxed());
    }
    if listing::is_in(world.seed) {
        world.life.spawn(listing::client(world.clone(), until).boxed());
    }
    if watch::is_in(world.seed) {
        world.life.spawn(watch::client(world.clone()).boxed());
    }
    sleep_until(until).await;
    // The requests under way, and nodes that start again.
    sleep(Duration::from_secs(2)).await;
    world.heal().await?;
    if watch::is_in(world.seed) {
        sleep(watch::LAST_WORDS).await;
    }
    checks::all(world).await
}

/// `SIM_SEEDS`, or the usual ones.
fn seeds() -> Range<u64> {
    let Ok(wanted) = std::env::var("SIM_SEEDS") else { return SEEDS };
    let parsed = wanted.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("SIM_SEEDS={wanted} is not like 0..200"))
}

/// Which of them are run: by `SIM_ONLY`, or all.
fn only() -> fn(u64) -> bool {
    match std::env::var("SIM_ONLY").as_deref() {
        Ok("changes") => |seed| changes::outsiders(seed) > 0,
        Ok("succession") => |seed| World::new(seed, false).predecessor.is_some(),
        Ok(other) => panic!("SIM_ONLY={other} is neither changes nor succession"),
        Err(_) => |_| true,
    }
}

/// The last events that concern the key a verdict names, or all.
fn transcript(trace: &[String], why: &str) -> String {
    let shown = std::env::var("SIM_LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(SHOWN);
    let key = why.find("Key(").and_then(|at| why[at..].split_inclusive(')').next());
    let concerns = |line: &&String| key.is_none_or(|key| line.contains(key) || !line.contains("Key("));
    let mut last: Vec<&str> = trace.iter().rev().filter(concerns).take(shown).map(String::as_str).collect();
    last.reverse();
    last.join("\n")
}

/// Runs them on two threads, until one fails: the least that did, and what happened on the way.
fn run_all(seeds: Range<u64>) -> (Option<u64>, Tally) {
    let (next, failed, total) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX), Mutex::new(Tally::new()));
    let only = only();
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::SeqCst);
        if seed >= seeds.end || seed > failed.load(Ordering::SeqCst) {
            return;
        }
        if !only(seed) {
            continue;
        }
        let Run { verdict, tally, .. } = run(seed, false);
        if verdict.is_err() {
            failed.fetch_min(seed, Ordering::SeqCst);
        }
        let mut total = total.lock();
        tally.into_iter().for_each(|(what, count)| *total.entry(what).or_default() += count);
    };
    std::thread::scope(|threads| {
        threads.spawn(work);
        work();
    });
    let failed = Some(failed.into_inner()).filter(|seed| *seed < u64::MAX);
    (failed, total.into_inner())
}

#[test]
fn a_seed_replays() {
    let mut registers = false;
    for seed in 0..8 {
        let (once, again) = (run(seed, true).trace, run(seed, true).trace);
        registers |= once.iter().any(|line| line.contains(" accepts "));
        let differs = once.iter().zip(&again).position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!("seed {seed} went another way at line {at}:\n{}\n{}", once[..=at].join("\n"), again[at]);
        }
        assert_eq!(once.len(), again.len());
    }
    assert!(registers, "of registers too");
}

#[test]
fn every_seed_holds() {
    let (failed, tally) = run_all(seeds());
    for (what, count) in &tally {
        println!("{count:>9} {what}");
    }
    let Some(seed) = failed else {
        if std::env::var_os("SIM_LINES").is_some() && seeds().count() == 1 {
            println!("{}", transcript(&run(seeds().start, true).trace, ""));
        }
        let missing: Vec<&str> = MET.into_iter().filter(|what| !tally.contains_key(*what)).collect();
        assert!(seeds() != SEEDS || missing.is_empty(), "never met: {missing:?}");
        return;
    };
    let Run { verdict, trace, .. } = run(seed, true);
    let why = verdict.err().unwrap_or_else(|| "it held when it was run once more: it does not replay".into());
    let last = transcript(&trace, &why);
    let replay = format!("SIM_SEEDS={seed}..{} cargo test --test sim every_seed_holds", seed + 1);
    panic!("{last}\n\nseed {seed}: {why}\n\nreplay it: {replay}");
}
