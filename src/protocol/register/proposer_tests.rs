//! The proposer: a test for each rule and verdict. Whole interleavings are searched in `tests/register`.

use super::proposer::{ProposerFold, Step};
use super::testing::*;
use crate::protocol::quorum::Ask;
use crate::types::{
    Condition, Content, Edit, Floor, Hlc, Idempotency, NewContent, NodeNum, Proposal, Record, RememberedAnswer, Verdict,
};

fn proposal(op: u8, condition: Condition) -> Proposal {
    Proposal {
        key: key(),
        condition,
        edit: Edit::Write(NewContent::value("new")),
        op: op_id(op),
        idempotency: None,
        ended: None,
    }
}

fn fold(op: u8, condition: Condition) -> ProposerFold {
    ProposerFold::new(placement(&[ALL]), proposal(op, condition))
}

/// An operation with an `Idempotency-Key`.
fn keyed(op: u8, condition: Condition, request: u128) -> ProposerFold {
    let idempotency = Some(Idempotency { key: 1, request });
    ProposerFold::new(placement(&[ALL]), Proposal { idempotency, ..proposal(op, condition) })
}

/// What becomes of an operation, ballot by ballot: its number, and who hears its prepare, accept and write.
fn outcomes(replicas: &mut Replicas, fold: &mut ProposerFold, ballots: &[(u64, [&[u16]; 3])]) -> Vec<String> {
    ballots.iter().map(|(ballot, heard)| outcome(&replicas.run(fold, b(*ballot), *heard))).collect()
}

const EVERYWHERE: [&[u16]; 3] = [ALL, ALL, ALL];

// ------------------------------------------------------------------------------------------------------- one ballot

#[test]
fn a_true_condition_takes_the_next_even_count_above_the_base_and_is_written_first() {
    for (rows, condition, version, created) in [
        ([None, None, None], create(), v(0, 2).rmw, true),
        ([Some(v(5, 0)); 3], replace(), 2, false),
        ([Some(v(5, 1)), None, None], replace(), 2, false),
        ([Some(v(5, 4)), Some(v(5, 2)), Some(v(4, 8))], Condition::default(), 6, false),
    ] {
        let mut replicas = Replicas::holding(rows);
        let step = replicas.run(&mut fold(1, condition), b(10), EVERYWHERE);
        let Step::Done(Verdict::Applied { version: said, created: new, acked, .. }) = step else { panic!("{step:?}") };
        assert_eq!((said.rmw, new, acked), (version, created, nodes(ALL)));
        assert_eq!(replicas.rows(), [Some(said); 3]);
    }
}

#[test]
fn the_base_is_the_highest_ballots_state_where_that_is_newer_than_every_row() {
    let row = Some(v(5, 0));
    for (replicas, base) in [
        (Replicas::holding([row; 3]).accepted(1, b(3), 7, v(5, 2)), v(5, 2)),
        (Replicas::holding([row; 3]).accepted(1, b(3), 7, v(5, 4)).accepted(2, b(4), 8, v(5, 2)), v(5, 2)),
        (Replicas::holding([row, Some(v(6, 0)), row]).accepted(1, b(3), 7, v(5, 2)), v(6, 0)),
        // Out of sight: replica 3 is not heard.
        (Replicas::holding([row, row, Some(v(7, 0))]).accepted(3, b(3), 7, v(5, 2)), v(5, 0)),
    ] {
        let mut replicas = replicas;
        let step = replicas.run(&mut fold(1, replace()), b(10), [&[1, 2], ALL, &[1, 2]]);
        let Step::Done(Verdict::Applied { version, .. }) = step else { panic!("{step:?}") };
        assert_eq!(Some(version), base.conditional());
    }
}

#[test]
fn what_was_accepted_below_a_floor_counts_for_nothing_and_what_is_new_goes_above_it() {
    let mut replicas = Replicas::new(3).accepted(1, b(3), 7, v(5, 2));
    replicas.cells[1].floor = Floor { written: Hlc(4), version: v(8, 4), ballot: b(4) };
    let step = replicas.run(&mut fold(1, create()), b(10), [&[1, 2], ALL, ALL]);
    let verdict = Verdict::Applied { version: v(8, 6), created: true, expires_at_ms: None, acked: nodes(ALL) };
    assert_eq!(step, Step::Done(verdict));
}

