//! Steps of purging.

use proptest::prelude::*;

use super::tree::slot_set;
use super::*;
use crate::mesh::wire::purge;
use crate::ports::{PeerReply, PeerRequest};
use crate::types::{Dropped, PurgeReply, PurgeStatus, PurgeStep, Sealed, SlotDrop, Survey};

fn step() -> impl Strategy<Value = PurgeStep> {
    let hlc = || any::<u64>().prop_map(Hlc);
    let slots = || prop::collection::btree_map(any::<u8>(), (floor(), hlc()), 0..5);
    let (floors, drops) = (slots(), slots());
    prop_oneof![
        slot_set().prop_map(|slots| PurgeStep::Survey { slots }),
        (slot_set(), hlc()).prop_map(|(slots, up_to)| PurgeStep::Seal { slots, up_to }),
        hlc().prop_map(|up_to| PurgeStep::Hints { up_to }),
        floors.prop_map(|floors| PurgeStep::Raise {
            floors: floors.into_iter().map(|(slot, (floor, _))| (Slot(slot), floor)).collect()
        }),
        drops.prop_map(|drops| PurgeStep::Drop {
            drops: drops
                .into_iter()
                .map(|(slot, (floor, up_to))| SlotDrop { slot: Slot(slot), floor, up_to })
                .collect()
        }),
        Just(PurgeStep::Status),
    ]
}

fn reply() -> impl Strategy<Value = PurgeReply> {
    let survey = (any::<u8>(), floor(), any::<(u64, u64, u64)>(), any::<[Option<u64>; 2]>());
    let survey = survey.prop_map(|(slot, floor, (tombstones, orphans, promised), oldest)| Survey {
        slot: Slot(slot),
        floor,
        tombstones,
        orphans,
        promised: Hlc(promised),
        oldest: oldest[0].map(Hlc),
        oldest_orphan: oldest[1].map(Hlc),
    });
    let sealed = (any::<u8>(), prop::collection::vec(key(), 0..4), any::<(bool, bool)>());
    let sealed =
        sealed.prop_map(|(slot, unsettled, (more, damaged))| Sealed { slot: Slot(slot), unsettled, more, damaged });
    let status = (any::<(u64, u64, u64, u64)>(), prop::collection::vec((any::<u16>(), "[ -~]{0,20}"), 0..3));
    prop_oneof![
        (any::<u64>(), prop::collection::vec(survey, 0..4))
            .prop_map(|(now, slots)| PurgeReply::Surveyed { now: Hlc(now), slots }),
        prop::collection::vec(sealed, 0..4).prop_map(PurgeReply::Sealed),
        slot_set().prop_map(PurgeReply::Hinted),
        Just(PurgeReply::Raised),
        any::<(u64, u64, u64)>().prop_map(|(tombstones, registers, kept)| PurgeReply::Dropped(Dropped {
            tombstones,
            registers,
            kept
        })),
        status.prop_map(|((tombstones, oldest_ms, purged, raised_ms), waiting)| {
            let waiting_for = waiting.into_iter().map(|(node, why)| (NodeNum(node), why)).collect();
            PurgeReply::Status(PurgeStatus { tombstones, oldest_ms, purged, raised_ms, waiting_for })
        }),
        any::<u64>().prop_map(|epoch| PurgeReply::WrongEpoch { epoch: Epoch(epoch) }),
    ]
}

proptest! {
    #[test]
    fn steps_and_their_answers_come_out_as_they_went_in(epoch: u64, step in step(), reply in reply()) {
        let epoch = Epoch(epoch);
        let request = purge::request(None, epoch, step.clone());
        let wire = proto::PurgeRequest::decode(&*request.encode_to_vec()).unwrap();
        prop_assert_eq!(purge::read_request(wire), Ok(PeerRequest::Purge { epoch, step }));
        let wire = purge::reply(None, PeerReply::Purge(reply.clone())).unwrap();
        let wire = proto::PurgeReply::decode(&*wire.encode_to_vec()).unwrap();
        prop_assert_eq!(purge::read_reply(wire), Ok(PeerReply::Purge(reply)));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let empty = proto::PurgeRequest::default();
    assert!(purge::read_request(empty).is_err());
    assert!(purge::read_reply(proto::PurgeReply::default()).is_err());
    let twice = |slot| SlotDrop { slot: Slot(slot), floor: Floor::default(), up_to: Hlc(1) };
    let unordered = purge::request(None, Epoch(1), PurgeStep::Drop { drops: vec![twice(3), twice(3)] });
    assert!(purge::read_request(unordered).is_err());
    assert_eq!(purge::reply(None, PeerReply::Done), Err(PeerReply::Done));
}
