//! The first round of a linearizable write: what a majority of home replicas holds, so that its stamp is above that.
//!
//! Source: Attiya, Bar-Noy, Dolev, "Sharing Memory Robustly in Message-Passing Systems" (JACM 1995), with many writers.

use std::sync::Arc;

use crate::node::request::{Failure, FailureKind, Outcome, Put};
use crate::ports::{ReadPart, ReplicaReply, ReplicaRequest};
use crate::protocol::quorum::{Gather, Gathered};
use crate::protocol::ring::Ring;
use crate::types::{Floor, Level, NodeNum, Seen, Topology, Version};

use super::Coordinator;

/// What stood there before a write.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    /// The greatest version of a row, or purged.
    pub(super) newest: Version,
    /// Somebody had a live value.
    pub(super) live: bool,
}

type Held = (Option<Seen>, Floor);

enum End {
    Found(Before),
    /// Some replica holds this newer topology.
    Stale(Arc<Topology>),
}

impl Coordinator {
    /// Asks the home replicas for their versions, under the newest topology that any of them holds.
    ///
    /// # Errors
    /// When no majority of every write set answered. Nothing was written.
    pub(super) async fn look_before(&self, ring: Arc<Ring>, put: &Put) -> Result<(Arc<Ring>, Before), Failure> {
        let mut ring = ring;
        loop {
            match self.look_under(&ring, put).await? {
                End::Found(before) => return Ok((ring, before)),
                End::Stale(topology) => {
                    ring = self.adopt(topology, put.level, put.deadline).await.map_err(not_applied)?
                }
            }
        }
    }

    async fn look_under(&self, ring: &Ring, put: &Put) -> Result<End, Failure> {
        let placement = ring.placement(ring.token(&put.key).slot());
        let mut gather = Gather::<Held>::new(Arc::clone(placement));
        let to = gather.start(&self.asking(placement));
        let request = ReplicaRequest::Read { key: put.key.clone(), part: ReadPart::Version, hints: false };
        let mut round = self.ask(&to, ring.epoch(), &request, put.deadline);
        let failed = |gather: &Gather<Held>, kind| {
            let acked: Vec<NodeNum> = gather.yes().map(|(node, _)| node).collect();
            not_applied(Failure {
                required: placement.needed(Level::Linearizable),
                sets: placement.answers(Level::Linearizable, &acked),
                acked,
                failed: gather.failed(),
                ..Failure::before(kind, put.level)
            })
        };
        loop {
            match gather.state() {
                Gathered::Met => return Ok(End::Found(newest(&gather))),
                Gathered::Failed => return Err(failed(&gather, FailureKind::Unavailable)),
                Gathered::Waiting => {}
            }
            let Some((from, answer)) = round.next().await else {
                return Err(failed(&gather, FailureKind::TimedOut));
            };
            let said = match answer {
                Ok(ReplicaReply::WrongEpoch { topology }) => return Ok(End::Stale(topology)),
                Ok(ReplicaReply::Version { seen, floor }) => Ok((seen, floor)),
                Ok(ReplicaReply::Refused(refusal)) => Err(refusal.to_string()),
                Ok(_) => Err("answered another question".into()),
                Err(error) => Err(error.to_string()),
            };
            gather.on(from, said);
        }
    }
}

fn newest(gather: &Gather<Held>) -> Before {
    gather.yes().fold(Before::default(), |before, (_, (seen, floor))| {
        let newest = seen.map_or(floor.version, |s| s.version.max(floor.version));
        Before { newest: before.newest.max(newest), live: before.live || seen.is_some_and(|s| s.live) }
    })
}

fn not_applied(failure: Failure) -> Failure {
    Failure { outcome: Some(Outcome::NotApplied), ..failure }
}
