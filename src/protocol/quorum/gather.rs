//! One question to all home replicas: who said what, and whether a majority of every write set said yes.
//!
//! No stand-ins: this is what linearizable operations and the register count by.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Ask, Asking, NO_ANSWER, NOT_ASKED};
use crate::protocol::ring::Placement;
use crate::types::{NodeNum, PeerError, majority};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Said<T> {
    Nothing,
    Yes(T),
    No(String),
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    Waiting,
    /// A majority of every write set said yes.
    Met,
    /// That cannot come to be any more.
    Failed,
}

/// The answers to one question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gather<T> {
    placement: Arc<Placement>,
    said: SmallVec<[(NodeNum, Said<T>); 4]>,
}

impl<T> Gather<T> {
    pub fn new(placement: Arc<Placement>) -> Self {
        Self { placement, said: SmallVec::new() }
    }

    /// Whom to ask: every home replica that is connected, those too that did not answer lately. Nobody, where no majority
    /// can come of it.
    pub fn start(&mut self, asking: Asking<'_>) -> SmallVec<[NodeNum; 4]> {
        let mut to = SmallVec::new();
        for node in self.placement.home_replicas() {
            if asking(node) == Ask::No {
                self.said.push((node, Said::No(PeerError::Unreachable.to_string())));
            } else {
                to.push(node);
                self.said.push((node, Said::Nothing));
            }
        }
        if self.state() == Gathered::Failed {
            to.clear();
            for (_, said) in self.said.iter_mut().filter(|(_, said)| matches!(said, Said::Nothing)) {
                *said = Said::No(NOT_ASKED.to_owned());
            }
        }
        to
    }

    /// A replica's answer: what it said yes with, or why not. A second answer of the same replica is not heard.
    pub fn on(&mut self, from: NodeNum, answer: Result<T, String>) {
        if let Some((_, said @ Said::Nothing)) = self.said.iter_mut().find(|(n, _)| *n == from) {
            *said = answer.map_or_else(Said::No, Said::Yes);
        }
    }

    pub fn state(&self) -> Gathered {
        if self.in_every_set(|said| matches!(said, Said::Yes(_))) {
            Gathered::Met
        } else if self.in_every_set(|said| !matches!(said, Said::No(_))) {
            Gathered::Waiting
        } else {
            Gathered::Failed
        }
    }

    fn in_every_set(&self, counts: impl Fn(&Said<T>) -> bool) -> bool {
        self.placement.write_sets.iter().all(|set| {
            let members = self.said.iter().filter(|(n, _)| set.contains(n));
            members.filter(|(_, said)| counts(said)).count() >= majority(set.len())
        })
    }

    /// Who said yes, and with what.
    pub fn yes(&self) -> impl Iterator<Item = (NodeNum, &T)> {
        self.said.iter().filter_map(|(n, said)| if let Said::Yes(with) = said { Some((*n, with)) } else { None })
    }

    /// Who did not say yes, and why.
    pub fn failed(&self) -> Vec<(NodeNum, String)> {
        let why = |said: &Said<T>| match said {
            Said::Nothing => Some(NO_ANSWER.to_owned()),
            Said::No(why) => Some(why.clone()),
            Said::Yes(_) => None,
        };
        self.said.iter().filter_map(|(n, said)| why(said).map(|why| (*n, why))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::quorum::testing::{n, nodes, placement};

    #[test]
    fn a_majority_of_every_write_set_must_say_yes() {
        let mut gather = Gather::new(placement(&[&[1, 2, 3], &[3, 4, 5]], &[6]));
        assert_eq!(gather.start(&|_| Ask::Yes).to_vec(), nodes(&[1, 2, 3, 4, 5]));
        for (node, state) in
            [(1, Gathered::Waiting), (2, Gathered::Waiting), (6, Gathered::Waiting), (5, Gathered::Waiting)]
        {
            gather.on(n(node), Ok(()));
            assert_eq!(gather.state(), state);
        }
        gather.on(n(4), Ok(()));
        assert_eq!(gather.state(), Gathered::Met);
        assert_eq!(gather.failed().len(), 1);
    }

    #[test]
    fn nobody_is_asked_where_no_majority_can_be_had() {
        let mut gather = Gather::<()>::new(placement(&[&[1, 2]], &[3]));
        assert!(gather.start(&|node| if node == n(2) { Ask::No } else { Ask::Yes }).is_empty());
        assert_eq!(gather.state(), Gathered::Failed);
        let mut gather = Gather::<()>::new(placement(&[&[1, 2]], &[3]));
        assert_eq!(gather.start(&|node| if node == n(2) { Ask::Last } else { Ask::Yes }).to_vec(), nodes(&[1, 2]));
    }

    #[test]
    fn the_first_answer_of_a_replica_counts() {
        let mut gather = Gather::new(placement(&[&[1, 2, 3]], &[]));
        gather.start(&|_| Ask::Yes);
        gather.on(n(1), Err("no".into()));
        gather.on(n(1), Ok(1));
        gather.on(n(2), Ok(2));
        assert_eq!(gather.state(), Gathered::Waiting);
        gather.on(n(3), Err("no".into()));
        assert_eq!(gather.state(), Gathered::Failed);
        assert_eq!(gather.yes().collect::<Vec<_>>(), [(n(2), &2)]);
    }
}
