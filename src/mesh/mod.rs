//! The mesh: [`Peers`](crate::ports::Peers) and the door to [`PeerHandler`](crate::ports::PeerHandler) over gRPC.
//!
//! ```text
//!  send -> Peer (queue, table of what is under way)      links -> PeerHandler.deliver
//!            | Outbox: one message a poll                  ^            | ReplyTo
//!            +------------- Requests ------------------> Serving        v
//!            ^                                             |         Replies (queues of answers)
//!            +------------- Replies ------- drained by <---+------------+
//! ```
//!
//! Reading order: `former` (how a batch forms), `weight` (how much fits into one) and `exchange` (what a peer is asked
//! and still owes), synchronous and without a wire; `peer` (an exchange with its connection's standing); `link` (the
//! task that connects); `replies` and `server` (the other side); `asks` and `channels` (rare requests, and proposals);
//! `wire` (the proto and the ports).
//!
//! Invariants:
//! - Each request is answered exactly once, and by its deadline (within a tenth of a second).
//! - [`Unreachable`](crate::ports::PeerError::Unreachable), `Overloaded`, `WrongRecipient` and `ForeignCluster` are
//!   only said of requests that never left; what left without an answer is `TimedOut` or `Lost`.
//! - No request leaves before both sides greeted each other: the peer is the introduced instance, and of our cluster.
//! - Nobody waits for a batch to fill: a message takes what is queued when the stream is ready for the next.
//! - What a peer may owe us, and what it may make us hold, is bounded ([`Options`]).
//!
//! Caveats: a peer is trusted once admitted (mutual TLS comes later). A reply is matched to its request by id only;
//! that it is of the right kind is for the coordinator to see.

mod asks;
mod channels;
mod client;
mod endpoint;
mod exchange;
mod former;
mod link;
mod links;
mod meters;
mod peer;
mod replies;
mod server;
#[cfg(test)]
mod tests;
mod weight;
mod wire;

use std::time::Duration;

pub use client::MeshPeers;
pub use exchange::{Exchange, Lane, Overdue, Waiting};
pub use former::Former;
pub use server::serve;

/// How the mesh behaves. The defaults are meant for production.
#[derive(Clone, Debug)]
pub struct Options {
    /// The longest wait for a connection and the peer's greeting. Longer, and requests to a member whose host vanished
    /// queue for longer before they are told; shorter, and a slow network looks like a dead one.
    pub connect_timeout: Duration,
    /// The wait before the second attempt to connect; it doubles with each failure, with jitter.
    pub reconnect_min: Duration,
    /// The longest wait between two attempts to connect.
    pub reconnect_max: Duration,
    /// How often a connection is pinged.
    pub keep_alive_interval: Duration,
    /// How long a ping may stay unanswered before the connection is given up.
    pub keep_alive_timeout: Duration,
    /// The deadline of a request that came without one.
    pub request_timeout: Duration,
    /// How many bytes of requests may be queued and on their way to one peer, counted apart for small and for large
    /// ones. One request always fits. Beyond it requests are answered `Overloaded`. Also how many bytes of answers to
    /// one peer may wait before its streams are read no further.
    pub bytes_in_flight_max: usize,
    /// How many requests of one peer may be under way at this node before its streams are read no further.
    pub requests_in_flight_max: usize,
    /// How many connections are kept open for rare requests; beyond it the one unused for longest is closed.
    pub channels_max: usize,
    /// HTTP/2's window for one stream, in bytes: what may be on its way unread. It must hold several messages, or the
    /// sender waits for the window instead of the network.
    pub stream_window_bytes: u32,
    /// The same for one connection; several streams' worth, so that a stalled stream does not hold up its neighbour.
    pub connection_window_bytes: u32,
    /// How long a server that was asked to stop lets requests under way finish.
    pub drain_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            reconnect_min: Duration::from_millis(50),
            reconnect_max: Duration::from_secs(1),
            keep_alive_interval: Duration::from_secs(5),
            keep_alive_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            bytes_in_flight_max: 64 * 1024 * 1024,
            requests_in_flight_max: 16 * 1024,
            channels_max: 64,
            stream_window_bytes: 4 * 1024 * 1024,
            connection_window_bytes: 16 * 1024 * 1024,
            drain_timeout: Duration::from_secs(2),
        }
    }
}
