//! Long-running operations: what people started and want to follow, and end early.
//!
//! Kept in memory, the last [`REMEMBERED_MAX`] of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::views::{OperationState, OperationView};

/// Operations that are remembered; those that ended longest ago go first.
const REMEMBERED_MAX: usize = 100;

/// How far a round is, or one with each of several peers; shared by who works and who looks. Counters only grow.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    /// Of the peers that were compared with so far.
    total: AtomicU64,
    peers: AtomicU64,
    compared: AtomicU64,
    differing: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    bytes: AtomicU64,
    aborted: AtomicBool,
    abort: Notify,
}

impl Progress {
    /// There will be a round with each of so many peers, one after the other.
    pub(super) fn expect_peers(&self, peers: u64) {
        self.peers.store(peers, Ordering::Relaxed);
    }

    /// A round with one more peer has that many leaves to settle; or the peer could not be had, and none.
    pub(super) fn expect(&self, leaves: u64) {
        self.total.fetch_add(leaves, Ordering::Relaxed);
        self.compared.fetch_add(1, Ordering::Relaxed);
    }

    /// Peers that a number of leaves was said for.
    pub(super) fn compared(&self) -> u64 {
        self.compared.load(Ordering::Relaxed)
    }

    /// How many leaves there are to settle: `None` while that is not known of any peer. As long as it is known of some, the
    /// others are taken to be like them.
    fn total(&self) -> Option<u64> {
        let [total, peers, compared] =
            [&self.total, &self.peers, &self.compared].map(|counter| counter.load(Ordering::Relaxed));
        (compared > 0).then(|| total * peers.max(compared) / compared)
    }

    /// So many leaves are settled.
    pub(super) fn settled(&self, leaves: u64) {
        self.done.fetch_add(leaves, Ordering::Relaxed);
    }

