//! The wire: the generated messages, and the only place where they meet the ports.
//!
//! Invariants:
//! - Nothing generated leaves `mesh`; nothing from a peer is believed before it passed through here.
//! - Reading is total: what is missing, too long or of an unknown kind is [`Malformed`], never a panic and never a
//!   guess. What is only *wrong* (a stamp too far ahead, a checksum that does not match) is for the replica to refuse.
//! - Keys, values, content types and packets are not copied: they share the message's buffer.

pub(super) mod changes;
pub(super) mod hot;
pub(super) mod propose;
pub(super) mod purge;
pub(super) mod rare;
mod record;
pub(super) mod register;
pub(super) mod scan;
pub(super) mod status;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod tree;

use std::borrow::Cow;

use bytes::Bytes;
use uuid::Uuid;

use crate::ports::{Header, PeerError};
use crate::types::{ClusterId, Hlc, InstanceId, NodeNum};

/// What `protox` and `tonic-prost-build` make of `proto/a3/mesh/v1/mesh.proto`.
pub(super) mod proto {
    #![allow(unreachable_pub, unused_qualifications, missing_debug_implementations)]
    #![allow(clippy::all, clippy::large_futures, clippy::too_many_lines, reason = "generated")]
    tonic::include_proto!("a3.mesh.v1");
}

/// What came is not what the proto and the limits allow. Nothing was done with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) Cow<'static, str>);

impl From<&'static str> for Malformed {
    fn from(what: &'static str) -> Self {
        Self(Cow::Borrowed(what))
    }
}

impl From<String> for Malformed {
    fn from(what: String) -> Self {
        Self(Cow::Owned(what))
    }
}

impl From<Malformed> for PeerError {
    fn from(malformed: Malformed) -> Self {
        PeerError::Protocol(malformed.0.into_owned())
    }
}

/// The top of a message for that instance (`None`: whoever listens).
pub(super) fn header(header: &Header, to: Option<InstanceId>) -> proto::Header {
    proto::Header {
        cluster: header.cluster.map(|c| uuid_bytes(c.0)).unwrap_or_default(),
        node: header.node.0.into(),
        instance: uuid_bytes(header.instance.0),
        to_instance: to.map(|i| uuid_bytes(i.0)).unwrap_or_default(),
        hlc: header.hlc.0,
        wall_ms: header.wall_ms,
    }
}

/// The top of a message that came, and the instance it is meant for.
pub(super) fn read_header(header: Option<proto::Header>) -> Result<(Header, Option<InstanceId>), Malformed> {
    let header = header.ok_or("the header is missing")?;
    let to = read_uuid_or_none(&header.to_instance)?.map(InstanceId);
    let header = Header {
        cluster: read_uuid_or_none(&header.cluster)?.map(ClusterId),
        node: read_node(header.node)?,
        instance: InstanceId(read_uuid(&header.instance)?),
        hlc: Hlc(header.hlc),
        wall_ms: header.wall_ms,
    };
    Ok((header, to))
}

fn uuid_bytes(uuid: Uuid) -> Bytes {
    Bytes::copy_from_slice(uuid.as_bytes())
}

fn read_uuid(bytes: &[u8]) -> Result<Uuid, Malformed> {
    Uuid::from_slice(bytes).map_err(|_| Malformed::from("an identifier is not 16 bytes long"))
}

fn read_uuid_or_none(bytes: &[u8]) -> Result<Option<Uuid>, Malformed> {
    if bytes.is_empty() { Ok(None) } else { read_uuid(bytes).map(Some) }
}

fn hash_bytes(hash: u128) -> Bytes {
    Bytes::copy_from_slice(&hash.to_be_bytes())
}

fn read_hash(bytes: &[u8]) -> Result<u128, Malformed> {
    bytes.try_into().map(u128::from_be_bytes).map_err(|_| Malformed::from("a hash is not 16 bytes long"))
}

fn read_node(node: u32) -> Result<NodeNum, Malformed> {
    u16::try_from(node).map(NodeNum).map_err(|_| Malformed::from("a node number is over 65535"))
}
