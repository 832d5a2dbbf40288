//! Changes of the topology. The driver is still to come: nothing begins here yet.

use super::Node;
use super::views::ChangeView;
use crate::protocol::succession::change::{self, Unfit, Wish};

/// Why a change did not begin, or end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeFailure {
    /// Nothing was changed.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Nothing was changed.
    #[error("the node has not joined its cluster yet")]
    NotReady,
    /// It may be decided all the same, or have been.
    #[error("no majority of the members answered in time")]
    Undecided,
    /// Nothing was changed.
    #[error("no change of the topology is under way")]
    None,
}

impl Node {
    pub async fn begin_change(&self, wish: Wish) -> Result<ChangeView, ChangeFailure> {
        let ring = self.routing.ring().ok_or(ChangeFailure::NotReady)?;
        let topology = change::begin(ring.topology(), &wish)?;
        let moving = topology.moving.as_ref().ok_or(ChangeFailure::None)?;
        Ok(ChangeView {
            since: moving.since,
            epoch: topology.epoch,
            change: moving.change.clone(),
            slots: topology.moving_slots().count() as u64,
            members: Vec::new(),
            waiting_for: Vec::new(),
        })
    }

    pub async fn abort_change(&self) -> Result<ChangeView, ChangeFailure> {
        Err(ChangeFailure::None)
    }

    pub async fn change(&self) -> Option<ChangeView> {
        None
    }
}
