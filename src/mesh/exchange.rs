//! What one peer is asked and still owes an answer to: the hot path's state machine, synchronous and without a wire.
//!
//! A request is *queued* until a message takes it, then *sent* until its reply, its deadline or the loss of the link.
//!
//! Invariants:
//! - Every request that was pushed comes out exactly once: by [`Exchange::answered`], [`Exchange::overdue`],
//!   [`Exchange::take_sent`] or [`Exchange::take_queued`].
//! - An id is used once, so a late reply never meets another request.
//! - The bytes queued and sent of a lane stay within the bound, unless it is one request.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::former::Former;
use super::weight::{self, Weight};
use crate::ports::{ReplicaCall, ReplyTo};
use crate::types::limits::SMALL_VALUE_BYTES_MAX;

/// Which of the two streams of a link something takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Small,
    /// Values over [`SMALL_VALUE_BYTES_MAX`], so that they delay nobody else.
    Large,
}

impl Lane {
    pub const BOTH: [Lane; 2] = [Lane::Small, Lane::Large];

    /// The lane of that many bytes of records' contents.
    pub fn of(content_bytes: usize) -> Self {
        if content_bytes > SMALL_VALUE_BYTES_MAX { Lane::Large } else { Lane::Small }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Lane::Small => Lane::Large,
            Lane::Large => Lane::Small,
        }
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

/// Who waits for a reply, and since when.
#[derive(Debug)]
pub struct Waiting {
    pub reply_to: ReplyTo,
    pub queued_at: Instant,
    deadline: Instant,
    lane: Lane,
    bytes: usize,
}

/// Whose deadline has passed.
#[derive(Debug, Default)]
pub struct Overdue {
    /// They may have been done.
    pub sent: Vec<ReplyTo>,
    /// They never left.
    pub queued: Vec<ReplyTo>,
}

/// The requests to one peer.
#[derive(Debug)]
pub struct Exchange {
    queues: [Former<(ReplicaCall, Waiting)>; 2],
    /// Bytes queued and sent, by lane.
    bytes: [usize; 2],
    bytes_max: usize,
    request_timeout: Duration,
    sent: Sent,
}

impl Exchange {
    /// `bytes_max` bounds each lane; `request_timeout` is the deadline of calls that have none.
    pub fn new(bytes_max: usize, request_timeout: Duration) -> Self {
        Self { queues: Default::default(), bytes: [0; 2], bytes_max, request_timeout, sent: Sent::default() }
    }

    /// Queues a request; says in which lane, and whether it is the first there.
    ///
    /// # Errors
    /// Gives the caller back when the lane is full; nothing was queued.
    pub fn push(&mut self, call: ReplicaCall, reply_to: ReplyTo, now: Instant) -> Result<(Lane, bool), ReplyTo> {
        let Weight { content, bytes } = weight::of_call(&call);
        let lane = Lane::of(content);
        let taken = self.bytes[lane.index()];
        if taken > 0 && taken + bytes > self.bytes_max {
            return Err(reply_to);
        }
        self.bytes[lane.index()] += bytes;
        let deadline = call.deadline.unwrap_or_else(|| now + self.request_timeout);
        let queue = &mut self.queues[lane.index()];
        let first = queue.is_empty();
        queue.push(bytes, (call, Waiting { reply_to, queued_at: now, deadline, lane, bytes }));
        Ok((lane, first))
    }

    /// Whether a message is waiting to be taken.
    pub fn has_queued(&self, lane: Lane) -> bool {
        !self.queues[lane.index()].is_empty()
    }

    /// Takes the next message of a lane, each request made by `make` from its id and call. Empty when nothing is
    /// queued. From here on its requests count as sent.
    pub fn message<T>(&mut self, lane: Lane, mut make: impl FnMut(u64, ReplicaCall) -> T) -> Vec<T> {
        let message = self.queues[lane.index()].message();
        let mut out = Vec::with_capacity(message.len());
        for (_, (call, waiting)) in message {
            out.push(make(self.sent.insert(waiting), call));
        }
        out
    }

    /// The reply to that request came. `None` when nobody waits for it any more.
    pub fn answered(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.sent.remove(id)?;
        self.bytes[waiting.lane.index()] -= waiting.bytes;
        Some(waiting)
    }

    /// Takes out everyone whose deadline has passed.
    pub fn overdue(&mut self, now: Instant) -> Overdue {
        let mut overdue = Overdue::default();
        for lane in Lane::BOTH {
            for (_, (_, waiting)) in self.queues[lane.index()].remove(|(_, w)| w.deadline <= now) {
                self.bytes[lane.index()] -= waiting.bytes;
                overdue.queued.push(waiting.reply_to);
            }
        }
        for waiting in self.sent.take(|w| w.deadline <= now) {
            self.bytes[waiting.lane.index()] -= waiting.bytes;
            overdue.sent.push(waiting.reply_to);
        }
        overdue
    }

    /// Takes out everyone whose request was sent: the link is gone.
    pub fn take_sent(&mut self) -> Vec<ReplyTo> {
        let mut out = Vec::new();
        for waiting in self.sent.take(|_| true) {
            self.bytes[waiting.lane.index()] -= waiting.bytes;
            out.push(waiting.reply_to);
        }
        out
    }

