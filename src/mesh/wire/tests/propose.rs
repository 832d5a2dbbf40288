//! Proposals and verdicts.

use super::register::ballot;
use super::*;
use crate::mesh::wire::propose;
use crate::mesh::wire::proto::{condition, propose_reply};
use crate::ports::{PeerReply, PeerRequest};
use crate::types::limits::{CONDITION_TAGS_MAX, MEMBERS_MAX, PROPOSAL_TIMEOUT_MS_MAX, TTL_MS_MAX};
use crate::types::{Condition, Edit, Hlc, Idempotency, NewContent, OpId, Proposal, Tags, Ttl, Verdict};

fn tags() -> impl Strategy<Value = Option<Tags>> {
    let listed = prop::collection::vec(version(), 0..4).prop_map(Tags::Of);
    prop::option::of(prop_oneof![Just(Tags::Any), listed])
}

fn edit() -> impl Strategy<Value = Edit> {
    let ttl = || prop::option::of((1..=TTL_MS_MAX).prop_map(|ms| Ttl::from_ms(ms).unwrap()));
    let write = (content(), ttl()).prop_map(|(content, ttl)| {
        Edit::Write(match content {
            Content::Value { bytes, content_type, .. } => NewContent::Value { bytes, content_type, ttl },
            Content::Tombstone => NewContent::Tombstone,
        })
    });
    prop_oneof![3 => write, 1 => ttl().prop_map(|ttl| Edit::Touch { ttl })]
}

pub(in crate::mesh) fn proposal() -> impl Strategy<Value = Proposal> {
    let condition = (tags(), tags(), any::<Option<u64>>()).prop_map(|(if_match, if_none_match, since)| Condition {
        if_match,
        if_none_match,
        if_unmodified_since: since,
    });
    let idempotency = any::<Option<(u128, u128)>>();
    let ended = prop::option::of((1..=u64::MAX).prop_map(Hlc));
    let parts = (key(), condition, edit(), any::<u128>(), idempotency, ended);
    parts.prop_map(|(key, condition, edit, op, idempotency, ended)| Proposal {
        key,
        condition,
        edit,
        op: OpId(Uuid::from_u128(op)),
        idempotency: idempotency.map(|(key, request)| Idempotency { key, request }),
        ended,
    })
}

fn nodes() -> impl Strategy<Value = Vec<NodeNum>> {
    prop::collection::vec(any::<u16>().prop_map(NodeNum), 0..5)
}

fn shortfall() -> impl Strategy<Value = (usize, Vec<NodeNum>, Vec<(NodeNum, String)>)> {
    let failed = prop::collection::vec((any::<u16>().prop_map(NodeNum), ".{0,20}"), 0..5);
    (any::<u32>().prop_map(|r| r as usize), nodes(), failed)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        (version(), any::<bool>(), any::<Option<u64>>(), nodes()).prop_map(
            |(version, created, expires_at_ms, acked)| Verdict::Applied { version, created, expires_at_ms, acked }
        ),
        prop::option::of(record()).prop_map(|current| Verdict::ConditionFailed { current }),
        prop::option::of(version()).prop_map(|version| Verdict::FailedBefore { version }),
        prop::sample::select(vec![Verdict::KeyReused, Verdict::Conflict, Verdict::Exhausted]),
        shortfall().prop_map(|(required, acked, failed)| Verdict::Unavailable { required, acked, failed }),
        shortfall().prop_map(|(required, acked, failed)| Verdict::Unknown { required, acked, failed }),
    ]
}

proptest! {
    #[test]
    fn a_proposal_comes_out_as_it_went_in(
        proposal in proposal(),
        timeout_ms in 0..=PROPOSAL_TIMEOUT_MS_MAX,
        trace in trace(),
    ) {
        let wire = wired(&propose::request(None, proposal.clone(), timeout_ms, trace.as_deref()));
        let proposal = Box::new(proposal);
        prop_assert_eq!(propose::read_request(wire), Ok(PeerRequest::Propose { proposal, timeout_ms, trace }));
    }

    #[test]
    fn a_verdict_comes_out_as_it_went_in(verdict in verdict()) {
        let wire = wired(&propose::reply(None, verdict.clone()));
        prop_assert_eq!(propose::read_reply(wire), Ok(PeerReply::Proposed(Box::new(verdict))));
    }

    #[test]
    fn a_ballot_comes_out_as_it_went_in(ballot in ballot()) {
        let wire = wired(&hot::reply(1, Ok(ReplicaReply::Outbid { promised: ballot }), &mut LastTopology::default()));
        let read = hot::read_reply(wire.reply, &mut LastTopology::default());
        prop_assert_eq!(read, Ok(ReplicaReply::Outbid { promised: ballot }));
    }

    #[test]
    fn no_bytes_panic_a_proposer(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(message) = proto::ProposeRequest::decode(&*bytes) { let _ = propose::read_request(message); }
        if let Ok(message) = proto::ProposeReply::decode(&*bytes) { let _ = propose::read_reply(message); }
    }
}

