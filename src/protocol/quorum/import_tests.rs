//! Tests of the import fold.

use proptest::prelude::*;

use super::import::{HINTED_AGE_MS_MAX, ImportFold, ImportState, ImportTerms, Imported};
use super::testing::{dominated, n, placement, record, seen, stored, version};
use super::{Ask, WriteAsk};
use crate::types::{Answer, Floor, PeerError, Record, Refusal, ReplicaReply};

/// Hints may be left.
const LATELY: ImportTerms = ImportTerms { hints: true, planted: false };

fn old() -> Record {
    record(version(5, 1), Some("v"))
}

fn same() -> Answer {
    let by = crate::types::Seen::of(&old(), crate::types::Hlc::ZERO);
    Ok(ReplicaReply::Dominated { by })
}

fn greater() -> Answer {
    dominated(version(9, 1))
}

fn below() -> Answer {
    Ok(ReplicaReply::BelowFloor { floor: Floor::default() })
}

fn fresh() -> Answer {
    stored(None)
}

fn over() -> Answer {
    stored(Some(seen(version(2, 1), true)))
}

fn lost() -> Answer {
    Err(PeerError::Lost)
}

fn refused(refusal: Refusal) -> Answer {
    Ok(ReplicaReply::Refused(refusal))
}

/// In place of a tombstone.
fn revived() -> Answer {
    stored(Some(seen(version(2, 1), false)))
}

/// What comes of these answers of the home replicas 1, 2, ... without fallbacks.
fn of(answers: &[Answer]) -> ImportState {
    on_terms(answers, LATELY)
}

fn on_terms(answers: &[Answer], terms: ImportTerms) -> ImportState {
    let homes: Vec<u16> = (1..=answers.len() as u16).collect();
    let mut fold = ImportFold::new(placement(&[&homes], &[]), &old(), terms);
    assert_eq!(fold.start(&|_| Ask::Yes).len(), answers.len());
    for (home, answer) in homes.iter().zip(answers) {
        assert_eq!(fold.state(), ImportState::Waiting);
        assert!(fold.on_write(n(*home), answer, &|_| Ask::Yes).is_empty());
    }
    fold.state()
}

#[test]
fn what_the_replicas_say_is_what_became_of_it() {
    use ImportState::{Decided, Failed};
    use Imported::{Older, Stored, Unchanged};
    let older = Decided(Older { take_back: false });
    let taken_back = Decided(Older { take_back: true });
    for (answers, wanted) in [
        (vec![fresh()], Decided(Stored)),
        (vec![over(), fresh(), fresh()], Decided(Stored)),
        (vec![same(), same(), same()], Decided(Unchanged)),
        // One was behind: a majority had it all the same.
        (vec![same(), fresh(), same()], Decided(Unchanged)),
        (vec![same(), fresh(), over()], Decided(Stored)),
        (vec![same(), fresh(), lost()], Decided(Stored)),
        (vec![same(), same(), lost()], Decided(Unchanged)),
        // A greater version on one of them is enough, and needs nobody to take anything back.
        (vec![greater(), greater()], older.clone()),
        (vec![fresh(), greater()], older.clone()),
        (vec![fresh(), same(), greater()], older.clone()),
        (vec![fresh(), below(), greater()], older.clone()),
        // Purged.
        (vec![below(), below()], older.clone()),
        (vec![below(), below(), same()], older.clone()),
        (vec![below(), below(), lost()], older.clone()),
        // Met while the floor was raised.
        (vec![fresh(), below()], taken_back.clone()),
        (vec![fresh(), fresh(), below()], taken_back.clone()),
        (vec![below(), same(), fresh()], taken_back.clone()),
        // So may be what a purged tombstone was beside it.
        (vec![revived(), below()], taken_back.clone()),
        (vec![revived(), revived(), below()], taken_back.clone()),
        (vec![revived(), over(), below()], taken_back.clone()),
        (vec![revived(), revived(), lost()], Decided(Stored)),
        (vec![revived(), greater(), below()], older.clone()),
        // What was there before is not taken back.
        (vec![same(), same(), below()], Decided(Unchanged)),
        (vec![over(), same(), below()], Decided(Stored)),
        (vec![over(), below()], older),
        // Nobody knows.
        (vec![fresh(), lost()], Failed),
        (vec![greater(), lost(), lost()], Failed),
        (vec![below(), lost()], Failed),
    ] {
        assert_eq!(of(&answers), wanted, "{answers:?}");
    }
}