#[test]
fn a_false_condition_is_said_of_a_base_that_stays() {
    let row = Some(v(5, 0));
    for (replicas, transcript) in [
        (Replicas::holding([row; 3]), "prepare 10 heard by [1, 2]\nfailed of Some(0)\n"),
        (
            Replicas::holding([row, None, None]),
            "prepare 10 heard by [1, 2]\nwrite 0 heard by [1, 2]\nfailed of Some(0)\n",
        ),
        (
            Replicas::holding([row; 3]).accepted(1, b(3), 7, v(5, 2)),
            "prepare 10 heard by [1, 2]\naccept 10 of op 7 with Some(2) heard by [1, 2]\n\
             write 2 heard by [1, 2]\nfailed of Some(2)\n",
        ),
        (
            Replicas::holding([row, Some(v(5, 2)), row]).accepted(1, b(3), 7, v(5, 2)),
            "prepare 10 heard by [1, 2]\nwrite 2 heard by [1, 2]\nfailed of Some(2)\n",
        ),
    ] {
        let mut replicas = replicas;
        replicas.run(&mut fold(1, create()), b(10), [&[1, 2], &[1, 2], &[1, 2]]);
        assert_eq!(replicas.transcript, transcript);
    }
}

#[test]
fn written_never_goes_back_behind_the_base() {
    let mut replicas = Replicas::holding([Some(v(50, 0)); 3]);
    replicas.run(&mut fold(1, replace()), b(10), EVERYWHERE);
    assert_eq!(replicas.cells[0].row.as_ref().map(|r| r.written), Some(Hlc(50)));
}

#[test]
fn the_counts_of_a_plain_write_can_be_used_up() {
    let mut replicas = Replicas::holding([Some(v(5, u32::MAX - 1)); 3]);
    assert_eq!(replicas.run(&mut fold(1, replace()), b(10), EVERYWHERE), Step::Done(Verdict::Exhausted));
}

#[test]
fn a_majority_of_both_write_sets_must_promise_and_accept() {
    let mut replicas = Replicas::new(5);
    let mut fold = ProposerFold::new(placement(&[&[1, 2, 3], &[3, 4, 5]]), proposal(1, create()));
    assert_eq!(fold.required(), 2);
    let said = outcomes(
        &mut replicas,
        &mut fold,
        &[(10, [&[1, 2, 3], ALL, ALL]), (11, [&[1, 3, 4], &[1, 2, 3], ALL]), (12, [&[2, 3, 5], &[1, 2, 4, 5], ALL])],
    );
    assert_eq!(said, ["unavailable", "back off above 11", "applied 2 created true"]);
}

// ------------------------------------------------------------------------------------------------ more than one ballot

#[test]
fn what_becomes_of_an_operation_whose_accept_was_lost() {
    let first: (u64, [&[u16]; 3]) = (10, [&[1, 2], &[1], &[]]);
    for (others, next, said) in [
        // Found again: finished.
        (None, (30, [&[1, 3], ALL, ALL]), "applied 2 created true"),
        // Nobody saw it: proposed again.
        (None, (30, [&[2, 3], ALL, ALL]), "applied 2 created true"),
        // Somebody built on it.
        (Some((replace(), [&[1u16, 2] as &[u16], ALL, ALL])), (30, [&[1, 3], ALL, ALL]), "unknown"),
        // Somebody did not see it, and may have.
        (Some((create(), [&[2, 3], &[2], ALL])), (30, [&[2, 3], ALL, ALL]), "unknown"),
        // Somebody wrote it for us, and said so of it.
        (Some((create(), [&[1, 3], ALL, ALL])), (30, [&[2, 3], ALL, ALL]), "applied 2 created true"),
    ] {
        let mut replicas = Replicas::new(3);
        let mut mine = fold(1, create());
        assert_eq!(outcomes(&mut replicas, &mut mine, &[first]), ["back off above 10"]);
        if let Some((condition, heard)) = others {
            replicas.run(&mut fold(2, condition), b(20), heard);
        }
        assert_eq!(outcomes(&mut replicas, &mut mine, &[next]), [said], "{}", replicas.transcript);
    }
}

