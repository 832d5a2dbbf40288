//! Requests on their way: which nodes have been asked, since when, and for how long their silence is usual.

use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use crate::node::answers::Answers;
use crate::node::reach::Reach;
use crate::ports::Answer;
use crate::types::NodeNum;

/// What a request was, packed into the tag that its answer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// A question that is the only one asked of that node in its flight.
    Query {
        from: NodeNum,
    },
    Write {
        from: NodeNum,
        round: u8,
    },
    Hint {
        from: NodeNum,
        target: NodeNum,
        counted: bool,
        round: u8,
    },
}

impl Tag {
    const QUERY: u64 = 0;
    const WRITE: u64 = 1;
    const HINT: u64 = 2;
    const COUNTED_HINT: u64 = 3;

    /// 8 bits of kind, 8 of round, 16 of target, 16 of node.
    pub(super) fn pack(self) -> u64 {
        let pack = |kind: u64, round: u8, target: u16, from: NodeNum| {
            kind << 40 | u64::from(round) << 32 | u64::from(target) << 16 | u64::from(from.0)
        };
        match self {
            Tag::Query { from } => pack(Self::QUERY, 0, 0, from),
            Tag::Write { from, round } => pack(Self::WRITE, round, 0, from),
            Tag::Hint { from, target, counted, round } => {
                pack(if counted { Self::COUNTED_HINT } else { Self::HINT }, round, target.0, from)
            }
        }
    }

    pub(super) fn unpack(tag: u64) -> Self {
        let (from, target, round) = (NodeNum(tag as u16), NodeNum((tag >> 16) as u16), (tag >> 32) as u8);
        match tag >> 40 {
            Self::QUERY => Tag::Query { from },
            Self::WRITE => Tag::Write { from, round },
            kind => Tag::Hint { from, target, counted: kind == Self::COUNTED_HINT, round },
        }
    }

    pub(super) fn from(self) -> NodeNum {
        match self {
            Tag::Query { from } | Tag::Write { from, .. } | Tag::Hint { from, .. } => from,
        }
    }

    /// Whose copy it is, where it is a hint.
    pub(super) fn target(self) -> Option<NodeNum> {
        if let Tag::Hint { target, .. } = self { Some(target) } else { None }
    }
}

/// What ended a wait.
pub(super) enum Arrival {
    Answer(Tag, Answer),
    /// These nodes have been silent for longer than is usual; each is told once.
    Silence(SmallVec<[NodeNum; 4]>),
    Deadline,
}

/// One node that was asked.
#[derive(Clone, Copy, Debug)]
struct Wait {
    node: NodeNum,
    sent: Instant,
    /// When its silence stops being usual; `None` once that was noticed.
    until: Option<Instant>,
}

/// The requests under way of one operation.
#[derive(Debug, Default)]
pub(super) struct Flight {
    waits: SmallVec<[Wait; 4]>,
}

impl Flight {
    pub(super) fn sent(&mut self, node: NodeNum, now: Instant, patience: Duration) {
        self.waits.push(Wait { node, sent: now, until: Some(now + patience) });
    }

    /// Waits for what comes first, and tells `reach` what it says about the peers.
    pub(super) async fn arrival(&mut self, answers: &Answers, deadline: Instant, reach: &Reach) -> Arrival {
        let arrived = match answers.try_next() {
            Some(arrived) => Some(arrived),
            None => {
                let wake = self.next_check().map_or(deadline, |t| t.min(deadline));
                timeout_at(wake, answers.next()).await.ok()
            }
        };
        let now = Instant::now();
        match arrived {
            Some((tag, answer)) => {
                let tag = Tag::unpack(tag);
                if let Some(took) = self.answered(tag.from(), now)
                    && answer.is_ok()
                {
                    reach.answered(tag.from(), took);
                }
                Arrival::Answer(tag, answer)
            }
            None if now >= deadline => Arrival::Deadline,
            None => {
                let silent = self.silent(now);
                silent.iter().for_each(|n| reach.hung(*n));
                Arrival::Silence(silent)
            }
        }
    }

    /// Notes an answer: how long it took.
    fn answered(&mut self, node: NodeNum, now: Instant) -> Option<Duration> {
        let at = self.waits.iter().position(|w| w.node == node)?;
        Some(now - self.waits.swap_remove(at).sent)
    }

    /// When to look for silent nodes, if any is waited for.
    fn next_check(&self) -> Option<Instant> {
        self.waits.iter().filter_map(|w| w.until).min()
    }

    /// Nodes whose silence has just stopped being usual, each once.
    fn silent(&mut self, now: Instant) -> SmallVec<[NodeNum; 4]> {
        let mut silent = SmallVec::new();
        for wait in self.waits.iter_mut().filter(|w| w.until.is_some_and(|u| u <= now)) {
            wait.until = None;
            silent.push(wait.node);
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_survives_packing() {
        let (a, b) = (NodeNum(65535), NodeNum(258));
        for tag in [
            Tag::Query { from: a },
            Tag::Write { from: b, round: 1 },
            Tag::Hint { from: a, target: b, counted: true, round: 2 },
            Tag::Hint { from: b, target: a, counted: false, round: 255 },
        ] {
            assert_eq!(Tag::unpack(tag.pack()), tag);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_once() {
        let mut flight = Flight::default();
        let start = Instant::now();
        flight.sent(NodeNum(1), start, Duration::from_millis(50));
        flight.sent(NodeNum(2), start, Duration::from_millis(80));
        assert_eq!(flight.next_check(), Some(start + Duration::from_millis(50)));
        let at = start + Duration::from_millis(60);
        assert_eq!(flight.silent(at).as_slice(), [NodeNum(1)]);
        assert!(flight.silent(at).is_empty());
        assert_eq!(flight.next_check(), Some(start + Duration::from_millis(80)));
        assert_eq!(flight.answered(NodeNum(1), at), Some(Duration::from_millis(60)));
        assert_eq!(flight.answered(NodeNum(1), at), None);
    }
}
