//! One line of an import: what is checked before anything is sent, what is sent, and when it is tried again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::{Became, Entry, Line, Options, PATIENCE, Why};
use crate::node::Node;
use crate::node::coordinator::{Import, Importing};
use crate::node::request::{Failure, NewContent, Put};
use crate::ports::Refusal;
use crate::protocol::quorum::Imported;
use crate::protocol::replica::too_far_ahead;
use crate::types::{Content, Hlc, Level, Record, Ttl, Version};

/// Between two attempts, at first; then twice as long each time.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is to be written.
enum Write {
    Exact(Arc<Mutex<Importing>>),
    New(NewContent),
}

impl Node {
    /// Writes a line, and tries again where not enough replicas can be had.
    pub(super) async fn import_line(&self, line: &Line, options: Options) -> Result<Became, Failure> {
        let write = match self.write_of(line, options.restamp) {
            Ok(write) => write,
            Err(became) => return Ok(became),
        };
        let until = Instant::now() + PATIENCE;
        let mut pause = PAUSE_FIRST;
        loop {
            let deadline = (Instant::now() + options.attempt).min(until);
            match self.import_once(line, &write, deadline).await {
                Ok(became) => return Ok(became),
                Err(failure) if Instant::now() + pause >= until || self.is_stopping() => return Err(failure),
                Err(failure) => tracing::debug!(line = line.number, kind = %failure.kind, "a line is tried again"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn import_once(&self, line: &Line, write: &Write, deadline: Instant) -> Result<Became, Failure> {
        self.check_joined(Level::Quorum)?;
        match write {
            Write::New(content) => {
                let (key, content) = (line.key.clone(), content.clone());
                let put = Put { key, content, level: Level::Quorum, deadline };
                self.coordinator.put(put).await.map(|_| Became::Stored)
            }
            Write::Exact(of) => Ok(match self.coordinator.import(&*self.ports.spawn, of, deadline).await? {
                Import::Done(Imported::Stored) => Became::Stored,
                Import::Done(Imported::Unchanged) => Became::Unchanged,
                Import::Done(Imported::Older { .. }) => Became::Older,
                Import::Differs => Became::Refused(Why::Differs),
                Import::Refused(Refusal::ClockSkew { ahead_ms }) => Became::Refused(Why::Ahead { ahead_ms }),
                Import::Refused(Refusal::TooLarge { .. }) => Became::Refused(Why::TooLarge),
                Import::Refused(_) => Became::Refused(Why::Damaged),
            }),
        }
    }

    /// What a line asks to be written, by this node's clock.
    fn write_of(&self, line: &Line, restamp: bool) -> Result<Write, Became> {
        let now = self.clock.ends_by();
        match &line.entry {
            Entry::New { content, expires_at_ms } => new_of(content.clone(), *expires_at_ms, now).map(Write::New),
            Entry::Exact { content, .. } if restamp => restamped(content.clone(), now).map(Write::New),
            Entry::Exact { version, written, content } => {
                self.check_stamp(version, *written, content, now)?;
                // What is stored must not be above what this node stamps next.
                self.clock.observe(version.hlc.max(*written));
                let record = Record::seal(&line.key, *version, *written, content.clone());
                Ok(Write::Exact(Arc::new(Mutex::new(Importing::new(line.key.clone(), record)))))
            }
        }
    }

    fn check_stamp(&self, version: &Version, written: Hlc, content: &Content, now: Hlc) -> Result<(), Became> {
        let stamp = version.hlc.max(written);
        if let Some(ahead_ms) = too_far_ahead(stamp, self.clock.wall_ms(), self.clock.skew_max_ms()) {
            return Err(Became::Refused(Why::Ahead { ahead_ms }));
        }
        if version.is_end() && written.ms() > now.ms() {
            return Err(Became::Refused(Why::NotEnded));
        }
        match content {
            Content::Value { expires_at_ms: Some(at), .. } if *at <= now.ms() => Err(Became::Expired),
            _ => Ok(()),
        }
    }
}

/// A record as something new: it lives as long as it had left.
fn restamped(content: Content, now: Hlc) -> Result<NewContent, Became> {
    match content {
        Content::Tombstone => Ok(NewContent::Tombstone),
        Content::Value { bytes, content_type, expires_at_ms } => {
            new_of(NewContent::Value { bytes, content_type, ttl: None }, expires_at_ms, now)
        }
    }
}

/// A time at which it ends is a time to live.
fn new_of(mut content: NewContent, expires_at_ms: Option<u64>, now: Hlc) -> Result<NewContent, Became> {
    if let (NewContent::Value { ttl, .. }, Some(at)) = (&mut content, expires_at_ms) {
        let left = at.checked_sub(now.ms()).filter(|left| *left > 0).ok_or(Became::Expired)?;
        *ttl = Some(Ttl::from_ms(left).ok_or(Became::Refused(Why::EndTooFar))?);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ttl_of(at: Option<u64>) -> Result<Option<u64>, Became> {
        let content = NewContent::value("v");
        new_of(content, at, Hlc::from_ms(100)).map(|content| match content {
            NewContent::Value { ttl, .. } => ttl.map(Ttl::ms),
            NewContent::Tombstone => None,
        })
    }

    #[test]
    fn a_time_that_it_ends_at_becomes_the_time_that_is_left() {
        assert_eq!(ttl_of(None), Ok(None));
        assert_eq!(ttl_of(Some(160)), Ok(Some(60)));
        assert_eq!(ttl_of(Some(100)), Err(Became::Expired));
        assert_eq!(ttl_of(Some(0)), Err(Became::Expired));
        assert_eq!(ttl_of(Some(u64::MAX)), Err(Became::Refused(Why::EndTooFar)));
        let content = |expires_at_ms| Content::Value { bytes: "v".into(), content_type: None, expires_at_ms };
        assert_eq!(restamped(content(Some(99)), Hlc::from_ms(100)), Err(Became::Expired));
        assert_eq!(restamped(Content::Tombstone, Hlc::from_ms(100)), Ok(NewContent::Tombstone));
    }
}