/// The second accept was sent while nobody saw what had been built on the first.
#[test]
fn what_was_built_on_its_first_accept_may_come_back_after_its_second() {
    let mut replicas = Replicas::new(3);
    let mut mine = fold(1, create());
    outcomes(&mut replicas, &mut mine, &[(10, [&[1, 2], &[1], &[]])]);
    let mut theirs = fold(2, replace());
    outcomes(&mut replicas, &mut theirs, &[(20, [&[1, 2], &[1], &[]])]);
    let said = outcomes(&mut replicas, &mut mine, &[(30, [&[2, 3], &[], &[]]), (50, [&[1, 2], ALL, ALL])]);
    assert_eq!(said, ["back off above 30", "unknown"], "{}", replicas.transcript);
    assert_eq!(outcomes(&mut replicas, &mut theirs, &[(60, EVERYWHERE)]), ["applied 4 created false"]);
}

#[test]
fn after_an_accept_a_false_condition_ends_what_was_accepted() {
    // Replica 1 alone has a plain write that is still under way.
    let mut replicas = Replicas::holding([Some(v(5, 0)), None, None]);
    let mut mine = fold(1, replace());
    let said = outcomes(
        &mut replicas,
        &mut mine,
        &[(10, [&[1, 2], &[1], &[]]), (30, [&[2, 3], &[2], &[]]), (31, [&[2, 3], &[2, 3], &[]])],
    );
    assert_eq!(said, ["back off above 10", "back off above 30", "failed of None"]);
    let maker = replicas.cells[1].register.accepted.as_ref().map(|a| a.op);
    assert_ne!(maker, Some(op_id(1)), "whoever accepts it again does not make it an attempt to apply the operation");
    let said = outcomes(&mut replicas, &mut fold(2, replace()), &[(40, [&[1, 2], ALL, ALL])]);
    assert_eq!(said, ["applied 2 created false"]);
    assert_eq!(replicas.rows(), [Some(v(5, 2)); 3], "built on the plain write, not on what was ended");
}

/// Its ballot was late: a row that it finds has its own value, written for it under a higher ballot than this.
#[test]
fn its_own_value_in_a_row_is_nothing_to_fail_of() {
    let mut replicas = Replicas::new(3);
    let mut mine = fold(1, create());
    outcomes(&mut replicas, &mut mine, &[(10, [&[1, 2], &[2], &[]])]);
    let Step::Send { request, .. } = mine.prepare(b(30), &|_| Ask::Yes) else { panic!("all can be asked") };
    let early = replicas.ask(1, &request);
    assert_eq!(mine.on_answer(NodeNum(1), early, NOW, &|_| Ask::Yes), Step::Wait);
    let theirs = outcomes(&mut replicas, &mut fold(2, create()), &[(40, [&[1, 2], &[1, 2], &[1, 3]])]);
    assert_eq!(theirs, ["failed of Some(2)"]);
    let late = replicas.ask(3, &request);
    assert_eq!(mine.on_answer(NodeNum(3), late, NOW, &|_| Ask::Yes), Step::BackOff { above: Hlc(30) });
    assert_eq!(outcomes(&mut replicas, &mut mine, &[(50, EVERYWHERE)]), ["applied 2 created true"]);
}

/// The state that is found says which of its attempts it is.
#[test]
fn a_state_of_its_own_gets_the_verdict_of_its_ballot() {
    let mut replicas = Replicas::new(3);
    let mut mine = fold(1, create());
    outcomes(&mut replicas, &mut mine, &[(10, [&[1, 2], &[1], &[]])]);
    replicas.write(2, &record(v(5, 0), "plain"));
    // That it failed of the plain write is accepted nowhere, and its first attempt is found again.
    let said = outcomes(&mut replicas, &mut mine, &[(30, [&[2, 3], &[], &[]]), (31, [&[1, 3], ALL, ALL])]);
    assert_eq!(said, ["back off above 30", "applied 2 created true"]);
}

