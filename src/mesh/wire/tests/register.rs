//! The register's words: states, promises, and what is refused of them.

use super::*;
use crate::types::limits::REMEMBERED_MAX;
use crate::types::{Accepted, Idempotency, OpId, Promise, Recent, Remembered, RememberedAnswer};

pub(super) fn ballot() -> impl Strategy<Value = Ballot> {
    any::<(u64, u32)>().prop_map(|(hlc, writer)| Ballot { hlc: Hlc(hlc), writer: Writer(writer) })
}

fn remembered() -> impl Strategy<Value = Remembered> {
    let answer = prop::sample::select(vec![
        RememberedAnswer::Created,
        RememberedAnswer::Replaced,
        RememberedAnswer::ConditionFailed,
    ]);
    (any::<(u128, u128)>(), answer, version()).prop_map(|((key, request), answer, version)| Remembered {
        request: Idempotency { key, request },
        answer,
        version,
    })
}

pub(super) fn accepted() -> impl Strategy<Value = Accepted> {
    let recent = prop::collection::vec(remembered(), 0..=REMEMBERED_MAX).prop_map(Recent::new);
    (ballot(), any::<u128>(), prop::option::of(record()), recent).prop_map(|(ballot, op, record, recent)| Accepted {
        ballot,
        op: OpId(Uuid::from_u128(op)),
        record,
        recent,
    })
}

/// Often with the accepted record as the stored one.
pub(super) fn promise() -> impl Strategy<Value = Promise> {
    let parts = (prop::option::of(accepted()), prop::option::of(record()), floor(), any::<bool>());
    parts.prop_map(|(accepted, record, floor, same)| {
        let stored = accepted.as_ref().filter(|_| same).and_then(|a| a.record.clone());
        Promise { accepted, record: stored.or(record), floor }
    })
}

fn stored(value: Vec<u8>) -> Record {
    let key = Key::new("k").unwrap();
    Record::seal(&key, Version::plain(Hlc(5), Writer(1)), Hlc(5), Content::value(value))
}

fn state(record: Option<Record>) -> Accepted {
    Accepted { ballot: Ballot::default(), op: OpId(Uuid::nil()), record, recent: Recent::NONE }
}

fn sent(promise: Promise) -> proto::Reply {
    hot::reply(1, Ok(ReplicaReply::Promised(Box::new(promise))), &mut LastTopology::default())
}

#[test]
fn in_a_promise_the_record_that_is_stored_and_accepted_travels_once() {
    let record = stored(vec![7; 1000]);
    let promise = |accepted: Record, record: Option<Record>| Promise {
        accepted: Some(state(Some(accepted))),
        record,
        floor: Floor::default(),
    };
    let same = promise(record.clone(), Some(record.clone()));
    let one_apart = Record { checksum: record.checksum ^ 1, ..record.clone() };
    let apart = promise(record.clone(), Some(one_apart));
    let accepted_only = promise(record, None);
    let bytes = |promise: &Promise| sent(promise.clone()).encoded_len();
    assert!((1000..1200).contains(&bytes(&same)));
    assert!((1000..1200).contains(&bytes(&accepted_only)));
    assert!((2000..2400).contains(&bytes(&apart)));
    for promise in [same, apart, accepted_only] {
        let wire = wired(&sent(promise.clone()));
        let read = hot::read_reply(wire.reply, &mut LastTopology::default());
        assert_eq!(read, Ok(ReplicaReply::Promised(Box::new(promise))));
    }
}

fn sound() -> proto::Accepted {
    let recent = proto::Remembered {
        key: vec![1; 16].into(),
        request: vec![2; 16].into(),
        answer: proto::remembered::Answer::Replaced.into(),
        version: Some(proto::Version::default()),
    };
    proto::Accepted {
        ballot: Some(proto::Ballot::default()),
        op: vec![3; 16].into(),
        record: None,
        recent: vec![recent],
        as_stored: false,
    }
}

fn broken_states() -> Vec<proto::Accepted> {
    let recent = |change: fn(&mut proto::Remembered)| {
        let mut state = sound();
        state.recent.iter_mut().for_each(change);
        state
    };
    vec![
        proto::Accepted { ballot: None, ..sound() },
        proto::Accepted { op: vec![3; 15].into(), ..sound() },
        proto::Accepted { op: vec![].into(), ..sound() },
        proto::Accepted { record: Some(proto::Record::default()), ..sound() },
        proto::Accepted { recent: vec![sound().recent[0].clone(); REMEMBERED_MAX + 1], ..sound() },
        recent(|r| r.key = vec![1; 17].into()),
        recent(|r| r.request = vec![].into()),
        recent(|r| r.answer = 0),
        recent(|r| r.answer = 99),
        recent(|r| r.version = None),
    ]
}

#[test]
fn a_malformed_state_is_not_accepted() {
    let accept = |state| proto::Request {
        id: 1,
        epoch: 1,
        behind: false,
        key: "k".into(),
        request: Some(request::Request::Accept(Box::new(state))),
        trace: None,
    };
    let eight = proto::Accepted { recent: vec![sound().recent[0].clone(); REMEMBERED_MAX], ..sound() };
    assert!(hot::read_request(accept(sound())).is_ok());
    assert!(hot::read_request(accept(eight)).is_ok());
    assert!(hot::read_request(proto::Request { key: "".into(), ..accept(sound()) }).is_err());
    let refers = proto::Accepted { as_stored: true, ..sound() };
    for state in broken_states().into_iter().chain([refers]) {
        assert!(hot::read_request(accept(state.clone())).is_err(), "{state:?}");
    }
}

#[test]
fn a_malformed_promise_is_in_doubt() {
    let read = |accepted, record, floor| {
        let promise = proto::Promise { accepted: Some(accepted), record, floor };
        hot::read_reply(Some(proto::reply::Reply::Promised(Box::new(promise))), &mut LastTopology::default())
    };
    let record = proto::Record { version: Some(proto::Version::default()), ..Default::default() };
    let refers = proto::Accepted { as_stored: true, ..sound() };
    assert!(read(sound(), None, None).is_ok());
    assert!(read(refers.clone(), Some(record.clone()), None).is_ok());
    let twice = proto::Accepted { record: Some(record.clone()), ..refers.clone() };
    assert_eq!(read(twice, Some(record.clone()), None), Err(PeerError::Lost));
    assert_eq!(read(refers, None, None), Err(PeerError::Lost), "there is none to refer to");
    assert_eq!(read(sound(), Some(proto::Record::default()), None), Err(PeerError::Lost));
    assert_eq!(read(sound(), None, Some(proto::Floor::default())), Err(PeerError::Lost));
    for state in broken_states() {
        assert_eq!(read(state.clone(), Some(record.clone()), None), Err(PeerError::Lost), "{state:?}");
    }
}

/// The hot path's messages are moved about many times: the register's are boxed and do not make the others larger.
#[test]
fn the_registers_messages_do_not_swell_the_others() {
    let hint = size_of::<proto::KeepHint>();
    assert!(size_of::<request::Request>() <= hint + 8);
    assert!(size_of::<proto::reply::Reply>() <= size_of::<proto::ReadReply>() + 8);
}