#[test]
fn another_content_under_its_version_is_never_said_to_be_stored() {
    let seen = crate::types::Seen::of(&record(version(5, 1), Some("w")), crate::types::Hlc::ZERO);
    // It stays, or it was replaced.
    for other in [Ok(ReplicaReply::Dominated { by: seen }), stored(Some(seen))] {
        assert_eq!(of(&[other.clone(), other.clone()]), ImportState::Differs);
        assert_eq!(of(&[other.clone(), fresh(), fresh()]), ImportState::Differs);
        assert_eq!(of(&[same(), same(), other.clone()]), ImportState::Differs);
        assert_eq!(of(&[other.clone(), greater()]), ImportState::Decided(Imported::Older { take_back: false }));
        assert_eq!(of(&[other.clone(), lost(), lost()]), ImportState::Failed);
        // Nothing is left elsewhere.
        let mut fold = ImportFold::new(placement(&[&[1, 2, 3]], &[4]), &old(), LATELY);
        fold.start(&|_| Ask::Yes);
        for (node, answer) in [(3, other), (1, fresh()), (2, lost())] {
            assert!(fold.on_write(n(node), &answer, &|_| Ask::Yes).is_empty(), "{answer:?}");
        }
        assert_eq!(fold.state(), ImportState::Differs);
    }
    // A deletion that is written again with another time is the same one; a value in its place is not.
    let tombstone = record(version(5, 1), None);
    let later =
        Record::seal(&super::testing::key(), tombstone.version, crate::types::Hlc(99), tombstone.content.clone());
    let of_tombstone = |by: &Record| {
        let mut fold = ImportFold::new(placement(&[&[1]], &[]), &tombstone, LATELY);
        fold.start(&|_| Ask::Yes);
        fold.on_write(n(1), &Ok(ReplicaReply::Dominated { by: crate::types::Seen::of(by, later.written) }), &|_| {
            Ask::Yes
        });
        fold.state()
    };
    assert_eq!(of_tombstone(&later), ImportState::Decided(Imported::Unchanged));
    assert_eq!(of_tombstone(&old()), ImportState::Differs);
}

#[test]
fn what_an_earlier_attempt_left_is_taken_back_too() {
    let planted = ImportTerms { planted: true, ..LATELY };
    let taken_back = ImportState::Decided(Imported::Older { take_back: true });
    for answers in [vec![same(), below()], vec![same(), same(), below()], vec![below(), below(), same()]] {
        assert_eq!(on_terms(&answers, planted), taken_back, "{answers:?}");
    }
    assert_eq!(on_terms(&[same(), same(), lost()], planted), ImportState::Decided(Imported::Unchanged));
    assert_eq!(
        on_terms(&[below(), below(), lost()], planted),
        ImportState::Decided(Imported::Older { take_back: false })
    );
}

#[test]
fn an_old_record_needs_a_majority_of_its_home_replicas() {
    let old_one = ImportTerms::default();
    let away = |node| if node == n(2) { Ask::No } else { Ask::Yes };
    let mut fold = ImportFold::new(placement(&[&[1, 2]], &[3]), &old(), old_one);
    fold.start(&away);
    assert!(fold.on_write(n(1), &fresh(), &away).is_empty());
    assert_eq!(fold.state(), ImportState::Failed);
    let written = crate::types::Hlc::from_ms(500);
    assert!(ImportTerms::at(written, 500 + HINTED_AGE_MS_MAX, false).hints);
    assert!(!ImportTerms::at(written, 501 + HINTED_AGE_MS_MAX, false).hints);
}

#[test]
fn a_record_that_replicas_never_take_is_refused_and_not_tried_again() {
    let skew = Refusal::ClockSkew { ahead_ms: 7 };
    assert_eq!(of(&[refused(skew), refused(skew), fresh()]), ImportState::Refused(skew));
    assert_eq!(of(&[refused(skew), fresh(), fresh()]), ImportState::Decided(Imported::Stored));
    assert_eq!(of(&[refused(skew), lost(), fresh()]), ImportState::Failed);
    assert_eq!(of(&[refused(Refusal::Overloaded), refused(Refusal::NotReady)]), ImportState::Failed);
    let full = refused(Refusal::DiskFull);
    let mut fold = ImportFold::new(placement(&[&[1, 2]], &[]), &old(), LATELY);
    fold.start(&|_| Ask::Yes);
    fold.on_write(n(1), &full, &|_| Ask::Yes);
    assert!(!fold.disks_full());
    fold.on_write(n(2), &fresh(), &|_| Ask::Yes);
    assert!(fold.disks_full() && fold.has_stored());
    assert_eq!((fold.state(), fold.acked(), fold.failed().len()), (ImportState::Failed, vec![n(2)], 1));
}

#[test]
fn everybody_who_answers_as_usual_is_heard_and_who_hangs_is_not_waited_for() {
    let mut fold = ImportFold::new(placement(&[&[1, 2, 3]], &[4]), &old(), LATELY);
    fold.start(&|_| Ask::Yes);
    for node in [1, 2] {
        fold.on_write(n(node), &fresh(), &|_| Ask::Yes);
    }
    assert_eq!(fold.state(), ImportState::Waiting, "the third may be below its floor");
    let mut late = fold.clone();
    late.on_write(n(3), &below(), &|_| Ask::Yes);
    assert_eq!(late.state(), ImportState::Decided(Imported::Older { take_back: true }));
    assert!(fold.on_silence(&[n(3)], &|_| Ask::Yes).is_empty(), "a majority has it: nobody stands in");
    assert_eq!(fold.state(), ImportState::Decided(Imported::Stored));
}

