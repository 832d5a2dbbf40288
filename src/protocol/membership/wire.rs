//! The bytes of a gossip packet.
//!
//! ```text
//! packet   = format:1  tag:1  probe:1  from:id  incarnation:2  to:id  [other:id]  [count:2  member*]
//! member   = id  incarnation:2  state:1
//! id       = node:2  instance:16  generation:8  renewal:4  info:8  length:1  address:length
//! ```
//! Numbers are big-endian. A `to` with an all-zero instance means whoever listens; the reader puts itself in.
//!
//! The info number of a member is no part of its identity: it is filled in from the newest number this node has heard
//! of, and noted where it is read. Machine and membership share that table, hence the `Arc`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, State};
use parking_lot::Mutex;
use uuid::Uuid;

use super::{GossipId, InfoStamp};
use crate::types::limits::{ADDRESS_BYTES_MAX, MEMBERS_MAX};
use crate::types::{InstanceId, NodeNum};

const FORMAT: u8 = 1;
const TURN_UNDEAD: u8 = 10;
const ID_BYTES: usize = 2 + 16 + 8 + 4 + 8 + 1;
/// Numbers of infos remembered: room for members that come and go, and no more.
const INFOS_MAX: usize = 4 * MEMBERS_MAX;

/// Whether it says "you are down".
pub(super) fn is_turn_undead(packet: &[u8]) -> bool {
    packet.get(1) == Some(&TURN_UNDEAD)
}

/// The bytes are no packet, or there is no room for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("the gossip packet ends early")]
    Short,
    #[error("a gossip packet of format {0}, this node speaks {FORMAT}")]
    Format(u8),
    #[error("a gossip packet with the unknown code {0}")]
    Code(u8),
    #[error("a gossip packet with an address that is no text")]
    Address,
    #[error("no room for more in the gossip packet")]
    Full,
}

struct Table {
    me: GossipId,
    own_info: u64,
    infos: BTreeMap<InstanceId, InfoStamp>,
    /// Where the last packet came from.
    sender: Option<Arc<str>>,
    read: Read,
}

/// What was read of others since it was last asked for.
#[derive(Default)]
pub(super) struct Read {
    /// Info numbers newer than any read before.
    pub(super) news: Vec<InfoStamp>,
    /// Whether there was word of any member, other than what the sender says by writing.
    pub(super) members: bool,
}

#[derive(Clone)]
pub(super) struct Wire(Arc<Mutex<Table>>);

impl Wire {
    pub(super) fn new(me: GossipId) -> Self {
        Self(Arc::new(Mutex::new(Table {
            me,
            own_info: 0,
            infos: BTreeMap::new(),
            sender: None,
            read: Read::default(),
        })))
    }

    pub(super) fn set_own(&self, me: &GossipId) {
        let own = &mut self.0.lock().me;
        if own != me {
            *own = me.clone();
        }
    }

    pub(super) fn sender(&self) -> Option<Arc<str>> {
        self.0.lock().sender.clone()
    }

    pub(super) fn set_own_info(&self, info: u64) {
        self.0.lock().own_info = info;
    }

    pub(super) fn take_read(&self) -> Read {
        std::mem::take(&mut self.0.lock().read)
    }
}

impl Table {
    fn info_of(&self, id: &GossipId) -> u64 {
        if id.instance == self.me.instance {
            return self.own_info;
        }
        self.infos.get(&id.instance).filter(|s| s.generation == id.generation).map_or(0, |s| s.info)
    }

    fn note(&mut self, stamp: InfoStamp) {
        let known = self.infos.get(&stamp.instance);
        let room = known.is_some() || self.infos.len() < INFOS_MAX;
        if stamp.instance != self.me.instance && room && known.is_none_or(|k| stamp.newer_than(k)) {
            self.infos.insert(stamp.instance, stamp);
            self.read.news.push(stamp);
        }
    }

    fn put_id(&self, id: &GossipId, buf: &mut impl BufMut) -> Result<(), WireError> {
        let address = id.address.as_bytes();
        // Addresses are checked where they come in; a longer one has no encoding.
        let length = u8::try_from(address.len()).map_err(|_| WireError::Full)?;
        if buf.remaining_mut() < ID_BYTES + address.len() {
            return Err(WireError::Full);
        }
        buf.put_u16(id.node.0);
        buf.put_slice(id.instance.0.as_bytes());
        buf.put_u64(id.generation);
        buf.put_u32(id.renewal);
        buf.put_u64(self.info_of(id));
        buf.put_u8(length);
        buf.put_slice(address);
        Ok(())
    }
}

