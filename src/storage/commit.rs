//! The writer: one thread that drains whatever is queued into one transaction and answers when it is on disk.
//!
//! Invariants:
//! - Nobody waits for a batch to fill: it is what came while the one before was on its way to the disk.
//! - Changes are applied and answered in the order they were submitted; those for healing in an order of their own, *behind*
//!   the others. A new topology is behind everything that was submitted before it.
//! - While others write, a batch holds few changes for healing, so that nobody waits long for them; but always some, so that
//!   healing goes on under any load.
//! - An acknowledgement leaves after the commit that holds it.
//! - Its last transaction keeps the sums for the next start.
//! - After a failed write or sync nothing is written again: the batch it hit is answered *lost* (it may be on disk),
//!   everything after it is refused.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::checkpoint::Checkpointer;
use super::connection;
use super::engine::{BatchError, Change, Engine, Outcome};
use super::status::Status;
use crate::ports::{Refusal, ReplicaReply, ReplyTo, StoreError};

/// Changes in one transaction: a bound on how long the ones behind wait.
const BATCH_MAX: usize = 1024;
/// The same in bytes of contents; one change may be larger.
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Requests may wait for the writer with so many bytes of contents together, beside what it has taken already. A disk
/// that stalls must not fill the memory: whoever asked gives up after a second and would send the next.
const WAITING_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Changes for healing in one transaction while others write, or did within the last [`OTHERS_WITHIN`]: they take a few
/// milliseconds together.
const BEHIND_MAX: usize = 128;
/// The same in bytes of contents; one change may be larger.
const BEHIND_BYTES_MAX: usize = 256 * 1024;
/// Others write if they did within so long.
const OTHERS_WITHIN: Duration = Duration::from_millis(50);

/// Who is told.
pub(super) enum AnswerTo {
    Replica(ReplyTo),
    Caller(oneshot::Sender<Result<Outcome, StoreError>>),
}

pub(super) struct Job {
    pub(super) change: Change,
    pub(super) answer: AnswerTo,
    /// It is for healing, and goes behind the others.
    pub(super) behind: bool,
}

/// Work for the writer thread that is no change of the database.
pub(super) type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    behind: VecDeque<Job>,
    /// Of contents: of the jobs, and of those behind.
    bytes: [usize; 2],
    tasks: Vec<Task>,
    closing: bool,
}

/// Where changes wait for the writer.
#[derive(Default)]
pub(super) struct WriteQueue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl WriteQueue {
    /// Refuses what comes after closing, and requests over the limit of waiting changes or of their bytes.
    pub(super) fn push(&self, jobs: impl Iterator<Item = Job>, limit: usize) {
        let mut refused = Vec::new();
        let mut waiting = self.waiting.lock();
        for job in jobs {
            if waiting.closing {
                refused.push((job, Refusal::NotReady));
            } else if waiting.jobs.len() + waiting.behind.len() >= limit || waiting.is_full_for(&job) {
                refused.push((job, Refusal::Overloaded));
            } else {
                waiting.add(job);
            }
        }
        drop(waiting);
        self.wake.notify_one();
        for (job, refusal) in refused {
            job.answer.refuse(refusal, &StoreError::Closing);
        }
    }

    /// A task that comes after closing is dropped, and with it what it would answer through.
    pub(super) fn push_task(&self, task: Task) {
        let mut waiting = self.waiting.lock();
        if !waiting.closing {
            waiting.tasks.push(task);
            drop(waiting);
            self.wake.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.waiting.lock().closing = true;
        self.wake.notify_one();
    }

    /// Everything queued, but of what is behind only a batch; `None` once the queue is closed and empty.
    fn take(&self, others_wrote: &mut Option<Instant>) -> Option<(Vec<Task>, VecDeque<Job>)> {
        let mut waiting = self.waiting.lock();
        while waiting.jobs.is_empty() && waiting.behind.is_empty() && waiting.tasks.is_empty() {
            if waiting.closing {
                return None;
            }
            self.wake.wait(&mut waiting);
        }
        let mut jobs = std::mem::take(&mut waiting.jobs);
        waiting.bytes[0] = 0;
        if !jobs.is_empty() {
            *others_wrote = Some(Instant::now());
        }
        if !waiting.behind.is_empty() {
            let others_write = !jobs.is_empty() || others_wrote.is_some_and(|at| at.elapsed() < OTHERS_WITHIN);
            let behind = waiting.take_behind(others_write);
            // In front, so that they are in the first transaction, which is soonest over.
            behind.into_iter().rev().for_each(|job| jobs.push_front(job));
        }
        Some((std::mem::take(&mut waiting.tasks), jobs))
    }
}

/// Queues a change, and waits until it is on disk.
pub(super) fn change_through(writes: &WriteQueue, change: Change) -> BoxFuture<'static, Result<Outcome, StoreError>> {
    let (caller, answer) = oneshot::channel();
    let job = Job { change, answer: AnswerTo::Caller(caller), behind: false };
    writes.push([job].into_iter(), usize::MAX);
    answer.map(|answer| answer.unwrap_or(Err(StoreError::Closing))).boxed()
}

