//! How failures of the node become problems: one exhaustive map.

use super::problem::{Code, Problem, Replies};
use crate::node::request::{Failure, FailureKind, Outcome};
use crate::types::Version;

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
}

/// The problem a failed operation is answered with. A write whose outcome nobody noted is unknown: the honest guess.
pub(super) fn problem_of(operation: Operation, failure: Failure) -> Problem {
    let problem = match failure.kind {
        FailureKind::Unavailable => of_replies(Code::Unavailable, &failure),
        FailureKind::TimedOut => of_replies(Code::TimedOut, &failure),
        FailureKind::DiskFull => of_replies(Code::DiskFull, &failure),
        FailureKind::ClockSkew { .. } => Problem::new(Code::ClockSkew, failure.kind.to_string()),
        FailureKind::NotReady => Problem::new(Code::NotReady, failure.kind.to_string()),
        // What the register decided is decided: how many replicas said so is of no use to a client.
        FailureKind::ConditionFailed => {
            return unmet(failure.met.and_then(|met| met.version).as_ref()).with_outcome(decided(failure.outcome));
        }
        FailureKind::Conflict => return refused(Code::Conflict, &failure),
        FailureKind::KeyReused => return refused(Code::KeyReused, &failure),
        FailureKind::Exhausted => return refused(Code::Exhausted, &failure),
    };
    let replies = Replies { required: failure.required, acked: failure.acked, failed: failure.failed };
    let problem = problem.with_replies(replies);
    match operation {
        Operation::Read => problem,
        Operation::Write => problem.with_outcome(failure.outcome.unwrap_or(Outcome::Unknown)),
    }
}

/// The problem of a condition that is false of this version, or of there being no value.
pub(super) fn unmet(version: Option<&Version>) -> Problem {
    let detail = match version {
        Some(version) => format!("the condition is false of the value that it met, version {version}"),
        None => "the condition is false: it met no value".to_owned(),
    };
    Problem::new(Code::PreconditionFailed, detail)
}

fn of_replies(code: Code, failure: &Failure) -> Problem {
    let Failure { kind, acked, required, level, sets, .. } = failure;
    let answers = acked.len();
    let detail = match sets.as_deref() {
        Some([before, after]) => format!(
            "{kind}: {} of {} answers that consistency {level} needs of the replicas before the change of the topology, and {} of {} \
             of those after it",
            before.given, before.needed, after.given, after.needed
        ),
        // Told by a proposer, which counted each step, and either set.
        None if *required > 0 && answers >= *required => format!(
            "{kind}: {answers} answers in all, and consistency {level} needs {required} in each step, of either set of replicas where \
             the slot moves"
        ),
        None => format!("{kind}: {answers} of {required} answers that consistency {level} needs"),
    };
    Problem::new(code, detail)
}

fn refused(code: Code, failure: &Failure) -> Problem {
    Problem::new(code, failure.kind.to_string()).with_outcome(decided(failure.outcome))
}

/// These are said only where nothing was written.
fn decided(outcome: Option<Outcome>) -> Outcome {
    outcome.unwrap_or(Outcome::NotApplied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ring::OfSet;
    use crate::types::{Level, NodeNum};

    fn shown(operation: Operation, kind: FailureKind, outcome: Option<Outcome>) -> serde_json::Value {
        let failure = Failure {
            kind,
            outcome,
            level: Level::All,
            required: 3,
            sets: None,
            acked: vec![NodeNum(1)],
            failed: vec![(NodeNum(2), "unreachable".into())],
            met: None,
        };
        serde_json::from_slice(&problem_of(operation, failure).body("r")).unwrap()
    }

    #[test]
    fn each_failure_has_its_status() {
        let table = [
            (FailureKind::Unavailable, 503, "unavailable"),
            (FailureKind::TimedOut, 504, "timed-out"),
            (FailureKind::ClockSkew { by_ms: -7000 }, 503, "clock-skew"),
            (FailureKind::NotReady, 503, "not-ready"),
            (FailureKind::DiskFull, 507, "disk-full"),
        ];
        for (kind, status, code) in table {
            let body = shown(Operation::Write, kind, Some(Outcome::NotApplied));
            assert_eq!((&body["status"], &body["code"]), (&status.into(), &code.into()));
            assert_eq!((&body["outcome"], &body["required"]), (&"not_applied".into(), &3.into()));
            assert_eq!(body["failed"], serde_json::json!([{"node": "n2", "reason": "unreachable"}]));
        }
    }

    #[test]
    fn what_the_register_decided_is_definite_and_needs_no_list_of_replicas() {
        let table = [
            (FailureKind::ConditionFailed, 412, "precondition-failed", false),
            (FailureKind::Conflict, 409, "conflict", true),
            (FailureKind::KeyReused, 422, "idempotency-key-reused", false),
            (FailureKind::Exhausted, 409, "condition-count-exhausted", false),
        ];
        for (kind, status, code, retryable) in table {
            for outcome in [None, Some(Outcome::NotApplied)] {
                let body = shown(Operation::Write, kind, outcome);
                assert_eq!((&body["status"], &body["code"]), (&status.into(), &code.into()));
                assert_eq!((&body["outcome"], &body["retryable"]), (&"not_applied".into(), &retryable.into()));
                assert_eq!((body.get("required"), body.get("failed")), (None, None));
            }
        }
    }

    #[test]
    fn the_detail_counts_and_names() {
        let body = shown(Operation::Read, FailureKind::Unavailable, None);
        assert_eq!(body["detail"], "not enough replicas can be reached: 1 of 3 answers that consistency all needs");
        // While the slot moves what one set lacks may hide behind what the other has.
        let failure = |sets: Option<[OfSet; 2]>, acked: &[u16]| Failure {
            kind: FailureKind::Unavailable,
            outcome: None,
            level: Level::Quorum,
            required: 2,
            sets: sets.map(Box::new),
            acked: acked.iter().copied().map(NodeNum).collect(),
            failed: Vec::new(),
            met: None,
        };
        let detail = |failure| {
            let body = problem_of(Operation::Read, failure).body("r");
            serde_json::from_slice::<serde_json::Value>(&body).unwrap()["detail"].as_str().unwrap().to_owned()
        };
        let of = |given| OfSet { given, needed: 2 };
        assert_eq!(
            detail(failure(Some([of(1), of(2)]), &[1, 4])),
            "not enough replicas can be reached: 1 of 2 answers that consistency quorum needs of the replicas before the change of the \
             topology, and 2 of 2 of those after it"
        );
        assert_eq!(
            detail(failure(None, &[1, 4])),
            "not enough replicas can be reached: 2 answers in all, and consistency quorum needs 2 in each step, of either set of \
             replicas where the slot moves"
        );
        let body = shown(Operation::Read, FailureKind::ClockSkew { by_ms: -7000 }, None);
        assert_eq!(body["detail"], "this node's clock is -7000 ms off the median of its peers' clocks");
    }

    #[test]
    fn only_a_write_has_an_outcome_and_it_is_never_left_open() {
        assert_eq!(shown(Operation::Read, FailureKind::TimedOut, None).get("outcome"), None);
        assert_eq!(shown(Operation::Write, FailureKind::TimedOut, None)["outcome"], "unknown");
    }
}