const _: () = assert!(ADDRESS_BYTES_MAX <= u8::MAX as usize);

fn need(buf: &impl Buf, bytes: usize) -> Result<(), WireError> {
    if buf.remaining() < bytes { Err(WireError::Short) } else { Ok(()) }
}

fn get_id(buf: &mut impl Buf) -> Result<(GossipId, InfoStamp), WireError> {
    need(buf, ID_BYTES)?;
    let node = NodeNum(buf.get_u16());
    let mut instance = [0; 16];
    buf.copy_to_slice(&mut instance);
    let instance = InstanceId(Uuid::from_bytes(instance));
    let (generation, renewal, info) = (buf.get_u64(), buf.get_u32(), buf.get_u64());
    let length = usize::from(buf.get_u8());
    need(buf, length)?;
    let mut address = vec![0; length];
    buf.copy_to_slice(&mut address);
    let address = String::from_utf8(address).map_err(|_| WireError::Address)?.into();
    let stamp = InfoStamp { node, instance, generation, info };
    Ok((GossipId { node, instance, generation, renewal, address }, stamp))
}

/// A message as its code, its probe number and the third member it names.
fn parts(message: &Message<GossipId>) -> (u8, u8, Option<&GossipId>) {
    match message {
        Message::Ping(n) => (0, *n, None),
        Message::Ack(n) => (1, *n, None),
        Message::PingReq { target, probe_number } => (2, *probe_number, Some(target)),
        Message::IndirectPing { origin, probe_number } => (3, *probe_number, Some(origin)),
        Message::IndirectAck { target, probe_number } => (4, *probe_number, Some(target)),
        Message::ForwardedAck { origin, probe_number } => (5, *probe_number, Some(origin)),
        Message::Announce => (6, 0, None),
        Message::Feed => (7, 0, None),
        Message::Gossip => (8, 0, None),
        Message::Broadcast => (9, 0, None),
        Message::TurnUndead => (TURN_UNDEAD, 0, None),
    }
}

impl Codec<GossipId> for Wire {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<GossipId>, mut buf: impl BufMut) -> Result<(), WireError> {
        let table = self.0.lock();
        let (code, probe, other) = parts(&header.message);
        if buf.remaining_mut() < 3 {
            return Err(WireError::Full);
        }
        buf.put_slice(&[FORMAT, code, probe]);
        table.put_id(&header.src, &mut buf)?;
        if buf.remaining_mut() < 2 {
            return Err(WireError::Full);
        }
        buf.put_u16(header.src_incarnation);
        table.put_id(&header.dst, &mut buf)?;
        other.map_or(Ok(()), |id| table.put_id(id, &mut buf))
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<GossipId>, WireError> {
        need(&buf, 3)?;
        let (format, code, probe_number) = (buf.get_u8(), buf.get_u8(), buf.get_u8());
        if format != FORMAT {
            return Err(WireError::Format(format));
        }
        let (src, stamp) = get_id(&mut buf)?;
        need(&buf, 2)?;
        let src_incarnation = buf.get_u16();
        let (mut dst, _) = get_id(&mut buf)?;
        let mut other = || get_id(&mut buf).map(|(id, _)| id);
        let message = match code {
            0 => Message::Ping(probe_number),
            1 => Message::Ack(probe_number),
            2 => Message::PingReq { target: other()?, probe_number },
            3 => Message::IndirectPing { origin: other()?, probe_number },
            4 => Message::IndirectAck { target: other()?, probe_number },
            5 => Message::ForwardedAck { origin: other()?, probe_number },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::Broadcast,
            TURN_UNDEAD => Message::TurnUndead,
            unknown => return Err(WireError::Code(unknown)),
        };
        let mut table = self.0.lock();
        if dst.is_anybody() {
            dst = table.me.clone();
        }
        table.sender = Some(src.address.clone());
        table.note(stamp);
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(&mut self, member: &Member<GossipId>, mut buf: impl BufMut) -> Result<(), WireError> {
        if buf.remaining_mut() < ID_BYTES + member.id().address.len() + 3 {
            return Err(WireError::Full);
        }
        self.0.lock().put_id(member.id(), &mut buf)?;
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<GossipId>, WireError> {
        let (id, stamp) = get_id(&mut buf)?;
        need(&buf, 3)?;
        let incarnation = buf.get_u16();
        let state = match buf.get_u8() {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            unknown => return Err(WireError::Code(unknown)),
        };
        let mut table = self.0.lock();
        table.note(stamp);
        table.read.members = true;
        Ok(Member::new(id, incarnation, state))
    }
}