#[test]
fn a_write_that_failed_is_finished_by_the_next_ballot() {
    let mut replicas = Replicas::new(3);
    let mut mine = fold(1, create());
    let said = outcomes(&mut replicas, &mut mine, &[(10, [ALL, ALL, &[3]]), (11, [&[1, 2], ALL, ALL])]);
    assert_eq!(said, ["back off above 10", "applied 2 created true"]);
    let mut refused = fold(2, create());
    let mut replicas = Replicas::holding([Some(v(5, 0)), None, None]);
    let said = outcomes(&mut replicas, &mut refused, &[(10, [&[1, 2], ALL, &[]]), (11, EVERYWHERE)]);
    assert_eq!(said, ["back off above 10", "failed of Some(0)"]);
}

#[test]
fn a_changed_topology_is_asked_from_prepare_on() {
    let mut replicas = Replicas::new(5);
    let mut mine = fold(1, create());
    outcomes(&mut replicas, &mut mine, &[(10, [&[1, 2], &[1], &[]])]);
    let Step::Send { to, request } = mine.prepare(b(15), &|_| Ask::Yes) else { panic!("all can be asked") };
    mine.move_to(placement(&[&[1, 2, 3], &[3, 4, 5]]));
    for node in to {
        let late = replicas.ask(node.0, &request);
        assert_eq!(mine.on_answer(node, late, NOW, &|_| Ask::Yes), Step::Wait);
    }
    let all: &[u16] = &[1, 2, 3, 4, 5];
    assert_eq!(outcomes(&mut replicas, &mut mine, &[(20, [all; 3])]), ["applied 2 created true"]);
}

// ------------------------------------------------------------------------------------------------ idempotency keys

#[test]
fn a_repeat_gets_the_first_answer_and_another_request_none() {
    let mut replicas = Replicas::new(3);
    assert_eq!(outcomes(&mut replicas, &mut keyed(1, create(), 1), &[(10, EVERYWHERE)]), ["applied 2 created true"]);
    outcomes(&mut replicas, &mut fold(2, replace()), &[(20, EVERYWHERE)]);
    assert_eq!(outcomes(&mut replicas, &mut keyed(3, create(), 1), &[(30, EVERYWHERE)]), ["applied 2 created true"]);
    assert_eq!(replicas.rows()[0].map(|v| v.rmw), Some(4), "nothing was written again");
    let maker = replicas.cells[0].register.accepted.as_ref().map(|a| a.op);
    assert_eq!(maker, Some(op_id(2)), "accepted again, under the name of who made it");
    assert_eq!(outcomes(&mut replicas, &mut keyed(4, create(), 2), &[(40, EVERYWHERE)]), ["key reused"]);
}

/// A floor passes over registers of keys that live on; what they remember is not what it purged.
#[test]
fn an_answer_outlives_a_floor_until_its_key_is_purged() {
    let floor = Floor { written: Hlc(15), version: v(1, 0), ballot: b(15) };
    let mut replicas = Replicas::new(3);
    outcomes(&mut replicas, &mut keyed(1, create(), 1), &[(10, EVERYWHERE)]);
    replicas.cells.iter_mut().for_each(|cell| cell.floor = floor);
    let mut gone = Replicas { cells: replicas.cells.clone(), transcript: String::new(), now: replicas.now };
    assert_eq!(outcomes(&mut replicas, &mut keyed(2, create(), 1), &[(20, EVERYWHERE)]), ["applied 2 created true"]);
    assert_eq!(replicas.rows()[0].map(|v| v.rmw), Some(2), "nothing was written again");
    gone.cells[0] = Cell { floor, ..Cell::default() };
    let told = outcomes(&mut gone, &mut keyed(2, create(), 1), &[(20, [&[1, 2], ALL, ALL])]);
    assert_eq!(told, ["failed of Some(2)"], "one of them has purged it: nothing is sure but the row");
}

