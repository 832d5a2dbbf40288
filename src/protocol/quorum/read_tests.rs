//! The read fold: a table for each rule.

use super::testing::*;
use super::{Ask, ReadAsk, ReadFold, ReadState};
use crate::types::{Answer, Floor, Hlc, Level, NodeNum, PeerError, ReadPart, Refusal, ReplicaReply, Version};

fn all_up(_: NodeNum) -> Ask {
    Ask::Yes
}

fn down(numbers: &[u16]) -> impl Fn(NodeNum) -> Ask + use<> {
    let down = nodes(numbers);
    move |node| if down.contains(&node) { Ask::No } else { Ask::Yes }
}

fn fold(homes: &[u16], fallbacks: &[u16], level: Level) -> ReadFold {
    ReadFold::new(placement(&[homes], fallbacks), level, Hlc::ZERO, false)
}

fn whole(to: u16) -> ReadAsk {
    ReadAsk { to: n(to), part: ReadPart::Record, hints: false }
}

fn part(to: u16) -> ReadAsk {
    ReadAsk { to: n(to), part: ReadPart::Version, hints: false }
}

fn stand_in(to: u16) -> ReadAsk {
    ReadAsk { to: n(to), part: ReadPart::Record, hints: true }
}

fn holds(version: Option<Version>) -> Answer {
    Ok(ReplicaReply::Record { record: version.map(|v| record(v, Some("v"))), floor: Floor::default() })
}

fn says(version: Option<Version>) -> Answer {
    Ok(ReplicaReply::Version { seen: version.map(|v| seen(v, true)), floor: Floor::default() })
}

#[test]
fn this_node_is_asked_first_and_only_as_many_as_needed() {
    let mut fold = fold(&[1, 2, 3], &[4], Level::Quorum);
    assert_eq!(fold.start(n(3), &all_up).as_slice(), [whole(3), part(1)]);
    fold.on_answer(n(1), says(Some(version(5, 1))), &all_up);
    assert_eq!(fold.state(), ReadState::Waiting);
    fold.on_answer(n(3), holds(Some(version(5, 1))), &all_up);
    assert_eq!(fold.state(), ReadState::Met);
    assert!(!fold.disagree() && fold.is_strict());
}

#[test]
fn a_newer_version_elsewhere_is_fetched_and_written_back() {
    let mut fold = fold(&[1, 2], &[], Level::Quorum);
    fold.start(n(1), &all_up);
    fold.on_answer(n(1), holds(Some(version(5, 1))), &all_up);
    let asks = fold.on_answer(n(2), says(Some(version(6, 2))), &all_up);
    assert_eq!(asks.as_slice(), [whole(2)]);
    assert_eq!(fold.state(), ReadState::Waiting);
    fold.on_answer(n(2), holds(Some(version(6, 2))), &all_up);
    assert_eq!(fold.state(), ReadState::Met);
    assert!(fold.disagree());
    assert_eq!(fold.have().as_slice(), [n(2)]);
    assert_eq!(fold.into_record().map(|r| r.version), Some(version(6, 2)));
}

#[test]
fn absence_everywhere_is_an_answer_and_no_disagreement() {
    let mut fold = fold(&[1, 2], &[], Level::Quorum);
    fold.start(n(9), &all_up);
    fold.on_answer(n(1), holds(None), &all_up);
    fold.on_answer(n(2), says(None), &all_up);
    assert_eq!(fold.state(), ReadState::Met);
    assert!(!fold.disagree());
    assert_eq!(fold.into_record(), None);
}

#[test]
fn a_missing_copy_is_a_disagreement() {
    let mut fold = fold(&[1, 2], &[], Level::Quorum);
    fold.start(n(1), &all_up);
    fold.on_answer(n(1), holds(Some(version(5, 1))), &all_up);
    fold.on_answer(n(2), says(None), &all_up);
    assert!(fold.disagree());
    assert_eq!(fold.have().as_slice(), [n(1)]);
}

#[test]
fn a_stand_in_answers_for_an_unreachable_replica_but_not_strictly() {
    let mut fold = fold(&[1, 2], &[3], Level::Quorum);
    assert_eq!(fold.start(n(1), &down(&[2])).as_slice(), [whole(1), stand_in(3)]);
    fold.on_answer(n(1), holds(Some(version(5, 1))), &all_up);
    fold.on_answer(n(3), holds(None), &all_up);
    assert_eq!(fold.state(), ReadState::Met);
    assert!(!fold.is_strict());
    assert!(!fold.disagree(), "a stand-in without a hint is no copy that differs");
}

#[test]
fn what_only_a_hint_holds_is_written_back() {
    let mut fold = fold(&[1, 2], &[3], Level::Quorum);
    fold.start(n(1), &down(&[2]));
    fold.on_answer(n(1), holds(None), &all_up);
    fold.on_answer(n(3), holds(Some(version(5, 1))), &all_up);
    assert_eq!(fold.state(), ReadState::Met);
    assert!(fold.disagree());
    assert!(fold.have().is_empty());
}

