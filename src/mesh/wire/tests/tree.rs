//! Comparing and repairing: what goes through comes out the same, what makes no sense is refused, and bytes are few.

use super::*;
use crate::mesh::meters::framed_bytes;
use crate::mesh::wire::{Malformed, tree};
use crate::ports::{PeerReply, PeerRequest};
use crate::types::limits::{CHUNK_HASH_SPANS_MAX, EXCHANGE_ENTRIES_MAX, NAMES_MAX};
use crate::types::{
    Agreement, ChunkHashes, ChunkState, Convergence, Difference, Digest, Entry, Exchange, Leaf, LeafSet, Look,
    Register, SlotSet, Span, Token,
};

pub(in crate::mesh) fn spans() -> impl Strategy<Value = Vec<Span>> {
    let of = |digits: u8| {
        let span = (0..1u32 << (4 * digits)).prop_map(move |bits| Span::new(digits, bits as u16).unwrap());
        prop::collection::vec(span, 0..20)
    };
    (0..Span::DIGITS_MAX).prop_flat_map(of)
}

pub(super) fn slot_set() -> impl Strategy<Value = SlotSet> {
    prop::collection::vec(any::<u8>(), 0..5).prop_map(|slots| slots.into_iter().map(Slot).collect())
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

/// Some leaves of a slot, and some entries in them.
pub(in crate::mesh) fn exchange() -> impl Strategy<Value = Exchange> {
    let places = prop::collection::btree_set(any::<u8>(), 1..9);
    let parts = (epoch(), any::<u8>(), places, any::<bool>(), prop::option::of(any::<u64>().prop_map(Hlc)));
    let entries = prop::collection::vec((any::<u64>(), version(), any::<u32>()), 0..20);
    (parts, entries).prop_map(|((epoch, slot, places, names_only, up_to), entries)| {
        let leaves: Vec<Leaf> = places.iter().map(|place| Leaf(u16::from(slot) << 8 | u16::from(*place))).collect();
        let within = |token: u64| {
            let leaf = leaves[token as usize % leaves.len()];
            Token(u64::from(leaf.0) << 48 | token >> 16)
        };
        let entry = |(token, version, checksum)| Entry { token: within(token), version, checksum };
        let mut held: Vec<Entry> = entries.into_iter().map(entry).collect();
        held.sort();
        Exchange { epoch, slot: Slot(slot), leaves, held, names_only, up_to }
    })
}

/// A list, and an answer to it.
fn exchanged() -> impl Strategy<Value = (Exchange, PeerReply)> {
    let records = prop::collection::vec((key(), record()), 0..4);
    let names = prop::collection::vec(key(), 0..4);
    (exchange(), records, names, any::<bool>(), any::<bool>()).prop_map(
        |(asked, mut records, mut names, more, serving)| {
            if asked.names_only {
                records.clear()
            } else {
                names.clear()
            }
            let wanted = asked.held.iter().step_by(2).map(|entry| entry.token).collect();
            (asked, PeerReply::Differences(Difference { wanted, records, names, more, serving }))
        },
    )
}

fn leaf_set() -> impl Strategy<Value = LeafSet> {
    let some = prop::collection::vec(any::<u8>(), 0..9).prop_map(LeafSet::of);
    prop_oneof![some, Just(LeafSet::ALL)]
}

fn kept_register() -> impl Strategy<Value = Register> {
    let accepted = prop::option::of(register::accepted());
    (register::ballot(), accepted).prop_map(|(promised, accepted)| Register { promised, accepted })
}

/// A page, often with registers that hold the stored record.
fn page() -> impl Strategy<Value = PeerReply> {
    let entry = (prop::option::of(record()), prop::option::of(kept_register()), any::<bool>());
    let entries = prop::collection::btree_map(key(), entry, 0..4);
    (entries, floor(), any::<bool>()).prop_map(|(entries, floor, more)| {
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(key, (record, mut register, same))| {
                let accepted = register.as_mut().filter(|_| same).and_then(|r| r.accepted.as_mut());
                if let Some(state) = accepted {
                    state.record = record.clone();
                }
                (key, record, register)
            })
            .collect();
        let next = entries.last().filter(|_| more).map(|(key, ..)| key.clone());
        PeerReply::SlotPage { entries, floor, next }
    })
}

fn convergence() -> impl Strategy<Value = Convergence> {
    let agreement = prop::sample::select(vec![Agreement::Equal, Agreement::Differs, Agreement::Unknown]);
    let chunks = prop::collection::btree_map(0u8..16, (agreement, any::<(u64, u64)>()), 0..16);
    (chunks, prop::collection::vec(key(), 0..4), any::<[u64; 2]>()).prop_map(
        |(chunks, keys, [differing, scrubbed_ms])| {
            let state = |(chunk, (agreement, (since_ms, equal_up_to_ms)))| ChunkState {
                chunk,
                agreement,
                since_ms,
                equal_up_to_ms,
            };
            Convergence { chunks: chunks.into_iter().map(state).collect(), keys, differing, scrubbed_ms }
        },
    )
}

