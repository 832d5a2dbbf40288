//! How a [`PeerError`] travels as a gRPC status, and what a status means.
//!
//! A refusal that must be told apart from every other failure names itself in the metadata `a3-refusal`; whatever
//! carries none is judged by its code, and in doubt as [`PeerError::Lost`]: it may have been done. The refusal of a
//! foreign cluster names the refusing node's own cluster in `a3-cluster`, for the caller's user to read.
//!
//! Only what the peer said is judged so. A status that was made on this side, of an error of the connection, has that
//! error as its source, and its code says nothing of what the peer did: a stream that was reset for its pace, say, is
//! `RESOURCE_EXHAUSTED` like a refusal.

use std::error::Error;

use tonic::metadata::MetadataValue;
use tonic::{Code, ConnectError, Status};

use super::Malformed;
use crate::ports::{PeerError, PeerHandler};
use crate::types::ClusterId;

const REFUSAL: &str = "a3-refusal";
const CLUSTER: &str = "a3-cluster";
const WRONG_RECIPIENT: &str = "wrong-recipient";
const FOREIGN_CLUSTER: &str = "foreign-cluster";
const REFUSED: &str = "refused";

/// What a server says instead of an answer.
pub(in crate::mesh) fn status(error: PeerError) -> Status {
    match error {
        PeerError::WrongRecipient => refusal(WRONG_RECIPIENT, error.to_string()),
        PeerError::ForeignCluster(cluster) => {
            let mut status = refusal(FOREIGN_CLUSTER, error.to_string());
            // A UUID is printable ASCII, so this always has a value to insert.
            if let Ok(cluster) = MetadataValue::try_from(cluster.to_string()) {
                status.metadata_mut().insert(CLUSTER, cluster);
            }
            status
        }
        PeerError::Refused(why) => refusal(REFUSED, why),
        PeerError::Protocol(what) => Status::invalid_argument(what),
        PeerError::Overloaded => Status::resource_exhausted(error.to_string()),
        PeerError::TimedOut => Status::deadline_exceeded(error.to_string()),
        PeerError::Unreachable => refusal(REFUSED, error.to_string()),
        PeerError::Lost => Status::aborted(error.to_string()),
    }
}

/// What a server says to a caller that its handler does not admit: for the caller, the foreign cluster is this one.
pub(in crate::mesh) fn not_admitted(error: PeerError, handler: &dyn PeerHandler) -> Status {
    match (error, handler.header().cluster) {
        (PeerError::ForeignCluster(_), Some(ours)) => status(PeerError::ForeignCluster(ours)),
        (error, _) => status(error),
    }
}

impl From<Malformed> for Status {
    fn from(malformed: Malformed) -> Self {
        status(malformed.into())
    }
}

fn refusal(reason: &'static str, text: String) -> Status {
    let mut status = Status::failed_precondition(text);
    status.metadata_mut().insert(REFUSAL, MetadataValue::from_static(reason));
    status
}

/// What a caller makes of a status.
pub(in crate::mesh) fn error(status: &Status) -> PeerError {
    if status.source().is_some() {
        return if never_connected(status) { PeerError::Unreachable } else { PeerError::Lost };
    }
    let text = |name| status.metadata().get(name).and_then(|v| v.to_str().ok());
    let cluster = || text(CLUSTER).and_then(|c| c.parse::<ClusterId>().ok());
    match text(REFUSAL) {
        Some(WRONG_RECIPIENT) => return PeerError::WrongRecipient,
        Some(reason) => {
            let foreign = cluster().filter(|_| reason == FOREIGN_CLUSTER).map(PeerError::ForeignCluster);
            return foreign.unwrap_or_else(|| PeerError::Refused(status.message().to_owned()));
        }
        None => {}
    }
    match status.code() {
        Code::InvalidArgument | Code::Unimplemented => PeerError::Protocol(status.message().to_owned()),
        Code::FailedPrecondition => PeerError::Refused(status.message().to_owned()),
        Code::ResourceExhausted => PeerError::Overloaded,
        Code::DeadlineExceeded => PeerError::TimedOut,
        _ => PeerError::Lost,
    }
}

/// Whether the call failed because no connection could be made: then nothing was sent.
fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
