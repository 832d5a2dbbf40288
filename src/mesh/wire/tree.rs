//! The words by which replicas compare their copies and repair them: digests, lists, pages.
//!
//! Bytes count here: in sync, a round of anti-entropy is one request for the digests of everything and its answer, and
//! must stay within 400 bytes; so what comes in numbers is packed, and what is empty is not sent. An answer is read
//! against its request: it may name only what was asked about.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::proto::{self, chunk_state, converge_request};
use super::record::{floor_or_none, read_floor_or_none, read_key, read_record, record};
use super::register::{read_register, register};
use super::{Malformed, read_node};
use crate::ports::{PeerReply, PeerRequest};
use crate::types::limits::{CHUNK_HASH_SPANS_MAX, EXCHANGE_ENTRIES_MAX, NAMES_MAX};
use crate::types::{
    Agreement, ChunkHashes, ChunkState, Convergence, Difference, Digest, Entry, Epoch, Exchange, Hlc, Key, Leaf,
    LeafSet, Look, NodeNum, Record, Register, Slot, SlotSet, Span, Token, Version, Writer,
};

// -------------------------------------------------------------------------------------------------------- digests

pub(in crate::mesh) fn chunk_hash_request(
    header: Option<proto::Header>,
    epoch: Epoch,
    left_out: SlotSet,
    spans: &[Span],
) -> proto::ChunkHashRequest {
    proto::ChunkHashRequest {
        header,
        epoch: epoch.0,
        left_out: slot_set(left_out),
        spans: spans.iter().copied().map(span).collect(),
    }
}

pub(in crate::mesh) fn read_chunk_hash_request(request: proto::ChunkHashRequest) -> Result<PeerRequest, Malformed> {
    if request.spans.len() > CHUNK_HASH_SPANS_MAX {
        return Err("more spans than are compared at once".into());
    }
    let spans = request.spans.into_iter().map(read_span).collect::<Result<Vec<Span>, _>>()?;
    let digits = spans.first().map(|span| span.digits());
    if spans.iter().any(|span| Some(span.digits()) != digits) {
        return Err("spans of different sizes".into());
    }
    if digits == Some(Span::DIGITS_MAX) {
        return Err("a leaf has no parts to compare".into());
    }
    let left_out = read_slot_set(&request.left_out)?;
    Ok(PeerRequest::GetChunkHash { epoch: Epoch(request.epoch), left_out, spans })
}

/// # Errors
/// The reply itself, where it answers another question.
pub(in crate::mesh) fn chunk_hash_reply(
    header: Option<proto::Header>,
    reply: PeerReply,
) -> Result<proto::ChunkHashReply, PeerReply> {
    match reply {
        PeerReply::ChunkHashes(hashes) => Ok(proto::ChunkHashReply {
            header,
            wrong_epoch: None,
            left_out: slot_set(hashes.left_out),
            digests: hashes.digests.into_iter().map(|digest| digest.0).collect(),
        }),
        PeerReply::WrongEpoch { epoch } => {
            Ok(proto::ChunkHashReply { header, wrong_epoch: Some(epoch.0), ..Default::default() })
        }
        other => Err(other),
    }
}

/// The answer to a question about that many spans.
pub(in crate::mesh) fn read_chunk_hash_reply(
    reply: proto::ChunkHashReply,
    spans: usize,
) -> Result<PeerReply, Malformed> {
    if let Some(epoch) = reply.wrong_epoch {
        return Ok(wrong_epoch(epoch));
    }
    if reply.digests.len() != spans * Span::PARTS {
        return Err("not sixteen digests for each span".into());
    }
    let digests = reply.digests.into_iter().map(Digest).collect();
    Ok(PeerReply::ChunkHashes(ChunkHashes { left_out: read_slot_set(&reply.left_out)?, digests }))
}

/// A one, then the span's digits: so its size is told by its bits.
fn span(span: Span) -> u32 {
    1 << (4 * span.digits()) | u32::from(span.bits())
}

