//! The hot path's messages: requests to a replica and its replies.

use std::sync::Arc;

use bytes::Bytes;

use super::proto::{self, failed, refused, reply, request};
use super::record::{
    floor, floor_or_none, read_floor, read_floor_or_none, read_key, read_record, read_seen, record, seen,
};
use super::register::{accepted, ballot, promise, read_accepted, read_ballot, read_promise};
use super::{Malformed, read_node};
use crate::ports::{Answer, PeerError, ReadPart, Refusal, ReplicaCall, ReplicaReply, ReplicaRequest};
use crate::types::{Epoch, Topology, Trace};

// ------------------------------------------------------------------------------------------------------- requests

/// One request, under the id its reply will carry. The deadline stays here: the other clock would not know it.
pub(in crate::mesh) fn request(id: u64, call: ReplicaCall) -> proto::Request {
    let (key, request) = match call.request {
        ReplicaRequest::Read { key, part, hints } => {
            (key, request::Request::Read(proto::Read { version_only: part == ReadPart::Version, hints }))
        }
        ReplicaRequest::Write { key, record: r } => {
            (key, request::Request::Write(proto::Write { record: Some(record(r)) }))
        }
        ReplicaRequest::Hint { target, key, record: r, counted } => {
            let hint = proto::KeepHint { target: target.0.into(), record: Some(record(r)), counted };
            (key, request::Request::Hint(hint))
        }
        ReplicaRequest::Prepare { key, ballot: b } => (key, request::Request::Prepare(ballot(b))),
        ReplicaRequest::Accept { key, accepted: a } => (key, request::Request::Accept(Box::new(accepted(*a)))),
    };
    let (epoch, key, trace) = (call.epoch.0, key.bytes().clone(), call.trace.as_deref().map(trace));
    proto::Request { id, epoch, key, request: Some(request), behind: call.behind, trace }
}

/// What the request asks. Its id is good even where the rest is not.
pub(in crate::mesh) fn read_request(request: proto::Request) -> Result<ReplicaCall, Malformed> {
    let key = read_key(request.key)?;
    let needed = |r: Option<proto::Record>| read_record(r.ok_or("a write without a record")?);
    let inner = match request.request.ok_or("a request of an unknown kind")? {
        request::Request::Read(r) => {
            let part = if r.version_only { ReadPart::Version } else { ReadPart::Record };
            ReplicaRequest::Read { key, part, hints: r.hints }
        }
        request::Request::Write(w) => ReplicaRequest::Write { key, record: needed(w.record)? },
        request::Request::Hint(h) => {
            ReplicaRequest::Hint { target: read_node(h.target)?, key, record: needed(h.record)?, counted: h.counted }
        }
        request::Request::Prepare(b) => ReplicaRequest::Prepare { key, ballot: read_ballot(b) },
        request::Request::Accept(a) => ReplicaRequest::Accept { key, accepted: Box::new(read_accepted(*a)?) },
    };
    let trace = read_trace(request.trace);
    let (epoch, behind) = (Epoch(request.epoch), request.behind);
    Ok(ReplicaCall { epoch, request: inner, deadline: None, behind, trace })
}

pub(super) fn trace(trace: &Trace) -> proto::Trace {
    let traceparent = trace.traceparent().unwrap_or_default().to_owned();
    proto::Trace { request_id: trace.request_id().to_owned(), traceparent }
}

/// A name that is none is left out: nothing depends on it.
pub(super) fn read_trace(trace: Option<proto::Trace>) -> Option<Arc<Trace>> {
    trace.and_then(|t| Trace::new(&t.request_id, Some(&t.traceparent))).map(Arc::new)
}

// -------------------------------------------------------------------------------------------------------- replies

/// One answer, under its request's id.
pub(in crate::mesh) fn reply(id: u64, answer: Answer, topologies: &mut LastTopology) -> proto::Reply {
    let reply = match answer {
        Ok(ReplicaReply::Record { record: r, floor: f }) => {
            reply::Reply::Record(proto::ReadReply { record: r.map(record), floor: floor_or_none(&f) })
        }
        Ok(ReplicaReply::Version { seen: s, floor: f }) => {
            reply::Reply::Version(proto::VersionReply { seen: s.map(seen), floor: floor_or_none(&f) })
        }
        Ok(ReplicaReply::Stored { replaced }) => reply::Reply::Stored(proto::Stored { replaced: replaced.map(seen) }),
        Ok(ReplicaReply::Dominated { by }) => reply::Reply::Dominated(seen(by)),
        Ok(ReplicaReply::BelowFloor { floor: f }) => reply::Reply::BelowFloor(floor(&f)),
        Ok(ReplicaReply::Hinted) => reply::Reply::Hinted(proto::Hinted {}),
        Ok(ReplicaReply::Promised(p)) => reply::Reply::Promised(Box::new(promise(*p))),
        Ok(ReplicaReply::Accepted) => reply::Reply::Accepted(proto::AcceptedReply {}),
        Ok(ReplicaReply::Outbid { promised }) => reply::Reply::Outbid(ballot(promised)),
        Ok(ReplicaReply::WrongEpoch { topology }) => reply::Reply::WrongEpoch(topologies.encode(&topology)),
        Ok(ReplicaReply::Refused(refusal)) => reply::Reply::Refused(refused(refusal)),
        Err(error) => reply::Reply::Failed(failed(&error)),
    };
    proto::Reply { id, reply: Some(reply) }
}

