//! `a3 get`: a value's bytes, exactly.

use std::ffi::OsString;

use clap::Args;

use super::Fault;
use super::client::{Asked, Client, Wishes, block_on};
use super::output::{self, Output};

/// Print the value of a key, byte for byte; with -o json its record and each replica's version.
#[derive(Debug, Args)]
pub(super) struct Get {
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
        let view = self.output.is_json().then_some("record");
        let path = self.wishes.path(&self.key, view);
        let answer = block_on(async { Client::new().get(&self.asked.host, &path).await })?.success()?;
        if view.is_some() { output::json(&answer.json()?) } else { output::write(&answer.body) }
    }
}