fn read_span(wire: u32) -> Result<Span, Malformed> {
    let read = || {
        let one = wire.checked_ilog2()?;
        let (digits, rest) = (u8::try_from(one / 4).ok()?, wire ^ (1 << one));
        if one.is_multiple_of(4) { Span::new(digits, u16::try_from(rest).ok()?) } else { None }
    };
    read().ok_or_else(|| "a span that is none".into())
}

pub(super) fn slot_set(set: SlotSet) -> Bytes {
    if set.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(&set.to_bytes()) }
}

pub(super) fn read_slot_set(bytes: &[u8]) -> Result<SlotSet, Malformed> {
    if bytes.is_empty() {
        return Ok(SlotSet::NONE);
    }
    bytes.try_into().map(SlotSet::from_bytes).map_err(|_| "a set of slots is not 32 bytes long".into())
}

pub(super) fn read_slot(slot: u32) -> Result<Slot, Malformed> {
    u8::try_from(slot).map(Slot).map_err(|_| "a slot over 255".into())
}

fn wrong_epoch(epoch: u64) -> PeerReply {
    PeerReply::WrongEpoch { epoch: Epoch(epoch) }
}

// ---------------------------------------------------------------------------------------------------------- lists

pub(in crate::mesh) fn range_request(header: Option<proto::Header>, exchange: &Exchange) -> proto::RangeRequest {
    let mut held = BytesMut::with_capacity(exchange.held.len() * Entry::BYTES);
    for Entry { token, version, checksum } in &exchange.held {
        held.put_u64(token.0);
        held.put_u64(version.hlc.0);
        held.put_u32(version.writer.0);
        held.put_u32(version.rmw);
        held.put_u32(*checksum);
    }
    proto::RangeRequest {
        header,
        epoch: exchange.epoch.0,
        slot: exchange.slot.0.into(),
        leaves: exchange.leaves.iter().map(|leaf| leaf.0.into()).collect(),
        held: held.freeze(),
        names_only: exchange.names_only,
        up_to: exchange.up_to.map(|up_to| up_to.0),
    }
}

pub(in crate::mesh) fn read_range_request(request: proto::RangeRequest) -> Result<PeerRequest, Malformed> {
    let slot = read_slot(request.slot)?;
    let leaves = read_leaves(slot, &request.leaves)?;
    let held = read_held(request.held, &leaves)?;
    let (epoch, names_only, up_to) = (Epoch(request.epoch), request.names_only, request.up_to.map(Hlc));
    Ok(PeerRequest::FetchRange(Exchange { epoch, slot, leaves, held, names_only, up_to }))
}

fn read_leaves(slot: Slot, wire: &[u32]) -> Result<Vec<Leaf>, Malformed> {
    if !wire.is_sorted_by(|a, b| a < b) {
        return Err("leaves out of order".into());
    }
    let leaf = |number: &u32| u16::try_from(*number).ok().map(Leaf).filter(|leaf| leaf.slot() == slot);
    wire.iter().map(leaf).collect::<Option<_>>().ok_or_else(|| "a leaf of another slot".into())
}

fn read_held(mut wire: Bytes, leaves: &[Leaf]) -> Result<Vec<Entry>, Malformed> {
    // Token, HLC, writer, rmw, half a checksum.
    let count = wire.len() / Entry::BYTES;
    if !wire.len().is_multiple_of(Entry::BYTES) {
        return Err("a list that ends within an entry".into());
    }
    if count > EXCHANGE_ENTRIES_MAX && leaves.len() > 1 {
        return Err("more entries than are exchanged at once".into());
    }
    let held: Vec<Entry> = (0..count)
        .map(|_| Entry {
            token: Token(wire.get_u64()),
            version: Version { hlc: Hlc(wire.get_u64()), writer: Writer(wire.get_u32()), rmw: wire.get_u32() },
            checksum: wire.get_u32(),
        })
        .collect();
    if !held.is_sorted_by_key(|entry| entry.token) {
        return Err("entries out of order".into());
    }
    if held.iter().any(|entry| leaves.binary_search(&Leaf::of(entry.token)).is_err()) {
        return Err("an entry outside of the leaves".into());
    }
    Ok(held)
}