impl Waiting {
    fn add(&mut self, job: Job) {
        self.bytes[usize::from(job.behind)] += job.change.content_bytes();
        if job.behind {
            self.behind.push_back(job);
            return;
        }
        if matches!(job.change, Change::Topology(_)) {
            // Whoever stores it relies on all that was let in before being on disk with it.
            self.jobs.append(&mut self.behind);
            self.bytes = [self.bytes.iter().sum(), 0];
        }
        self.jobs.push_back(job);
    }

    fn take_behind(&mut self, others_write: bool) -> Vec<Job> {
        let (most, bytes_max) =
            if others_write { (BEHIND_MAX, BEHIND_BYTES_MAX) } else { (BATCH_MAX, BATCH_BYTES_MAX) };
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < most && (taken.is_empty() || bytes < bytes_max) {
            let Some(job) = self.behind.pop_front() else { break };
            bytes += job.change.content_bytes();
            taken.push(job);
        }
        self.bytes[1] -= bytes;
        taken
    }

    /// One request always fits, and what has no contents does.
    fn is_full_for(&self, job: &Job) -> bool {
        let bytes = job.change.content_bytes();
        let waiting: usize = self.bytes.iter().sum();
        bytes > 0 && waiting > 0 && waiting + bytes > WAITING_BYTES_MAX
    }
}

impl AnswerTo {
    fn tell(self, outcome: Outcome) {
        match (self, outcome) {
            (AnswerTo::Replica(reply_to), Outcome::Reply(reply)) => reply_to.send(Ok(reply)),
            (AnswerTo::Replica(reply_to), _) => reply_to.send(Ok(ReplicaReply::Refused(Refusal::Damaged))),
            // Whoever stopped waiting is not told.
            (AnswerTo::Caller(caller), Outcome::Damaged) => {
                let _ = caller.send(Err(StoreError::Damaged("the database, where the change belongs".into())));
            }
            (AnswerTo::Caller(caller), outcome) => {
                let _ = caller.send(Ok(outcome));
            }
        }
    }

    fn refuse(self, refusal: Refusal, error: &StoreError) {
        match self {
            AnswerTo::Replica(reply_to) => reply_to.send(Ok(ReplicaReply::Refused(refusal))),
            AnswerTo::Caller(caller) => {
                let _ = caller.send(Err(error.clone()));
            }
        }
    }

    /// Says that it may have been done: dropped unanswered, a request of the hot path answers `Lost`.
    fn lose(self, error: &StoreError) {
        if let AnswerTo::Caller(caller) = self {
            let _ = caller.send(Err(error.clone()));
        }
    }
}

/// The writer thread's all.
pub(super) struct Writer {
    pub(super) engine: Engine,
    pub(super) queue: Arc<WriteQueue>,
    pub(super) status: Arc<Status>,
    pub(super) checkpointer: Arc<Checkpointer>,
}

impl Writer {
    pub(super) fn run(mut self) {
        let (mut changes, mut answers, mut others_wrote) = (Vec::new(), Vec::new(), None);
        while let Some((tasks, mut jobs)) = self.queue.take(&mut others_wrote) {
            tasks.into_iter().for_each(|task| task());
            while !jobs.is_empty() {
                fill(&mut jobs, &mut changes, &mut answers);
                self.commit(&changes, answers.drain(..));
                changes.clear();
            }
        }
        if !self.status.writable() {
            connection::leave_log(&self.engine.conn);
        } else if let Err(error) = self.engine.save_sums() {
            tracing::warn!(%error, "the sums were not saved; the next start counts anew");
        }
    }