#[test]
fn a_stand_in_is_asked_only_for_what_a_home_replica_took() {
    let away = |node| if node == n(2) { Ask::No } else { Ask::Yes };
    let hint = WriteAsk::Hint { to: n(3), target: n(2), counted: true };
    for (answer, asked) in [(fresh(), true), (over(), true), (same(), true), (greater(), false), (below(), false)] {
        let mut fold = ImportFold::new(placement(&[&[1, 2]], &[3, 4]), &old(), LATELY);
        assert_eq!(fold.start(&away).to_vec(), [WriteAsk::Write { to: n(1) }], "no hint before an answer");
        let asks = fold.on_write(n(1), &answer, &away);
        assert_eq!(asks.to_vec(), if asked { vec![hint] } else { vec![] }, "{answer:?}");
        if !asked {
            assert_eq!(fold.state(), ImportState::Failed);
            continue;
        }
        assert_eq!(fold.state(), ImportState::Waiting);
        // The first will not; the next one does.
        let next = fold.on_hint(n(3), n(2), &refused(Refusal::HintsFull), &away);
        assert_eq!(next.to_vec(), [WriteAsk::Hint { to: n(4), target: n(2), counted: true }]);
        assert!(fold.on_hint(n(4), n(2), &Ok(ReplicaReply::Hinted), &away).is_empty());
        let wanted = if fold.has_stored() { Imported::Stored } else { Imported::Unchanged };
        assert_eq!(fold.state(), ImportState::Decided(wanted));
    }
}

#[test]
fn a_hint_and_its_home_replicas_own_copy_count_once() {
    let mut fold = ImportFold::new(placement(&[&[1, 2, 3]], &[4]), &old(), LATELY);
    let away = |node| if node == n(3) { Ask::No } else { Ask::Yes };
    fold.start(&away);
    fold.on_write(n(1), &fresh(), &away);
    assert_eq!(fold.on_silence(&[n(2)], &away).len(), 1, "there is one fallback");
    fold.on_hint(n(4), n(2), &Ok(ReplicaReply::Hinted), &away);
    assert_eq!(fold.state(), ImportState::Decided(Imported::Stored));
    fold.on_write(n(2), &fresh(), &away);
    assert_eq!((fold.acked(), fold.state()), (vec![n(1), n(2)], ImportState::Decided(Imported::Stored)));
}

#[test]
fn both_write_sets_of_a_slot_that_moves_must_have_it() {
    let mut fold = ImportFold::new(placement(&[&[1, 2, 3], &[3, 4, 5]], &[]), &old(), LATELY);
    fold.start(&|_| Ask::Yes);
    for node in [1, 2, 3] {
        fold.on_write(n(node), &fresh(), &|_| Ask::Yes);
    }
    fold.on_silence(&[n(4), n(5)], &|_| Ask::Yes);
    assert_eq!(fold.state(), ImportState::Waiting, "of the second set one alone has it");
    fold.on_write(n(5), &same(), &|_| Ask::Yes);
    assert_eq!(fold.state(), ImportState::Decided(Imported::Stored));
}

proptest! {
    /// Whatever is answered in whatever order: what is said of it is true of the replicas.
    #[test]
    fn what_is_said_is_true(answers in prop::collection::vec(0..7usize, 1..6), order in any::<prop::sample::Index>()) {
        let all = [fresh(), over(), same(), greater(), below(), lost(), revived()];
        let given: Vec<Answer> = answers.iter().map(|at| all[*at].clone()).collect();
        let homes: Vec<u16> = (1..=given.len() as u16).collect();
        let mut fold = ImportFold::new(placement(&[&homes], &[]), &old(), LATELY);
        fold.start(&|_| Ask::Yes);
        let first = order.index(homes.len());
        for at in (0..homes.len()).map(|i| (i + first) % homes.len()) {
            prop_assert_eq!(fold.state(), ImportState::Waiting);
            fold.on_write(n(homes[at]), &given[at], &|_| Ask::Yes);
        }
        let count = |which: &[usize]| answers.iter().filter(|at| which.contains(at)).count();
        let enough = given.len() / 2 + 1;
        match fold.state() {
            ImportState::Decided(Imported::Stored | Imported::Unchanged) => {
                prop_assert!(count(&[0, 1, 2, 6]) >= enough && count(&[3]) == 0);
                prop_assert!(count(&[0, 6]) == 0 || count(&[4]) == 0, "never beside a floor that refuses it for ever");
            }
            ImportState::Decided(Imported::Older { take_back }) => {
                prop_assert!(count(&[3, 4]) > 0);
                prop_assert_eq!(take_back, count(&[3]) == 0 && count(&[0, 6]) > 0);
            }
            state => prop_assert!(state == ImportState::Failed && count(&[5]) > given.len() - enough),
        }
    }
}