/// # Errors
/// The reply itself, where it answers another question.
pub(in crate::mesh) fn range_reply(
    header: Option<proto::Header>,
    reply: PeerReply,
) -> Result<proto::RangeReply, PeerReply> {
    match reply {
        PeerReply::Differences(Difference { wanted, records, names, more, serving }) => Ok(proto::RangeReply {
            header,
            wrong_epoch: None,
            wanted: wanted.into_iter().map(|token| token.0).collect(),
            records: records.into_iter().map(keyed_record).collect(),
            names: keys(names),
            more,
            serving,
        }),
        PeerReply::WrongEpoch { epoch } => {
            Ok(proto::RangeReply { header, wrong_epoch: Some(epoch.0), ..Default::default() })
        }
        other => Err(other),
    }
}

/// The answer to that list.
pub(in crate::mesh) fn read_range_reply(reply: proto::RangeReply, asked: &Exchange) -> Result<PeerReply, Malformed> {
    if let Some(epoch) = reply.wrong_epoch {
        return Ok(wrong_epoch(epoch));
    }
    let wanted: Vec<Token> = reply.wanted.into_iter().map(Token).collect();
    if wanted.iter().any(|token| asked.held.binary_search_by_key(token, |entry| entry.token).is_err()) {
        return Err("a record is wanted that was not listed".into());
    }
    let unasked = if asked.names_only { !reply.records.is_empty() } else { !reply.names.is_empty() };
    if unasked {
        return Err("records where names were asked for, or names where records were".into());
    }
    let records = reply.records.into_iter().map(read_keyed_record).collect::<Result<_, _>>()?;
    let names = read_keys(reply.names)?;
    Ok(PeerReply::Differences(Difference { wanted, records, names, more: reply.more, serving: reply.serving }))
}

fn keyed_record((key, kept): (Key, Record)) -> proto::KeyedRecord {
    proto::KeyedRecord { key: key.bytes().clone(), record: Some(record(kept)) }
}

fn read_keyed_record(wire: proto::KeyedRecord) -> Result<(Key, Record), Malformed> {
    Ok((read_key(wire.key)?, read_record(wire.record.ok_or("a key without its record")?)?))
}

fn keys(keys: Vec<Key>) -> Vec<Bytes> {
    keys.into_iter().map(|key| key.bytes().clone()).collect()
}

fn read_keys(wire: Vec<Bytes>) -> Result<Vec<Key>, Malformed> {
    if wire.len() > NAMES_MAX {
        return Err("more keys than are named at once".into());
    }
    wire.into_iter().map(read_key).collect()
}

// ---------------------------------------------------------------------------------------------------------- pages

pub(in crate::mesh) fn slot_request(
    header: Option<proto::Header>,
    epoch: Epoch,
    slot: Slot,
    leaves: LeafSet,
    after: Option<&Key>,
) -> proto::SlotRequest {
    let leaves = if leaves == LeafSet::ALL { Bytes::new() } else { leaf_set(leaves) };
    let (slot, after) = (slot.0.into(), key_or_none(after));
    proto::SlotRequest { header, epoch: epoch.0, slot, after, leaves, digests: Vec::new() }
}

pub(in crate::mesh) fn compare_request(
    header: Option<proto::Header>,
    epoch: Epoch,
    slot: Slot,
    digests: &[Digest],
) -> proto::SlotRequest {
    let digests = digests.iter().map(|digest| digest.0).collect();
    proto::SlotRequest { header, epoch: epoch.0, slot: slot.0.into(), digests, ..Default::default() }
}

