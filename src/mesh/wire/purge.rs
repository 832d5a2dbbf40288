//! The words of purging tombstones: rare, but about many slots at once, so sets of slots are bitmaps.

use super::proto::{self, purge_reply, purge_request};
use super::record::{floor_or_none, read_floor_or_none, read_key};
use super::tree::{read_slot, read_slot_set, slot_set};
use super::{Malformed, read_node};
use crate::ports::{PeerReply, PeerRequest};
use crate::protocol::purge::UNSETTLED_MAX;
use crate::types::{Dropped, Epoch, Floor, Hlc, PurgeReply, PurgeStatus, PurgeStep, Sealed, Slot, SlotDrop, Survey};

/// A reason that is longer is cut short.
const REASON_CHARS_MAX: usize = 200;

pub(in crate::mesh) fn request(header: Option<proto::Header>, epoch: Epoch, step: PurgeStep) -> proto::PurgeRequest {
    use purge_request::{Floors, Seal, SlotFloor, Step};
    let step = match step {
        PurgeStep::Survey { slots } => Step::Survey(slot_set(slots)),
        PurgeStep::Seal { slots, up_to } => Step::Seal(Seal { slots: slot_set(slots), up_to: up_to.0 }),
        PurgeStep::Hints { up_to } => Step::Hints(up_to.0),
        PurgeStep::Raise { floors } => {
            let floor = |(slot, floor): (Slot, Floor)| SlotFloor {
                slot: slot.0.into(),
                floor: floor_or_none(&floor),
                up_to: 0,
            };
            Step::Raise(Floors { floors: floors.into_iter().map(floor).collect() })
        }
        PurgeStep::Drop { drops } => {
            let floor = |drop: SlotDrop| SlotFloor {
                slot: drop.slot.0.into(),
                floor: floor_or_none(&drop.floor),
                up_to: drop.up_to.0,
            };
            Step::Drop(Floors { floors: drops.into_iter().map(floor).collect() })
        }
        PurgeStep::Status => Step::Status(true),
    };
    proto::PurgeRequest { header, epoch: epoch.0, step: Some(step) }
}

pub(in crate::mesh) fn read_request(request: proto::PurgeRequest) -> Result<PeerRequest, Malformed> {
    use purge_request::{SlotFloor, Step};
    let several = |floors: &[SlotFloor]| {
        let ascending = floors.is_sorted_by(|a, b| a.slot < b.slot);
        if ascending { Ok(()) } else { Err(Malformed::from("slots out of order")) }
    };
    let step = match request.step.ok_or("a step is missing")? {
        Step::Survey(slots) => PurgeStep::Survey { slots: read_slot_set(&slots)? },
        Step::Seal(seal) => PurgeStep::Seal { slots: read_slot_set(&seal.slots)?, up_to: Hlc(seal.up_to) },
        Step::Hints(up_to) => PurgeStep::Hints { up_to: Hlc(up_to) },
        Step::Raise(raise) => {
            several(&raise.floors)?;
            let floor = |f: SlotFloor| Ok::<_, Malformed>((read_slot(f.slot)?, read_floor_or_none(f.floor)?));
            PurgeStep::Raise { floors: raise.floors.into_iter().map(floor).collect::<Result<_, _>>()? }
        }
        Step::Drop(drop) => {
            several(&drop.floors)?;
            let one = |f: SlotFloor| {
                let (slot, floor) = (read_slot(f.slot)?, read_floor_or_none(f.floor)?);
                Ok::<_, Malformed>(SlotDrop { slot, floor, up_to: Hlc(f.up_to) })
            };
            PurgeStep::Drop { drops: drop.floors.into_iter().map(one).collect::<Result<_, _>>()? }
        }
        Step::Status(_) => PurgeStep::Status,
    };
    Ok(PeerRequest::Purge { epoch: Epoch(request.epoch), step })
}