#[test]
fn a_refusal_is_remembered_with_what_it_met() {
    let tombstone = Record::seal(&key(), v(5, 0), Hlc(5), Content::Tombstone);
    for (row, condition, first, again) in [
        (Some(record(v(5, 0), "row")), create(), "failed of Some(0)", "failed before of Some(0)"),
        (Some(tombstone), replace(), "failed of None", "failed before of None"),
        (None, replace(), "failed of None", "failed before of None"),
    ] {
        let mut replicas = Replicas::new(3);
        replicas.cells.iter_mut().for_each(|cell| cell.row = row.clone());
        assert_eq!(outcomes(&mut replicas, &mut keyed(1, condition.clone(), 1), &[(10, EVERYWHERE)]), [first]);
        outcomes(&mut replicas, &mut fold(2, Condition::default()), &[(20, EVERYWHERE)]);
        assert_eq!(outcomes(&mut replicas, &mut keyed(3, condition, 1), &[(30, EVERYWHERE)]), [again]);
    }
}

/// Whoever made the state that was refused can still find it under its name.
#[test]
fn a_remembered_refusal_leaves_the_state_its_name() {
    let mut replicas = Replicas::new(3);
    let mut theirs = fold(2, create());
    outcomes(&mut replicas, &mut theirs, &[(10, [ALL, ALL, &[1]])]);
    assert_eq!(outcomes(&mut replicas, &mut keyed(1, create(), 1), &[(20, EVERYWHERE)]), ["failed of Some(2)"]);
    assert_eq!(outcomes(&mut replicas, &mut theirs, &[(30, EVERYWHERE)]), ["applied 2 created true"]);
    let accepted = replicas.cells[0].register.accepted.as_ref().unwrap();
    assert_eq!(accepted.recent.find(1).map(|r| r.answer), Some(RememberedAnswer::ConditionFailed));
}

/// Its answer is on a replica, and may be found by a repeat: that it was not applied is no longer certain.
#[test]
fn an_answer_that_was_sent_to_be_remembered_is_unknown_until_it_is() {
    let mut replicas = Replicas::new(3).accepted(1, b(3), 7, v(5, 2));
    let mut mine = keyed(1, create(), 1);
    assert_eq!(outcomes(&mut replicas, &mut mine, &[(10, [&[1, 2], &[1], &[]])]), ["back off above 10"]);
    assert!(matches!(mine.give_up(), Verdict::Unknown { .. }));
    assert_eq!(outcomes(&mut replicas, &mut mine, &[(11, [&[1, 2], ALL, ALL])]), ["failed of Some(2)"]);
}

/// Its refusal was accepted nowhere; a repeat elsewhere came upon its first attempt, and finished that.
#[test]
fn a_request_and_its_repeat_are_told_the_same() {
    let mut replicas = Replicas::new(3);
    let mut mine = keyed(1, create(), 1);
    outcomes(&mut replicas, &mut mine, &[(10, [&[1, 2], &[1], &[]])]);
    replicas.write(3, &record(v(5, 0), "plain"));
    assert_eq!(outcomes(&mut replicas, &mut mine, &[(20, [&[2, 3], &[], &[]])]), ["back off above 20"]);
    let repeated = outcomes(&mut replicas, &mut keyed(2, create(), 1), &[(30, [&[1, 3], ALL, ALL])]);
    assert_eq!(repeated, ["applied 2 created true"]);
    assert_eq!(outcomes(&mut replicas, &mut mine, &[(40, EVERYWHERE)]), repeated);
}

/// A repeat took its first attempt for decided, and ended that beside a plain write: both are told the same.
#[test]
fn what_a_repeat_was_told_is_what_the_request_is_told() {
    let mut replicas = Replicas::new(3);
    let mut mine = keyed(1, create(), 1);
    outcomes(&mut replicas, &mut mine, &[(10, [&[1, 2], &[1], &[]])]);
    replicas.write(2, &record(v(5, 0), "plain"));
    // It fails of the plain write, but that is accepted nowhere.
    outcomes(&mut replicas, &mut mine, &[(30, [&[2, 3], &[], &[]])]);
    let mut repeat = keyed(2, create(), 1);
    assert_eq!(outcomes(&mut replicas, &mut repeat, &[(40, [&[1, 2], ALL, ALL])]), ["applied 2 created true"]);
    assert_eq!(outcomes(&mut replicas, &mut mine, &[(50, EVERYWHERE)]), ["applied 2 created true"]);
}

