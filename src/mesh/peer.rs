//! One peer as seen from here: its exchange, the standing of the connection, and the streams' outgoing ends.
//!
//! Locking: the state is locked for moments only, and never while a [`ReplyTo`] answers, as who gets the answer may
//! send again at once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::client::Shared;
use super::exchange::{Exchange, Lane, Overdue, Waiting};
use super::wire::{self, proto};
use crate::metrics::{self as table, MESH_CONNECTED};
use crate::ports::{Answer, PeerError, ReplicaCall, ReplyTo};
use crate::types::{InstanceId, NodeNum};

/// Where a peer is, and who must answer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) instance: InstanceId,
    pub(super) address: String,
}

/// One try to reach a peer, and the link that may come of it. What belongs to an older one than the peer's current
/// attempt no longer counts.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) number: u64,
    pub(super) target: Target,
}

/// How things stand with a peer.
#[derive(Clone, Debug, PartialEq)]
enum Standing {
    /// Introduced, and the first attempt is not over: requests queue.
    Trying,
    /// Greeted: requests go out.
    Up,
    /// The last attempt or link ended like that: requests are told so at once, and nothing leaves.
    Down(PeerError),
}

#[derive(Debug)]
struct State {
    exchange: Exchange,
    target: Target,
    attempt: u64,
    standing: Standing,
    /// The outgoing ends of the link, by lane, where they wait for requests.
    wakers: [Option<Waker>; 2],
}

pub(super) struct Peer {
    pub(super) node: NodeNum,
    state: Mutex<State>,
    /// A new target was set.
    introduced: Notify,
    connected: Gauge,
}

impl Peer {
    pub(super) fn new(node: NodeNum, target: Target, exchange: Exchange) -> Self {
        let connected = table::gauge(MESH_CONNECTED, &[("peer", &node.to_string())]);
        connected.set(0.0);
        let state = State { exchange, target, attempt: 0, standing: Standing::Trying, wakers: [None, None] };
        Self { node, state: Mutex::new(state), introduced: Notify::new(), connected }
    }

    /// Queues a request, or gives its error back.
    pub(super) fn send(&self, call: ReplicaCall, reply_to: ReplyTo) -> Result<(), (ReplyTo, PeerError)> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if let Standing::Down(error) = &state.standing {
            return Err((reply_to, error.clone()));
        }
        match state.exchange.push(call, reply_to, now) {
            Err(reply_to) => Err((reply_to, PeerError::Overloaded)),
            Ok((lane, first)) => {
                let waker = if first { state.wakers[lane.index()].take() } else { None };
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
                Ok(())
            }
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        !matches!(self.state.lock().standing, Standing::Down(_))
    }

    pub(super) fn target(&self) -> Target {
        self.state.lock().target.clone()
    }

    // ----------------------------------------------------------------------------------------- the link's life

    /// Says where the peer is now. A link to elsewhere ends; what is queued stays and goes to the new target.
    pub(super) fn introduce(&self, target: Target) -> Vec<ReplyTo> {
        let mut state = self.state.lock();
        if state.target == target {
            return Vec::new();
        }
        state.target = target;
        state.attempt += 1;
        state.standing = Standing::Trying;
        self.introduced.notify_one();
        self.connected.set(0.0);
        state.exchange.take_sent()
    }

    pub(super) async fn introduced(&self) {
        self.introduced.notified().await;
    }

    pub(super) fn attempt(&self) -> Attempt {
        let mut state = self.state.lock();
        state.attempt += 1;
        Attempt { number: state.attempt, target: state.target.clone() }
    }

    /// Both sides greeted each other: requests may leave.
    pub(super) fn up(&self, attempt: &Attempt) {
        let mut state = self.state.lock();
        if state.attempt == attempt.number {
            state.standing = Standing::Up;
            self.connected.set(1.0);
            let wakers = std::mem::take(&mut state.wakers);
            drop(state);
            wakers.into_iter().flatten().for_each(Waker::wake);
        }
    }

