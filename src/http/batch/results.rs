//! What became of each operation of a batch, in the documents that single requests are answered with.

use axum::http::StatusCode;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::super::answer::no_value;
use super::super::bodies::{ReceiptBody, RecordBody};
use super::super::conditions::{Judgement, ReadConditions};
use super::super::error::{Operation, problem_of, unmet};
use super::super::problem::{Code, Problem, ProblemBody};
use super::item::{Item, Verb};
use crate::node::batch::{Answer, Missed};
use crate::node::request::{Found, Outcome, Receipt};
use crate::types::Version;

/// A batch's answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchResults)]
pub(super) struct BatchBody<'a> {
    /// Whether all was done.
    ok: bool,
    #[schema(example = "3 operations, each by itself (a batch is not atomic): 2 done, 1 not")]
    message: String,
    /// Operations with a status below 400.
    done: usize,
    /// The others.
    failed: usize,
    /// One for each operation, in their order.
    results: Vec<ResultBody<'a>>,
}

/// What became of one operation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchResult)]
struct ResultBody<'a> {
    /// What it would have been answered with alone; 304 of a get whose value the client has already.
    #[schema(minimum = 200, maximum = 599)]
    status: u16,
    /// Of a put or delete that was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    receipt: Option<ReceiptBody<'a>>,
    /// Of a get that found a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    record: Option<RecordBody<'a>>,
    /// Where the status is 400 or above.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<ProblemBody<'static>>)]
    problem: Option<Within>,
    /// Beside a problem or a 304: the version that stands there, a tombstone's too; absent where nothing does, or it is not
    /// known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "018f3c5a1b2c0000-1-0")]
    version: Option<String>,
}

/// A problem within an answer.
#[derive(Debug)]
struct Within(Problem);

impl Serialize for Within {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.shown(None).serialize(serializer)
    }
}

impl<'a> BatchBody<'a> {
    /// `answers` are those of the items that could be asked, in their order.
    pub(super) fn of(items: &'a [Result<Item, Problem>], answers: &'a [Result<Answer, Missed>]) -> Self {
        let mut answers = answers.iter();
        let result = |item: &'a Result<Item, Problem>| match item {
            Err(problem) => ResultBody::refused(problem.clone(), None),
            // There is one for each that was asked.
            Ok(item) => match answers.next() {
                Some(answer) => ResultBody::of(item, answer),
                None => ResultBody::refused(Problem::new(Code::Internal, "it has no answer"), None),
            },
        };
        let results: Vec<ResultBody<'a>> = items.iter().map(result).collect();
        let failed = results.iter().filter(|result| result.status >= 400).count();
        let (all, done) = (results.len(), results.len() - failed);
        let message = format!("{all} operations, each by itself (a batch is not atomic): {done} done, {failed} not");
        Self { ok: failed == 0, message, done, failed, results }
    }
}

impl<'a> ResultBody<'a> {
    fn of(item: &'a Item, answer: &'a Result<Answer, Missed>) -> Self {
        match (answer, &item.verb) {
            (Ok(Answer::Found(found)), Verb::Get(conditions)) => Self::found(item, found, conditions),
            (Ok(Answer::Wrote(receipt)), Verb::Put) if receipt.created => {
                Self::wrote(item, receipt, StatusCode::CREATED, "stored")
            }
            (Ok(Answer::Wrote(receipt)), Verb::Put) => Self::wrote(item, receipt, StatusCode::OK, "stored"),
            (Ok(Answer::Wrote(receipt)), _) => Self::wrote(item, receipt, StatusCode::OK, "deleted"),
            (Ok(Answer::Found(_)), _) => Self::refused(Problem::new(Code::Internal, "it has an answer to a get"), None),
            (Err(Missed::Full), _) => Self::refused(Problem::new(Code::BatchFull, Code::BatchFull.about().help), None),
            (Err(Missed::Late), verb) => {
                let problem = Problem::new(Code::TimedOut, "the batch's time was up before its turn; it was not begun");
                Self::refused(if verb.writes() { problem.with_outcome(Outcome::NotApplied) } else { problem }, None)
            }
            (Err(Missed::Failed(failure)), verb) => {
                let operation = if verb.writes() { Operation::Write } else { Operation::Read };
                let met = failure.met.as_ref().and_then(|met| met.version);
                Self::refused(problem_of(operation, failure.clone()), met)
            }
        }
    }

    fn found(item: &'a Item, found: &'a Found, conditions: &ReadConditions) -> Self {
        let record = match &found.record {
            Some(record) if found.live => record,
            absent => return Self::refused(no_value(absent.as_ref()), absent.as_ref().map(|record| record.version)),
        };
        match conditions.judge(record) {
            Judgement::Failed => Self::refused(unmet(Some(&record.version)), Some(record.version)),
            Judgement::NotModified => Self::with(StatusCode::NOT_MODIFIED, Some(record.version)),
            Judgement::Send => {
                Self { record: RecordBody::of(&item.key, record, found), ..Self::with(StatusCode::OK, None) }
            }
        }
    }

    fn wrote(item: &'a Item, receipt: &'a Receipt, status: StatusCode, message: &'static str) -> Self {
        Self { receipt: Some(ReceiptBody::of(&item.key, receipt, message)), ..Self::with(status, None) }
    }

    fn refused(problem: Problem, version: Option<Version>) -> Self {
        let status = problem.code().about().status;
        Self { problem: Some(Within(problem)), ..Self::with(status, version) }
    }

    fn with(status: StatusCode, version: Option<Version>) -> Self {
        let version = version.map(|version| version.to_string());
        Self { status: status.as_u16(), receipt: None, record: None, problem: None, version }
    }
}