pub(in crate::mesh) fn read_slot_request(request: proto::SlotRequest) -> Result<PeerRequest, Malformed> {
    let (epoch, slot) = (Epoch(request.epoch), read_slot(request.slot)?);
    if request.digests.is_empty() {
        let leaves = if request.leaves.is_empty() { LeafSet::ALL } else { read_leaf_set(&request.leaves)? };
        return Ok(PeerRequest::FetchSlot { epoch, slot, leaves, after: read_key_or_none(request.after)? });
    }
    if request.digests.len() != Leaf::IN_SLOT {
        return Err("not as many digests as a slot has leaves".into());
    }
    let digests = request.digests.into_iter().map(Digest).collect();
    Ok(PeerRequest::CompareSlot { epoch, slot, digests })
}

fn leaf_set(leaves: LeafSet) -> Bytes {
    Bytes::copy_from_slice(&leaves.to_bytes())
}

fn read_leaf_set(bytes: &[u8]) -> Result<LeafSet, Malformed> {
    bytes.try_into().map(LeafSet::from_bytes).map_err(|_| "a set of leaves is not 32 bytes long".into())
}

/// # Errors
/// The reply itself, where it answers another question.
pub(in crate::mesh) fn slot_reply(
    header: Option<proto::Header>,
    reply: PeerReply,
) -> Result<proto::SlotReply, PeerReply> {
    match reply {
        PeerReply::SlotPage { entries, floor, next } => Ok(proto::SlotReply {
            header,
            wrong_epoch: None,
            entries: entries.into_iter().map(slot_entry).collect(),
            floor: floor_or_none(&floor),
            next: key_or_none(next.as_ref()),
            differing: None,
        }),
        PeerReply::SlotCompared { differing, floor } => {
            let (floor, differing) = (floor_or_none(&floor), Some(leaf_set(differing)));
            Ok(proto::SlotReply { header, floor, differing, ..Default::default() })
        }
        PeerReply::WrongEpoch { epoch } => {
            Ok(proto::SlotReply { header, wrong_epoch: Some(epoch.0), ..Default::default() })
        }
        other => Err(other),
    }
}

/// The page after that key. Its keys ascend, and so does where it leads: whoever follows the pages comes to an end.
pub(in crate::mesh) fn read_slot_reply(reply: proto::SlotReply, after: Option<&Key>) -> Result<PeerReply, Malformed> {
    if let Some(epoch) = reply.wrong_epoch {
        return Ok(wrong_epoch(epoch));
    }
    if let Some(differing) = reply.differing {
        let differing = read_leaf_set(&differing)?;
        return Ok(PeerReply::SlotCompared { differing, floor: read_floor_or_none(reply.floor)? });
    }
    let entries = reply.entries.into_iter().map(read_slot_entry).collect::<Result<Vec<SlotEntry>, _>>()?;
    let next = read_key_or_none(reply.next)?;
    let listed = after.into_iter().chain(entries.iter().map(|(key, ..)| key));
    if !listed.clone().is_sorted_by(|a, b| a < b) {
        return Err("a page's keys out of order".into());
    }
    if next.as_ref().is_some_and(|next| listed.last().is_some_and(|last| next < last) || Some(next) == after) {
        return Err("a page that leads backwards".into());
    }
    Ok(PeerReply::SlotPage { entries, floor: read_floor_or_none(reply.floor)?, next })
}

type SlotEntry = (Key, Option<Record>, Option<Register>);

fn slot_entry((key, stored, kept): SlotEntry) -> proto::SlotEntry {
    let register = kept.map(|kept| register(kept, stored.as_ref()));
    proto::SlotEntry { key: key.bytes().clone(), record: stored.map(record), register }
}

fn read_slot_entry(entry: proto::SlotEntry) -> Result<SlotEntry, Malformed> {
    let stored = entry.record.map(read_record).transpose()?;
    let register = entry.register.map(|wire| read_register(wire, stored.as_ref())).transpose()?;
    Ok((read_key(entry.key)?, stored, register))
}