    /// Nothing more leaves: the attempt failed, or its link ends. Answers whose request was still queued.
    pub(super) fn close(&self, attempt: &Attempt, error: &PeerError) -> Vec<ReplyTo> {
        let mut state = self.state.lock();
        if state.attempt != attempt.number {
            return Vec::new();
        }
        state.standing = Standing::Down(error.clone());
        self.connected.set(0.0);
        state.exchange.take_queued()
    }

    /// No more replies will come. Answers who still waited for one.
    pub(super) fn end(&self, attempt: &Attempt) -> Vec<ReplyTo> {
        let mut state = self.state.lock();
        if state.attempt == attempt.number { state.exchange.take_sent() } else { Vec::new() }
    }

    /// Who waited too long; whether the link is up.
    pub(super) fn overdue(&self, now: Instant) -> (Overdue, bool) {
        let mut state = self.state.lock();
        let up = state.standing == Standing::Up;
        (state.exchange.overdue(now), up)
    }

    /// Matches a message's replies to those who wait for them.
    pub(super) fn settle(&self, replies: &mut [Settled]) {
        let mut state = self.state.lock();
        for reply in replies {
            reply.waiting = state.exchange.answered(reply.id);
        }
    }

    /// The next message of a lane: `None` when the stream must end.
    fn poll_message(
        &self,
        outbox: &mut Pace,
        attempt: &Attempt,
        lane: Lane,
        context: &Context<'_>,
    ) -> Poll<Option<Vec<proto::Request>>> {
        let mut state = self.state.lock();
        if state.attempt != attempt.number {
            return Poll::Ready(None);
        }
        if state.standing != Standing::Up || !state.exchange.has_queued(lane) {
            outbox.idle();
            state.wakers[lane.index()] = Some(context.waker().clone());
            return Poll::Pending;
        }
        if outbox.lets_others_queue() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(state.exchange.message(lane, wire::hot::request)))
    }
}

/// A reply that came, and who waited for it.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) id: u64,
    pub(super) answer: Answer,
    pub(super) waiting: Option<Waiting>,
}

/// Lets a stream that was idle yield once before it forms its first message.
///
/// Tokio runs a task that was just woken next on the same thread, before the others that are ready: without this, the
/// first of many requests that come together leaves before the others had their turn to queue. By `benches/mesh.rs`
/// with 64 in flight, a message carries 50 requests instead of 27 and a request costs a fifth less processor time on
/// both sides together. The price is one more turn of the scheduler for a request that comes alone.
#[derive(Debug, Default)]
pub(super) struct Pace {
    yielded: bool,
}

impl Pace {
    pub(super) fn idle(&mut self) {
        self.yielded = false;
    }

    /// Whether to come back after the other ready tasks.
    pub(super) fn lets_others_queue(&mut self) -> bool {
        !std::mem::replace(&mut self.yielded, true)
    }
}

/// The outgoing end of one stream of a link: each poll forms a message, so HTTP/2's flow control decides how much
/// travels together. It opens with the greeting.
pub(super) struct Outbox {
    peer: Arc<Peer>,
    shared: Arc<Shared>,
    attempt: Attempt,
    lane: Lane,
    greeted: bool,
    pace: Pace,
}

impl Outbox {
    pub(super) fn new(peer: Arc<Peer>, shared: Arc<Shared>, attempt: Attempt, lane: Lane) -> Self {
        Self { peer, shared, attempt, lane, greeted: false, pace: Pace::default() }
    }
}

impl Stream for Outbox {
    type Item = proto::Requests;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let requests = if this.greeted {
            match this.peer.poll_message(&mut this.pace, &this.attempt, this.lane, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(requests)) => {
                    this.shared.meters.batch(requests.len());
                    requests
                }
            }
        } else {
            this.greeted = true;
            Vec::new()
        };
        // Without a handler the node is gone, and so is its word.
        let Some(handler) = this.shared.handler() else { return Poll::Ready(None) };
        let header = wire::header(&handler.header(), Some(this.attempt.target.instance));
        let message = proto::Requests { header: Some(header), requests };
        this.shared.meters.sent(&message);
        Poll::Ready(Some(message))
    }
}