    pub(super) fn found(&self, differing: u64) {
        self.differing.fetch_add(differing, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, records: u64) {
        self.sent.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn received(&self, records: u64) {
        self.received.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn carried(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Records sent and received so far.
    pub(super) fn moved(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }

    pub(super) fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
        self.abort.notify_waiters();
    }

    /// Does the work, whatever it waits for, until it is aborted: then `None`. What was sent by then may still be done.
    pub(super) async fn unless_aborted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let abort = self.abort.notified();
        if self.aborted.load(Ordering::Relaxed) {
            return None;
        }
        tokio::select! {
            biased;
            () = abort => None,
            done = work => Some(done),
        }
    }
}

#[derive(Debug)]
struct Operation {
    id: Uuid,
    kind: &'static str,
    dry_run: bool,
    started_ms: u64,
    started: Instant,
    progress: Arc<Progress>,
    /// Once it ended: how, and when by the wall clock.
    ended: Option<(OperationState, u64)>,
}

impl Operation {
    fn view(&self) -> OperationView {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let progress = &self.progress;
        let running = self.ended.is_none();
        let done = of(&progress.done);
        let total = if running { progress.total() } else { Some(of(&progress.total)) };
        let seconds = match self.ended {
            Some((_, ended_ms)) => ended_ms.saturating_sub(self.started_ms) as f64 / 1000.0,
            None => self.started.elapsed().as_secs_f64(),
        };
        let per_second = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
        let left = total.filter(|_| running && per_second > 0.0).map(|total| total.saturating_sub(done) as f64);
        OperationView {
            id: self.id,
            kind: self.kind,
            state: self.ended.as_ref().map_or(OperationState::Running, |(state, _)| state.clone()),
            started_ms: self.started_ms,
            ended_ms: self.ended.as_ref().map(|(_, at)| *at),
            dry_run: self.dry_run,
            done,
            total,
            differing: of(&progress.differing),
            sent: of(&progress.sent),
            received: of(&progress.received),
            bytes: of(&progress.bytes),
            per_second,
            eta_ms: left.map(|left| (left / per_second * 1000.0) as u64),
        }
    }
}

/// The operations of this node.
#[derive(Debug, Default)]
pub struct Operations(Mutex<VecDeque<Operation>>);

impl Operations {
    /// A new one, running.
    pub(super) fn begin(
        &self,
        id: Uuid,
        kind: &'static str,
        dry_run: bool,
        wall_ms: u64,
    ) -> (OperationView, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        let operation = Operation {
            id,
            kind,
            dry_run,
            started_ms: wall_ms,
            started: Instant::now(),
            progress: Arc::clone(&progress),
            ended: None,
        };
        let view = operation.view();
        let mut all = self.0.lock();
        all.push_front(operation);
        if all.len() > REMEMBERED_MAX
            && let Some(oldest) = all.iter().rposition(|o| o.ended.is_some())
        {
            all.remove(oldest);
        }
        (view, progress)
    }

    pub(super) fn running(&self) -> usize {
        self.0.lock().iter().filter(|o| o.ended.is_none()).count()
    }

    pub(super) fn end(&self, id: Uuid, state: OperationState, wall_ms: u64) {
        if let Some(operation) = self.0.lock().iter_mut().find(|o| o.id == id) {
            operation.ended = Some((state, wall_ms.max(operation.started_ms)));
        }
    }

    /// Newest first.
    pub(super) fn views(&self) -> Vec<OperationView> {
        self.0.lock().iter().map(Operation::view).collect()
    }

    pub(super) fn view(&self, id: Uuid) -> Option<OperationView> {
        self.0.lock().iter().find(|o| o.id == id).map(Operation::view)
    }

    /// Tells a running one to end, at its next step.
    pub(super) fn abort(&self, id: Uuid) -> Option<OperationView> {
        let all = self.0.lock();
        let operation = all.iter().find(|o| o.id == id)?;
        operation.progress.abort();
        Some(operation.view())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_says_how_long_it_will_take() {
        let operations = Operations::default();
        let id = Uuid::from_u128(1);
        let (view, progress) = operations.begin(id, "repair", false, 1_000);
        assert_eq!((view.state, view.total, view.eta_ms), (OperationState::Running, None, None));
        progress.expect_peers(2);
        progress.expect(40);
        progress.settled(10);
        tokio::time::advance(std::time::Duration::from_secs(5)).await;
        let view = operations.view(id).unwrap();
        assert_eq!(
            (view.done, view.total, view.eta_ms),
            (10, Some(80), Some(35_000)),
            "as if the other were like this"
        );
        progress.settled(30);
        assert_eq!(operations.view(id).unwrap().eta_ms, Some(5_000), "between two peers");
        progress.expect(0);
        let view = operations.view(id).unwrap();
        assert_eq!((view.done, view.total, view.eta_ms), (40, Some(40), Some(0)));
        operations.end(id, OperationState::Done, 6_000);
        let view = operations.view(id).unwrap();
        assert_eq!((view.state, view.ended_ms, view.eta_ms), (OperationState::Done, Some(6_000), None));
        assert!(operations.abort(Uuid::from_u128(2)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_abort_ends_whatever_is_waited_for() {
        let progress = Arc::new(Progress::default());
        let waiting = progress.unless_aborted(std::future::pending::<()>());
        let aborting = async { progress.abort() };
        assert_eq!(futures_util::future::join(waiting, aborting).await.0, None);
        assert_eq!(progress.unless_aborted(std::future::ready(1)).await, None, "nothing begins any more");
    }

    #[tokio::test(start_paused = true)]
    async fn what_ended_longest_ago_is_forgotten_first() {
        let operations = Operations::default();
        operations.begin(Uuid::from_u128(0), "repair", false, 0);
        for n in 1..=150u128 {
            operations.begin(Uuid::from_u128(n), "repair", false, 0);
            operations.end(Uuid::from_u128(n), OperationState::Done, 0);
        }
        assert_eq!(operations.views().len(), REMEMBERED_MAX);
        assert_eq!(operations.view(Uuid::from_u128(0)).map(|o| o.state), Some(OperationState::Running));
        assert!(operations.view(Uuid::from_u128(150)).is_some() && operations.view(Uuid::from_u128(1)).is_none());
        assert_eq!(operations.running(), 1);
    }
}
