//! The proposer where values end: a test for each rule.

use super::proposer::ProposerFold;
use super::testing::*;
use crate::types::{
    Accepted, Condition, Content, Edit, Hlc, NewContent, Proposal, Recent, Record, Register, Ttl, Version,
};

const EVERYWHERE: [&[u16]; 3] = [ALL, ALL, ALL];

fn fold(op: u8, condition: Condition, edit: Edit) -> ProposerFold {
    let proposal = Proposal { key: key(), condition, edit, op: op_id(op), idempotency: None, ended: None };
    ProposerFold::new(placement(&[ALL]), proposal)
}

fn write(op: u8, condition: Condition) -> ProposerFold {
    fold(op, condition, Edit::Write(NewContent::value("new")))
}

fn touch(op: u8, condition: Condition, ttl_ms: u64) -> ProposerFold {
    fold(op, condition, Edit::Touch { ttl: Ttl::from_ms(ttl_ms) })
}

/// A value that ends ten milliseconds after 1970.
fn value(version: Version) -> Record {
    let content = Content::Value { bytes: "row".into(), content_type: None, expires_at_ms: Some(10) };
    Record::seal(&key(), version, Hlc(5), content)
}

/// Replicas that hold the value; it has ended or not.
fn holding(ended: bool) -> Replicas {
    let mut replicas = Replicas::new(3);
    replicas.now = Hlc::from_ms(if ended { 10 } else { 9 });
    replicas.cells.iter_mut().for_each(|cell| cell.row = Some(value(v(5, 0))));
    replicas
}

fn end() -> Record {
    value(v(5, 0)).end(&key()).unwrap()
}

fn said(replicas: &mut Replicas, mut fold: ProposerFold, ballot: u64, heard: [&[u16]; 3]) -> String {
    outcome(&replicas.run(&mut fold, b(ballot), heard))
}

#[test]
fn an_end_is_accepted_and_written_before_it_is_told() {
    let mut replicas = holding(true);
    assert_eq!(said(&mut replicas, write(1, replace()), 10, EVERYWHERE), "failed of Some(1)");
    assert!(replicas.cells.iter().all(|cell| cell.row == Some(end())));
    assert_eq!(said(&mut replicas, write(2, Condition::never()), 20, EVERYWHERE), "failed of Some(1)");
    let expected = "\
prepare 10 heard by [1, 2, 3]
accept 10 of op 0 with Some(1) heard by [1, 2, 3]
write 1 heard by [1, 2, 3]
failed of Some(1)
prepare 20 heard by [1, 2, 3]
failed of Some(1)
";
    assert_eq!(replicas.transcript, expected, "once it was accepted under one ballot, a promise is enough");
}

#[test]
fn an_end_that_only_rows_have_or_that_was_accepted_under_several_ballots_is_not_told_yet() {
    let mut replicas = holding(true);
    replicas.cells.iter_mut().for_each(|cell| cell.row = Some(end()));
    said(&mut replicas, write(1, replace()), 10, EVERYWHERE);
    let (cells, ballots) = (&mut replicas.cells, [10, 11, 12]);
    for (cell, ballot) in cells.iter_mut().zip(ballots) {
        let accepted = Accepted { ballot: b(ballot), op: op_id(0), record: Some(end()), recent: Recent::NONE };
        cell.register = Register { promised: b(ballot), accepted: Some(accepted) };
    }
    said(&mut replicas, write(2, replace()), 20, EVERYWHERE);
    let expected = "\
prepare 10 heard by [1, 2, 3]
accept 10 of op 0 with Some(1) heard by [1, 2, 3]
write 1 heard by [1, 2, 3]
failed of Some(1)
prepare 20 heard by [1, 2, 3]
accept 20 of op 0 with Some(1) heard by [1, 2, 3]
write 1 heard by [1, 2, 3]
failed of Some(1)
";
    assert_eq!(replicas.transcript, expected);
}