    fn commit(&mut self, changes: &[Change], answers: impl Iterator<Item = AnswerTo>) {
        if let Some(error) = self.status.failure() {
            answers.for_each(|answer| answer.refuse(Refusal::NotWriting, &error));
            return;
        }
        let now = self.status.now();
        let started = Instant::now();
        match self.engine.apply(now, changes) {
            Ok(outcomes) => {
                self.status.meters.commit_seconds.record(started.elapsed());
                self.status.meters.commit_batch.record(changes.len() as f64);
                for (answer, outcome) in answers.zip(outcomes) {
                    answer.tell(outcome);
                }
                self.checkpointer.wrote(&self.engine);
                self.status.stop_if_damaged(&self.engine.meters);
            }
            Err(BatchError::Full) => {
                self.status.disk_full();
                answers.for_each(|answer| answer.refuse(Refusal::DiskFull, &StoreError::DiskFull));
            }
            Err(BatchError::Busy) => {
                tracing::warn!("another program holds the database; writes are refused meanwhile");
                let busy = StoreError::Damaged("another program holds the database".into());
                answers.for_each(|answer| answer.refuse(Refusal::Overloaded, &busy));
            }
            Err(BatchError::Failed(reason)) => {
                let error = self.status.fail(reason);
                answers.for_each(|answer| answer.lose(&error));
            }
        }
    }
}

/// Moves the next batch out of what was taken.
fn fill(jobs: &mut VecDeque<Job>, changes: &mut Vec<Change>, answers: &mut Vec<AnswerTo>) {
    let mut bytes = 0;
    while changes.len() < BATCH_MAX && (changes.is_empty() || bytes < BATCH_BYTES_MAX) {
        let Some(Job { change, answer, .. }) = jobs.pop_front() else { break };
        bytes += change.content_bytes();
        changes.push(change);
        answers.push(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tests::rare::topology;
    use crate::types::{Content, Hlc, Key, Record, Token, Version, Writer as WriterNum};

    fn job(bytes: usize, behind: bool) -> (Job, oneshot::Receiver<Result<Outcome, StoreError>>) {
        let (caller, answer) = oneshot::channel();
        let key = Key::new("k").unwrap();
        let record = Record::seal(&key, Version::plain(Hlc(1), WriterNum(1)), Hlc(1), Content::value(vec![0; bytes]));
        (
            Job { change: Change::Write { token: Token(0), key, record }, answer: AnswerTo::Caller(caller), behind },
            answer,
        )
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_but_one_always_fits() {
        let queue = WriteQueue::default();
        let push = |bytes| {
            let (job, mut answer) = job(bytes, false);
            queue.push([job].into_iter(), usize::MAX);
            answer.try_recv().is_err()
        };
        assert!(push(WAITING_BYTES_MAX + 1));
        assert!(!push(1));
        assert!(push(0));
        assert_eq!(queue.take(&mut None).unwrap().1.len(), 2);
        assert!(push(WAITING_BYTES_MAX / 2) && push(WAITING_BYTES_MAX / 2) && !push(1));
    }

    #[test]
    fn what_is_behind_goes_in_small_parts_while_others_write_and_never_stands_still() {
        let queue = WriteQueue::default();
        let push = |behind, count| queue.push((0..count).map(|_| job(1, behind).0), usize::MAX);
        let take = |mut others_wrote| {
            let jobs = queue.take(&mut others_wrote).unwrap().1;
            let behind = jobs.iter().filter(|job| job.behind).count();
            assert!(jobs.iter().skip(behind).all(|job| !job.behind), "they are over soonest in front");
            (jobs.len() - behind, behind)
        };
        // However slow this machine is: it is never longer ago.
        let a_moment_ago = Some(Instant::now() + Duration::from_secs(3600));
        push(true, 2 * BATCH_MAX);
        assert_eq!(take(None), (0, BATCH_MAX), "nobody else writes");
        push(false, 3);
        assert_eq!(take(None), (3, BEHIND_MAX));
        assert_eq!(take(a_moment_ago), (0, BEHIND_MAX));
        let large = job(BEHIND_BYTES_MAX, true).0;
        queue.push([large].into_iter(), usize::MAX);
        std::iter::repeat_with(|| take(a_moment_ago)).find(|(_, behind)| *behind < BEHIND_MAX).unwrap();
        assert_eq!(queue.waiting.lock().bytes, [0, 0]);
    }

    #[test]
    fn a_new_topology_is_behind_all_that_came_before_it() {
        let queue = WriteQueue::default();
        let other = Job { change: Change::ReserveClock(Hlc(1)), ..job(0, false).0 };
        queue.push([job(5, true).0, other].into_iter(), usize::MAX);
        assert_eq!(queue.waiting.lock().bytes, [0, 5]);
        let newer = Job { change: Change::Topology(topology(1)), ..job(0, false).0 };
        queue.push([newer].into_iter(), usize::MAX);
        let jobs = queue.take(&mut None).unwrap().1;
        assert!(matches!(jobs.back(), Some(Job { change: Change::Topology(_), .. })) && jobs.len() == 3);
    }
}
