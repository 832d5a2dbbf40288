//! The serving side of a link: requests in, answers out, in batches that form like the requests' do.
//!
//! An answer leaves on the lane its size asks for, so a read of a large value does not delay the small answers behind
//! it; where the link has only one stream, on that.
//!
//! Invariants:
//! - A message is admitted before anything in it is believed; a refusal ends the stream with its reason.
//! - A request that makes no sense is answered as such and harms no other.
//! - A stream is read no further while too many of the link's requests are under way: HTTP/2 then stops the sender.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use parking_lot::Mutex;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::exchange::Lane;
use super::former::Former;
use super::links::Place;
use super::observed::Observed;
use super::peer::Pace;
use super::wire::hot::{self, LastTopology};
use super::wire::{self, proto, status};
use crate::ports::{Answer, Deliveries, Delivery, Header, Inbox, PeerHandler, ReplicaReply, ReplyTo};
use crate::types::{InstanceId, Record};

/// What an answer weighs beside a record's content.
const REPLY_BYTES: usize = 96;
/// What a topology weighs: near enough for a batch's limit.
const TOPOLOGY_BYTES: usize = 32 * 1024;

/// The answers of one link, waiting for their streams.
#[derive(Debug)]
pub(super) struct Replies {
    state: Mutex<State>,
    under_way_max: usize,
}

#[derive(Debug, Default)]
struct State {
    lanes: [LaneState; 2],
    /// Requests delivered and not yet answered.
    under_way: usize,
}

#[derive(Debug, Default)]
struct LaneState {
    /// Whether a stream takes answers from here.
    attached: bool,
    /// The stream reads no more and only waits for what is under way.
    ended: bool,
    queue: Former<(u64, Answer)>,
    waker: Option<Waker>,
}

impl Replies {
    pub(super) fn new(under_way_max: usize) -> Self {
        Self { state: Mutex::default(), under_way_max }
    }

    /// Whether the lane was free; it is taken now.
    pub(super) fn attach(&self, lane: Lane) -> bool {
        let lane = &mut self.state.lock().lanes[lane.index()];
        !std::mem::replace(&mut lane.attached, true)
    }

    /// The stream is gone: what waited for it goes nowhere. Whether no stream is left.
    pub(super) fn detach(&self, lane: Lane) -> bool {
        let mut state = self.state.lock();
        let gone = std::mem::take(&mut state.lanes[lane.index()]);
        let last = state.lanes.iter().all(|l| !l.attached);
        drop(state);
        drop(gone);
        last
    }

    fn add_under_way(&self, requests: usize) {
        self.state.lock().under_way += requests;
    }

    /// The next batch of a lane. Empty and pending mean the waker will be called; `idle` says that nothing is under
    /// way either, `full` that no more requests should be read.
    fn poll_batch(&self, lane: Lane, ended: bool, pace: &mut Pace, context: &Context<'_>) -> Outgoing {
        let mut state = self.state.lock();
        let (idle, full) = (state.under_way == 0, state.under_way >= self.under_way_max);
        let lane = &mut state.lanes[lane.index()];
        lane.ended = ended;
        if lane.queue.is_empty() {
            pace.idle();
            lane.waker = Some(context.waker().clone());
            return if full { Outgoing::Full } else { Outgoing::Empty { idle } };
        }
        if pace.lets_others_queue() {
            context.waker().wake_by_ref();
            return Outgoing::Soon;
        }
        Outgoing::Batch(lane.queue.message().map(|(_, item)| item).collect())
    }
}

enum Outgoing {
    Batch(Vec<(u64, Answer)>),
    /// There are answers, and more may come with them if others run first.
    Soon,
    Empty {
        idle: bool,
    },
    Full,
}