proptest! {
    #[test]
    fn digests_come_out_as_they_went_in(
        epoch in epoch(), left_out in slot_set(), spans in spans(), digests in prop::collection::vec(any::<u64>(), 16)
    ) {
        let wire = wired(&tree::chunk_hash_request(None, epoch, left_out, &spans));
        let count = spans.len();
        prop_assert_eq!(
            tree::read_chunk_hash_request(wire),
            Ok(PeerRequest::GetChunkHash { epoch, left_out, spans })
        );
        let digests = digests.into_iter().map(Digest).collect::<Vec<_>>().repeat(count);
        let reply = PeerReply::ChunkHashes(ChunkHashes { left_out, digests });
        let wire = wired(&tree::chunk_hash_reply(None, reply.clone()).unwrap());
        prop_assert_eq!(tree::read_chunk_hash_reply(wire, count), Ok(reply));
    }

    #[test]
    fn lists_and_their_answers_come_out_as_they_went_in((exchange, reply) in exchanged()) {
        let wire = wired(&tree::range_request(None, &exchange));
        prop_assert_eq!(tree::read_range_request(wire), Ok(PeerRequest::FetchRange(exchange.clone())));
        let wire = wired(&tree::range_reply(None, reply.clone()).unwrap());
        prop_assert_eq!(tree::read_range_reply(wire, &exchange), Ok(reply));
    }

    #[test]
    fn pages_come_out_as_they_went_in(
        epoch in epoch(), slot: u8, leaves in leaf_set(), after in prop::option::of(key()), page in page()
    ) {
        let slot = Slot(slot);
        let wire = wired(&tree::slot_request(None, epoch, slot, leaves, after.as_ref()));
        prop_assert_eq!(tree::read_slot_request(wire), Ok(PeerRequest::FetchSlot { epoch, slot, leaves, after }));
        let wire = wired(&tree::slot_reply(None, page.clone()).unwrap());
        prop_assert_eq!(tree::read_slot_reply(wire, None), Ok(page));
    }

    #[test]
    fn a_slot_is_compared_as_it_was_asked(
        epoch in epoch(), slot: u8, digest: u64, differing in leaf_set(), floor in floor()
    ) {
        let (slot, digests) = (Slot(slot), vec![Digest(digest); Leaf::IN_SLOT]);
        let wire = wired(&tree::compare_request(None, epoch, slot, &digests));
        prop_assert_eq!(tree::read_slot_request(wire), Ok(PeerRequest::CompareSlot { epoch, slot, digests }));
        let few = wired(&tree::compare_request(None, epoch, slot, &[Digest(digest)]));
        prop_assert!(tree::read_slot_request(few).is_err());
        let reply = PeerReply::SlotCompared { differing, floor };
        let wire = wired(&tree::slot_reply(None, reply.clone()).unwrap());
        prop_assert_eq!(tree::read_slot_reply(wire, None), Ok(reply));
    }

    #[test]
    fn convergence_comes_out_as_it_went_in(with: u16, look in prop::sample::select(vec![Look::Chunks, Look::Keys, Look::Deep]),
                                           convergence in convergence()) {
        let with = NodeNum(with);
        let wire = wired(&tree::converge_request(None, with, look));
        prop_assert_eq!(tree::read_converge_request(&wire), Ok(PeerRequest::Converge { with, look }));
        let reply = PeerReply::Convergence(Box::new(convergence));
        let wire = wired(&tree::converge_reply(None, reply.clone()).unwrap());
        prop_assert_eq!(tree::read_converge_reply(wire), Ok(reply));
    }

    #[test]
    fn no_bytes_panic_who_compares(bytes in prop::collection::vec(any::<u8>(), 0..60), asked in exchange()) {
        if let Ok(wire) = proto::ChunkHashRequest::decode(&*bytes) {
            let _ = tree::read_chunk_hash_request(wire);
        }
        if let Ok(wire) = proto::ChunkHashReply::decode(&*bytes) {
            let _ = tree::read_chunk_hash_reply(wire, 1);
        }
        if let Ok(wire) = proto::RangeRequest::decode(&*bytes) {
            let _ = tree::read_range_request(wire);
        }
        if let Ok(wire) = proto::RangeReply::decode(&*bytes) {
            let _ = tree::read_range_reply(wire, &asked);
        }
        if let Ok(wire) = proto::SlotReply::decode(&*bytes) {
            let _ = tree::read_slot_reply(wire, None);
        }
        if let Ok(wire) = proto::ConvergeReply::decode(&*bytes) {
            let _ = tree::read_converge_reply(wire);
        }
        let request = proto::ChunkHashRequest {
            spans: bytes.iter().map(|byte| u32::from(*byte) << (byte % 25)).collect(),
            ..Default::default()
        };
        let _ = tree::read_chunk_hash_request(request);
    }
}

