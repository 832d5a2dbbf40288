//! Conversions: what goes through the wire comes out the same, and nothing that comes makes them panic.

mod changes;
pub(in crate::mesh) mod propose;
mod purge;
mod register;
mod scan;
pub(in crate::mesh) mod tree;

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;
use uuid::Uuid;

use super::hot::{self, LastTopology};
use super::proto::{self, request};
use super::{header, rare, read_header};
use crate::ports::{
    Announcement, Answer, Header, InfoStamp, NodeInfo, NodeState, PeerError, ReadPart, Refusal, ReplicaCall,
    ReplicaReply, ReplicaRequest, Seen,
};
use crate::types::{
    Ballot, ClusterId, Content, ContentType, Epoch, Floor, Hlc, InstanceId, Key, Member, NodeNum, Record, Slot,
    Topology, Trace, Version, Writer,
};

pub(in crate::mesh) fn topology(members: u16) -> Topology {
    let member = |n: u16| Member {
        node: NodeNum(n),
        instance: InstanceId(Uuid::from_u128(n.into())),
        writer: Writer(n.into()),
        zone: None,
        weight: 1,
        mesh_address: format!("127.0.0.1:5005{n}"),
        http_address: format!("127.0.0.1:800{n}"),
    };
    Topology {
        epoch: Epoch(1),
        cluster_id: ClusterId(Uuid::from_u128(9)),
        rf: 1,
        members: (1..=members).map(member).collect(),
        ring: Slot::all().map(|s| vec![NodeNum(u16::from(s.0) % members + 1)]).collect(),
        next_writer: Writer(u32::from(members) + 1),
        moving: None,
    }
}

pub(in crate::mesh) fn announcement(n: u16) -> Announcement {
    Announcement {
        node: NodeNum(n),
        instance: InstanceId(Uuid::from_u128(n.into())),
        zone: n.is_multiple_of(2).then(|| "east".into()),
        weight: 3,
        mesh_address: "h:1".into(),
        http_address: "h:2".into(),
        cluster_size: 3,
        rf: 2,
    }
}

pub(in crate::mesh) fn node_info(n: u16) -> NodeInfo {
    NodeInfo {
        stamp: InfoStamp { node: NodeNum(n), instance: InstanceId(Uuid::from_u128(n.into())), generation: 2, info: 3 },
        mesh_address: "h:1".into(),
        http_address: "h:2".into(),
        zone: Some(String::new()),
        weight: 0,
        state: NodeState::Draining,
        program: "0.1.0".into(),
        epoch: Epoch(4),
        keys: 5,
        bytes: 6,
        hints: vec![(NodeNum(1), 2, 3)],
        requests_per_second: 7,
        p99_us: Some(8),
    }
}

fn key() -> impl Strategy<Value = Key> {
    prop::collection::vec(any::<u8>(), 1..40).prop_map(|bytes| Key::new(bytes).unwrap())
}

fn version() -> impl Strategy<Value = Version> {
    any::<(u64, u32, u32)>().prop_map(|(h, w, rmw)| Version { hlc: Hlc(h), writer: Writer(w), rmw })
}

fn content() -> impl Strategy<Value = Content> {
    let value = (prop::collection::vec(any::<u8>(), 0..40), prop::option::of("[ -~]{1,20}"), any::<Option<u64>>());
    prop_oneof![
        Just(Content::Tombstone),
        value.prop_map(|(bytes, content_type, expires_at_ms)| Content::Value {
            bytes: bytes.into(),
            content_type: content_type.map(|c| ContentType::new(c).unwrap()),
            expires_at_ms,
        }),
    ]
}

/// Also records whose checksum is wrong: the wire carries them as they are, and the replica refuses them.
fn record() -> impl Strategy<Value = Record> {
    (version(), any::<u64>(), content(), any::<u64>()).prop_map(|(version, written, content, checksum)| Record {
        version,
        written: Hlc(written),
        content,
        checksum,
    })
}

pub(in crate::mesh) fn trace() -> impl Strategy<Value = Option<Arc<Trace>>> {
    let parent = prop::option::of("[0-9a-e]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}");
    let trace = ("[!-~]{1,128}", parent).prop_map(|(id, parent)| Trace::new(&id, parent.as_deref()).unwrap());
    prop::option::of(trace.prop_map(Arc::new))
}

