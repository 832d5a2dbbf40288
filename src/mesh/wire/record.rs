//! Keys, versions, records and floors: what the hot path, the register and proposals have in common.

use bytes::Bytes;

use super::{Malformed, proto};
use crate::ports::Seen;
use crate::types::{Ballot, Content, ContentType, Floor, Hlc, Key, Record, Version, Writer};

pub(super) fn read_key(bytes: Bytes) -> Result<Key, Malformed> {
    Key::new(bytes).map_err(|e| Malformed::from(e.to_string()))
}

pub(super) fn version(v: Version) -> proto::Version {
    proto::Version { hlc: v.hlc.0, writer: v.writer.0, rmw: v.rmw }
}

pub(super) fn read_version(v: Option<proto::Version>) -> Result<Version, Malformed> {
    let v = v.ok_or("a version is missing")?;
    Ok(Version { hlc: Hlc(v.hlc), writer: Writer(v.writer), rmw: v.rmw })
}

pub(super) fn record(record: Record) -> proto::Record {
    let proto::Content { tombstone, value, content_type, expires_at_ms } = content(record.content);
    proto::Record {
        version: Some(version(record.version)),
        written: record.written.0,
        tombstone,
        value,
        content_type,
        expires_at_ms,
        checksum: record.checksum,
    }
}

/// The record as sealed by its coordinator. That the checksum is right is for the replica to check.
pub(super) fn read_record(record: proto::Record) -> Result<Record, Malformed> {
    let proto::Record { version, written, tombstone, value, content_type, expires_at_ms, checksum } = record;
    Ok(Record {
        version: read_version(version)?,
        written: Hlc(written),
        content: read_content(proto::Content { tombstone, value, content_type, expires_at_ms })?,
        checksum,
    })
}

pub(super) fn content(content: Content) -> proto::Content {
    match content {
        Content::Tombstone => proto::Content { tombstone: true, ..Default::default() },
        Content::Value { bytes, content_type, expires_at_ms } => proto::Content {
            tombstone: false,
            value: bytes,
            content_type: content_type.map(|c| c.bytes().clone()).unwrap_or_default(),
            expires_at_ms,
        },
    }
}

pub(super) fn read_content(content: proto::Content) -> Result<Content, Malformed> {
    if !content.tombstone {
        return Ok(Content::Value {
            bytes: content.value,
            content_type: read_content_type(content.content_type)?,
            expires_at_ms: content.expires_at_ms,
        });
    }
    if content.value.is_empty() && content.content_type.is_empty() && content.expires_at_ms.is_none() {
        Ok(Content::Tombstone)
    } else {
        Err("a tombstone with a value".into())
    }
}

pub(super) fn read_content_type(bytes: Bytes) -> Result<Option<ContentType>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    ContentType::new(bytes).map(Some).map_err(|e| Malformed::from(e.to_string()))
}

pub(super) fn seen(seen: Seen) -> proto::Seen {
    proto::Seen {
        version: Some(version(seen.version)),
        written: seen.written.0,
        live: seen.live,
        tombstone: seen.tombstone,
        checksum: seen.checksum,
    }
}

pub(super) fn read_seen(seen: proto::Seen) -> Result<Seen, Malformed> {
    Ok(Seen {
        version: read_version(seen.version)?,
        written: Hlc(seen.written),
        live: seen.live,
        tombstone: seen.tombstone,
        checksum: seen.checksum,
    })
}

pub(super) fn floor(floor: &Floor) -> proto::Floor {
    proto::Floor {
        written: floor.written.0,
        version: Some(version(floor.version)),
        ballot_hlc: floor.ballot.hlc.0,
        ballot_writer: floor.ballot.writer.0,
    }
}

/// A slot that was never purged, which is nearly every one, costs nothing on the wire.
pub(super) fn floor_or_none(f: &Floor) -> Option<proto::Floor> {
    (*f != Floor::default()).then(|| floor(f))
}

pub(super) fn read_floor(floor: proto::Floor) -> Result<Floor, Malformed> {
    Ok(Floor {
        written: Hlc(floor.written),
        version: read_version(floor.version)?,
        ballot: Ballot { hlc: Hlc(floor.ballot_hlc), writer: Writer(floor.ballot_writer) },
    })
}

pub(super) fn read_floor_or_none(floor: Option<proto::Floor>) -> Result<Floor, Malformed> {
    floor.map_or(Ok(Floor::default()), read_floor)
}
