//! The lines that `DEBUG_LOG` shows of a write, for people to follow it: where it goes, who confirms it, what a replica
//! does with it. Membership and handoff tell theirs where they happen.
//!
//! While the lines are off, each of these functions is one load of an atomic.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::trace;
use crate::ports::{Answer, Inbox, ReplicaCall, ReplicaReply, ReplicaRequest, ReplyTo};
use crate::types::{Key, NodeNum, Trace, Version};

/// Whether anybody looks.
pub(super) fn shown() -> bool {
    tracing::enabled!(target: "a3::events", tracing::Level::DEBUG)
}

/// A coordinator begins a write.
pub(super) fn write(node: NodeNum, key: &Key, version: Version, replicas: &[NodeNum]) {
    tracing::debug!(target: "a3::events", %node, %key, %version, "write to {}", Names(replicas));
}

/// A coordinator sent a record to a home replica, or for one (`target`) to whoever keeps a hint for it.
pub(super) fn sent(to: NodeNum, target: Option<NodeNum>, key: &Key, version: Version) {
    match target {
        None => tracing::debug!(target: "a3::events", %key, %version, "replicate sent to {to}"),
        Some(home) => tracing::debug!(target: "a3::events", %key, %version, "hint for {home} sent to {to}"),
    }
}

/// A coordinator heard of it.
pub(super) fn answered(from: NodeNum, target: Option<NodeNum>, key: &Key, version: Version, answer: &Answer) {
    if !shown() {
        return;
    }
    match (target, answer) {
        (None, Ok(ReplicaReply::Stored { .. })) => {
            tracing::debug!(target: "a3::events", %key, %version, "replicate confirmed by {from}");
        }
        (Some(home), Ok(ReplicaReply::Hinted)) => {
            tracing::debug!(target: "a3::events", %key, %version, "hint for {home} confirmed by {from}");
        }
        (None, other) => {
            tracing::debug!(target: "a3::events", %key, %version, "replicate not stored by {from}: {}", Why(other));
        }
        (Some(home), other) => {
            tracing::debug!(target: "a3::events", %key, %version, "hint for {home} not kept by {from}: {}", Why(other));
        }
    }
}

/// Puts a line in the log between a replica's store and whoever waits, for what came from elsewhere and for hints.
pub(super) fn noted(node: NodeNum, from: NodeNum, call: &ReplicaCall, reply_to: ReplyTo) -> ReplyTo {
    let (key, version, target) = match &call.request {
        ReplicaRequest::Write { key, record } if from != node => (key, record.version, None),
        ReplicaRequest::Hint { target, key, record, .. } => (key, record.version, Some(*target)),
        _ => return reply_to,
    };
    let (key, trace, asked) = (key.clone(), call.trace.clone(), Mutex::new(Some(reply_to)));
    let note = Note { node, from, target, key, version, trace, asked };
    ReplyTo::new(Arc::new(note), 0)
}

/// An answer on its way back, looked at for the log. Only made while the log is on.
struct Note {
    node: NodeNum,
    from: NodeNum,
    target: Option<NodeNum>,
    key: Key,
    version: Version,
    trace: Option<Arc<Trace>>,
    asked: Mutex<Option<ReplyTo>>,
}

impl Inbox for Note {
    fn deliver(&self, _: u64, answer: Answer) {
        let Self { node, from, key, version, .. } = self;
        let _request = trace::span(self.trace.as_deref()).entered();
        match (&answer, self.target) {
            (Ok(ReplicaReply::Hinted), Some(home)) => {
                tracing::debug!(target: "a3::events", %node, %key, %version, "hint for {home} stored, from {from}");
            }
            (Ok(ReplicaReply::Stored { .. }), None) => {
                tracing::debug!(target: "a3::events", %node, %key, %version, "replicate from {from} stored");
            }
            (other, Some(home)) => {
                tracing::debug!(target: "a3::events", %node, %key, %version, "hint for {home} from {from} not stored: {}",
                    Why(other));
            }
            (other, None) => {
                tracing::debug!(target: "a3::events", %node, %key, %version, "replicate from {from} not stored: {}",
                    Why(other));
            }
        }
        if let Some(asked) = self.asked.lock().take() {
            asked.send(answer);
        }
    }
}

/// `n1, n2`.
struct Names<'a>(&'a [NodeNum]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, node) in self.0.iter().enumerate() {
            write!(f, "{}{node}", if place == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Why nothing was stored.
struct Why<'a>(&'a Answer);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(ReplicaReply::Dominated { by }) => write!(f, "version {} is there", by.version),
            Ok(ReplicaReply::BelowFloor { .. }) => f.write_str("below the floor"),
            Ok(ReplicaReply::Refused(refusal)) => refusal.fmt(f),
            Ok(ReplicaReply::WrongEpoch { topology }) => write!(f, "epoch {} is in force there", topology.epoch),
            Ok(_) => f.write_str("answered another question"),
            Err(error) => error.fmt(f),
        }
    }
}
