//! What a replica's answer means for a record that a round wrote there, and how long one is waited for that has too much to do.

use std::time::Duration;

use tokio::time::sleep;

use super::Stop;
use crate::ports::{Answer, PeerError, Refusal, ReplicaReply};

/// A replica that is overloaded is tried again after this, then after twice as long, and so on.
const WAIT_FIRST: Duration = Duration::from_millis(50);
/// So often: some thirteen seconds in all.
const WAITS_MAX: u32 = 8;

/// Waits for a replica that has too much to do: ever longer, and not for ever.
#[derive(Default)]
pub(super) struct Waits(u32);

impl Waits {
    /// # Errors
    /// When it has waited long enough.
    pub(super) async fn wait(&mut self) -> Result<(), Stop> {
        if self.0 == WAITS_MAX {
            return Err(PeerError::Overloaded.into());
        }
        sleep(WAIT_FIRST * (1 << self.0)).await;
        self.0 += 1;
        Ok(())
    }
}

/// What an answer means for the record that was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Stored,
    /// The replica has too much to do now. Nothing was done.
    Later,
    /// Something at least as new stood there.
    There,
    /// Nothing stood there, and the slot's floor covers it: it was purged, or its row was lost.
    Below,
    /// This one, for a reason of its own.
    Refused,
}

/// # Errors
/// When the replica takes nothing at the moment.
pub(super) fn fate(answer: Answer) -> Result<Fate, Stop> {
    match answer {
        Ok(ReplicaReply::Stored { .. }) => Ok(Fate::Stored),
        Ok(ReplicaReply::Dominated { .. }) => Ok(Fate::There),
        Ok(ReplicaReply::BelowFloor { .. }) => Ok(Fate::Below),
        Ok(ReplicaReply::WrongEpoch { .. }) => Err(Stop::Refused("its topology is newer".into())),
        Ok(ReplicaReply::Refused(
            Refusal::ClockSkew { .. } | Refusal::Damaged | Refusal::TooLarge { .. } | Refusal::Corrupt,
        )) => Ok(Fate::Refused),
        Ok(ReplicaReply::Refused(Refusal::Overloaded)) | Err(PeerError::Overloaded) => Ok(Fate::Later),
        Ok(ReplicaReply::Refused(refusal)) => Err(Stop::Refused(refusal.to_string())),
        Ok(_) => Err(wrong_kind()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn wrong_kind() -> Stop {
    Stop::Refused("an answer of the wrong kind".into())
}
