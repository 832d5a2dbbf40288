//! What this node knows of how it agrees with each peer, chunk by chunk, and since when.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::types::{Agreement, ChunkState, Epoch, NodeNum};

/// Kept in memory: a restart begins anew, and so does an epoch, in which other slots may be shared with another instance.
#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<(NodeNum, u8), Noted>>);

#[derive(Clone, Copy)]
struct Noted {
    epoch: Epoch,
    agreement: Agreement,
    since_ms: u64,
    equal_up_to_ms: u64,
}

impl Memory {
    /// Notes what was found of a peer's chunk now, and whether it has become so just now; `up_to_ms` is when the comparison
    /// began, less what was in flight.
    pub(super) fn note(
        &self,
        epoch: Epoch,
        (peer, chunk): (NodeNum, u8),
        agreement: Agreement,
        renewed: bool,
        [now_ms, up_to_ms]: [u64; 2],
    ) -> ChunkState {
        let mut memory = self.0.lock();
        let blank = Noted { epoch, agreement, since_ms: now_ms, equal_up_to_ms: 0 };
        let noted = memory.entry((peer, chunk)).or_insert(blank);
        if noted.epoch != epoch {
            *noted = blank;
        }
        if renewed || noted.agreement != agreement {
            *noted = Noted { agreement, since_ms: now_ms, ..*noted };
        }
        if agreement == Agreement::Equal {
            noted.equal_up_to_ms = noted.equal_up_to_ms.max(up_to_ms);
        }
        ChunkState { chunk, agreement, since_ms: noted.since_ms, equal_up_to_ms: noted.equal_up_to_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_is_since_it_last_changed() {
        let memory = Memory::default();
        let note = |agreement, now| memory.note(Epoch(1), (NodeNum(2), 3), agreement, false, [now, now - 5]);
        note(Agreement::Equal, 10);
        let state = note(Agreement::Equal, 20);
        assert_eq!((state.chunk, state.since_ms, state.equal_up_to_ms), (3, 10, 15));
        let state = note(Agreement::Differs, 30);
        assert_eq!((state.since_ms, state.equal_up_to_ms), (30, 15));
        let other = memory.note(Epoch(1), (NodeNum(3), 3), Agreement::Equal, false, [40, 35]);
        assert_eq!((other.since_ms, other.equal_up_to_ms), (40, 35));
        let repaired = memory.note(Epoch(1), (NodeNum(3), 3), Agreement::Equal, true, [50, 45]);
        assert_eq!((repaired.since_ms, repaired.equal_up_to_ms), (50, 45));
        let next = memory.note(Epoch(2), (NodeNum(3), 3), Agreement::Unknown, false, [60, 55]);
        assert_eq!((next.since_ms, next.equal_up_to_ms), (60, 0), "it may be of other slots");
    }
}
