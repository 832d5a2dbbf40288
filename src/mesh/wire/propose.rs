//! A conditional write on its way to its proposer, and the verdict on its way back.

use super::hot;
use super::proto::{self, condition, propose_reply};
use super::record::{content, read_content, read_key, read_record, read_version, record, version};
use super::{Malformed, hash_bytes, read_hash, read_node, read_uuid, uuid_bytes};
use crate::ports::{PeerReply, PeerRequest};
use crate::types::limits::{CONDITION_TAGS_MAX, MEMBERS_MAX, PROPOSAL_TIMEOUT_MS_MAX};
use crate::types::{
    Condition, Content, Edit, Hlc, Idempotency, NewContent, NodeNum, OpId, Proposal, Tags, Trace, Ttl, Verdict,
};

// ------------------------------------------------------------------------------------------------------- requests

pub(in crate::mesh) fn request(
    header: Option<proto::Header>,
    proposal: Proposal,
    timeout_ms: u64,
    trace: Option<&Trace>,
) -> proto::ProposeRequest {
    let (content, ttl) = edit(proposal.edit);
    proto::ProposeRequest {
        header,
        key: proposal.key.bytes().clone(),
        condition: (!proposal.condition.is_empty()).then(|| condition(proposal.condition)),
        content,
        op: uuid_bytes(proposal.op.0),
        idempotency: proposal.idempotency.map(idempotency),
        timeout_ms,
        ttl_ms: ttl.map_or(0, Ttl::ms),
        trace: trace.map(hot::trace),
        ended: proposal.ended.map_or(0, |end| end.0),
    }
}

fn edit(edit: Edit) -> (Option<proto::Content>, Option<Ttl>) {
    match edit {
        Edit::Touch { ttl } => (None, ttl),
        Edit::Write(NewContent::Tombstone) => (Some(content(Content::Tombstone)), None),
        Edit::Write(NewContent::Value { bytes, content_type, ttl }) => {
            (Some(content(Content::Value { bytes, content_type, expires_at_ms: None })), ttl)
        }
    }
}

fn read_edit(content: Option<proto::Content>, ttl_ms: u64) -> Result<Edit, Malformed> {
    let ttl = match ttl_ms {
        0 => None,
        ms => Some(Ttl::from_ms(ms).ok_or("a time to live over its limit")?),
    };
    Ok(match content.map(read_content).transpose()? {
        None => Edit::Touch { ttl },
        Some(Content::Value { bytes, content_type, expires_at_ms: None }) => {
            Edit::Write(NewContent::Value { bytes, content_type, ttl })
        }
        Some(Content::Tombstone) if ttl.is_none() => Edit::Write(NewContent::Tombstone),
        Some(_) => return Err("a proposal that says when it ends instead of how long it lives".into()),
    })
}

pub(in crate::mesh) fn read_request(request: proto::ProposeRequest) -> Result<PeerRequest, Malformed> {
    if request.timeout_ms > PROPOSAL_TIMEOUT_MS_MAX {
        return Err("a timeout over its limit".into());
    }
    let proposal = Proposal {
        key: read_key(request.key)?,
        condition: request.condition.map(read_condition).transpose()?.unwrap_or_default(),
        edit: read_edit(request.content, request.ttl_ms)?,
        op: OpId(read_uuid(&request.op)?),
        idempotency: request.idempotency.map(|i| read_idempotency(&i)).transpose()?,
        ended: Some(Hlc(request.ended)).filter(|end| *end != Hlc::ZERO),
    };
    let (timeout_ms, trace) = (request.timeout_ms, hot::read_trace(request.trace));
    Ok(PeerRequest::Propose { proposal: Box::new(proposal), timeout_ms, trace })
}

fn condition(condition: Condition) -> proto::Condition {
    proto::Condition {
        if_match: condition.if_match.map(tags),
        if_none_match: condition.if_none_match.map(tags),
        if_unmodified_since: condition.if_unmodified_since,
    }
}

fn read_condition(condition: proto::Condition) -> Result<Condition, Malformed> {
    Ok(Condition {
        if_match: condition.if_match.map(read_tags).transpose()?,
        if_none_match: condition.if_none_match.map(read_tags).transpose()?,
        if_unmodified_since: condition.if_unmodified_since,
    })
}

fn tags(tags: Tags) -> condition::Tags {
    match tags {
        Tags::Any => condition::Tags { any: true, versions: Vec::new() },
        Tags::Of(versions) => condition::Tags { any: false, versions: versions.into_iter().map(version).collect() },
    }
}

fn read_tags(tags: condition::Tags) -> Result<Tags, Malformed> {
    match (tags.any, tags.versions.len()) {
        (true, 0) => Ok(Tags::Any),
        (true, _) => Err("any tag, and a list of them".into()),
        (false, count) if count > CONDITION_TAGS_MAX => Err("more tags than a condition may list".into()),
        (false, _) => {
            let versions = tags.versions.into_iter().map(|v| read_version(Some(v)));
            Ok(Tags::Of(versions.collect::<Result<_, _>>()?))
        }
    }
}