pub(in crate::mesh) fn call() -> impl Strategy<Value = ReplicaCall> {
    let request = prop_oneof![
        (key(), any::<bool>(), any::<bool>()).prop_map(|(key, all, hints)| ReplicaRequest::Read {
            key,
            part: if all { ReadPart::Record } else { ReadPart::Version },
            hints
        }),
        (key(), record()).prop_map(|(key, record)| ReplicaRequest::Write { key, record }),
        (key(), record(), any::<u16>(), any::<bool>()).prop_map(|(key, record, target, counted)| {
            ReplicaRequest::Hint { target: NodeNum(target), key, record, counted }
        }),
        (key(), register::ballot()).prop_map(|(key, ballot)| ReplicaRequest::Prepare { key, ballot }),
        (key(), register::accepted())
            .prop_map(|(key, accepted)| ReplicaRequest::Accept { key, accepted: Box::new(accepted) }),
    ];
    (any::<u64>(), request, any::<bool>(), trace()).prop_map(|(epoch, request, behind, trace)| {
        let epoch = Epoch(epoch);
        ReplicaCall { epoch, request, deadline: None, behind, trace }
    })
}

fn floor() -> impl Strategy<Value = Floor> {
    let raised = (any::<u64>(), version(), any::<u64>(), any::<u32>()).prop_map(|(written, version, hlc, writer)| {
        Floor { written: Hlc(written), version, ballot: Ballot { hlc: Hlc(hlc), writer: Writer(writer) } }
    });
    prop_oneof![Just(Floor::default()), raised]
}

fn seen() -> impl Strategy<Value = Seen> {
    let parts = (version(), any::<u64>(), any::<bool>(), any::<bool>(), any::<u64>());
    parts.prop_map(|(version, written, live, tombstone, checksum)| Seen {
        version,
        written: Hlc(written),
        live,
        tombstone,
        checksum,
    })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        any::<u64>().prop_map(|ahead_ms| Refusal::ClockSkew { ahead_ms }),
        any::<u64>().prop_map(|bytes| Refusal::TooLarge { bytes }),
        prop::sample::select(vec![
            Refusal::DiskFull,
            Refusal::NotWriting,
            Refusal::HintsFull,
            Refusal::Damaged,
            Refusal::Corrupt,
            Refusal::NotMember,
            Refusal::NotReady,
            Refusal::Overloaded,
        ]),
    ]
}

pub(in crate::mesh) fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        (prop::option::of(record()), floor()).prop_map(|(record, floor)| Ok(ReplicaReply::Record { record, floor })),
        (prop::option::of(seen()), floor()).prop_map(|(seen, floor)| Ok(ReplicaReply::Version { seen, floor })),
        prop::option::of(seen()).prop_map(|replaced| Ok(ReplicaReply::Stored { replaced })),
        seen().prop_map(|by| Ok(ReplicaReply::Dominated { by })),
        floor().prop_map(|floor| Ok(ReplicaReply::BelowFloor { floor })),
        Just(Ok(ReplicaReply::Hinted)),
        register::promise().prop_map(|promise| Ok(ReplicaReply::Promised(Box::new(promise)))),
        Just(Ok(ReplicaReply::Accepted)),
        register::ballot().prop_map(|promised| Ok(ReplicaReply::Outbid { promised })),
        (1u16..4).prop_map(|n| Ok(ReplicaReply::WrongEpoch { topology: Arc::new(topology(n)) })),
        refusal().prop_map(|refusal| Ok(ReplicaReply::Refused(refusal))),
        Just(Err(PeerError::Lost)),
        ".{0,20}".prop_map(|what| Err(PeerError::Protocol(what))),
        ".{0,20}".prop_map(|why| Err(PeerError::Refused(why))),
    ]
}

/// Through bytes and back, as the wire does it.
fn wired<M: Message + Default>(message: &M) -> M {
    M::decode(&*message.encode_to_vec()).unwrap()
}

