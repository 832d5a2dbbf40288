//! Imports: lines that come one after the other, however many there are, each a record to be written.
//!
//! What it means to write a record under the version that it has is `protocol::quorum::import`'s and the coordinator's; here is
//! who is at work at a time, and what is tried again.
//!
//! Invariants:
//! - Lines on one key are done in their order; others at once, [`KEYS_AT_ONCE`] keys at a time.
//! - At most [`LINES_HELD_MAX`] lines and about [`BYTES_HELD_MAX`] bytes of values are held, or one line: no more are taken before.
//! - What cannot be written for [`PATIENCE`] ends the import. What is under way then is brought to its end, and counted.
//! - Whatever was done of an import that ended early does no harm when it is begun again; what has a version comes to the same.

mod one;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};

use super::Node;
use super::request::{Failure, FailureKind, NewContent};
use crate::metrics::{self, Counter};
use crate::types::{Content, Hlc, Key, Level, Version};

/// Keys that are worked on at a time.
const KEYS_AT_ONCE: usize = 64;
/// Lines held at a time: those under way, and those that wait for an earlier one on their key.
const LINES_HELD_MAX: usize = 1024;
/// Bytes of their values.
pub const BYTES_HELD_MAX: usize = 4 * 1024 * 1024;
/// How long one line is tried, while not enough replicas can be had.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its place in the file, from 1.
    pub number: u64,
    pub key: Key,
    pub entry: Entry,
}

/// What a line brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A record as it was.
    Exact { version: Version, written: Hlc, content: Content },
    /// Something new. `expires_at_ms`: when it ends, in place of a time to live.
    New { content: NewContent, expires_at_ms: Option<u64> },
}

impl Line {
    fn bytes(&self) -> usize {
        match &self.entry {
            Entry::Exact { content, .. } => content.size(),
            Entry::New { content: NewContent::Value { bytes, .. }, .. } => bytes.len(),
            Entry::New { content: NewContent::Tombstone, .. } => 0,
        }
    }
}

/// How an import is done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything is written as something new.
    pub restamp: bool,
    /// How long one attempt to write a line may take.
    pub attempt: Duration,
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// Written.
    Stored,
    /// Its version was there already.
    Unchanged,
    /// Something newer is there, or it was deleted and forgotten.
    Older,
    /// Its time was up. Nothing was written.
    Expired,
    Refused(Why),
}

/// Why a line is refused that is well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error(
        "its version is {ahead_ms} ms ahead of the clock; a node stores none that is ahead by more than CLOCK_SKEW_MAX"
    )]
    Ahead { ahead_ms: u64 },
    #[error("it ends a value whose time is not up yet, by this node's clock")]
    NotEnded,
    #[error("the time that it ends at is too far away")]
    EndTooFar,
    #[error("its value is too large for the nodes that keep it")]
    TooLarge,
    #[error("another content is stored under its version; restamp=true writes this one above it")]
    Differs,
    #[error("a node found that it is damaged")]
    Damaged,
}

/// Why an import came to its end before its lines did.
#[derive(Debug)]
pub enum Stop<E> {
    /// That line could not be written.
    Line { number: u64, failure: Failure },
    /// No more lines came.
    Source(E),
}

impl Node {
    /// Writes these lines, and tells of each what became of it.
    ///
    /// # Errors
    /// Where one cannot be written, or the source of them fails.
    pub async fn import<E>(
        &self,
        lines: impl Stream<Item = Result<Line, E>> + Unpin,
        options: Options,
        mut told: impl FnMut(Line, Became),
    ) -> Result<(), Stop<E>> {
        let meters = Meters::new();
        // None begins on a node that is stopping.
        let lines = lines.map(|line| match line {
            Ok(line) if self.is_stopping() => {
                let failure = Failure::before(FailureKind::NotReady, Level::Quorum);
                Err(Stop::Line { number: line.number, failure })
            }
            line => line.map_err(Stop::Source),
        });
        let work = |line: Line| -> BoxFuture<'_, Done> {
            Box::pin(async move {
                let became = self.import_line(&line, options).await;
                (line, became)
            })
        };
        let counted = |line, became| {
            meters.count(became);
            told(line, became);
        };
        drive(lines, work, counted).await
    }
}