#[test]
fn another_epoch_answers_each_question_but_the_last() {
    let wrong = PeerReply::WrongEpoch { epoch: Epoch(0) };
    let told = tree::chunk_hash_reply(None, wrong.clone()).unwrap();
    assert_eq!(tree::read_chunk_hash_reply(wired(&told), 5), Ok(wrong.clone()));
    let told = tree::range_reply(None, wrong.clone()).unwrap();
    assert_eq!(tree::read_range_reply(wired(&told), &list(vec![], vec![])), Ok(wrong.clone()));
    let told = tree::slot_reply(None, wrong.clone()).unwrap();
    assert_eq!(tree::read_slot_reply(wired(&told), None), Ok(wrong.clone()));
    assert_eq!(tree::converge_reply(None, wrong.clone()), Err(wrong));
    assert_eq!(tree::slot_reply(None, PeerReply::Done), Err(PeerReply::Done));
}

fn refused<T: std::fmt::Debug>(read: Result<T, Malformed>, why: &str) {
    assert_eq!(read.expect_err(why).to_string(), why);
}

#[test]
fn questions_for_digests_that_make_no_sense_are_refused() {
    let read = |spans: Vec<u32>, left_out: &'static [u8]| {
        tree::read_chunk_hash_request(proto::ChunkHashRequest {
            header: None,
            epoch: 1,
            left_out: left_out.into(),
            spans,
        })
    };
    assert!(read(vec![0x1fff; CHUNK_HASH_SPANS_MAX], &[7; 32]).is_ok());
    refused(read(vec![1; CHUNK_HASH_SPANS_MAX + 1], b""), "more spans than are compared at once");
    for no_span in [0, 2, 0x20, 0x8000_0000, 0x0010_0000, u32::MAX] {
        refused(read(vec![no_span], b""), "a span that is none");
    }
    refused(read(vec![0x10, 0x100], b""), "spans of different sizes");
    refused(read(vec![0x1_3f00], b""), "a leaf has no parts to compare");
    refused(read(vec![1], &[0; 31]), "a set of slots is not 32 bytes long");
    let short = proto::ChunkHashReply { digests: vec![0; 31], ..Default::default() };
    refused(tree::read_chunk_hash_reply(short, 2), "not sixteen digests for each span");
}

fn entry(token: u64) -> Entry {
    Entry { token: Token(token), version: Version::default(), checksum: 0 }
}

fn list(leaves: Vec<Leaf>, held: Vec<Entry>) -> Exchange {
    Exchange { epoch: Epoch(1), slot: Slot(0x3f), leaves, held, names_only: false, up_to: None }
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let read =
        |leaves: Vec<Leaf>, held: Vec<Entry>| tree::read_range_request(tree::range_request(None, &list(leaves, held)));
    let (one, two) = (Leaf(0x3f00), Leaf(0x3f01));
    let (first, last) = (entry(0x3f00 << 48), entry(0x3f01_ffff_ffff_ffff));
    assert!(read(vec![one, two], vec![first, first, last]).is_ok());
    refused(read(vec![two, one], vec![]), "leaves out of order");
    refused(read(vec![one, one], vec![]), "leaves out of order");
    refused(read(vec![Leaf(0x4000)], vec![]), "a leaf of another slot");
    refused(read(vec![one, two], vec![last, first]), "entries out of order");
    refused(read(vec![one], vec![last]), "an entry outside of the leaves");
    assert!(read(vec![one], vec![first; EXCHANGE_ENTRIES_MAX + 1]).is_ok(), "one leaf may hold any number");
    assert!(read(vec![one, two], vec![first; EXCHANGE_ENTRIES_MAX]).is_ok());
    let long = read(vec![one, two], vec![first; EXCHANGE_ENTRIES_MAX + 1]);
    refused(long, "more entries than are exchanged at once");
    let wire = tree::range_request(None, &list(vec![one], vec![first]));
    let cut = proto::RangeRequest { held: wire.held.slice(..27), ..wire.clone() };
    refused(tree::read_range_request(cut), "a list that ends within an entry");
    refused(tree::read_range_request(proto::RangeRequest { slot: 256, ..wire.clone() }), "a slot over 255");
    let far = proto::RangeRequest { leaves: vec![0x1_3f00], ..wire };
    refused(tree::read_range_request(far), "a leaf of another slot");
}

