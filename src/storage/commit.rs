//! The writer: one thread that drains whatever is queued into one transaction and answers when it is on disk.
//!
//! Invariants:
//! - Nobody waits for a batch to fill: it is what came while the one before was on its way to the disk.
//! - Changes are applied and answered in the order they were submitted.
//! - An acknowledgement leaves after the commit that holds it.
//! - Its last transaction keeps the sums for the next start.
//! - After a failed write or sync nothing is written again: the batch it hit is answered *lost* (it may be on disk),
//!   everything after it is refused.

use std::collections::VecDeque;
use std::sync::Arc;

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

/// Who is told.
pub(super) enum AnswerTo {
    Replica(ReplyTo),
    Caller(oneshot::Sender<Result<Outcome, StoreError>>),
}

pub(super) struct Job {
    pub(super) change: Change,
    pub(super) answer: AnswerTo,
}

/// Work for the writer thread that is no change of the database.
pub(super) type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Of contents, of the jobs.
    bytes: usize,
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
            } else if waiting.jobs.len() >= limit || waiting.is_full_for(&job) {
                refused.push((job, Refusal::Overloaded));
            } else {
                waiting.bytes += job.change.content_bytes();
                waiting.jobs.push_back(job);
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

    /// Everything queued; `None` once the queue is closed and empty.
    fn take(&self) -> Option<(Vec<Task>, VecDeque<Job>)> {
        let mut waiting = self.waiting.lock();
        while waiting.jobs.is_empty() && waiting.tasks.is_empty() {
            if waiting.closing {
                return None;
            }
            self.wake.wait(&mut waiting);
        }
        waiting.bytes = 0;
        Some((std::mem::take(&mut waiting.tasks), std::mem::take(&mut waiting.jobs)))
    }
}

impl Waiting {
    /// One request always fits, and what has no contents does.
    fn is_full_for(&self, job: &Job) -> bool {
        let bytes = job.change.content_bytes();
        bytes > 0 && self.bytes > 0 && self.bytes + bytes > WAITING_BYTES_MAX
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
        let (mut changes, mut answers) = (Vec::new(), Vec::new());
        while let Some((tasks, mut jobs)) = self.queue.take() {
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
        let Some(Job { change, answer }) = jobs.pop_front() else { break };
        bytes += change.content_bytes();
        changes.push(change);
        answers.push(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Content, Hlc, Key, Record, Token, Version, Writer as WriterNum};

    fn job(bytes: usize) -> (Job, oneshot::Receiver<Result<Outcome, StoreError>>) {
        let (caller, answer) = oneshot::channel();
        let key = Key::new("k").unwrap();
        let record = Record::seal(&key, Version::plain(Hlc(1), WriterNum(1)), Hlc(1), Content::value(vec![0; bytes]));
        (Job { change: Change::Write { token: Token(0), key, record }, answer: AnswerTo::Caller(caller) }, answer)
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_but_one_always_fits() {
        let queue = WriteQueue::default();
        let push = |bytes| {
            let (job, mut answer) = job(bytes);
            queue.push([job].into_iter(), usize::MAX);
            answer.try_recv().is_err()
        };
        assert!(push(WAITING_BYTES_MAX + 1));
        assert!(!push(1));
        assert!(push(0));
        assert_eq!(queue.take().unwrap().1.len(), 2);
        assert!(push(WAITING_BYTES_MAX / 2) && push(WAITING_BYTES_MAX / 2) && !push(1));
    }
}
