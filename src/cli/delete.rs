//! `a3 delete`: remove a key.

use std::ffi::OsString;

use bytes::Bytes;
use clap::Args;
use hyper::Method;

use super::Fault;
use super::client::{Asked, Client, Once, Wishes, block_on};
use super::output::Output;
use super::put::receipt;

/// Delete a key; deleting an absent one is fine.
#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Any bytes, 1 to 1024 of them.
    key: OsString,
    #[command(flatten)]
    wishes: Wishes,
    #[command(flatten)]
    once: Once,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Delete {
    pub(super) fn run(self) -> Result<(), Fault> {
        let path = self.wishes.path(&self.key, None);
        let mut headers = self.wishes.headers();
        headers.extend(self.once.header());
        let answer = block_on(Client::new().send(Method::DELETE, &self.asked.host, &path, headers, Bytes::new()))?;
        receipt(&answer.success()?.json()?, self.output)
    }
}
