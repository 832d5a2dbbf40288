//! `a3 get`: a value's bytes, exactly.

use std::ffi::OsString;

use bytes::Bytes;
use clap::Args;
use hyper::Method;

use super::Fault;
use super::client::{Asked, Client, Wishes, block_on};
use super::output::{self, Output};

/// Print the value of a key, byte for byte; with -o json its record, the version for --if-match, when it ends, and each
/// replica's copy.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// Any bytes, 1 to 1024 of them.
    key: OsString,
    #[command(flatten)]
    wishes: Wishes,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Get {
    pub(super) fn run(self) -> Result<(), Fault> {
        let shows_record = self.output.is_json();
        let path = self.wishes.path(&self.key, shows_record.then(|| "view=record".into()));
        let headers = self.wishes.headers();
        let answer =
            block_on(Client::new().send(Method::GET, &self.asked.host, &path, headers, Bytes::new()))?.success()?;
        if shows_record { output::json(&answer.json()?) } else { output::write(&answer.body) }
    }
}