/// # Errors
/// The reply itself, where it answers another question.
pub(in crate::mesh) fn reply(header: Option<proto::Header>, reply: PeerReply) -> Result<proto::PurgeReply, PeerReply> {
    use purge_reply::{Said, SealedSlot, SealedSlots, Surveyed};
    let reply = match reply {
        PeerReply::Purge(reply) => reply,
        other => return Err(other),
    };
    let said = match reply {
        PurgeReply::Surveyed { now, slots } => {
            Said::Surveyed(Surveyed { now: now.0, slots: slots.into_iter().map(survey).collect() })
        }
        PurgeReply::Sealed(slots) => {
            let one = |sealed: Sealed| SealedSlot {
                slot: sealed.slot.0.into(),
                unsettled: sealed.unsettled.iter().map(|key| key.as_bytes().to_vec().into()).collect(),
                more: sealed.more,
                damaged: sealed.damaged,
            };
            Said::Sealed(SealedSlots { slots: slots.into_iter().map(one).collect() })
        }
        PurgeReply::Hinted(slots) => Said::Hinted(slot_set(slots)),
        PurgeReply::Raised => Said::Raised(true),
        PurgeReply::Dropped(Dropped { tombstones, registers, kept }) => {
            Said::Dropped(purge_reply::Dropped { tombstones, registers, kept })
        }
        PurgeReply::Status(PurgeStatus { tombstones, oldest_ms, purged, raised_ms, waiting_for }) => {
            let waiting = |(node, why): (crate::types::NodeNum, String)| purge_reply::Waiting {
                node: node.0.into(),
                why: why.chars().take(REASON_CHARS_MAX).collect(),
            };
            let waiting_for = waiting_for.into_iter().map(waiting).collect();
            Said::Status(purge_reply::Status { tombstones, oldest_ms, purged, raised_ms, waiting_for })
        }
        PurgeReply::WrongEpoch { epoch } => Said::WrongEpoch(epoch.0),
    };
    Ok(proto::PurgeReply { header, said: Some(said) })
}

pub(in crate::mesh) fn read_reply(reply: proto::PurgeReply) -> Result<PeerReply, Malformed> {
    use purge_reply::{Said, SealedSlot};
    Ok(PeerReply::Purge(match reply.said.ok_or("an answer is missing")? {
        Said::Surveyed(surveyed) => PurgeReply::Surveyed {
            now: Hlc(surveyed.now),
            slots: surveyed.slots.into_iter().map(read_survey).collect::<Result<_, _>>()?,
        },
        Said::Sealed(sealed) => {
            let one = |sealed: SealedSlot| {
                if sealed.unsettled.len() > UNSETTLED_MAX {
                    return Err(Malformed::from("more keys than are settled at once"));
                }
                let unsettled = sealed.unsettled.into_iter().map(read_key).collect::<Result<_, _>>()?;
                Ok(Sealed { slot: read_slot(sealed.slot)?, unsettled, more: sealed.more, damaged: sealed.damaged })
            };
            PurgeReply::Sealed(sealed.slots.into_iter().map(one).collect::<Result<_, _>>()?)
        }
        Said::Hinted(slots) => PurgeReply::Hinted(read_slot_set(&slots)?),
        Said::Raised(_) => PurgeReply::Raised,
        Said::Dropped(purge_reply::Dropped { tombstones, registers, kept }) => {
            PurgeReply::Dropped(Dropped { tombstones, registers, kept })
        }
        Said::Status(purge_reply::Status { tombstones, oldest_ms, purged, raised_ms, waiting_for }) => {
            let waiting = |waiting: purge_reply::Waiting| Ok::<_, Malformed>((read_node(waiting.node)?, waiting.why));
            let waiting_for = waiting_for.into_iter().map(waiting).collect::<Result<_, _>>()?;
            PurgeReply::Status(PurgeStatus { tombstones, oldest_ms, purged, raised_ms, waiting_for })
        }
        Said::WrongEpoch(epoch) => PurgeReply::WrongEpoch { epoch: Epoch(epoch) },
    }))
}

fn survey(survey: Survey) -> purge_reply::Survey {
    let Survey { slot, floor, tombstones, orphans, promised, oldest, oldest_orphan } = survey;
    let floor = floor_or_none(&floor);
    let [oldest, oldest_orphan] = [oldest, oldest_orphan].map(|hlc| hlc.map(|hlc| hlc.0));
    let (slot, promised) = (slot.0.into(), promised.0);
    purge_reply::Survey { slot, floor, tombstones, orphans, promised, oldest, oldest_orphan }
}

fn read_survey(survey: purge_reply::Survey) -> Result<Survey, Malformed> {
    let purge_reply::Survey { slot, floor, tombstones, orphans, promised, oldest, oldest_orphan } = survey;
    let (slot, floor) = (read_slot(slot)?, read_floor_or_none(floor)?);
    let [oldest, oldest_orphan] = [oldest, oldest_orphan].map(|hlc| hlc.map(Hlc));
    Ok(Survey { slot, floor, tombstones, orphans, promised: Hlc(promised), oldest, oldest_orphan })
}