/// A key is never empty, so that an empty one is none.
fn key_or_none(key: Option<&Key>) -> Bytes {
    key.map(|key| key.bytes().clone()).unwrap_or_default()
}

fn read_key_or_none(bytes: Bytes) -> Result<Option<Key>, Malformed> {
    if bytes.is_empty() { Ok(None) } else { read_key(bytes).map(Some) }
}

// ---------------------------------------------------------------------------------------------------- convergence

pub(in crate::mesh) fn converge_request(
    header: Option<proto::Header>,
    with: NodeNum,
    look: Look,
) -> proto::ConvergeRequest {
    let look = match look {
        Look::Chunks => converge_request::Look::Chunks,
        Look::Keys => converge_request::Look::Keys,
        Look::Deep => converge_request::Look::Deep,
    };
    proto::ConvergeRequest { header, with: with.0.into(), look: look.into() }
}

pub(in crate::mesh) fn read_converge_request(request: &proto::ConvergeRequest) -> Result<PeerRequest, Malformed> {
    let look = match request.look() {
        converge_request::Look::Unspecified => return Err("a comparison of an unknown kind".into()),
        converge_request::Look::Chunks => Look::Chunks,
        converge_request::Look::Keys => Look::Keys,
        converge_request::Look::Deep => Look::Deep,
    };
    Ok(PeerRequest::Converge { with: read_node(request.with)?, look })
}

/// # Errors
/// The reply itself, where it answers another question.
pub(in crate::mesh) fn converge_reply(
    header: Option<proto::Header>,
    reply: PeerReply,
) -> Result<proto::ConvergeReply, PeerReply> {
    match reply {
        PeerReply::Convergence(convergence) => {
            let Convergence { chunks, keys: named, differing, scrubbed_ms } = *convergence;
            let chunks = chunks.into_iter().map(chunk_state).collect();
            Ok(proto::ConvergeReply { header, chunks, keys: keys(named), differing, scrubbed_ms })
        }
        other => Err(other),
    }
}

pub(in crate::mesh) fn read_converge_reply(reply: proto::ConvergeReply) -> Result<PeerReply, Malformed> {
    let chunks = reply.chunks.iter().map(read_chunk_state).collect::<Result<Vec<ChunkState>, _>>()?;
    if !chunks.is_sorted_by(|a, b| a.chunk < b.chunk) {
        return Err("chunks out of order".into());
    }
    let (keys, differing, scrubbed_ms) = (read_keys(reply.keys)?, reply.differing, reply.scrubbed_ms);
    Ok(PeerReply::Convergence(Box::new(Convergence { chunks, keys, differing, scrubbed_ms })))
}

fn chunk_state(state: ChunkState) -> proto::ChunkState {
    let agreement = match state.agreement {
        Agreement::Equal => chunk_state::Agreement::Equal,
        Agreement::Differs => chunk_state::Agreement::Differs,
        Agreement::Unknown => chunk_state::Agreement::Unknown,
    };
    proto::ChunkState {
        chunk: state.chunk.into(),
        agreement: agreement.into(),
        since_ms: state.since_ms,
        equal_up_to_ms: state.equal_up_to_ms,
    }
}

fn read_chunk_state(wire: &proto::ChunkState) -> Result<ChunkState, Malformed> {
    let agreement = match wire.agreement() {
        chunk_state::Agreement::Unspecified => return Err("an agreement of an unknown kind".into()),
        chunk_state::Agreement::Equal => Agreement::Equal,
        chunk_state::Agreement::Differs => Agreement::Differs,
        chunk_state::Agreement::Unknown => Agreement::Unknown,
    };
    let chunk = u8::try_from(wire.chunk).ok().filter(|chunk| usize::from(*chunk) < Span::PARTS);
    Ok(ChunkState {
        chunk: chunk.ok_or("a chunk over 15")?,
        agreement,
        since_ms: wire.since_ms,
        equal_up_to_ms: wire.equal_up_to_ms,
    })
}
