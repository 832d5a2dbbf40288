//! The words of listings: a question for keys in order, and its answer.

use bytes::Bytes;

use super::Malformed;
use super::proto;
use super::record::{read_content_type, read_key};
use super::tree::{read_slot_set, slot_set};
use crate::ports::{PeerReply, PeerRequest};
use crate::types::limits::{DELIMITER_BYTES_MAX, KEY_BYTES_MAX, SCAN_ROWS_MAX};
use crate::types::{Epoch, Hlc, Outline, Scan, ScanEntry, ScanPage, Version, Writer};

pub(in crate::mesh) fn request(header: Option<proto::Header>, epoch: Epoch, scan: Scan) -> proto::ScanRequest {
    let Scan { slots, prefix, from, delimiter, samples, limit, values, now } = scan;
    let slots = slot_set(slots);
    proto::ScanRequest { header, epoch: epoch.0, slots, prefix, from, delimiter, samples, limit, values, now: now.0 }
}

pub(in crate::mesh) fn read_request(request: proto::ScanRequest) -> Result<PeerRequest, Malformed> {
    let proto::ScanRequest { header: _, epoch, slots, prefix, from, delimiter, samples, limit, values, now } = request;
    if delimiter.len() > DELIMITER_BYTES_MAX {
        return Err("a delimiter over its limit".into());
    }
    let (prefix, from) = (read_place(prefix)?, read_place(from)?);
    let (samples, limit) = (samples.max(1), limit.max(1));
    let scan = Scan { slots: read_slot_set(&slots)?, prefix, from, delimiter, samples, limit, values, now: Hlc(now) };
    Ok(PeerRequest::Scan { epoch: Epoch(epoch), scan })
}

/// # Errors
/// The reply itself, where it answers another question.
pub(in crate::mesh) fn reply(header: Option<proto::Header>, reply: PeerReply) -> Result<proto::ScanReply, PeerReply> {
    match reply {
        PeerReply::Scanned(ScanPage { entries, next, doubtful }) => Ok(proto::ScanReply {
            header,
            wrong_epoch: None,
            entries: entries.into_iter().map(entry).collect(),
            next,
            doubtful: slot_set(doubtful),
        }),
        PeerReply::WrongEpoch { epoch } => {
            Ok(proto::ScanReply { header, wrong_epoch: Some(epoch.0), ..Default::default() })
        }
        other => Err(other),
    }
}

/// The answer to a scan from that place. Its keys ascend, and so does where it leads: whoever follows the answers comes to an
/// end.
pub(in crate::mesh) fn read_reply(reply: proto::ScanReply, from: &Bytes) -> Result<PeerReply, Malformed> {
    let proto::ScanReply { header: _, wrong_epoch, entries, next, doubtful } = reply;
    if let Some(epoch) = wrong_epoch {
        return Ok(PeerReply::WrongEpoch { epoch: Epoch(epoch) });
    }
    if entries.len() > SCAN_ROWS_MAX {
        return Err("more keys than are told at once".into());
    }
    let entries = entries.into_iter().map(read_entry).collect::<Result<Vec<_>, _>>()?;
    if !entries.is_sorted_by(|a, b| a.key < b.key) || entries.first().is_some_and(|e| e.key.as_bytes() < &from[..]) {
        return Err("a scan's keys out of order".into());
    }
    let next = next.map(read_place).transpose()?;
    let last = entries.last().map_or(from, |entry| entry.key.bytes());
    if next.as_ref().is_some_and(|next| next <= last) {
        return Err("a scan that leads backwards".into());
    }
    Ok(PeerReply::Scanned(ScanPage { entries, next, doubtful: read_slot_set(&doubtful)? }))
}

/// A place may be a byte longer than a key.
fn read_place(place: Bytes) -> Result<Bytes, Malformed> {
    if place.len() > KEY_BYTES_MAX + 1 { Err("a place over its limit".into()) } else { Ok(place) }
}

fn entry(entry: ScanEntry) -> proto::ScanEntry {
    let ScanEntry { key, copy, skips } = entry;
    proto::ScanEntry { key: key.bytes().clone(), copy: copy.map(outline), skips }
}

fn read_entry(entry: proto::ScanEntry) -> Result<ScanEntry, Malformed> {
    let proto::ScanEntry { key, copy, skips } = entry;
    Ok(ScanEntry { key: read_key(key)?, copy: copy.map(read_outline).transpose()?, skips })
}

fn outline(outline: Outline) -> proto::Outline {
    let Outline { version, written, tombstone, checksum, bytes, content_type, expires_at_ms, value } = outline;
    proto::Outline {
        hlc: version.hlc.0,
        writer: version.writer.0,
        rmw: version.rmw,
        tombstone,
        checksum,
        bytes,
        content_type: content_type.map(|kind| kind.bytes().clone()).unwrap_or_default(),
        expires_at_ms,
        value,
        written: written.0,
    }
}

fn read_outline(outline: proto::Outline) -> Result<Outline, Malformed> {
    let proto::Outline { hlc, writer, rmw, tombstone, checksum, bytes, content_type, expires_at_ms, value, written } =
        outline;
    let version = Version { hlc: Hlc(hlc), writer: Writer(writer), rmw };
    let content_type = read_content_type(content_type)?;
    let written = Hlc(written);
    Ok(Outline { version, written, tombstone, checksum, bytes, content_type, expires_at_ms, value })
}
