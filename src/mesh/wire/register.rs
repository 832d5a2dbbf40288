//! The register's words: ballots, states, promises, remembered answers.
//!
//! In a promise the accepted record is, more often than not, the stored one: whoever accepted a state wrote its record
//! next. It then travels once.

use super::proto::{self, remembered};
use super::record::{floor_or_none, read_floor_or_none, read_record, read_version, record, version};
use super::{Malformed, hash_bytes, read_hash, read_uuid, uuid_bytes};
use crate::types::limits::REMEMBERED_MAX;
use crate::types::{Accepted, Ballot, Hlc, Idempotency, OpId, Promise, Recent, Remembered, RememberedAnswer, Writer};

pub(super) fn ballot(ballot: Ballot) -> proto::Ballot {
    proto::Ballot { hlc: ballot.hlc.0, writer: ballot.writer.0 }
}

pub(super) fn read_ballot(ballot: proto::Ballot) -> Ballot {
    Ballot { hlc: Hlc(ballot.hlc), writer: Writer(ballot.writer) }
}

// --------------------------------------------------------------------------------------------------------- states

pub(super) fn accepted(accepted: Accepted) -> proto::Accepted {
    proto::Accepted {
        ballot: Some(ballot(accepted.ballot)),
        op: uuid_bytes(accepted.op.0),
        record: accepted.record.map(record),
        recent: accepted.recent.entries().iter().map(remembered).collect(),
        as_stored: false,
    }
}

/// A state that carries its own record.
pub(super) fn read_accepted(accepted: proto::Accepted) -> Result<Accepted, Malformed> {
    if accepted.as_stored {
        return Err("a state that refers to a stored record, where none is shown".into());
    }
    if accepted.recent.len() > REMEMBERED_MAX {
        return Err("more remembered answers than a register keeps".into());
    }
    let recent = accepted.recent.into_iter().map(read_remembered).collect::<Result<_, _>>()?;
    Ok(Accepted {
        ballot: read_ballot(accepted.ballot.ok_or("a state without a ballot")?),
        op: OpId(read_uuid(&accepted.op)?),
        record: accepted.record.map(read_record).transpose()?,
        recent: Recent::new(recent),
    })
}

// ------------------------------------------------------------------------------------------------------- promises

/// Whether the record that was accepted is the one that is stored, so that it travels once.
pub(in crate::mesh) fn is_as_stored(promise: &Promise) -> bool {
    let accepted = promise.accepted.as_ref().and_then(|a| a.record.as_ref());
    accepted.is_some() && accepted == promise.record.as_ref()
}

pub(super) fn promise(promise: Promise) -> proto::Promise {
    let as_stored = is_as_stored(&promise);
    let state = promise.accepted.map(|mut state| {
        state.record.take_if(|_| as_stored);
        proto::Accepted { as_stored, ..accepted(state) }
    });
    proto::Promise { accepted: state, record: promise.record.map(record), floor: floor_or_none(&promise.floor) }
}

pub(super) fn read_promise(promise: proto::Promise) -> Result<Promise, Malformed> {
    let record = promise.record.map(read_record).transpose()?;
    let accepted = promise.accepted.map(|state| match (state.as_stored, &state.record, &record) {
        (false, ..) => read_accepted(state),
        (true, None, Some(stored)) => {
            let state = read_accepted(proto::Accepted { as_stored: false, ..state })?;
            Ok(Accepted { record: Some(stored.clone()), ..state })
        }
        (true, ..) => Err("a state with the stored record, and that is missing or sent twice".into()),
    });
    Ok(Promise { accepted: accepted.transpose()?, record, floor: read_floor_or_none(promise.floor)? })
}

// ----------------------------------------------------------------------------------------------- remembered answers

fn remembered(remembered: &Remembered) -> proto::Remembered {
    use remembered::Answer;
    let answer = match remembered.answer {
        RememberedAnswer::Created => Answer::Created,
        RememberedAnswer::Replaced => Answer::Replaced,
        RememberedAnswer::ConditionFailed => Answer::ConditionFailed,
    };
    proto::Remembered {
        key: hash_bytes(remembered.request.key),
        request: hash_bytes(remembered.request.request),
        answer: answer.into(),
        version: Some(version(remembered.version)),
    }
}

fn read_remembered(remembered: proto::Remembered) -> Result<Remembered, Malformed> {
    use remembered::Answer;
    let answer = match remembered.answer() {
        Answer::Unspecified => return Err("a remembered answer of an unknown kind".into()),
        Answer::Created => RememberedAnswer::Created,
        Answer::Replaced => RememberedAnswer::Replaced,
        Answer::ConditionFailed => RememberedAnswer::ConditionFailed,
    };
    Ok(Remembered {
        request: Idempotency { key: read_hash(&remembered.key)?, request: read_hash(&remembered.request)? },
        answer,
        version: read_version(remembered.version)?,
    })
}