#[test]
fn at_all_and_linearizable_nobody_stands_in() {
    for level in [Level::All, Level::Linearizable] {
        let mut fold = fold(&[1, 2], &[3], level);
        fold.start(n(1), &all_up);
        assert!(fold.on_answer(n(2), Err(PeerError::Lost), &all_up).is_empty());
        assert_eq!(fold.state(), ReadState::Failed);
    }
}

#[test]
fn where_the_level_cannot_be_met_nobody_is_asked() {
    let cases: [(Level, &[u16], &[u16]); 4] = [
        (Level::All, &[2], &[1]),
        (Level::Linearizable, &[2], &[1]),
        (Level::Quorum, &[2, 3], &[1]),
        (Level::One, &[1, 2, 3], &[]),
    ];
    for (level, unreachable, reachable) in cases {
        let mut fold = fold(&[1, 2], &[3], level);
        assert!(fold.start(n(1), &down(unreachable)).is_empty(), "{level}");
        assert_eq!(fold.state(), ReadState::Failed, "{level}");
        let not_asked: Vec<_> = fold.failed().into_iter().filter(|(_, why)| why.starts_with("not asked")).collect();
        assert_eq!(not_asked.into_iter().map(|(n, _)| n).collect::<Vec<_>>(), nodes(reachable), "{level}");
    }
}

#[test]
fn at_one_a_failing_replica_passes_the_question_on() {
    let mut fold = fold(&[1, 2], &[3], Level::One);
    assert_eq!(fold.start(n(2), &all_up).as_slice(), [whole(2)]);
    let damaged: Answer = Ok(ReplicaReply::Refused(Refusal::Damaged));
    assert_eq!(fold.on_answer(n(2), damaged, &all_up).as_slice(), [part(1)]);
    let asks = fold.on_answer(n(1), says(Some(version(5, 1))), &all_up);
    assert_eq!(asks.as_slice(), [whole(1)], "its record is still needed");
    fold.on_answer(n(1), holds(Some(version(5, 1))), &all_up);
    assert_eq!(fold.state(), ReadState::Met);
    assert!(fold.disagree(), "the damaged copy must be written again");
}

#[test]
fn at_one_the_absence_of_a_stand_in_is_no_answer() {
    let mut fold = fold(&[1, 2], &[3], Level::One);
    assert_eq!(fold.start(n(9), &down(&[1, 2])).as_slice(), [stand_in(3)]);
    fold.on_answer(n(3), holds(None), &down(&[1, 2]));
    assert_eq!(fold.state(), ReadState::Failed);
    let mut fold = super::read_tests::fold(&[1, 2], &[3], Level::One);
    fold.start(n(9), &down(&[1, 2]));
    fold.on_answer(n(3), holds(Some(version(5, 1))), &down(&[1, 2]));
    assert_eq!(fold.state(), ReadState::Met);
}

#[test]
fn stand_ins_alone_tell_what_they_hold_and_never_that_there_is_nothing() {
    let of_five = |down_homes: &[u16], answers: &[(u16, Option<Version>)]| {
        let mut fold = fold(&[1, 2, 3], &[4, 5], Level::Quorum);
        let asking = down(down_homes);
        fold.start(n(4), &asking);
        for (from, version) in answers {
            fold.on_answer(n(*from), holds(*version), &asking);
        }
        fold
    };
    let nothing = of_five(&[1, 2, 3], &[(4, None), (5, None)]);
    assert_eq!(nothing.state(), ReadState::Failed, "404 would be a guess");
    assert_eq!(nothing.copies(), [], "none of the two counts");
    let why = |node| (n(node), "a stand-in without a hint for the key".to_owned());
    let gone = |node| (n(node), "unreachable".to_owned());
    assert_eq!(nothing.failed(), [why(4), why(5), gone(1), gone(2), gone(3)]);

    let hinted = of_five(&[1, 2, 3], &[(4, None), (5, Some(version(5, 1)))]);
    assert_eq!(hinted.state(), ReadState::Met, "a hint is a record");
    assert_eq!(hinted.copies().len(), 2);
    let one_home = of_five(&[1, 2], &[(3, None), (4, None)]);
    assert_eq!((one_home.state(), one_home.is_strict()), (ReadState::Met, false), "one home replica knows of none");

    let mut damaged = fold(&[1, 2], &[3, 4], Level::Quorum);
    damaged.start(n(3), &down(&[1]));
    damaged.on_answer(n(2), Ok(ReplicaReply::Refused(Refusal::Damaged)), &down(&[1]));
    damaged.on_answer(n(3), holds(None), &down(&[1]));
    damaged.on_answer(n(4), holds(None), &down(&[1]));
    assert_eq!(damaged.state(), ReadState::Failed, "what may lie under the damage is not called absent");

    // A home replica that is late still counts, and is waited for.
    let mut late = fold(&[1, 2], &[3, 4], Level::Quorum);
    late.start(n(3), &down(&[1]));
    assert_eq!(late.on_silence(&nodes(&[2]), &down(&[1])).as_slice(), [stand_in(4)]);
    late.on_answer(n(3), holds(None), &down(&[1]));
    late.on_answer(n(4), holds(None), &down(&[1]));
    assert_eq!(late.state(), ReadState::Waiting);
    assert_eq!(late.clone().on_deadline(), ReadState::Waiting, "and time is up before it is known");
    late.on_answer(n(2), holds(None), &down(&[1]));
    assert_eq!(late.state(), ReadState::Met);
}

