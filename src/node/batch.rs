//! Several operations asked for together.
//!
//! It is no transaction: each operation is done by itself, as if it had come alone, and its answer says what became of it.
//! What comes of asking together is speed. The operations are under way at once, so their requests share messages between
//! nodes and transactions on disk.
//!
//! Invariants:
//! - Operations on one key are done one after the other, in the order given; those on different keys in any order.
//! - What is answered [`Missed::Late`] or [`Missed::Full`] was not begun.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::Node;
use super::request::{Failure, Found, Get, Receipt, Write};
use crate::types::{Content, Key};

/// Keys that are worked on at a time.
const KEYS_AT_ONCE: usize = 64;
/// Bytes of values that one batch reads. No read is begun once they are reached, so that it holds at most this and
/// [`KEYS_AT_ONCE`] values more.
const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One of a batch.
#[derive(Clone, Debug)]
pub enum Operation {
    Get(Get),
    Write(Write),
}

impl Operation {
    fn key(&self) -> &Key {
        match self {
            Operation::Get(get) => &get.key,
            Operation::Write(Write::Plain(put)) => &put.key,
            Operation::Write(Write::Conditional(put)) => &put.key,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Answer {
    Found(Found),
    Wrote(Receipt),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missed {
    /// It was tried.
    Failed(Failure),
    /// The batch's time was up before its turn came.
    Late,
    /// The values read before it are as many bytes as one batch may read.
    Full,
}

impl Node {
    /// Does all of these, and answers them in their order. None is begun after the deadline.
    pub async fn batch(&self, operations: Vec<Operation>, deadline: Instant) -> Vec<Result<Answer, Missed>> {
        let read = AtomicUsize::new(0);
        let by_key = by_key(operations).into_iter().map(|of_key| async {
            let mut answers = Vec::with_capacity(of_key.len());
            for (at, operation) in of_key {
                answers.push((at, self.one_of_batch(operation, deadline, &read).await));
            }
            answers
        });
        let answers: Vec<_> = stream::iter(by_key).buffer_unordered(KEYS_AT_ONCE).collect().await;
        let mut answers: Vec<_> = answers.into_iter().flatten().collect();
        answers.sort_unstable_by_key(|(at, _)| *at);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn one_of_batch(
        &self,
        operation: Operation,
        deadline: Instant,
        read: &AtomicUsize,
    ) -> Result<Answer, Missed> {
        if Instant::now() >= deadline {
            return Err(Missed::Late);
        }
        match operation {
            Operation::Get(_) if read.load(Ordering::Relaxed) >= VALUE_BYTES_MAX => Err(Missed::Full),
            Operation::Get(get) => {
                let found = self.get(get).await.map_err(Missed::Failed)?;
                read.fetch_add(bytes_of(&found), Ordering::Relaxed);
                Ok(Answer::Found(found))
            }
            Operation::Write(write) => self.write(write).await.map(Answer::Wrote).map_err(Missed::Failed),
        }
    }
}

/// Those of each key with their places in the batch; keys in the order in which they were first named.
fn by_key(operations: Vec<Operation>) -> Vec<Vec<(usize, Operation)>> {
    let mut groups: Vec<Vec<(usize, Operation)>> = Vec::new();
    let mut of_key: BTreeMap<Key, usize> = BTreeMap::new();
    for (at, operation) in operations.into_iter().enumerate() {
        let group = *of_key.entry(operation.key().clone()).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push((at, operation));
    }
    groups
}

fn bytes_of(found: &Found) -> usize {
    match found.record.as_ref().map(|record| &record.content) {
        Some(Content::Value { bytes, .. }) => bytes.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::request::Put;
    use crate::types::{Level, NewContent};

    fn put(key: &'static str, deadline: Instant) -> Operation {
        let (key, content) = (Key::new(key).unwrap(), NewContent::Tombstone);
        Operation::Write(Write::Plain(Put { key, content, level: Level::Quorum, deadline }))
    }

    #[tokio::test(start_paused = true)]
    async fn operations_on_one_key_stay_in_order() {
        let now = Instant::now();
        let groups = by_key(["a", "b", "a", "c", "b", "a"].map(|key| put(key, now)).into());
        let places: Vec<Vec<usize>> = groups.iter().map(|group| group.iter().map(|(at, _)| *at).collect()).collect();
        assert_eq!(places, [vec![0, 2, 5], vec![1, 4], vec![3]]);
    }
}
