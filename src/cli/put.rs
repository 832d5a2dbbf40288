//! `a3 put`: store a value.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderValue, IF_NONE_MATCH};

use super::Fault;
use super::client::{Asked, Client, Once, Wishes, block_on, duration};
use super::output::{self, Output};

/// Store a value under a key.
#[derive(Debug, Args)]
pub(super) struct Put {
    /// Any bytes, 1 to 1024 of them.
    key: OsString,
    /// The value itself, @FILE for a file's content, or - for stdin.
    #[arg(default_value = "-", allow_negative_numbers = true)]
    value: OsString,
    /// Kept with the value and given back with it.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<HeaderValue>,
    /// How long it lives, such as 60s, 15m, 12h or 30d; then the key has no value any more.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    ttl: Option<Duration>,
    /// Only where the key has no value, so that one of many creates it; else exit code 4.
    #[arg(long, conflicts_with = "if_match")]
    if_absent: bool,
    #[command(flatten)]
    wishes: Wishes,
    #[command(flatten)]
    once: Once,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Put {
    pub(super) fn run(self) -> Result<(), Fault> {
        let value = read(self.value)?;
        let mut headers = self.wishes.headers();
        headers.extend(self.content_type.map(|value| (CONTENT_TYPE, value)));
        headers.extend(self.if_absent.then(|| (IF_NONE_MATCH, HeaderValue::from_static("*"))));
        headers.extend(self.once.header());
        let path = self.wishes.path(&self.key, self.ttl.map(|ttl| format!("ttl={}ms", ttl.as_millis())));
        let answer = block_on(Client::new().send(Method::PUT, &self.asked.host, &path, headers, value))?;
        receipt(&answer.success()?.json()?, self.output)
    }
}

fn read(value: OsString) -> Result<Bytes, Fault> {
    let bytes = value.as_bytes();
    if bytes == b"-" {
        let mut all = Vec::new();
        std::io::stdin().lock().read_to_end(&mut all).map_err(|e| Fault::Failed(format!("stdin: {e}")))?;
        return Ok(all.into());
    }
    if let Some(path) = bytes.strip_prefix(b"@") {
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
        let content = std::fs::read(path).map_err(|e| Fault::Usage(format!("{}: {e}", path.display())))?;
        return Ok(content.into());
    }
    Ok(value.into_vec().into())
}

/// A write's receipt: whole as JSON, or the one line of it that people look for.
pub(super) fn receipt(receipt: &serde_json::Value, output: Output) -> Result<(), Fault> {
    if output.is_json() {
        return output::json(receipt);
    }
    let text = |name: &str| receipt[name].as_str().unwrap_or("?");
    let acked = receipt["acked"].as_array().into_iter().flatten().filter_map(|n| n.as_str());
    let hinted = receipt["hinted"].as_object().into_iter().flatten();
    let hinted: Vec<String> = hinted.map(|(home, by)| format!("{} for {home}", by.as_str().unwrap_or("?"))).collect();
    let kept = if hinted.is_empty() { String::new() } else { format!(", hint kept by {}", hinted.join(", ")) };
    let on = acked.collect::<Vec<_>>().join(", ");
    output::line(&format!("{} version {} on {on}{kept}", text("message"), text("version")))
}
