//! The start of a node that belongs to a cluster already: it looks for its members before it serves.
//!
//! A member goes on as soon as one of its own answers, and also when nobody does: the others may be down. It stops when
//! whoever answers belongs to another cluster, for then its `SEEDS` or its data directory are not what a person meant,
//! and it would serve on alone. A single port that a stranger took over stops nobody, while a member answers.

use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::{FOREIGN_FOR, Founding, WITHIN};
use crate::ports::{PeerError, PeerReply, PeerRequest};
use crate::protocol::founding::Stop;
use crate::types::{ClusterId, Topology};

/// Who answered one round of questions.
enum Round {
    /// A member, and the topology it has in force where that is newer.
    Ours(Option<Arc<Topology>>),
    /// Only members of that other cluster, one of them there.
    Foreign(ClusterId, String),
    Nobody,
}

impl Founding {
    /// With the topology on disk: whether the seeds are of this cluster, as far as they answer, and have a newer one.
    pub(super) async fn meet(&self, topology: &Topology) -> Result<Option<Arc<Topology>>, Stop> {
        let mine = topology.cluster_id;
        if self.options.seeds.is_empty() {
            return Ok(None);
        }
        let began = Instant::now();
        loop {
            match self.look_around(topology).await {
                Round::Foreign(theirs, there) => self.bear(mine, theirs, there, began)?,
                Round::Ours(newer) => return Ok(newer),
                Round::Nobody => return Ok(None),
            }
            self.pause().await;
        }
    }

    /// Puts up with seeds of another cluster for a while.
    fn bear(&self, mine: ClusterId, theirs: ClusterId, there: String, since: Instant) -> Result<(), Stop> {
        if since.elapsed() < FOREIGN_FOR { Ok(()) } else { Err(Stop::Foreign { mine, theirs, there }) }
    }

    /// Asks the seeds and the remembered addresses, and ends with the first answer that decides.
    async fn look_around(&self, topology: &Topology) -> Round {
        let mine = topology.cluster_id;
        let known = self.store.identity().known_addresses;
        let targets = self.state.lock().gathering.addresses(self.options.seeds.iter().chain(&known));
        let ask = |address: String| async move { (self.ask(&address, PeerRequest::Topology, WITHIN).await, address) };
        let mut asks: FuturesUnordered<_> = targets.into_iter().map(ask).collect();
        let mut round = Round::Nobody;
        while let Some((answer, address)) = asks.next().await {
            match answer {
                // Before this node's identity names its cluster, others tell it of theirs.
                Ok(PeerReply::Topology { topology: Some(topology) }) if topology.cluster_id != mine => {
                    round = Round::Foreign(topology.cluster_id, address);
                }
                Ok(PeerReply::Topology { topology: Some(theirs) }) => {
                    return Round::Ours((theirs.epoch > topology.epoch).then_some(theirs));
                }
                Ok(_) => return Round::Ours(None),
                // A remembered address may be somebody else's by now; a seed was given by a person.
                Err(PeerError::ForeignCluster(theirs)) if self.options.seeds.contains(&address) => {
                    round = Round::Foreign(theirs, address);
                }
                Err(_) => {}
            }
        }
        round
    }
}