fn sound() -> proto::ProposeRequest {
    proto::ProposeRequest {
        header: None,
        key: "k".into(),
        condition: None,
        content: Some(proto::Content::default()),
        op: vec![1; 16].into(),
        idempotency: None,
        timeout_ms: PROPOSAL_TIMEOUT_MS_MAX,
        ttl_ms: TTL_MS_MAX,
        trace: None,
        ended: 0,
    }
}

fn asking(any: bool, versions: usize) -> proto::ProposeRequest {
    let tags = condition::Tags { any, versions: vec![proto::Version::default(); versions] };
    let condition = proto::Condition { if_none_match: Some(tags), ..Default::default() };
    proto::ProposeRequest { condition: Some(condition), ..sound() }
}

#[test]
fn malformed_proposals_are_named() {
    assert!(propose::read_request(sound()).is_ok());
    assert!(propose::read_request(asking(true, 0)).is_ok());
    assert!(propose::read_request(asking(false, CONDITION_TAGS_MAX)).is_ok());
    let content = |content| proto::ProposeRequest { content: Some(content), ..sound() };
    let idempotency = |key: usize, request: usize| proto::ProposeRequest {
        idempotency: Some(proto::Idempotency { key: vec![0; key].into(), request: vec![0; request].into() }),
        ..sound()
    };
    assert!(propose::read_request(idempotency(16, 16)).is_ok());
    let broken = [
        proto::ProposeRequest { key: "".into(), ..sound() },
        proto::ProposeRequest { key: vec![0; 1025].into(), ..sound() },
        proto::ProposeRequest { ttl_ms: TTL_MS_MAX + 1, ..sound() },
        content(proto::Content { tombstone: true, ..Default::default() }),
        content(proto::Content { expires_at_ms: Some(5), ..Default::default() }),
        proto::ProposeRequest { op: vec![1; 17].into(), ..sound() },
        proto::ProposeRequest { timeout_ms: PROPOSAL_TIMEOUT_MS_MAX + 1, ..sound() },
        content(proto::Content { tombstone: true, value: "v".into(), ..Default::default() }),
        content(proto::Content { content_type: "a\nb".into(), ..Default::default() }),
        idempotency(15, 16),
        idempotency(16, 0),
        asking(true, 1),
        asking(false, CONDITION_TAGS_MAX + 1),
    ];
    for request in broken {
        assert!(propose::read_request(request.clone()).is_err(), "{request:?}");
    }
}

#[test]
fn malformed_verdicts_are_named() {
    use propose_reply::{Applied, ConditionFailed, Shortfall, Verdict as Wire, shortfall::Failed};
    let read = |verdict| propose::read_reply(proto::ProposeReply { header: None, verdict });
    let shortfall = |acked: usize, failed: usize| Shortfall {
        required: 2,
        acked: vec![1; acked],
        failed: vec![Failed { node: 1, reason: String::new() }; failed],
    };
    assert!(read(Some(Wire::Unknown(shortfall(MEMBERS_MAX, MEMBERS_MAX)))).is_ok());
    let broken = [
        None,
        Some(Wire::Applied(Applied { created: true, ..Applied::default() })),
        Some(Wire::Applied(Applied {
            version: Some(proto::Version::default()),
            acked: vec![65536],
            ..Applied::default()
        })),
        Some(Wire::ConditionFailed(ConditionFailed { current: Some(proto::Record::default()) })),
        Some(Wire::Plain(0)),
        Some(Wire::Plain(99)),
        Some(Wire::Unknown(shortfall(MEMBERS_MAX + 1, 0))),
        Some(Wire::Unavailable(shortfall(0, MEMBERS_MAX + 1))),
    ];
    for verdict in broken {
        assert!(read(verdict.clone()).is_err(), "{verdict:?}");
    }
}