#[test]
fn an_answer_is_held_against_its_list() {
    let asked = list(vec![Leaf(0x3f00)], vec![entry(0x3f00 << 48)]);
    let names_only = Exchange { names_only: true, ..asked.clone() };
    let unknown = proto::RangeReply { wanted: vec![0x3f00 << 48 | 1], ..Default::default() };
    refused(tree::read_range_reply(unknown, &asked), "a record is wanted that was not listed");
    let mixed = "records where names were asked for, or names where records were";
    let names = proto::RangeReply { names: vec!["k".into()], ..Default::default() };
    refused(tree::read_range_reply(names.clone(), &asked), mixed);
    assert!(tree::read_range_reply(names, &names_only).is_ok());
    let bare = proto::KeyedRecord { key: "k".into(), record: None };
    let records = proto::RangeReply { records: vec![bare], ..Default::default() };
    refused(tree::read_range_reply(records.clone(), &names_only), mixed);
    refused(tree::read_range_reply(records, &asked), "a key without its record");
    let many = proto::RangeReply { names: vec!["k".into(); NAMES_MAX + 1], ..Default::default() };
    refused(tree::read_range_reply(many, &names_only), "more keys than are named at once");
}

#[test]
fn pages_always_lead_on() {
    let key = |text: &'static str| Key::new(text).unwrap();
    let read = |keys: &[&'static str], next: &'static str, after: Option<&Key>| {
        let entries = keys.iter().map(|k| proto::SlotEntry { key: (*k).into(), ..Default::default() }).collect();
        let page = proto::SlotReply { entries, next: next.into(), ..Default::default() };
        tree::read_slot_reply(page, after)
    };
    assert!(read(&["b", "c"], "c", Some(&key("a"))).is_ok());
    assert!(read(&[], "b", Some(&key("a"))).is_ok(), "a page may be empty");
    refused(read(&["c", "b"], "", None), "a page's keys out of order");
    refused(read(&["b", "c"], "c", Some(&key("b"))), "a page's keys out of order");
    refused(read(&["b", "c"], "b", None), "a page that leads backwards");
    refused(read(&[], "b", Some(&key("b"))), "a page that leads backwards");
    let bare = proto::SlotEntry {
        key: "k".into(),
        register: Some(proto::Register {
            promised: Some(proto::Ballot::default()),
            accepted: Some(proto::Accepted { as_stored: true, ..Default::default() }),
        }),
        ..Default::default()
    };
    let page = proto::SlotReply { entries: vec![bare], ..Default::default() };
    refused(tree::read_slot_reply(page, None), "a state with the stored record, and that is missing or sent twice");
}

#[test]
fn what_is_told_of_convergence_is_checked() {
    let state = |chunk, agreement| proto::ChunkState { chunk, agreement, ..Default::default() };
    let read = |chunks| tree::read_converge_reply(proto::ConvergeReply { chunks, ..Default::default() });
    refused(read(vec![state(16, 1)]), "a chunk over 15");
    refused(read(vec![state(1, 0)]), "an agreement of an unknown kind");
    refused(read(vec![state(1, 9)]), "an agreement of an unknown kind");
    refused(read(vec![state(2, 1), state(2, 1)]), "chunks out of order");
    let many = proto::ConvergeReply { keys: vec!["k".into(); NAMES_MAX + 1], ..Default::default() };
    refused(tree::read_converge_reply(many), "more keys than are named at once");
    let vague = proto::ConvergeRequest { look: 7, with: 1, header: None };
    refused(tree::read_converge_request(&vague), "a comparison of an unknown kind");
}

/// What a pair in sync pays for a round. It is measured with stamps of the year 2100, and large numbers.
#[test]
fn a_round_in_sync_takes_at_most_400_bytes() {
    let of = |node: u16| Header {
        cluster: Some(ClusterId(Uuid::from_u128(u128::MAX))),
        node: NodeNum(node),
        instance: InstanceId(Uuid::from_u128(u128::MAX)),
        hlc: Hlc(u64::MAX),
        wall_ms: 4_102_444_800_000,
    };
    let top = |from: u16| Some(header(&of(from), Some(InstanceId(Uuid::from_u128(u128::MAX)))));
    let round = |left_out: SlotSet| {
        let request = tree::chunk_hash_request(top(u16::MAX), Epoch(1_000_000), left_out, &[Span::ALL]);
        let digests = vec![Digest(u64::MAX); Span::PARTS];
        let reply = tree::chunk_hash_reply(top(1), PeerReply::ChunkHashes(ChunkHashes { left_out, digests })).unwrap();
        framed_bytes(&request) + framed_bytes(&reply)
    };
    let (whole, torn) = (round(SlotSet::NONE), round(Slot::all().collect()));
    assert_eq!((whole, torn), (WHOLE, TORN));
    assert!(torn <= 400, "also while slots are left out on both sides");
}

/// Bytes of such a round, with no slot left out, and with some.
const WHOLE: u64 = 298;
const TORN: u64 = 366;