#[test]
fn a_silent_replica_has_somebody_asked_beside_it() {
    let mut fold = fold(&[1, 2, 3], &[4], Level::Quorum);
    fold.start(n(1), &all_up);
    assert_eq!(fold.on_silence(&nodes(&[2]), &all_up).as_slice(), [part(3)]);
    assert_eq!(fold.on_silence(&nodes(&[3]), &all_up).as_slice(), [stand_in(4)]);
    fold.on_answer(n(1), holds(None), &all_up);
    fold.on_answer(n(2), says(None), &all_up);
    assert_eq!(fold.state(), ReadState::Met, "the late answer still counts");
    assert!(fold.is_strict());
}

#[test]
fn a_fetch_that_hangs_is_given_up_for_the_others() {
    let mut fold = fold(&[1, 2, 3], &[], Level::Quorum);
    fold.start(n(1), &all_up);
    fold.on_answer(n(1), holds(Some(version(5, 1))), &all_up);
    assert_eq!(fold.on_answer(n(2), says(Some(version(6, 1))), &all_up).as_slice(), [whole(2)]);
    assert_eq!(fold.on_silence(&nodes(&[2]), &all_up).as_slice(), [part(3)]);
    fold.on_answer(n(3), says(Some(version(5, 1))), &all_up);
    assert_eq!(fold.state(), ReadState::Met);
    assert_eq!(fold.record().map(|r| r.version), Some(version(5, 1)));
}

#[test]
fn every_copy_is_shown_when_asked_for() {
    let mut fold = ReadFold::new(placement(&[&[1, 2, 3]], &[]), Level::Quorum, Hlc::ZERO, true);
    assert_eq!(fold.start(n(1), &all_up).len(), 3);
    fold.on_answer(n(1), holds(Some(version(5, 1))), &all_up);
    fold.on_answer(n(2), says(Some(version(5, 1))), &all_up);
    assert_eq!(fold.state(), ReadState::Waiting);
    fold.on_answer(n(3), Err(PeerError::Lost), &all_up);
    assert_eq!(fold.state(), ReadState::Met);
    assert_eq!(fold.copies().len(), 2);
}

#[test]
fn a_copy_that_does_not_come_is_left_out_when_time_is_up() {
    let mut fold = ReadFold::new(placement(&[&[1, 2, 3]], &[]), Level::Quorum, Hlc::ZERO, true);
    fold.start(n(1), &all_up);
    fold.on_answer(n(1), holds(Some(version(5, 1))), &all_up);
    assert_ne!(fold.clone().on_deadline(), ReadState::Met, "one answer is not enough");
    fold.on_answer(n(2), says(Some(version(5, 1))), &all_up);
    assert_eq!(fold.state(), ReadState::Waiting);
    assert_eq!(fold.on_deadline(), ReadState::Met);
    assert_eq!(fold.copies().len(), 2);
}

#[test]
fn who_was_silent_lately_is_asked_where_nobody_else_is_left() {
    let last = |node: NodeNum| if node == n(2) { Ask::Last } else { Ask::Yes };
    assert_eq!(fold(&[1, 2], &[3], Level::Quorum).start(n(1), &last).as_slice(), [whole(1), stand_in(3)]);
    assert_eq!(fold(&[1, 2], &[], Level::Quorum).start(n(1), &last).as_slice(), [whole(1), part(2)]);
    assert_eq!(fold(&[1, 2], &[3], Level::All).start(n(1), &last).as_slice(), [whole(1), part(2)]);
    assert_eq!(fold(&[1, 2, 3], &[], Level::Quorum).start(n(1), &last).as_slice(), [whole(1), part(3)]);
    let only_stand_in = |node: NodeNum| match node.0 {
        1 => Ask::Yes,
        2 => Ask::No,
        _ => Ask::Last,
    };
    assert_eq!(fold(&[1, 2], &[3], Level::Quorum).start(n(1), &only_stand_in).as_slice(), [whole(1), stand_in(3)]);
}

#[test]
fn what_cannot_be_met_is_not_begun() {
    let mut fold = fold(&[1, 2], &[3], Level::All);
    assert!(fold.start(n(1), &down(&[2])).is_empty());
    assert_eq!(fold.state(), ReadState::Failed);
    let failed = fold.failed();
    assert_eq!(failed, [(n(1), "not asked: the level cannot be met".to_owned()), (n(2), "unreachable".to_owned())]);
}
