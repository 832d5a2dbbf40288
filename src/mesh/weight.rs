//! What requests and answers weigh: how many bytes they add to a message, at most, and what they ask of a lane.
//!
//! Invariant: no request, and no reply of a replica but a topology, is longer on the wire than its weight. So a message
//! stays within its limit, and what is queued within its bound.

use super::wire::register::is_as_stored;
use crate::ports::{Answer, PeerRequest, ReplicaCall, ReplicaReply, ReplicaRequest};
use crate::types::limits::{
    CHANGES_BYTES_MAX, CHANGES_PAGE_MAX, KEY_BYTES_MAX, MESH_MESSAGE_BYTES_MAX, NAMES_BYTES_MAX, NAMES_MAX,
    SCAN_BYTES_MAX,
};
use crate::types::{Accepted, ChangesAsk, Condition, Entry, Look, Proposal, Record, Span, Tags, Trace, Watched};

/// What a request weighs beside its key and content: ids, versions, checksum, framing, and its place in our tables.
const REQUEST_BYTES: usize = 128;
/// What an answer weighs beside its content.
const REPLY_BYTES: usize = 128;
/// What a register's state weighs beside its record's content and what it remembers.
const STATE_BYTES: usize = 128;
/// What one remembered answer weighs.
const REMEMBERED_BYTES: usize = 72;
/// What a request's name weighs beside its texts.
const TRACE_BYTES: usize = 12;
/// What a proposal weighs beside its key, content and tags.
const PROPOSAL_BYTES: usize = 256;
/// What one version weighs in a list.
const VERSION_BYTES: usize = 24;
/// What a comparison weighs beside its lists; a key is at most a quarter of it.
const HEALING_BYTES: usize = 4 * KEY_BYTES_MAX;
/// What one span weighs: itself, and its sixteen digests.
const SPAN_BYTES: usize = 3 + Span::PARTS * 8;
/// What one leaf weighs in a list.
const LEAF_BYTES: usize = 3;
/// What one token weighs in an answer.
const WANTED_BYTES: usize = 8;
/// What an answer that names keys may weigh: each stands behind its tag and its length.
const NAMES_BYTES: usize = NAMES_BYTES_MAX + 4 * NAMES_MAX;
/// What a scan weighs with its answer, which is the larger part.
pub(super) const SCAN_BYTES: usize = HEALING_BYTES + SCAN_BYTES_MAX;
/// What a change weighs in an answer beside its key: a version and a time.
const CHANGE_BYTES: usize = 64;
/// What a topology weighs: near enough for a batch's limit.
const TOPOLOGY_BYTES: usize = 32 * 1024;

/// Of one request or answer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weight {
    /// Of its records' contents; a lane is chosen by it.
    pub(super) content: usize,
    /// All of it.
    pub(super) bytes: usize,
}

pub(super) fn of_call(call: &ReplicaCall) -> Weight {
    let (content, more) = match &call.request {
        ReplicaRequest::Read { .. } | ReplicaRequest::Prepare { .. } => (0, 0),
        ReplicaRequest::Write { record, .. } | ReplicaRequest::Hint { record, .. } => (record.content_bytes(), 0),
        ReplicaRequest::Accept { accepted, .. } => (content(accepted.record.as_ref()), state(accepted)),
    };
    let more = more + of_trace(call.trace.as_deref());
    Weight { content, bytes: REQUEST_BYTES + call.request.key().as_bytes().len() + content + more }
}

pub(super) fn of_answer(answer: &Answer) -> Weight {
    let (content, more) = match answer {
        Ok(ReplicaReply::Record { record, .. }) => (content(record.as_ref()), 0),
        Ok(ReplicaReply::Promised(promise)) => {
            let own = promise.accepted.as_ref().filter(|_| !is_as_stored(promise)).and_then(|a| a.record.as_ref());
            (content(promise.record.as_ref()) + content(own), promise.accepted.as_ref().map_or(0, state))
        }
        Ok(ReplicaReply::WrongEpoch { .. }) => (0, TOPOLOGY_BYTES),
        _ => (0, 0),
    };
    Weight { content, bytes: REPLY_BYTES + content + more }
}

/// What a proposal weighs in a call of its own, in bytes.
pub(super) fn of_proposal(proposal: &Proposal, trace: Option<&Trace>) -> usize {
    let Condition { if_match, if_none_match, .. } = &proposal.condition;
    let tags = |tags: &Option<Tags>| match tags {
        Some(Tags::Of(versions)) => versions.len() * VERSION_BYTES,
        Some(Tags::Any) | None => 0,
    };
    let listed = tags(if_match) + tags(if_none_match);
    PROPOSAL_BYTES + proposal.key.as_bytes().len() + proposal.edit.size() + listed + of_trace(trace)
}

