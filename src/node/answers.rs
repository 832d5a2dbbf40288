//! Where a driver waits for the answers to the requests it sent: one allocation for all of them.
//!
//! Invariants:
//! - Answers come out in the order in which they came in, each once.
//! - One task waits at a time: a second waiter would take the first one's wake-up.
//! - Late answers cost nothing but their place: the last [`ReplyTo`] keeps this alive, nobody needs to look any more.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::ports::{Answer, Inbox, ReplyTo};

/// The inbox of one operation.
#[derive(Default)]
pub struct Answers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Taken ones leave a gap; all gaps go when the last one is taken.
    arrived: SmallVec<[Option<(u64, Answer)>; 4]>,
    taken: usize,
    waiting: Option<Waker>,
}

impl State {
    fn take(&mut self) -> Option<(u64, Answer)> {
        let answer = self.arrived.get_mut(self.taken)?.take();
        self.taken += 1;
        if self.taken == self.arrived.len() {
            self.arrived.clear();
            self.taken = 0;
        }
        answer
    }
}

impl Answers {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Where the answer to one request is to go; it comes out with this tag.
    pub fn reply_to(self: &Arc<Self>, tag: u64) -> ReplyTo {
        ReplyTo::new(Arc::clone(self) as Arc<dyn Inbox>, tag)
    }

    /// The next answer, when there is one. Never ends if no request is left to answer: the caller counts. Nothing is
    /// lost when it is cancelled.
    pub async fn next(&self) -> (u64, Answer) {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<(u64, Answer)> {
        let mut state = self.state.lock();
        match state.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                match &mut state.waiting {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    /// The next answer, if it is there already.
    pub fn try_next(&self) -> Option<(u64, Answer)> {
        self.state.lock().take()
    }
}

impl Inbox for Answers {
    fn deliver(&self, tag: u64, answer: Answer) {
        let waiting = {
            let mut state = self.state.lock();
            state.arrived.push(Some((tag, answer)));
            state.waiting.take()
        };
        // Outside the lock: the woken task may run at once, on another thread, and take it.
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ports::{PeerError, ReplicaReply};

    #[test]
    fn answers_come_out_in_order_and_once() {
        let answers = Answers::new();
        for tag in 0..3 {
            answers.reply_to(tag).send(Ok(ReplicaReply::Hinted));
        }
        assert_eq!(answers.try_next().map(|a| a.0), Some(0));
        drop(answers.reply_to(3));
        let rest: Vec<_> = std::iter::from_fn(|| answers.try_next()).collect();
        assert_eq!(rest.iter().map(|a| a.0).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(rest[2].1, Err(PeerError::Lost));
        answers.reply_to(4).send(Ok(ReplicaReply::Hinted));
        assert_eq!(answers.try_next().map(|a| a.0), Some(4));
        assert!(answers.try_next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_task_is_woken() {
        let answers = Answers::new();
        let waiting = Arc::clone(&answers);
        #[expect(clippy::disallowed_methods, reason = "a task of its own, woken by nothing else")]
        let waiter = tokio::spawn(async move { waiting.next().await });
        tokio::task::yield_now().await;
        answers.reply_to(7).send(Ok(ReplicaReply::Hinted));
        let answer = tokio::time::timeout(Duration::from_secs(1), waiter).await.unwrap().unwrap();
        assert_eq!(answer, (7, Ok(ReplicaReply::Hinted)));
    }
}
