//! The start of a node that belongs to a cluster already: it looks for its members before it serves.
//!
//! A member goes on as soon as one of its own answers, and also when nobody does: the others may be down. It stops when
//! whoever answers belongs to another cluster, for then its `SEEDS` or its data directory are not what a person meant,
//! and it would serve on alone. A single port that a stranger took over stops nobody, while a member answers.

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::{FOREIGN_FOR, Founding, WITHIN};
use crate::ports::{PeerError, PeerReply, PeerRequest};
use crate::protocol::founding::Stop;
use crate::types::ClusterId;

/// Who answered one round of questions.
enum Round {
    /// A member.
    Ours,
    /// Only members of that other cluster, one of them there.
    Foreign(ClusterId, String),
    Nobody,
}

impl Founding {
    /// With the topology on disk: whether the seeds are of this cluster, as far as they answer.
    pub(super) async fn meet(&self, mine: ClusterId) -> Result<(), Stop> {
        if self.options.seeds.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        while let Round::Foreign(theirs, there) = self.look_around(mine).await {
            self.bear(mine, theirs, there, began)?;
            self.pause().await;
        }
        Ok(())
    }

    /// Puts up with seeds of another cluster for a while.
    fn bear(&self, mine: ClusterId, theirs: ClusterId, there: String, since: Instant) -> Result<(), Stop> {
        if since.elapsed() < FOREIGN_FOR { Ok(()) } else { Err(Stop::Foreign { mine, theirs, there }) }
    }

    /// Asks the seeds and the remembered addresses, and ends with the first answer that decides.
    async fn look_around(&self, mine: ClusterId) -> Round {
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
                Ok(_) => return Round::Ours,
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