fn of_trace(trace: Option<&Trace>) -> usize {
    trace.map_or(0, |t| TRACE_BYTES + t.request_id().len() + t.traceparent().map_or(0, str::len))
}

/// What a call weighs by which copies are compared or repaired, in bytes: with its answer, which is the larger part.
/// Any other call weighs nothing.
pub(super) fn of_healing(request: &PeerRequest) -> usize {
    let more = match request {
        PeerRequest::GetChunkHash { spans, .. } => spans.len() * SPAN_BYTES,
        PeerRequest::FetchRange(exchange) => {
            let told = if exchange.names_only { NAMES_BYTES } else { MESH_MESSAGE_BYTES_MAX };
            exchange.leaves.len() * LEAF_BYTES + exchange.held.len() * (Entry::BYTES + WANTED_BYTES) + told
        }
        PeerRequest::CompareSlot { digests, .. } => digests.len() * size_of::<u64>(),
        PeerRequest::FetchSlot { .. } | PeerRequest::Purge { .. } => MESH_MESSAGE_BYTES_MAX,
        PeerRequest::Converge { look: Look::Chunks, .. } => 0,
        PeerRequest::Converge { .. } => NAMES_BYTES,
        _ => return 0,
    };
    HEALING_BYTES + more
}

/// What a call for changes weighs with its answer, in bytes. That of one key tells at most one.
pub(super) fn of_changes(ask: &ChangesAsk) -> usize {
    let changes = match ask.watched {
        Watched::One(_) => 0,
        Watched::Prefix(_) => CHANGES_BYTES_MAX + CHANGES_PAGE_MAX * CHANGE_BYTES,
    };
    HEALING_BYTES + changes
}

fn content(record: Option<&Record>) -> usize {
    record.map_or(0, Record::content_bytes)
}

