//! The register's words: ballots, states, promises, remembered answers.
//!
//! In a promise, and in a page of a slot, the accepted record is, more often than not, the stored one: whoever accepted a
//! state wrote its record next. It then travels once.

use super::proto::{self, remembered};
use super::record::{floor_or_none, read_floor_or_none, read_record, read_version, record, version};
use super::{Malformed, hash_bytes, read_hash, read_uuid, uuid_bytes};
use crate::types::limits::REMEMBERED_MAX;
use crate::types::{
    Accepted, Ballot, Hlc, Idempotency, OpId, Promise, Recent, Record, Register, Remembered, RememberedAnswer, Writer,
};

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
    promise.accepted.as_ref().is_some_and(|state| is_the_stored(state, promise.record.as_ref()))
}

fn is_the_stored(state: &Accepted, stored: Option<&Record>) -> bool {
    state.record.is_some() && state.record.as_ref() == stored
}

pub(super) fn promise(promise: Promise) -> proto::Promise {
    let state = promise.accepted.map(|state| accepted_beside(state, promise.record.as_ref()));
    proto::Promise { accepted: state, record: promise.record.map(record), floor: floor_or_none(&promise.floor) }
}

pub(super) fn read_promise(promise: proto::Promise) -> Result<Promise, Malformed> {
    let record = promise.record.map(read_record).transpose()?;
    let accepted = promise.accepted.map(|state| read_accepted_beside(state, record.as_ref())).transpose()?;
    Ok(Promise { accepted, record, floor: read_floor_or_none(promise.floor)? })
}

// ------------------------------------------------------------------------------------------------------ registers

pub(super) fn register(register: Register, stored: Option<&Record>) -> proto::Register {
    proto::Register {
        promised: Some(ballot(register.promised)),
        accepted: register.accepted.map(|state| accepted_beside(state, stored)),
    }
}

pub(super) fn read_register(register: proto::Register, stored: Option<&Record>) -> Result<Register, Malformed> {
    Ok(Register {
        promised: read_ballot(register.promised.ok_or("a register without a promise")?),
        accepted: register.accepted.map(|state| read_accepted_beside(state, stored)).transpose()?,
    })
}

/// A state beside the record that is stored.
fn accepted_beside(mut state: Accepted, stored: Option<&Record>) -> proto::Accepted {
    let as_stored = is_the_stored(&state, stored);
    state.record.take_if(|_| as_stored);
    proto::Accepted { as_stored, ..accepted(state) }
}

fn read_accepted_beside(state: proto::Accepted, stored: Option<&Record>) -> Result<Accepted, Malformed> {
    match (state.as_stored, &state.record, stored) {
        (false, ..) => read_accepted(state),
        (true, None, Some(stored)) => {
            let state = read_accepted(proto::Accepted { as_stored: false, ..state })?;
            Ok(Accepted { record: Some(stored.clone()), ..state })
        }
        (true, ..) => Err("a state with the stored record, and that is missing or sent twice".into()),
    }
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