// ------------------------------------------------------------------------------------------------------- giving up

#[test]
fn what_is_said_when_time_is_up() {
    let said = |fold: &ProposerFold| outcome(&Step::Done(fold.give_up()));
    let mut replicas = Replicas::new(3);
    let mut mine = fold(1, create());
    assert_eq!(said(&mine), "unavailable");
    let step = mine.prepare(b(5), &|_| Ask::Yes);
    assert!(matches!(step, Step::Send { .. }));
    let Verdict::Unavailable { required, failed, .. } = mine.give_up() else { panic!("nothing was sent") };
    assert_eq!((required, failed.len()), (2, 3));
    outcomes(&mut replicas, &mut fold(2, replace()), &[(20, EVERYWHERE)]);
    assert_eq!(outcomes(&mut replicas, &mut mine, &[(10, EVERYWHERE)]), ["back off above 20"]);
    assert_eq!(said(&mine), "conflict");
    // Above all that was promised, but nobody is there: that is what is told, not who was first before.
    assert_eq!(outcomes(&mut replicas, &mut mine.clone(), &[(30, [&[1], ALL, ALL])]), ["unavailable"]);
    assert_eq!(outcomes(&mut replicas, &mut mine, &[(31, [ALL, &[1], ALL])]), ["back off above 31"]);
    assert_eq!(said(&mine), "unknown");
}

#[test]
fn nothing_is_sent_where_no_majority_can_be_had() {
    let mut mine = fold(1, create());
    let step = mine.prepare(b(5), &|node| if node == NodeNum(1) { Ask::Yes } else { Ask::No });
    let Step::Done(Verdict::Unavailable { failed, .. }) = step else { panic!("{step:?}") };
    assert_eq!(failed.len(), 3);
}

#[test]
fn who_is_always_outbid_gives_up_without_having_written() {
    let mut replicas = Replicas::new(3);
    outcomes(&mut replicas, &mut fold(2, replace()), &[(90, EVERYWHERE)]);
    let mut mine = fold(1, create());
    let said: Vec<String> = (1..13).flat_map(|n| outcomes(&mut replicas, &mut mine, &[(n, EVERYWHERE)])).collect();
    assert!(said[..11].iter().all(|s| s == "back off above 90"));
    assert_eq!((said[11].as_str(), mine.ballots()), ("conflict", 12));
}

// ------------------------------------------------------------------------------------------------------- golden script

#[test]
fn a_duel() {
    let mut replicas = Replicas::new(3);
    let (mut one, mut two) = (fold(1, create()), fold(2, create()));
    replicas.run(&mut one, b(10), [&[1, 2], &[1], &[]]);
    replicas.run(&mut two, b(5), [&[1, 2, 3], &[], &[]]);
    replicas.run(&mut two, b(20), [&[2, 3], &[3], &[]]);
    replicas.run(&mut one, b(21), [&[1, 2], &[1, 2], &[1]]);
    replicas.run(&mut two, b(22), [&[1, 3], &[1, 3], &[1, 3]]);
    replicas.run(&mut one, b(23), EVERYWHERE);
    let expected = "\
prepare 10 heard by [1, 2]
accept 10 of op 1 with Some(2) heard by [1]
back off above 10
prepare 5 heard by [1, 2, 3]
back off above 10
prepare 20 heard by [2, 3]
accept 20 of op 2 with Some(2) heard by [3]
back off above 20
prepare 21 heard by [1, 2]
accept 21 of op 1 with Some(2) heard by [1, 2]
write 2 heard by [1]
back off above 21
prepare 22 heard by [1, 3]
unknown
prepare 23 heard by [1, 2, 3]
accept 23 of op 1 with Some(2) heard by [1, 2, 3]
write 2 heard by [1, 2, 3]
applied 2 created true
";
    assert_eq!(replicas.transcript, expected);
}