/// Has each line done, and tells what became of it. Who fails ends it.
async fn drive<'a, E>(
    lines: impl Stream<Item = Result<Line, Stop<E>>> + Unpin,
    work: impl Fn(Line) -> BoxFuture<'a, Done>,
    mut told: impl FnMut(Line, Became),
) -> Result<(), Stop<E>> {
    let mut lines = lines.fuse();
    let mut under = Under { work, futures: FuturesUnordered::new(), waiting: BTreeMap::new(), held: 0, bytes: 0 };
    let (mut stop, mut ended) = (None, false);
    loop {
        ended |= stop.is_some();
        if ended && under.futures.is_empty() {
            return stop.map_or(Ok(()), Err);
        }
        let takes = !ended && under.has_room();
        tokio::select! {
            biased;
            Some((line, became)) = under.futures.next() => {
                // Whole lines of a body that broke off are done; beside one that cannot be, none begins.
                under.next_of(&line, !matches!(stop, Some(Stop::Line { .. })));
                match became {
                    Ok(became) => told(line, became),
                    Err(failure) => first(&mut stop, Stop::Line { number: line.number, failure }),
                }
            }
            next = lines.next(), if takes => match next {
                Some(Ok(line)) => under.take(line),
                Some(Err(error)) => first(&mut stop, error),
                None => ended = true,
            },
        }
    }
}

/// The earliest line that could not be written is the one to be named: whoever goes on from there leaves nothing out.
fn first<E>(stop: &mut Option<Stop<E>>, other: Stop<E>) {
    match (&stop, &other) {
        (Some(Stop::Line { number, .. }), Stop::Line { number: later, .. }) if number <= later => {}
        (Some(Stop::Line { .. }), Stop::Source(_)) => {}
        _ => *stop = Some(other),
    }
}

type Done = (Line, Result<Became, Failure>);

/// The lines under way.
struct Under<'a, W> {
    work: W,
    futures: FuturesUnordered<BoxFuture<'a, Done>>,
    /// Each key that is being worked on, with the lines that wait for it.
    waiting: BTreeMap<Key, VecDeque<Line>>,
    held: usize,
    bytes: usize,
}

impl<'a, W: Fn(Line) -> BoxFuture<'a, Done>> Under<'a, W> {
    fn has_room(&self) -> bool {
        self.futures.len() < KEYS_AT_ONCE && self.held < LINES_HELD_MAX && self.bytes < BYTES_HELD_MAX
    }

    fn take(&mut self, line: Line) {
        self.held += 1;
        self.bytes += line.bytes();
        match self.waiting.get_mut(&line.key) {
            Some(waiting) => waiting.push_back(line),
            None => {
                self.waiting.insert(line.key.clone(), VecDeque::new());
                self.futures.push((self.work)(line));
            }
        }
    }

    /// A line is done: the next one on its key begins, unless there is to be no other.
    fn next_of(&mut self, line: &Line, goes_on: bool) {
        self.held -= 1;
        self.bytes -= line.bytes();
        let next = self.waiting.get_mut(&line.key).and_then(VecDeque::pop_front).filter(|_| goes_on);
        match next {
            Some(next) => self.futures.push((self.work)(next)),
            None => drop(self.waiting.remove(&line.key)),
        }
    }
}

struct Meters {
    stored: Counter,
    unchanged: Counter,
    older: Counter,
    expired: Counter,
    refused: Counter,
}

impl Meters {
    fn new() -> Self {
        let of = |result| metrics::counter(metrics::IMPORT_LINES, &[("result", result)]);
        Self {
            stored: of("stored"),
            unchanged: of("unchanged"),
            older: of("older"),
            expired: of("expired"),
            refused: of("refused"),
        }
    }

    fn count(&self, became: Became) {
        let counter = match became {
            Became::Stored => &self.stored,
            Became::Unchanged => &self.unchanged,
            Became::Older => &self.older,
            Became::Expired => &self.expired,
            Became::Refused(_) => &self.refused,
        };
        counter.increment(1);
    }
}
