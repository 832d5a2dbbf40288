//! How failures of the node become problems: one exhaustive map.

use super::problem::{Code, Problem, Replies};
use crate::node::request::{Failure, FailureKind, Outcome};

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
}

/// The problem a failed operation is answered with. A write whose outcome nobody noted is unknown: the honest guess.
pub(super) fn problem_of(operation: Operation, failure: Failure) -> Problem {
    let code = match failure.kind {
        FailureKind::Unavailable => Code::Unavailable,
        FailureKind::TimedOut => Code::TimedOut,
        FailureKind::ClockSkew { .. } => Code::ClockSkew,
        FailureKind::NotReady => Code::NotReady,
        FailureKind::DiskFull => Code::DiskFull,
        FailureKind::ConditionFailed | FailureKind::Conflict | FailureKind::KeyReused | FailureKind::Exhausted => {
            todo!()
        }
    };
    let detail = match failure.kind {
        FailureKind::Unavailable | FailureKind::TimedOut | FailureKind::DiskFull => format!(
            "{}: {} of {} answers that consistency {} needs",
            failure.kind,
            failure.acked.len(),
            failure.required,
            failure.level
        ),
        _ => failure.kind.to_string(),
    };
    let replies = Replies { required: failure.required, acked: failure.acked, failed: failure.failed };
    let problem = Problem::new(code, detail).with_replies(replies);
    match operation {
        Operation::Read => problem,
        Operation::Write => problem.with_outcome(failure.outcome.unwrap_or(Outcome::Unknown)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Level, NodeNum};

    fn shown(operation: Operation, kind: FailureKind, outcome: Option<Outcome>) -> serde_json::Value {
        let failure = Failure {
            kind,
            outcome,
            level: Level::All,
            required: 3,
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
    fn the_detail_counts_and_names() {
        let body = shown(Operation::Read, FailureKind::Unavailable, None);
        assert_eq!(body["detail"], "not enough replicas can be reached: 1 of 3 answers that consistency all needs");
        let body = shown(Operation::Read, FailureKind::ClockSkew { by_ms: -7000 }, None);
        assert_eq!(body["detail"], "this node's clock is -7000 ms off the median of its peers' clocks");
    }

    #[test]
    fn only_a_write_has_an_outcome_and_it_is_never_left_open() {
        assert_eq!(shown(Operation::Read, FailureKind::TimedOut, None).get("outcome"), None);
        assert_eq!(shown(Operation::Write, FailureKind::TimedOut, None)["outcome"], "unknown");
    }
}
