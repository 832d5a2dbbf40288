//! The reaper: writes the tombstones of values whose time is up, each node in its own rows.
//!
//! It is not what makes a value end: whoever reads one judges by its clock. It makes room, and the copies equal: every
//! replica writes the same tombstone by itself, so that nothing has to be sent for it. It looks at each full second of the
//! wall clock, which is the same moment everywhere, and anti-entropy has it look before it lists what differs: so replicas
//! do not send each other what they come to by themselves.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::clock::NodeClock;
use super::own::Own;
use crate::metrics;
use crate::ports::{Store, StoreError};

/// Between two looks, in milliseconds.
const LOOK_EVERY_MS: u64 = 1_000;
/// Ends written in one transaction, so that writes get in between.
const STEP: usize = 500;

/// Runs for the node's life.
pub(super) async fn run(store: Arc<dyn Store>, clock: Arc<NodeClock>, own: Arc<Own>) {
    let mut failing = false;
    loop {
        sleep(Duration::from_millis(LOOK_EVERY_MS - clock.wall_ms() % LOOK_EVERY_MS)).await;
        // Before, its clock was not compared with the others'.
        if !own.has_joined() {
            continue;
        }
        let reaped = reap(&*store, &clock).await;
        if let Err(error) = &reaped
            && !failing
        {
            tracing::warn!(%error, "values whose time is up could not be removed; they are not told");
        }
        failing = reaped.is_err();
    }
}

/// Everything that is due; rests for as long as each step took.
pub(super) async fn reap(store: &dyn Store, clock: &NodeClock) -> Result<(), StoreError> {
    loop {
        let began = Instant::now();
        let ended = store.end_due(clock.ends_by(), STEP).await?;
        if !ended.is_empty() {
            metrics::counter(metrics::EXPIRED, &[]).increment(ended.len() as u64);
            ended.iter().for_each(|(_, end)| clock.observe(end.written));
        }
        if ended.len() < STEP {
            return Ok(());
        }
        sleep(began.elapsed()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fakes::{FakeClock, FakeStore};
    use crate::types::{Content, Hlc, Key, Record, ReplicaRequest, Token, Version, Writer};

    #[tokio::test(start_paused = true)]
    async fn what_is_due_is_ended_step_by_step_and_nothing_else() {
        const WALL: u64 = 1_700_000_000_000;
        let (wall, store) = (FakeClock::at(WALL), FakeStore::new());
        let clock = NodeClock::new(wall.clone(), Duration::from_secs(300), Hlc::ZERO);
        clock.trust();
        let due = STEP as u64 * 2 + 1;
        let key = |n: u64| Key::new(format!("k{n}")).unwrap();
        let value = |n: u64| {
            let content = Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: Some(WALL + n) };
            Record::seal(&key(n), Version::plain(Hlc::from_ms(WALL), Writer(1)), Hlc::from_ms(WALL), content)
        };
        for n in 1..=due + 5 {
            store.apply(Token(n), ReplicaRequest::Write { key: key(n), record: value(n) });
        }
        wall.advance(due);
        reap(&*store, &clock).await.unwrap();
        for n in 1..=due + 5 {
            let wanted = if n <= due { value(n).end(&key(n)).unwrap() } else { value(n) };
            assert_eq!(store.record(&key(n)), Some(wanted), "{n}");
        }
        wall.set(WALL);
        assert_eq!(clock.now(), Hlc::from_ms(WALL + due), "an end that was written has come");
    }
}
