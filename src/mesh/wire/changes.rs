//! The words of watches: a question for what a replica stored lately, and its answer.

use super::Malformed;
use super::proto;
use super::proto::changes_request::Watched as WatchedField;
use super::record::read_key;
use crate::ports::{PeerReply, PeerRequest};
use crate::types::limits::{CHANGES_PAGE_MAX, CHANGES_WAIT_MS_MAX, KEY_BYTES_MAX};
use crate::types::{
    ChangeKind, ChangesAsk, ChangesPage, Epoch, Hlc, Key, KeyChange, Position, Version, Watched, Writer,
};

pub(in crate::mesh) fn request(header: Option<proto::Header>, epoch: Epoch, ask: ChangesAsk) -> proto::ChangesRequest {
    let ChangesAsk { watched, from, wait_ms } = ask;
    let watched = Some(match watched {
        Watched::One(key) => WatchedField::Key(key.bytes().clone()),
        Watched::Prefix(prefix) => WatchedField::Prefix(prefix),
    });
    proto::ChangesRequest { header, epoch: epoch.0, watched, from: from.map(position), wait_ms }
}

pub(in crate::mesh) fn read_request(request: proto::ChangesRequest) -> Result<PeerRequest, Malformed> {
    let proto::ChangesRequest { header: _, epoch, watched, from, wait_ms } = request;
    let watched = match watched.ok_or("changes of nothing")? {
        WatchedField::Key(key) => Watched::One(read_key(key)?),
        WatchedField::Prefix(prefix) if prefix.len() > KEY_BYTES_MAX => return Err("a prefix over its limit".into()),
        WatchedField::Prefix(prefix) => Watched::Prefix(prefix),
    };
    let ask = ChangesAsk { watched, from: from.map(read_position), wait_ms: wait_ms.min(CHANGES_WAIT_MS_MAX) };
    Ok(PeerRequest::Changes { epoch: Epoch(epoch), ask })
}

/// # Errors
/// The reply itself, where it answers another question.
pub(in crate::mesh) fn reply(
    header: Option<proto::Header>,
    reply: PeerReply,
) -> Result<proto::ChangesReply, PeerReply> {
    match reply {
        PeerReply::Changed(ChangesPage { changes, at, reaches, more }) => Ok(proto::ChangesReply {
            header,
            wrong_epoch: None,
            changes: changes.into_iter().map(change).collect(),
            at: Some(position(at)),
            reaches,
            more,
        }),
        PeerReply::WrongEpoch { epoch } => {
            Ok(proto::ChangesReply { header, wrong_epoch: Some(epoch.0), ..Default::default() })
        }
        other => Err(other),
    }
}

/// The answer to a question from that place: it leads nowhere behind it.
pub(in crate::mesh) fn read_reply(reply: proto::ChangesReply, from: Option<Position>) -> Result<PeerReply, Malformed> {
    let proto::ChangesReply { header: _, wrong_epoch, changes, at, reaches, more } = reply;
    if let Some(epoch) = wrong_epoch {
        return Ok(PeerReply::WrongEpoch { epoch: Epoch(epoch) });
    }
    if changes.len() > CHANGES_PAGE_MAX {
        return Err("more changes than are told at once".into());
    }
    let at = read_position(at.ok_or("changes up to nowhere")?);
    let forward = from.is_some_and(|from| from.boot == at.boot && from.seq <= at.seq);
    if reaches && !forward || !reaches && !changes.is_empty() {
        return Err("changes that do not go on from where was asked".into());
    }
    let changes = changes.into_iter().map(read_change).collect::<Result<_, _>>()?;
    Ok(PeerReply::Changed(ChangesPage { changes, at, reaches, more }))
}

fn position(position: Position) -> proto::Position {
    proto::Position { boot: position.boot, seq: position.seq }
}

fn read_position(position: proto::Position) -> Position {
    Position { boot: position.boot, seq: position.seq }
}

fn change(change: KeyChange) -> proto::Change {
    let KeyChange { key, version, kind } = change;
    let (tombstone, expires_at_ms) = match kind {
        ChangeKind::Put { expires_at_ms } => (false, expires_at_ms),
        ChangeKind::Delete | ChangeKind::Expire => (true, None),
    };
    let key = key.bytes().clone();
    proto::Change { key, hlc: version.hlc.0, writer: version.writer.0, rmw: version.rmw, tombstone, expires_at_ms }
}

fn read_change(change: proto::Change) -> Result<KeyChange, Malformed> {
    let proto::Change { key, hlc, writer, rmw, tombstone, expires_at_ms } = change;
    let key: Key = read_key(key)?;
    let version = Version { hlc: Hlc(hlc), writer: Writer(writer), rmw };
    let kind = match tombstone {
        false => ChangeKind::Put { expires_at_ms },
        true if version.is_end() => ChangeKind::Expire,
        true => ChangeKind::Delete,
    };
    Ok(KeyChange { key, version, kind })
}
