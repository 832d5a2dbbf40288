//! The task behind each peer: connects, greets, reads replies, and tries again.
//!
//! A link is one connection with two streams. It is up once both streams were greeted by the introduced instance, and
//! ends when either stream does. While it is down requests are told so at once (the breaker); the way back up is the
//! task's next attempt, after a wait that doubles with each failure.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use super::client::Shared;
use super::endpoint;
use super::exchange::Lane;
use super::peer::{Attempt, Outbox, Peer, Settled};
use super::server::{LANE, LINK, lane_name};
use super::wire::hot::LastTopology;
use super::wire::{hot, proto, status};
use crate::ports::{Entropy, PeerError, ReplyTo};

/// Keeps a link to the peer for as long as the node lives.
pub(super) async fn keep(peer: Arc<Peer>, shared: Arc<Shared>) {
    shared.bound().await;
    let mut failures = 0u32;
    // Without the node there is nobody to speak for.
    while shared.handler().is_some() {
        let attempt = peer.attempt();
        let (was_up, error) = tokio::select! {
            biased;
            () = peer.introduced() => {
                failures = 0;
                continue;
            }
            ended = run(&peer, &shared, &attempt) => ended,
        };
        report(&peer, &attempt, was_up, failures, &error);
        shared.fail(peer.close(&attempt, &error), &error);
        shared.fail(peer.end(&attempt), &PeerError::Lost);
        failures = if was_up { 0 } else { failures.saturating_add(1) };
        let wait = backoff(failures, shared.options.reconnect_min, shared.options.reconnect_max, &*shared.entropy);
        tokio::select! {
            biased;
            () = peer.introduced() => failures = 0,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One line when things change, not one an attempt.
fn report(peer: &Peer, attempt: &Attempt, was_up: bool, failures: u32, error: &PeerError) {
    let (node, address) = (peer.node, &attempt.target.address);
    if was_up {
        tracing::warn!(peer = %node, %address, %error, "the connection to a peer ended");
    } else if failures == 0 {
        tracing::warn!(peer = %node, %address, %error, "a peer cannot be reached");
    } else {
        tracing::trace!(peer = %node, %address, %error, failures, "a peer still cannot be reached");
    }
}

/// Between half and all of `min * 2^failures`, at most `max`: peers that lost the same node do not return in step.
fn backoff(failures: u32, min: Duration, max: Duration, entropy: &dyn Entropy) -> Duration {
    let full = min.saturating_mul(2u32.saturating_pow(failures)).min(max);
    let half_us = u64::try_from(full.as_micros() / 2).unwrap_or(u64::MAX);
    Duration::from_micros(half_us + entropy.below(half_us + 1))
}

/// One link from its first packet to its end: whether it was up, and how it ended.
async fn run(peer: &Arc<Peer>, shared: &Arc<Shared>, attempt: &Attempt) -> (bool, PeerError) {
    let opening = open(peer, shared, attempt);
    let replies = match tokio::time::timeout(shared.options.connect_timeout, opening).await {
        Err(_) => return (false, PeerError::Unreachable),
        Ok(Err(error)) => return (false, error),
        Ok(Ok(replies)) => replies,
    };
    peer.up(attempt);
    tracing::info!(peer = %peer.node, address = %attempt.target.address, "connected to a peer");
    (true, read(peer, shared, attempt, replies).await)
}

/// What a stream brings; `None` when the peer ended it in order.
type Incoming = Result<Option<proto::Replies>, Status>;

/// Connects and exchanges greetings on both streams. Nothing but the greetings was sent.
async fn open(
    peer: &Arc<Peer>,
    shared: &Arc<Shared>,
    attempt: &Attempt,
) -> Result<impl Stream<Item = Incoming> + use<>, PeerError> {
    let endpoint = endpoint::endpoint(&attempt.target.address, &shared.options, &shared.spawn)?;
    let channel = endpoint.connect().await.map_err(|_| PeerError::Unreachable)?;
    let link = MetadataValue::try_from(shared.entropy.uuid().to_string())
        .map_err(|_| PeerError::Protocol("a UUID is printable ASCII".into()))?;
    let mut lanes = Vec::with_capacity(Lane::BOTH.len());
    for lane in Lane::BOTH {
        let outbox = Outbox::new(peer.clone(), shared.clone(), attempt.clone(), lane);
        let mut request = Request::new(outbox);
        request.metadata_mut().insert(LINK, link.clone());
        request.metadata_mut().insert(LANE, MetadataValue::from_static(lane_name(lane)));
        let mut replies = endpoint::client(channel.clone()).exchange(request).await.map_err(opening)?.into_inner();
        let greeting = replies.message().await.map_err(opening)?.ok_or(PeerError::Unreachable)?;
        shared.admit(greeting.header, Some(attempt.target.instance))?;
        lanes.push(replies.map(|message| message.map(Some)).chain(stream::once(async { Ok(None) })).boxed());
    }
    Ok(stream::select_all(lanes))
}

/// What went wrong before the link was up: nothing was sent, so a lost connection is one that never was.
fn opening(status: Status) -> PeerError {
    match status::error(&status) {
        PeerError::Lost | PeerError::TimedOut => PeerError::Unreachable,
        error => error,
    }
}

/// Hands replies to who waits for them until the link ends.
///
/// A peer that stops ends both streams in order, each after its last reply: at the first end nothing more is sent, and
/// the other stream is read to its end as well.
async fn read(
    peer: &Peer,
    shared: &Shared,
    attempt: &Attempt,
    mut incoming: impl Stream<Item = Incoming> + Unpin,
) -> PeerError {
    let mut topologies = LastTopology::default();
    let mut settled = Vec::new();
    let mut patience = None;
    loop {
        let next = match patience {
            None => incoming.next().await,
            Some(until) => tokio::time::timeout_at(until, incoming.next()).await.unwrap_or(None),
        };
        match next {
            None => return PeerError::Unreachable,
            Some(Err(status)) => return lost(&status),
            Some(Ok(None)) => {
                shared.fail(peer.close(attempt, &PeerError::Unreachable), &PeerError::Unreachable);
                patience = Some(Instant::now() + shared.options.drain_timeout);
            }
            Some(Ok(Some(message))) => {
                shared.meters.received(&message);
                if let Err(error) = shared.admit(message.header, Some(attempt.target.instance)) {
                    return error;
                }
                settled.extend(message.replies.into_iter().map(|reply| Settled {
                    id: reply.id,
                    answer: hot::read_reply(reply.reply, &mut topologies),
                    waiting: None,
                }));
                settle(peer, shared, &mut settled);
            }
        }
    }
}

/// Answers everyone in the list who still waits, and empties it.
fn settle(peer: &Peer, shared: &Shared, settled: &mut Vec<Settled>) {
    peer.settle(settled);
    let now = Instant::now();
    for Settled { answer, waiting, .. } in settled.drain(..) {
        let Some(waiting) = waiting else { continue };
        shared.meters.seconds.record((now - waiting.queued_at).as_secs_f64());
        if let Err(error) = &answer {
            shared.meters.failed(error);
        }
        waiting.reply_to.send(answer);
    }
}

/// What requests are told after the link ended, until it is back: nothing of theirs was sent.
fn lost(status: &Status) -> PeerError {
    match status::error(status) {
        error @ (PeerError::WrongRecipient | PeerError::ForeignCluster(_)) => error,
        _ => PeerError::Unreachable,
    }
}

impl Shared {
    /// Answers all of them with the same error.
    pub(super) fn fail(&self, reply_to: Vec<ReplyTo>, error: &PeerError) {
        for reply_to in reply_to {
            self.meters.failed(error);
            reply_to.send(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Highest;

    impl Entropy for Highest {
        fn u64(&self) -> u64 {
            u64::MAX
        }
    }

    struct Lowest;

    impl Entropy for Lowest {
        fn u64(&self) -> u64 {
            0
        }
    }

    #[test]
    fn the_wait_doubles_to_its_limit_and_jitters_by_half() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(1));
        let between = |n| (backoff(n, min, max, &Lowest).as_millis(), backoff(n, min, max, &Highest).as_millis());
        assert_eq!([0, 1, 2].map(between), [(25, 50), (50, 100), (100, 200)]);
        assert_eq!([5, 40].map(between), [(500, 1000), (500, 1000)]);
    }
}
