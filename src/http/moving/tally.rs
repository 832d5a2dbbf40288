//! What an import comes to, line by line.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::problem::Code;
use super::line::Fault;
use crate::node::import::{Became, Why};
use crate::types::Key;

/// Refused lines that an answer names.
const NAMED_MAX: usize = 100;

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ImportResult)]
pub(in super::super) struct ImportBody {
    /// Lines that were dealt with; what follows is of them.
    pub(super) lines: u64,
    /// Written: greater than what was there, or something new.
    stored: u64,
    /// Exactly this version was there already.
    unchanged: u64,
    /// A greater version is there, a deletion too; or it was deleted, and that is forgotten (purged).
    older: u64,
    /// Its time was up. Nothing was written.
    expired: u64,
    /// Not written: `problems` says why.
    refused: u64,
    /// Whether the lines are known to be all that there were: false where they are an export's that lacks its `end`, or says
    /// that it could not go on.
    complete: bool,
    /// The first hundred of the refused lines.
    problems: Vec<LineProblem>,
    /// Of an import that could not go on: the first line that was not written.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) stopped_at: Option<u64>,
}

/// A line that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = LineProblem)]
pub(super) struct LineProblem {
    /// Its place in the body, from 1.
    line: u64,
    /// Its key, where it has one; what is not UTF-8 in it shows as U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    key: Option<String>,
    /// As a problem's.
    #[schema(example = "bad-line")]
    code: &'static str,
    detail: String,
}

/// The count, while it goes on.
#[derive(Debug, Default)]
pub(super) struct Tally {
    body: ImportBody,
    /// Some line was an export's `end`. What people write behind it takes nothing from that.
    ended: bool,
    /// Some line was an export's `error`.
    errors: bool,
    /// Something may have been written.
    begun: bool,
    /// Some line carries a version, and the format has an `end`.
    wants_end: bool,
}

impl Tally {
    /// A line that can be written. `exported`: it should be followed by an `end` some time.
    pub(super) fn line(&mut self, exported: bool) {
        self.begun = true;
        self.wants_end |= exported;
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn error(&mut self) {
        self.errors = true;
    }

    pub(super) fn refuse(&mut self, line: u64, fault: Fault) {
        self.body.lines += 1;
        self.body.refused += 1;
        if self.body.problems.len() < NAMED_MAX {
            let Fault { code, detail, key } = fault;
            self.body.problems.push(LineProblem { line, key, code: code.about().name, detail });
        }
    }

    pub(super) fn count(&mut self, line: u64, key: &Key, became: Became) {
        let counter = match became {
            Became::Stored => &mut self.body.stored,
            Became::Unchanged => &mut self.body.unchanged,
            Became::Older => &mut self.body.older,
            Became::Expired => &mut self.body.expired,
            Became::Refused(why) => {
                let code = match why {
                    Why::Ahead { .. } | Why::NotEnded => Code::ClockSkew,
                    Why::TooLarge => Code::ValueTooLarge,
                    Why::Differs => Code::VersionConflict,
                    Why::EndTooFar | Why::Damaged => Code::BadLine,
                };
                let key = Some(String::from_utf8_lossy(key.as_bytes()).into_owned());
                return self.refuse(line, Fault { code, detail: why.to_string(), key });
            }
        };
        *counter += 1;
        self.body.lines += 1;
    }

    /// Whether anything may have been written.
    pub(super) fn wrote(&self) -> bool {
        self.begun
    }

    /// At the body's end.
    pub(super) fn finish(mut self) -> ImportBody {
        self.body.complete = !self.errors && (self.ended || !self.wants_end);
        self.body.problems.sort_by_key(|problem| problem.line);
        self.body
    }
}

impl ImportBody {
    /// Of an import that came to its end too early.
    pub(super) fn stopped(mut self, at: Option<u64>) -> Self {
        self.complete = false;
        self.stopped_at = at;
        self
    }
}
