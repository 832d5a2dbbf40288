//! `a3 touch`: change when a value ends, without sending it again.

use std::ffi::OsString;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hyper::Method;

use super::Fault;
use super::client::{Asked, Client, Once, Wishes, block_on, duration};
use super::output::Output;
use super::put::receipt;

/// Let the value of a key live for so long from now on, or for good.
#[derive(Debug, Args)]
pub(super) struct Touch {
    /// Any bytes, 1 to 1024 of them.
    key: OsString,
    /// A time such as 60s, 15m, 12h or 30d, or none: it has no end any more.
    #[arg(value_name = "DURATION", value_parser = new_end)]
    ttl: NewEnd,
    #[command(flatten)]
    wishes: Wishes,
    #[command(flatten)]
    once: Once,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug)]
enum NewEnd {
    In(Duration),
    Never,
}

fn new_end(text: &str) -> Result<NewEnd, String> {
    if text == "none" { Ok(NewEnd::Never) } else { duration(text).map(NewEnd::In) }
}

impl Touch {
    pub(super) fn run(self) -> Result<(), Fault> {
        let ttl = match self.ttl {
            NewEnd::In(ttl) => format!("ttl={}ms", ttl.as_millis()),
            NewEnd::Never => "ttl=none".to_owned(),
        };
        let path = self.wishes.path(&self.key, Some(ttl));
        let mut headers = self.wishes.headers();
        headers.extend(self.once.header());
        let answer = block_on(Client::new().send(Method::PATCH, &self.asked.host, &path, headers, Bytes::new()))?;
        receipt(&answer.success()?.json()?, self.output)
    }
}
