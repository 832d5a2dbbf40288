//! The start of a node that belongs to a cluster already: it looks for its members before it serves.
//!
//! A member goes on as soon as one of its own answers, and also when nobody does: the others may be down. It stops when
//! whoever answers belongs to another cluster, for then its `SEEDS` or its data directory are not what a person meant,
//! and it would serve on alone. A single port that a stranger took over stops nobody, while a member answers.

use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::{FOREIGN_FOR, Founding, FoundingError, WITHIN};
use crate::ports::{PeerError, PeerReply, PeerRequest};
use crate::protocol::founding::Stop;
use crate::types::{ClusterId, Topology};

/// Who answered one round of questions.
enum Round {
    /// A member, with the topology if it has one, and where it is.
    Ours(Option<Arc<Topology>>, String),
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
        while let Round::Foreign(theirs, there) = self.look_around(false).await {
            self.bear(mine, theirs, there, began)?;
            self.pause().await;
        }
        Ok(())
    }

    /// The database was set aside: the identity names a cluster, and its members know the topology.
    pub(super) async fn recover(&self, mine: ClusterId) -> Result<(), FoundingError> {
        tracing::warn!(cluster = %mine, "{} belongs to a cluster but has no topology: asks the others", self.me.node);
        let mut foreign_since = None;
        while self.routing.ring().is_none() {
            match self.look_around(true).await {
                Round::Ours(Some(topology), there) => return self.take(topology, &there).await,
                Round::Foreign(theirs, there) => {
                    let since = *foreign_since.get_or_insert_with(Instant::now);
                    self.bear(mine, theirs, there, since)?;
                }
                Round::Ours(None, _) | Round::Nobody => foreign_since = None,
            }
            self.pause().await;
        }
        Ok(())
    }

    /// Puts up with seeds of another cluster for a while.
    fn bear(&self, mine: ClusterId, theirs: ClusterId, there: String, since: Instant) -> Result<(), Stop> {
        if since.elapsed() < FOREIGN_FOR { Ok(()) } else { Err(Stop::Foreign { mine, theirs, there }) }
    }

    /// Asks the seeds and the remembered addresses, and ends with the first answer that decides.
    async fn look_around(&self, for_topology: bool) -> Round {
        let known = self.store.identity().known_addresses;
        let targets = self.state.lock().gathering.addresses(self.options.seeds.iter().chain(&known));
        let ask = |address: String| async move { (self.ask(&address, PeerRequest::Topology, WITHIN).await, address) };
        let mut asks: FuturesUnordered<_> = targets.into_iter().map(ask).collect();
        let mut round = Round::Nobody;
        while let Some((answer, address)) = asks.next().await {
            match answer {
                Ok(PeerReply::Topology { topology }) if topology.is_some() || !for_topology => {
                    return Round::Ours(topology, address);
                }
                Ok(_) => round = Round::Ours(None, address),
                // A remembered address may be somebody else's by now; a seed was given by a person.
                Err(PeerError::ForeignCluster(theirs))
                    if !matches!(round, Round::Ours(..)) && self.options.seeds.contains(&address) =>
                {
                    round = Round::Foreign(theirs, address);
                }
                Err(_) => {}
            }
        }
        round
    }
}