fn idempotency(idempotency: Idempotency) -> proto::Idempotency {
    proto::Idempotency { key: hash_bytes(idempotency.key), request: hash_bytes(idempotency.request) }
}

fn read_idempotency(idempotency: &proto::Idempotency) -> Result<Idempotency, Malformed> {
    Ok(Idempotency { key: read_hash(&idempotency.key)?, request: read_hash(&idempotency.request)? })
}

// -------------------------------------------------------------------------------------------------------- verdicts

pub(in crate::mesh) fn reply(header: Option<proto::Header>, verdict: Verdict) -> proto::ProposeReply {
    use propose_reply::{Applied, ConditionFailed, FailedBefore, Plain, Verdict as Wire};
    let verdict = match verdict {
        Verdict::Applied { version: v, created, expires_at_ms, acked } => {
            Wire::Applied(Applied { version: Some(version(v)), created, acked: nodes(acked), expires_at_ms })
        }
        Verdict::ConditionFailed { current } => Wire::ConditionFailed(ConditionFailed { current: current.map(record) }),
        Verdict::FailedBefore { version: v } => Wire::FailedBefore(FailedBefore { version: v.map(version) }),
        Verdict::KeyReused => Wire::Plain(Plain::KeyReused.into()),
        Verdict::Conflict => Wire::Plain(Plain::Conflict.into()),
        Verdict::Exhausted => Wire::Plain(Plain::Exhausted.into()),
        Verdict::Unavailable { required, acked, failed } => Wire::Unavailable(shortfall(required, acked, failed)),
        Verdict::Unknown { required, acked, failed } => Wire::Unknown(shortfall(required, acked, failed)),
    };
    proto::ProposeReply { header, verdict: Some(verdict) }
}

pub(in crate::mesh) fn read_reply(reply: proto::ProposeReply) -> Result<PeerReply, Malformed> {
    use propose_reply::{Plain, Verdict as Wire};
    let verdict = match reply.verdict.ok_or("a verdict of an unknown kind")? {
        Wire::Applied(a) => Verdict::Applied {
            version: read_version(a.version)?,
            created: a.created,
            expires_at_ms: a.expires_at_ms,
            acked: read_nodes(&a.acked)?,
        },
        Wire::ConditionFailed(c) => Verdict::ConditionFailed { current: c.current.map(read_record).transpose()? },
        Wire::FailedBefore(f) => {
            Verdict::FailedBefore { version: f.version.map(|v| read_version(Some(v))).transpose()? }
        }
        Wire::Plain(plain) => match Plain::try_from(plain) {
            Ok(Plain::KeyReused) => Verdict::KeyReused,
            Ok(Plain::Conflict) => Verdict::Conflict,
            Ok(Plain::Exhausted) => Verdict::Exhausted,
            Ok(Plain::Unspecified) | Err(_) => return Err("a plain verdict of an unknown kind".into()),
        },
        Wire::Unavailable(s) => {
            let (required, acked, failed) = read_shortfall(s)?;
            Verdict::Unavailable { required, acked, failed }
        }
        Wire::Unknown(s) => {
            let (required, acked, failed) = read_shortfall(s)?;
            Verdict::Unknown { required, acked, failed }
        }
    };
    Ok(PeerReply::Proposed(Box::new(verdict)))
}

fn shortfall(required: usize, acked: Vec<NodeNum>, failed: Vec<(NodeNum, String)>) -> propose_reply::Shortfall {
    let failed =
        failed.into_iter().map(|(node, reason)| propose_reply::shortfall::Failed { node: node.0.into(), reason });
    propose_reply::Shortfall {
        // A count of replicas: far below the fallback.
        required: u32::try_from(required).unwrap_or(u32::MAX),
        acked: nodes(acked),
        failed: failed.collect(),
    }
}

type Shortfall = (usize, Vec<NodeNum>, Vec<(NodeNum, String)>);

fn read_shortfall(shortfall: propose_reply::Shortfall) -> Result<Shortfall, Malformed> {
    if shortfall.failed.len() > MEMBERS_MAX {
        return Err(TOO_MANY_NODES.into());
    }
    let failed = shortfall.failed.into_iter().map(|f| Ok::<_, Malformed>((read_node(f.node)?, f.reason)));
    Ok((shortfall.required as usize, read_nodes(&shortfall.acked)?, failed.collect::<Result<_, _>>()?))
}

const TOO_MANY_NODES: &str = "more nodes than a cluster has";

fn nodes(nodes: Vec<NodeNum>) -> Vec<u32> {
    nodes.into_iter().map(|n| n.0.into()).collect()
}

fn read_nodes(nodes: &[u32]) -> Result<Vec<NodeNum>, Malformed> {
    if nodes.len() > MEMBERS_MAX {
        return Err(TOO_MANY_NODES.into());
    }
    nodes.iter().map(|n| read_node(*n)).collect()
}