    /// Takes out everyone whose request is still queued: there will be no link.
    pub fn take_queued(&mut self) -> Vec<ReplyTo> {
        let mut out = Vec::new();
        for lane in Lane::BOTH {
            for (_, (_, waiting)) in self.queues[lane.index()].remove(|_| true) {
                self.bytes[lane.index()] -= waiting.bytes;
                out.push(waiting.reply_to);
            }
        }
        out
    }
}

/// Who waits for which id. Ids are given in order, so the table is a queue with holes: no hashing, no allocation a
/// request, and its length is bounded by what is sent within the longest deadline.
#[derive(Debug, Default)]
struct Sent {
    first_id: u64,
    slots: VecDeque<Option<Waiting>>,
}

impl Sent {
    fn insert(&mut self, waiting: Waiting) -> u64 {
        self.slots.push_back(Some(waiting));
        self.first_id + self.slots.len() as u64 - 1
    }

    fn remove(&mut self, id: u64) -> Option<Waiting> {
        let at = usize::try_from(id.checked_sub(self.first_id)?).ok()?;
        let waiting = self.slots.get_mut(at)?.take();
        self.trim();
        waiting
    }

    fn take(&mut self, mut picked: impl FnMut(&Waiting) -> bool) -> Vec<Waiting> {
        let out = self.slots.iter_mut().filter_map(|slot| slot.take_if(|w| picked(w))).collect();
        self.trim();
        out
    }

    fn trim(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first_id += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::tests::{Answers, read, write};
    use crate::ports::PeerError;

    fn exchange() -> Exchange {
        Exchange::new(100_000, Duration::from_secs(1))
    }

    fn ids(exchange: &mut Exchange, lane: Lane) -> Vec<u64> {
        exchange.message(lane, |id, _| id)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_queued_together_travel_together_and_are_answered_once() {
        let (mut exchange, answers, now) = (exchange(), Answers::new(), Instant::now());
        for tag in 0..3 {
            let (lane, first) = exchange.push(read("k"), answers.reply_to(tag), now).unwrap();
            assert_eq!((lane, first), (Lane::Small, tag == 0));
        }
        assert_eq!(ids(&mut exchange, Lane::Small), [0, 1, 2]);
        assert!(ids(&mut exchange, Lane::Small).is_empty());
        assert!(exchange.answered(1).is_some() && exchange.answered(1).is_none() && exchange.answered(9).is_none());
        exchange.push(read("k"), answers.reply_to(3), now).unwrap();
        assert_eq!(ids(&mut exchange, Lane::Small), [3]);
        assert_eq!(exchange.take_sent().len(), 3);
        assert!(exchange.answered(0).is_none());
        assert_eq!(exchange.bytes, [0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn large_values_have_their_own_lane_and_bound() {
        let (mut exchange, answers, now) = (exchange(), Answers::new(), Instant::now());
        let large = || write("k", vec![0; SMALL_VALUE_BYTES_MAX + 1]);
        assert_eq!(exchange.push(large(), answers.reply_to(0), now).unwrap(), (Lane::Large, true));
        let refused = exchange.push(large(), answers.reply_to(1), now).unwrap_err();
        refused.send(Err(PeerError::Overloaded));
        assert_eq!(exchange.push(write("k", vec![0; 10]), answers.reply_to(2), now).unwrap(), (Lane::Small, true));
        assert_eq!(ids(&mut exchange, Lane::Large).len(), 1);
        assert!(exchange.push(large(), answers.reply_to(3), now).is_err(), "what is sent still counts");
        exchange.answered(0).unwrap();
        assert!(exchange.push(large(), answers.reply_to(4), now).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_larger_than_the_bound_fits_alone() {
        let (mut exchange, answers, now) = (Exchange::new(10, Duration::from_secs(1)), Answers::new(), Instant::now());
        assert!(exchange.push(write("k", vec![0; 100]), answers.reply_to(0), now).is_ok());
        assert!(exchange.push(read("k"), answers.reply_to(1), now).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_sent_and_the_queued_apart() {
        let (mut exchange, answers, now) = (exchange(), Answers::new(), Instant::now());
        let by = |ms| ReplicaCall { deadline: Some(now + Duration::from_millis(ms)), ..read("k") };
        exchange.push(by(10), answers.reply_to(0), now).unwrap();
        exchange.push(by(90), answers.reply_to(1), now).unwrap();
        ids(&mut exchange, Lane::Small);
        exchange.push(by(10), answers.reply_to(2), now).unwrap();
        exchange.push(read("k"), answers.reply_to(3), now).unwrap();
        let overdue = exchange.overdue(now + Duration::from_millis(50));
        assert_eq!((overdue.sent.len(), overdue.queued.len()), (1, 1));
        let overdue = exchange.overdue(now + Duration::from_millis(1000));
        assert_eq!((overdue.sent.len(), overdue.queued.len()), (1, 1), "no deadline means the default one");
        assert_eq!(exchange.bytes, [0, 0]);
    }
}
