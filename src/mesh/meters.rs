//! The mesh's metrics: handles taken once.
//!
//! What is counted is the messages themselves, without HTTP/2's frames and headers.

use metrics::{Counter, Histogram};
use prost::Message;

use crate::metrics::{
    self as table, ANTI_ENTROPY_BYTES, MESH_BATCH, MESH_BYTES, MESH_ERRORS, MESH_MESSAGES, PEER_SECONDS,
};
use crate::ports::PeerError;

/// gRPC puts a flag and a length before each message.
const PREFIX_BYTES: usize = 5;

/// What is counted of the hot path and of healing, on both sides of each.
pub(super) struct Meters {
    messages_sent: Counter,
    messages_received: Counter,
    bytes_sent: Counter,
    bytes_received: Counter,
    healing_sent: Counter,
    healing_received: Counter,
    batch: Histogram,
    /// From queueing a request to its answer.
    pub(super) seconds: Histogram,
    errors: [Counter; REASONS.len()],
}

/// In the order of [`reason`].
const REASONS: [&str; 8] =
    ["unreachable", "overloaded", "timed_out", "lost", "wrong_recipient", "foreign_cluster", "protocol", "refused"];

fn reason(error: &PeerError) -> usize {
    match error {
        PeerError::Unreachable => 0,
        PeerError::Overloaded => 1,
        PeerError::TimedOut => 2,
        PeerError::Lost => 3,
        PeerError::WrongRecipient => 4,
        PeerError::ForeignCluster(_) => 5,
        PeerError::Protocol(_) => 6,
        PeerError::Refused(_) => 7,
    }
}

impl Default for Meters {
    fn default() -> Self {
        let both = |metric| {
            (table::counter(metric, &[("direction", "sent")]), table::counter(metric, &[("direction", "received")]))
        };
        let ((messages_sent, messages_received), (bytes_sent, bytes_received)) =
            (both(MESH_MESSAGES), both(MESH_BYTES));
        let (healing_sent, healing_received) = both(ANTI_ENTROPY_BYTES);
        Self {
            messages_sent,
            messages_received,
            bytes_sent,
            bytes_received,
            healing_sent,
            healing_received,
            batch: table::histogram(MESH_BATCH, &[]),
            seconds: table::histogram(PEER_SECONDS, &[]),
            errors: REASONS.map(|reason| table::counter(MESH_ERRORS, &[("reason", reason)])),
        }
    }
}

impl Meters {
    pub(super) fn sent(&self, message: &impl Message) {
        self.messages_sent.increment(1);
        self.bytes_sent.increment(message.encoded_len() as u64);
    }

    pub(super) fn received(&self, message: &impl Message) {
        self.messages_received.increment(1);
        self.bytes_received.increment(message.encoded_len() as u64);
    }

    /// A message by which copies are compared or repaired.
    pub(super) fn healing_sent(&self, message: &impl Message) {
        self.healing_sent.increment(framed_bytes(message));
    }

    pub(super) fn healing_received(&self, message: &impl Message) {
        self.healing_received.increment(framed_bytes(message));
    }

    pub(super) fn batch(&self, requests: usize) {
        self.batch.record(requests as f64);
    }

    pub(super) fn failed(&self, error: &PeerError) {
        // The index is one of `reason`'s, which are the array's.
        self.errors[reason(error)].increment(1);
    }
}

/// A message as it is handed to HTTP/2.
pub(super) fn framed_bytes(message: &impl Message) -> u64 {
    (message.encoded_len() + PREFIX_BYTES) as u64
}