#[test]
fn what_ended_counts_as_none_and_is_built_upon_like_its_tombstone() {
    for rows in [value(v(5, 0)), end()] {
        let mut replicas = holding(true);
        replicas.cells.iter_mut().for_each(|cell| cell.row = Some(rows.clone()));
        assert_eq!(said(&mut replicas, write(1, create()), 10, EVERYWHERE), "applied 2 created true");
        assert_eq!(replicas.cells[0].row.as_ref().map(|r| r.written), Some(Hlc::from_ms(10)));
    }
    let mut replicas = holding(false);
    assert_eq!(said(&mut replicas, write(1, create()), 10, EVERYWHERE), "failed of Some(0)");
    assert_eq!(said(&mut replicas, write(2, replace()), 20, EVERYWHERE), "applied 2 created false");
}

/// A write upon the value was accepted by one replica, and two others have the end in their rows. Were it told by those
/// rows, that write could be finished after it.
#[test]
fn nothing_that_was_accepted_upon_the_value_comes_after_its_end_was_told() {
    let mut replicas = holding(false);
    let mut theirs = write(7, replace());
    replicas.run(&mut theirs, b(10), [ALL, &[1], &[]]);
    replicas.now = Hlc::from_ms(10);
    [2, 3].iter().for_each(|node| replicas.write(*node, &end()));
    assert_eq!(said(&mut replicas, write(1, Condition::never()), 20, [&[2, 3], &[2, 3], &[2, 3]]), "failed of Some(1)");
    assert_eq!(outcome(&replicas.run(&mut theirs, b(30), EVERYWHERE)), "unknown");
    assert_eq!(said(&mut replicas, write(2, Condition::never()), 40, [&[1, 2], ALL, ALL]), "failed of Some(1)");
    assert_eq!(replicas.rows(), [Some(v(5, 1)); 3]);
}

/// Where that write is seen it is finished: it came before the end.
#[test]
fn what_was_accepted_upon_the_value_comes_before_its_end_where_it_is_seen() {
    let mut replicas = holding(false);
    replicas.run(&mut write(7, replace()), b(10), [ALL, &[1], &[]]);
    replicas.now = Hlc::from_ms(10);
    [2, 3].iter().for_each(|node| replicas.write(*node, &end()));
    assert_eq!(said(&mut replicas, write(1, Condition::never()), 20, [&[1, 2], ALL, ALL]), "failed of Some(2)");
    assert_eq!(replicas.rows(), [Some(v(5, 2)); 3]);
}

#[test]
fn a_touch_keeps_the_value_and_needs_one() {
    let mut replicas = holding(false);
    assert_eq!(said(&mut replicas, touch(1, Condition::default(), 90), 10, EVERYWHERE), "applied 2 created false");
    let touched = replicas.cells[0].row.clone().unwrap();
    let content = Content::Value { bytes: "row".into(), content_type: None, expires_at_ms: Some(90) };
    assert_eq!(touched, Record::seal(&key(), v(5, 2), Hlc(10), content));
    assert_eq!(said(&mut replicas, touch(2, Condition::default(), 0), 20, EVERYWHERE), "applied 4 created false");
    assert_eq!(replicas.cells[0].row.as_ref().unwrap().expires_at_ms(), None);
    assert_eq!(said(&mut replicas, touch(3, create(), 5), 30, EVERYWHERE), "failed of Some(4)");
    assert_eq!(said(&mut holding(true), touch(1, Condition::default(), 90), 10, EVERYWHERE), "failed of Some(1)");
    assert_eq!(said(&mut Replicas::new(3), touch(1, Condition::default(), 90), 10, EVERYWHERE), "failed of None");
}

/// Its write is on one replica's disk, where it has ended already; a later ballot that does not see what was accepted must
/// not write it a second time.
#[test]
fn who_finds_the_end_of_its_own_write_does_not_propose_it_again() {
    let mut replicas = Replicas::new(3);
    let mut mine = fold(
        1,
        create(),
        Edit::Write(NewContent::Value { bytes: "short".into(), content_type: None, ttl: Ttl::from_ms(5) }),
    );
    replicas.run(&mut mine, b(10), [ALL, &[1, 2], &[1]]);
    replicas.now = Hlc::from_ms(10);
    let ended = replicas.cells[0].row.as_ref().unwrap().end(&key()).unwrap();
    replicas.write(1, &ended);
    replicas.cells.iter_mut().for_each(|cell| cell.register.accepted = None);
    assert_eq!(outcome(&replicas.run(&mut mine, b(20), EVERYWHERE)), "back off above 20");
}