fn state(accepted: &Accepted) -> usize {
    STATE_BYTES + accepted.recent.entries().len() * REMEMBERED_BYTES
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::mesh::exchange::Lane;
    use crate::mesh::tests::{accept, promised};
    use crate::mesh::wire::hot::{self, LastTopology};
    use crate::mesh::wire::propose;
    use crate::mesh::wire::tests::tree::{exchange, spans};
    use crate::mesh::wire::tests::{answer, call, propose::proposal, topology, trace};
    use crate::mesh::wire::tree;
    use crate::ports::PeerReply;
    use crate::types::limits::SMALL_VALUE_BYTES_MAX;
    use crate::types::{
        Agreement, ChunkHashes, ChunkState, Convergence, Difference, Digest, Epoch, Floor, Key, Leaf, LeafSet, NodeNum,
        Slot, SlotSet, Token,
    };

    /// In a message each stands behind its tag and its length.
    const IN_A_LIST: usize = 6;

    proptest! {
        #[test]
        fn no_request_is_longer_than_its_weight(id: u64, call in call()) {
            let weight = of_call(&call);
            prop_assert!(hot::request(id, call).encoded_len() + IN_A_LIST <= weight.bytes);
        }

        #[test]
        fn no_answer_is_longer_than_its_weight(id: u64, answer in answer()) {
            let weight = of_answer(&answer);
            prop_assert!(hot::reply(id, answer, &mut LastTopology::default()).encoded_len() + IN_A_LIST <= weight.bytes);
        }

        #[test]
        fn no_proposal_is_longer_than_its_weight(proposal in proposal(), timeout_ms: u64, trace in trace()) {
            let weight = of_proposal(&proposal, trace.as_deref());
            prop_assert!(propose::request(None, proposal, timeout_ms, trace.as_deref()).encoded_len() <= weight);
        }
    }

    proptest! {
        #[test]
        fn no_comparison_is_longer_than_its_weight(spans in spans(), exchange in exchange()) {
            let (epoch, left_out) = (Epoch(u64::MAX), Slot::all().collect::<SlotSet>());
            let asked = tree::chunk_hash_request(None, epoch, left_out, &spans).encoded_len();
            let digests = vec![Digest(u64::MAX); spans.len() * Span::PARTS];
            let hashes = PeerReply::ChunkHashes(ChunkHashes { left_out, digests });
            let answered = tree::chunk_hash_reply(None, hashes).unwrap().encoded_len();
            let weight = of_healing(&PeerRequest::GetChunkHash { epoch, left_out, spans });
            prop_assert!(asked + answered <= weight);
            let asked = tree::range_request(None, &exchange).encoded_len();
            let names = if exchange.names_only { NAMES_MAX } else { 0 };
            let key = Key::new(vec![1; NAMES_BYTES_MAX / NAMES_MAX]).unwrap();
            let wanted: Vec<Token> = exchange.held.iter().map(|entry| entry.token).collect();
            let told = Difference { wanted, names: vec![key; names], more: true, serving: true, records: vec![] };
            let told = tree::range_reply(None, PeerReply::Differences(told)).unwrap().encoded_len();
            let records = if exchange.names_only { 0 } else { MESH_MESSAGE_BYTES_MAX };
            let weight = of_healing(&PeerRequest::FetchRange(exchange));
            prop_assert!(asked + told + records <= weight);
        }
    }

    #[test]
    fn a_page_weighs_what_its_answer_may() {
        let (epoch, slot) = (Epoch(u64::MAX), Slot(255));
        let after = Some(Key::new(vec![1; KEY_BYTES_MAX]).unwrap());
        let leaves = LeafSet::of([255]);
        let asked = tree::slot_request(None, epoch, slot, leaves, after.as_ref()).encoded_len();
        let weight = of_healing(&PeerRequest::FetchSlot { epoch, slot, leaves, after });
        assert!(asked + MESH_MESSAGE_BYTES_MAX <= weight);
        assert_eq!(of_healing(&PeerRequest::Topology), 0);
    }

    #[test]
    fn comparing_a_slot_weighs_what_it_asks_and_is_told() {
        let (epoch, slot, digests) = (Epoch(u64::MAX), Slot(255), vec![Digest(u64::MAX); Leaf::IN_SLOT]);
        let asked = tree::compare_request(None, epoch, slot, &digests).encoded_len();
        let told = PeerReply::SlotCompared { differing: LeafSet::ALL, floor: Floor::default() };
        let told = tree::slot_reply(None, told).unwrap().encoded_len();
        assert!(asked + told + 256 <= of_healing(&PeerRequest::CompareSlot { epoch, slot, digests }));
    }

    #[test]
    fn a_comparison_weighs_what_it_may_name() {
        let max = u64::MAX;
        let chunk = ChunkState { chunk: 15, agreement: Agreement::Unknown, since_ms: max, equal_up_to_ms: max };
        for (look, names) in [(Look::Chunks, 0), (Look::Keys, NAMES_MAX), (Look::Deep, NAMES_MAX)] {
            let keys = vec![Key::new(vec![1; NAMES_BYTES_MAX / NAMES_MAX]).unwrap(); names];
            let told = Convergence { chunks: vec![chunk; Span::PARTS], keys, differing: max, scrubbed_ms: max };
            let told = tree::converge_reply(None, PeerReply::Convergence(Box::new(told))).unwrap().encoded_len();
            let weight = of_healing(&PeerRequest::Converge { with: NodeNum(u16::MAX), look });
            assert!(told <= weight && weight <= told + HEALING_BYTES + NAMES_MAX * 4, "{look:?}: {told} {weight}");
        }
    }

    #[test]
    fn the_registers_records_choose_the_lane() {
        let half = SMALL_VALUE_BYTES_MAX / 2 + 1;
        let lane = |weight: Weight| Lane::of(weight.content);
        assert_eq!(lane(of_call(&accept("k", vec![0; SMALL_VALUE_BYTES_MAX]))), Lane::Small);
        assert_eq!(lane(of_call(&accept("k", vec![0; SMALL_VALUE_BYTES_MAX + 1]))), Lane::Large);
        let promise = |accepted, stored| of_answer(&Ok(promised(accepted, stored)));
        assert_eq!(lane(promise(Some(vec![1; half]), Some(vec![1; half]))), Lane::Small, "it travels once");
        assert_eq!(lane(promise(Some(vec![1; half]), Some(vec![2; half]))), Lane::Large);
        assert_eq!(lane(promise(Some(vec![1; 2 * half]), None)), Lane::Large);
        assert_eq!(lane(promise(None, Some(vec![1; 2 * half]))), Lane::Large);
        assert_eq!(lane(promise(None, None)), Lane::Small);
        let old = Ok(ReplicaReply::WrongEpoch { topology: Arc::new(topology(3)) });
        assert!(of_answer(&old).bytes > TOPOLOGY_BYTES);
    }
}
