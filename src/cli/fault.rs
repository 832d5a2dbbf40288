//! How a command fails: what is printed, and the exit code.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::Value;

use crate::config::ConfigError;

/// Why a command did not do what it was asked. The variant is the exit code, the text is for a person.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The command line makes no sense. Exit code 2, as for what clap refuses itself.
    #[error("{0}")]
    Usage(String),
    /// The key holds no value; there is no such member, or no change under way. Exit code 3.
    #[error("{0}")]
    NotFound(String),
    /// The condition of the request is false; nothing was written. Exit code 4.
    #[error("{0}")]
    ConditionFailed(String),
    /// No node answered, too few replicas did, or others were first (writes of the key, another change); trying again may help. Exit code 69 (`EX_UNAVAILABLE`).
    #[error("{0}")]
    Unavailable(String),
    /// Exit code 78 (`EX_CONFIG`).
    #[error("{0}")]
    Configuration(String),
}

/// What was asked for by its name is not there.
const NOT_FOUND: &[&str] = &["no-such-key", "no-such-member", "no-such-change"];
/// Conflicts that pass.
const AGAIN: &[&str] = &["conflict", "change-under-way"];

impl Fault {
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Fault::Failed(_) => 1,
            Fault::Usage(_) => 2,
            Fault::NotFound(_) => 3,
            Fault::ConditionFailed(_) => 4,
            Fault::Unavailable(_) => 69,
            Fault::Configuration(_) => 78,
        })
    }

    /// The fault that an answer other than 2xx means.
    pub(super) fn of_answer(status: u16, body: &[u8]) -> Self {
        let text = readable(status, body);
        match status {
            404 if NOT_FOUND.iter().any(|code| code_is(body, code)) => Fault::NotFound(text),
            409 if AGAIN.iter().any(|code| code_is(body, code)) => Fault::Unavailable(text),
            412 => Fault::ConditionFailed(text),
            429 | 503 | 504 => Fault::Unavailable(text),
            _ => Fault::Failed(text),
        }
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Self {
        Fault::Configuration(error.to_string())
    }
}

/// A `problem+json` as a person reads it; any other body only by its status.
fn readable(status: u16, body: &[u8]) -> String {
    let Ok(Value::Object(problem)) = serde_json::from_slice(body) else {
        return format!("the node answered {status}");
    };
    let text = |name: &str| problem.get(name).and_then(Value::as_str);
    let mut lines = text("title").map_or_else(|| format!("the node answered {status}"), str::to_owned);
    // Writing to a String has no way to fail.
    match text("detail") {
        // It stands alone, so it may begin with what the title says.
        Some(detail) if detail.get(..lines.len()).is_some_and(|start| start.eq_ignore_ascii_case(&lines)) => {
            lines.push_str(&detail[lines.len()..]);
        }
        Some(detail) => drop(write!(lines, ": {detail}")),
        None => {}
    }
    match text("outcome") {
        Some("applied") => lines.push_str("\n  outcome: applied (it is stored, but fewer copies than asked for)"),
        Some("not_applied") => lines.push_str("\n  outcome: not_applied (nothing was written)"),
        Some("unknown") => lines.push_str("\n  outcome: unknown (it may have been written)"),
        _ => {}
    }
    if let Some(required) = problem.get("required").and_then(Value::as_u64) {
        let acked = problem.get("acked").map_or_else(|| "none".to_owned(), names);
        let _ = write!(lines, "\n  required: {required}, acked: {acked}");
    }
    for (list, name, reason) in
        [("failed", "node", "reason"), ("parameters", "name", "reason"), ("checks", "name", "detail")]
    {
        for entry in problem.get(list).and_then(Value::as_array).into_iter().flatten() {
            let part = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("?");
            if entry.get("ok") != Some(&Value::Bool(true)) {
                let _ = write!(lines, "\n  {}: {}", part(name), part(reason));
            }
        }
    }
    lines
}

/// Whether an answer is this problem, as far as it says: one status may have several, and a HEAD or a stranger none.
fn code_is(body: &[u8], wanted: &str) -> bool {
    let problem: Option<Value> = serde_json::from_slice(body).ok();
    problem.is_none_or(|p| p.get("code").and_then(Value::as_str).is_none_or(|code| code == wanted))
}

/// The texts of a JSON list, or what else stands there.
fn names(value: &Value) -> String {
    match value {
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_in_full() {
        let body =
            br#"{"title":"Not enough replicas","detail":"2 wanted","status":503,"outcome":"unknown","required":2,
            "acked":["n1"],"failed":[{"node":"n2","reason":"unreachable"}]}"#;
        let Fault::Unavailable(text) = Fault::of_answer(503, body) else { panic!("503 means unavailable") };
        assert_eq!(
            text,
            "Not enough replicas: 2 wanted\n  outcome: unknown (it may have been written)\n  required: 2, acked: n1\n  \
             n2: unreachable"
        );
    }

    #[test]
    fn a_detail_that_repeats_its_title_is_told_once() {
        let body = br#"{"title":"Not enough replicas","detail":"not enough replicas: 1 of 2","status":503}"#;
        assert_eq!(Fault::of_answer(503, body), Fault::Unavailable("Not enough replicas: 1 of 2".into()));
    }

    #[test]
    fn a_false_condition_is_told_from_a_conflict_that_may_be_tried_again() {
        let of =
            |status, code: &str| Fault::of_answer(status, format!(r#"{{"title":"T","code":"{code}"}}"#).as_bytes());
        assert_eq!(of(412, "precondition-failed"), Fault::ConditionFailed("T".into()));
        assert_eq!(of(409, "conflict"), Fault::Unavailable("T".into()));
        assert_eq!(of(409, "condition-count-exhausted"), Fault::Failed("T".into()));
        assert_eq!(of(409, "change-under-way"), Fault::Unavailable("T".into()));
        assert_eq!(of(409, "change-unfit"), Fault::Failed("T".into()));
        assert_eq!(of(404, "no-such-change"), Fault::NotFound("T".into()));
        assert_eq!(of(422, "idempotency-key-reused"), Fault::Failed("T".into()));
    }

    #[test]
    fn other_bodies_are_told_by_status() {
        assert_eq!(Fault::of_answer(502, b"<html>"), Fault::Failed("the node answered 502".into()));
        let no_page = Fault::of_answer(404, br#"{"title":"No such page","code":"no-such-page"}"#);
        assert_eq!(no_page, Fault::Failed("No such page".into()));
        assert_eq!(Fault::of_answer(404, b""), Fault::NotFound("the node answered 404".into()));
    }
}
