//! The mesh's metrics: handles taken once.

use metrics::{Counter, Histogram};
use prost::Message;

use crate::metrics::{self as table, MESH_BATCH, MESH_BYTES, MESH_ERRORS, MESH_MESSAGES, PEER_SECONDS};
use crate::ports::PeerError;

/// What is counted of the hot path, on both sides of it.
pub(super) struct Meters {
    messages_sent: Counter,
    messages_received: Counter,
    bytes_sent: Counter,
    bytes_received: Counter,
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
        Self {
            messages_sent,
            messages_received,
            bytes_sent,
            bytes_received,
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

    pub(super) fn batch(&self, requests: usize) {
        self.batch.record(requests as f64);
    }

    pub(super) fn failed(&self, error: &PeerError) {
        // The index is one of `reason`'s, which are the array's.
        self.errors[reason(error)].increment(1);
    }
}
