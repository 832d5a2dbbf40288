//! The serving side of a link: requests in, answers out, in batches that form like the requests' do.
//!
//! An answer leaves on the lane its size asks for, so a read of a large value does not delay the small answers behind
//! it; where the link has only one stream, on that.
//!
//! Invariants:
//! - A message is admitted before anything in it is believed; a refusal ends the stream with its reason.
//! - A request that makes no sense is answered as such and harms no other.
//! - A stream is read no further while too many of the link's requests are under way, or too many bytes of answers
//!   wait: HTTP/2 then stops the sender.

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
use super::meters::Meters;
use super::peer::Pace;
use super::weight::{self, Weight};
use super::wire::hot::{self, LastTopology};
use super::wire::{self, proto, status};
use crate::ports::{Answer, Deliveries, Delivery, Header, Inbox, PeerHandler, ReplyTo};
use crate::types::InstanceId;

/// The answers of one link, waiting for their streams.
#[derive(Debug)]
pub(super) struct Replies {
    state: Mutex<State>,
    bounds: Bounds,
}

/// How much a link may make this node hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Requests delivered and not yet answered.
    pub(super) under_way_max: usize,
    /// Bytes of answers waiting for their streams.
    pub(super) bytes_max: usize,
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
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { state: Mutex::default(), bounds }
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

    /// What a lane's stream should do now. Unless there is a batch, the waker will be called when that changes.
    fn poll_batch(&self, lane: Lane, ended: bool, pace: &mut Pace, context: &Context<'_>) -> Outgoing {
        let mut state = self.state.lock();
        let (idle, full) = (state.under_way == 0, state.is_full(&self.bounds));
        let mine = &mut state.lanes[lane.index()];
        mine.ended = ended;
        if mine.queue.is_empty() {
            pace.idle();
            mine.waker = Some(context.waker().clone());
            return if full { Outgoing::Full } else { Outgoing::Empty { idle } };
        }
        if pace.lets_others_queue() {
            context.waker().wake_by_ref();
            return Outgoing::Soon;
        }
        let batch = mine.queue.message().map(|(_, item)| item).collect();
        if full && !state.is_full(&self.bounds) {
            // The other stream may read again.
            let waker = state.lanes[lane.other().index()].waker.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
        }
        Outgoing::Batch(batch)
    }
}

impl State {
    fn is_full(&self, bounds: &Bounds) -> bool {
        let bytes: usize = self.lanes.iter().map(|lane| lane.queue.bytes()).sum();
        self.under_way >= bounds.under_way_max || bytes >= bounds.bytes_max
    }
}

#[derive(Debug)]
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
        let Weight { content, bytes } = weight::of_answer(&answer);
        let mut state = self.state.lock();
        let was_full = state.is_full(&self.bounds);
        state.under_way -= 1;
        let mut lane = Lane::of(content);
        if !state.lanes[lane.index()].attached {
            lane = lane.other();
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

/// One stream of a link: polled by HTTP/2 for answers, it reads the requests on the way, so that a stream is one task
/// and reads no faster than its answers leave.
pub(super) struct Serving {
    pub(super) incoming: Streaming<proto::Requests>,
    pub(super) place: Place,
    pub(super) handler: Arc<dyn PeerHandler>,
    pub(super) meters: Arc<Meters>,
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
        self.meters.received(&message);
        let (header, to) = wire::read_header(message.header)?;
        self.handler.admit(&header, to).map_err(|error| status::not_admitted(error, &*self.handler))?;
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
        self.meters.sent(&message);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::tests::write;
    use crate::ports::{ReplicaReply, ReplicaRequest};
    use crate::types::Floor;
    use crate::types::limits::SMALL_VALUE_BYTES_MAX;

    const BOUNDS: Bounds = Bounds { under_way_max: 2, bytes_max: 1_000_000 };

    fn value(bytes: usize) -> Answer {
        let ReplicaRequest::Write { record, .. } = write("k", vec![0; bytes]).request else { panic!("not a write") };
        Ok(ReplicaReply::Record { record: Some(record), floor: Floor::default() })
    }

    fn next(replies: &Replies, lane: Lane) -> Outgoing {
        let context = Context::from_waker(Waker::noop());
        let mut pace = Pace::default();
        match replies.poll_batch(lane, false, &mut pace, &context) {
            Outgoing::Soon => replies.poll_batch(lane, false, &mut pace, &context),
            other => other,
        }
    }

    fn batch(replies: &Replies, lane: Lane) -> Vec<u64> {
        match next(replies, lane) {
            Outgoing::Batch(batch) => batch.into_iter().map(|(id, _)| id).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_take_the_lane_of_their_size_or_the_only_one() {
        let replies = Replies::new(BOUNDS);
        replies.attach(Lane::Small);
        replies.add_under_way(2);
        replies.deliver(1, value(SMALL_VALUE_BYTES_MAX + 1));
        assert_eq!(batch(&replies, Lane::Small), [1]);
        replies.attach(Lane::Large);
        replies.add_under_way(1);
        replies.deliver(2, value(SMALL_VALUE_BYTES_MAX + 1));
        replies.deliver(3, value(SMALL_VALUE_BYTES_MAX));
        assert_eq!(batch(&replies, Lane::Small), [3]);
        assert_eq!(batch(&replies, Lane::Large), [2]);
        assert!(matches!(next(&replies, Lane::Small), Outgoing::Empty { idle: true }));
    }

    #[test]
    fn too_much_under_way_or_waiting_stops_the_reading() {
        let replies = Replies::new(BOUNDS);
        assert!(Lane::BOTH.into_iter().all(|lane| replies.attach(lane)));
        replies.add_under_way(2);
        assert!(matches!(next(&replies, Lane::Small), Outgoing::Full));
        replies.deliver(1, value(BOUNDS.bytes_max));
        assert!(matches!(next(&replies, Lane::Small), Outgoing::Full), "by bytes");
        assert_eq!(batch(&replies, Lane::Large), [1]);
        assert!(matches!(next(&replies, Lane::Small), Outgoing::Empty { idle: false }));
        assert!(!replies.detach(Lane::Large) && replies.detach(Lane::Small));
        replies.deliver(2, value(1));
        assert!(matches!(next(&replies, Lane::Small), Outgoing::Empty { idle: true }), "it goes nowhere");
    }
}