/// What the reply answers. A reply that makes no sense is an answer too: [`PeerError::Lost`], as the request may well
/// have been done.
pub(in crate::mesh) fn read_reply(reply: Option<reply::Reply>, topologies: &mut LastTopology) -> Answer {
    understand(reply, topologies).unwrap_or_else(|malformed| {
        tracing::warn!(%malformed, "a peer's reply was not understood");
        Err(PeerError::Lost)
    })
}

fn understand(reply: Option<reply::Reply>, topologies: &mut LastTopology) -> Result<Answer, Malformed> {
    let answer = match reply.ok_or("a reply of an unknown kind")? {
        reply::Reply::Record(r) => {
            ReplicaReply::Record { record: r.record.map(read_record).transpose()?, floor: read_floor_or_none(r.floor)? }
        }
        reply::Reply::Version(r) => {
            ReplicaReply::Version { seen: r.seen.map(read_seen).transpose()?, floor: read_floor_or_none(r.floor)? }
        }
        reply::Reply::Stored(r) => ReplicaReply::Stored { replaced: r.replaced.map(read_seen).transpose()? },
        reply::Reply::Dominated(by) => ReplicaReply::Dominated { by: read_seen(by)? },
        reply::Reply::BelowFloor(f) => ReplicaReply::BelowFloor { floor: read_floor(f)? },
        reply::Reply::Hinted(_) => ReplicaReply::Hinted,
        reply::Reply::WrongEpoch(json) => ReplicaReply::WrongEpoch { topology: topologies.decode(&json)? },
        reply::Reply::Refused(r) => ReplicaReply::Refused(read_refused(r)?),
        reply::Reply::Promised(p) => ReplicaReply::Promised(Box::new(read_promise(*p)?)),
        reply::Reply::Accepted(_) => ReplicaReply::Accepted,
        reply::Reply::Outbid(b) => ReplicaReply::Outbid { promised: read_ballot(b) },
        reply::Reply::Failed(f) => return Ok(Err(read_failed(f))),
    };
    Ok(Ok(answer))
}

fn refused(refusal: Refusal) -> proto::Refused {
    use refused::Reason;
    let (reason, amount) = match refusal {
        Refusal::ClockSkew { ahead_ms } => (Reason::ClockSkew, ahead_ms),
        Refusal::DiskFull => (Reason::DiskFull, 0),
        Refusal::NotWriting => (Reason::NotWriting, 0),
        Refusal::HintsFull => (Reason::HintsFull, 0),
        Refusal::Damaged => (Reason::Damaged, 0),
        Refusal::TooLarge { bytes } => (Reason::TooLarge, bytes),
        Refusal::Corrupt => (Reason::Corrupt, 0),
        Refusal::NotMember => (Reason::NotMember, 0),
        Refusal::NotReady => (Reason::NotReady, 0),
        Refusal::Overloaded => (Reason::Overloaded, 0),
    };
    proto::Refused { reason: reason.into(), amount }
}

fn read_refused(refused: proto::Refused) -> Result<Refusal, Malformed> {
    use refused::Reason;
    Ok(match refused.reason() {
        Reason::Unspecified => return Err("a refusal without a known reason".into()),
        Reason::ClockSkew => Refusal::ClockSkew { ahead_ms: refused.amount },
        Reason::DiskFull => Refusal::DiskFull,
        Reason::NotWriting => Refusal::NotWriting,
        Reason::HintsFull => Refusal::HintsFull,
        Reason::Damaged => Refusal::Damaged,
        Reason::TooLarge => Refusal::TooLarge { bytes: refused.amount },
        Reason::Corrupt => Refusal::Corrupt,
        Reason::NotMember => Refusal::NotMember,
        Reason::NotReady => Refusal::NotReady,
        Reason::Overloaded => Refusal::Overloaded,
    })
}

fn failed(error: &PeerError) -> proto::Failed {
    use failed::Kind;
    let (kind, reason) = match error {
        PeerError::Protocol(what) => (Kind::NotUnderstood, what.clone()),
        PeerError::Refused(why) => (Kind::Refused, why.clone()),
        lost if lost.maybe_done() => (Kind::Lost, lost.to_string()),
        undone => (Kind::Refused, undone.to_string()),
    };
    proto::Failed { reason, kind: kind.into() }
}

fn read_failed(failed: proto::Failed) -> PeerError {
    use failed::Kind;
    match failed.kind() {
        Kind::Unspecified | Kind::Lost => PeerError::Lost,
        Kind::NotUnderstood => PeerError::Protocol(failed.reason),
        Kind::Refused => PeerError::Refused(failed.reason),
    }
}

/// The topology that was converted last. In a change of the epoch every request under way is answered with the same
/// one, and its JSON is made and read once, not once a request.
#[derive(Debug, Default)]
pub(in crate::mesh) struct LastTopology(Option<(Bytes, Arc<Topology>)>);

impl LastTopology {
    fn encode(&mut self, topology: &Arc<Topology>) -> Bytes {
        match &self.0 {
            Some((json, last)) if Arc::ptr_eq(last, topology) => json.clone(),
            _ => {
                let json = Bytes::from(topology.encode());
                self.0 = Some((json.clone(), topology.clone()));
                json
            }
        }
    }

    fn decode(&mut self, json: &Bytes) -> Result<Arc<Topology>, Malformed> {
        match &self.0 {
            Some((last, topology)) if last == json => Ok(topology.clone()),
            _ => {
                let topology = Arc::new(Topology::decode(json).map_err(|e| Malformed::from(e.to_string()))?);
                // A copy, so that what is kept does not hold on to the whole message.
                self.0 = Some((Bytes::copy_from_slice(json), topology.clone()));
                Ok(topology)
            }
        }
    }
}