impl Inbox for Replies {
    fn deliver(&self, tag: u64, answer: Answer) {
        let (content_bytes, bytes) = weigh(&answer);
        let mut state = self.state.lock();
        let was_full = state.under_way >= self.under_way_max;
        state.under_way -= 1;
        let mut lane = Lane::of(content_bytes);
        if !state.lanes[lane.index()].attached {
            lane = if lane == Lane::Small { Lane::Large } else { Lane::Small };
        }
        let mut wakers = [None, None];
        let to = &mut state.lanes[lane.index()];
        if to.attached {
            to.queue.push(bytes, (tag, answer));
            wakers[0] = to.waker.take();
        }
        // A stream may read again, or was only waiting for the last answer.
        let last = state.under_way == 0;
        for (waker, lane) in wakers.iter_mut().zip(&mut state.lanes) {
            if was_full || (last && lane.ended) {
                *waker = waker.take().or_else(|| lane.waker.take());
            }
        }
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

fn weigh(answer: &Answer) -> (usize, usize) {
    match answer {
        Ok(ReplicaReply::Record { record, .. }) => {
            let content = record.as_ref().map_or(0, Record::content_bytes);
            (content, content + REPLY_BYTES)
        }
        Ok(ReplicaReply::WrongEpoch { .. }) => (0, TOPOLOGY_BYTES),
        _ => (0, REPLY_BYTES),
    }
}

/// One stream of a link: polled by HTTP/2 for answers, it reads the requests on the way, so that a stream is one task
/// and reads no faster than its answers leave.
pub(super) struct Serving {
    pub(super) incoming: Streaming<proto::Requests>,
    pub(super) place: Place,
    pub(super) handler: Arc<dyn PeerHandler>,
    pub(super) observed: Arc<Observed>,
    pub(super) stop: Pin<Box<WaitForCancellationFutureOwned>>,
    pub(super) reading: Reading,
}

/// How far a stream has come.
#[derive(Default)]
pub(super) struct Reading {
    /// Who asks, once a message was admitted.
    from: Option<InstanceId>,
    /// The greeting is to be answered.
    greet: bool,
    ended: bool,
    pace: Pace,
    topologies: LastTopology,
}

impl Serving {
    /// Takes in one message: one call of the handler, whatever is in it.
    fn take(&mut self, message: proto::Requests) -> Result<(), Status> {
        self.observed.received(&message);
        let (header, to) = wire::read_header(message.header)?;
        self.handler.admit(&header, to).map_err(status::status)?;
        self.reading.greet |= self.reading.from.is_none();
        self.reading.from = Some(header.instance);
        if message.requests.is_empty() {
            return Ok(());
        }
        self.place.replies.add_under_way(message.requests.len());
        self.deliver(&header, message.requests);
        Ok(())
    }

    fn deliver(&self, header: &Header, requests: Vec<proto::Request>) {
        let inbox: Arc<dyn Inbox> = self.place.replies.clone();
        let mut batch = Deliveries::with_capacity(requests.len());
        for request in requests {
            let reply_to = ReplyTo::new(inbox.clone(), request.id);
            match hot::read_request(request) {
                Ok(call) => batch.push(Delivery { call, reply_to }),
                Err(malformed) => reply_to.send(Err(malformed.into())),
            }
        }
        if !batch.is_empty() {
            self.handler.deliver(header.node, batch);
        }
    }

    fn message(&mut self, answers: Vec<(u64, Answer)>) -> proto::Replies {
        let topologies = &mut self.reading.topologies;
        let replies = answers.into_iter().map(|(id, answer)| hot::reply(id, answer, topologies)).collect();
        let header = wire::header(&self.handler.header(), self.reading.from);
        let message = proto::Replies { header: Some(header), replies };
        self.observed.sent(&message);
        message
    }
}

impl Stream for Serving {
    type Item = Result<proto::Replies, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.reading.ended |= this.stop.as_mut().poll(context).is_ready();
        loop {
            if std::mem::take(&mut this.reading.greet) {
                return Poll::Ready(Some(Ok(this.message(Vec::new()))));
            }
            match this.place.replies.poll_batch(this.place.lane, this.reading.ended, &mut this.reading.pace, context) {
                Outgoing::Batch(answers) => return Poll::Ready(Some(Ok(this.message(answers)))),
                Outgoing::Soon | Outgoing::Full => return Poll::Pending,
                Outgoing::Empty { idle: true } if this.reading.ended => return Poll::Ready(None),
                Outgoing::Empty { .. } if this.reading.ended => return Poll::Pending,
                Outgoing::Empty { .. } => {}
            }
            match Pin::new(&mut this.incoming).poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => this.reading.ended = true,
                Poll::Ready(Some(Ok(message))) => {
                    if let Err(status) = this.take(message) {
                        return Poll::Ready(Some(Err(status)));
                    }
                }
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
            }
        }
    }
}
