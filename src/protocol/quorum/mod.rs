//! The read and write folds: who is asked, when an answer is enough, and what is said about it.
//!
//! A fold is driven by `node/coordinator`: it is told what came (`on_answer`), that somebody has been silent for too
//! long (`on_silence`) or that time is up, and returns what to send next. It decides nothing by clock or chance, and
//! counts over a *list* of write sets, of which there are two while a slot moves.
//!
//! Source of the shape: the get and put finite state machines of Riak KV; of the stand-ins: DeCandia et al., "Dynamo"
//! (SOSP 2007), with the difference that every receipt says what was counted.

mod gather;
mod import;
mod read;
mod write;

pub use gather::{Gather, Gathered};
pub use import::{ImportFold, ImportState, ImportTerms, Imported};
pub use read::{ReadAsk, ReadFold, ReadState};
pub use write::{WriteAsk, WriteFold, WriteState};

pub use crate::protocol::reach::Ask;
use crate::types::NodeNum;

/// What is known of the nodes' reachability when a fold decides.
pub type Asking<'a> = &'a dyn Fn(NodeNum) -> Ask;

/// Why a replica that can be reached has no part in an operation that failed at once.
const NOT_ASKED: &str = "not asked: the level cannot be met";

/// What is said of a replica whose answer the operation did not live to see.
const NO_ANSWER: &str = "no answer so far";

#[cfg(test)]
mod import_tests;
#[cfg(test)]
mod read_tests;
#[cfg(test)]
mod write_tests;

#[cfg(test)]
mod testing {
    //! Shared by the tests of both folds: short names for nodes, placements and answers.

    use std::sync::Arc;

    use smallvec::SmallVec;

    use crate::protocol::ring::Placement;
    use crate::types::{Answer, Content, Hlc, Key, NodeNum, Record, ReplicaReply, Seen, Version, Writer};

    pub(super) fn n(number: u16) -> NodeNum {
        NodeNum(number)
    }

    pub(super) fn nodes(numbers: &[u16]) -> Vec<NodeNum> {
        numbers.iter().copied().map(NodeNum).collect()
    }

    pub(super) fn placement(write_sets: &[&[u16]], fallbacks: &[u16]) -> Arc<Placement> {
        let write_sets =
            write_sets.iter().map(|set| set.iter().copied().map(NodeNum).collect()).collect::<SmallVec<_>>();
        Arc::new(Placement { write_sets, fallbacks: nodes(fallbacks) })
    }

    pub(super) fn version(hlc: u64, writer: u32) -> Version {
        Version::plain(Hlc(hlc), Writer(writer))
    }

    pub(super) fn record(version: Version, value: Option<&'static str>) -> Record {
        let content = value.map_or(Content::Tombstone, Content::value);
        Record::seal(&key(), version, version.hlc, content)
    }

    pub(super) fn key() -> Key {
        Key::new("k").unwrap()
    }

    pub(super) fn seen(version: Version, live: bool) -> Seen {
        Seen::of(&record(version, live.then_some("v")), Hlc::ZERO)
    }

    pub(super) fn stored(replaced: Option<Seen>) -> Answer {
        Ok(ReplicaReply::Stored { replaced })
    }

    pub(super) fn dominated(by: Version) -> Answer {
        Ok(ReplicaReply::Dominated { by: seen(by, true) })
    }
}