proptest! {
    #[test]
    fn a_request_comes_out_as_it_went_in(id: u64, call in call()) {
        let wire = wired(&hot::request(id, call.clone()));
        prop_assert_eq!(wire.id, id);
        prop_assert_eq!(hot::read_request(wire), Ok(call));
    }

    #[test]
    fn answers_come_out_as_they_went_in(answers in prop::collection::vec(answer(), 1..4)) {
        let (mut there, mut here) = (LastTopology::default(), LastTopology::default());
        for (id, answer) in (0..).zip(answers) {
            let wire = wired(&hot::reply(id, answer.clone(), &mut there));
            prop_assert_eq!(wire.id, id);
            prop_assert_eq!(hot::read_reply(wire.reply, &mut here), answer);
        }
    }

    #[test]
    fn a_header_comes_out_as_it_went_in(cluster: Option<u128>, node: u16, id: u128, to: Option<u128>, hlc: u64, wall_ms: u64) {
        let top = Header {
            cluster: cluster.map(|c| ClusterId(Uuid::from_u128(c))),
            node: NodeNum(node),
            instance: InstanceId(Uuid::from_u128(id)),
            hlc: Hlc(hlc),
            wall_ms,
        };
        let to = to.map(|i| InstanceId(Uuid::from_u128(i)));
        prop_assert_eq!(read_header(Some(wired(&header(&top, to)))), Ok((top, to)));
    }

    /// Whatever bytes come as a message: an error or a value, never a panic.
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(message) = proto::Request::decode(&*bytes) { let _ = hot::read_request(message); }
        if let Ok(message) = proto::Reply::decode(&*bytes) {
            let _ = hot::read_reply(message.reply, &mut LastTopology::default());
        }
        if let Ok(message) = proto::Header::decode(&*bytes) { let _ = read_header(Some(message)); }
        if let Ok(message) = proto::NodeInfoReply::decode(&*bytes) { let _ = rare::read_node_info_reply(message); }
        if let Ok(message) = proto::AnnounceReply::decode(&*bytes) { let _ = rare::read_announce_reply(message); }
        if let Ok(message) = proto::FoundRequest::decode(&*bytes) { let _ = rare::read_found(message); }
    }
}

#[test]
fn malformed_requests_are_named() {
    let write = |record: Option<proto::Record>, key: &'static [u8]| proto::Request {
        id: 1,
        epoch: 1,
        behind: false,
        key: key.into(),
        request: Some(request::Request::Write(proto::Write { record })),
        trace: None,
    };
    let sound = proto::Record { version: Some(proto::Version::default()), ..Default::default() };
    assert!(hot::read_request(write(Some(sound.clone()), b"k")).is_ok());
    let content_type = |bytes: &'static [u8]| proto::Record { content_type: bytes.into(), ..sound.clone() };
    let broken = [
        write(Some(sound.clone()), b""),
        write(Some(sound.clone()), &[0; 1025]),
        write(None, b"k"),
        write(Some(proto::Record { version: None, ..sound.clone() }), b"k"),
        write(Some(proto::Record { tombstone: true, value: "v".into(), ..sound.clone() }), b"k"),
        write(Some(content_type(b"a\nb")), b"k"),
        write(Some(content_type(&[b'a'; 256])), b"k"),
        proto::Request { request: None, ..write(None, b"k") },
        proto::Request {
            request: Some(request::Request::Hint(proto::KeepHint {
                target: 65536,
                record: Some(sound.clone()),
                counted: true,
            })),
            ..write(None, b"k")
        },
    ];
    for request in broken {
        assert!(hot::read_request(request.clone()).is_err(), "{request:?}");
    }
    assert!(read_header(None).is_err());
    let short = proto::Header { instance: vec![1u8; 15].into(), ..Default::default() };
    assert!(read_header(Some(short)).is_err());
}

#[test]
fn a_reply_that_makes_no_sense_may_have_been_done() {
    let reply = proto::reply::Reply::WrongEpoch("{}".into());
    assert_eq!(hot::read_reply(Some(reply), &mut LastTopology::default()), Err(PeerError::Lost));
    assert_eq!(hot::read_reply(None, &mut LastTopology::default()), Err(PeerError::Lost));
}

#[test]
fn limits_of_rare_messages_are_kept() {
    let long = "x".repeat(256);
    assert!(rare::read_gossip(proto::GossipRequest { header: None, packet: vec![0; 65_537].into() }).is_err());
    let wire = |a: Announcement| proto::AnnounceRequest { header: None, announcement: Some(rare::announcement(a)) };
    assert!(rare::read_announce(wire(announcement(1))).is_ok());
    assert!(rare::read_announce(wire(Announcement { mesh_address: long.clone(), ..announcement(1) })).is_err());
    assert!(rare::read_announce(wire(Announcement { zone: Some(long), ..announcement(1) })).is_err());
    assert!(rare::read_announce(wire(Announcement { weight: 1001, ..announcement(1) })).is_err());
    let unsound = proto::FoundRequest { header: None, topology: "{}".into(), committed: true };
    assert!(rare::read_found(unsound).is_err());
}
