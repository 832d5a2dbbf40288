//! Long polls: a read that waits until what it finds is something new.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Watches, Watching};
use crate::node::request::{Failure, Found, Get};
use crate::types::Watched;

/// Before a watch that could not begin is tried again.
const AGAIN: Duration = Duration::from_secs(1);

impl Watches {
    /// Reads until what is found is new, or that time has come; then what is found last. `read` reads once. Between two
    /// reads it waits for a change of the key.
    ///
    /// # Errors
    /// Where a read fails.
    pub async fn wait<R>(
        self: &Arc<Self>,
        get: &Get,
        is_new: impl Fn(&Found) -> bool,
        until: Instant,
        read: impl Fn() -> R,
    ) -> Result<Found, Failure>
    where
        R: Future<Output = Result<Found, Failure>>,
    {
        let mut watching: Option<Watching> = None;
        loop {
            // In force before it is read, so that what comes behind the read is told.
            if watching.is_none() {
                watching = self.begin(Watched::One(get.key.clone()), None, until.min(get.deadline)).await.ok();
            }
            let found = read().await?;
            if is_new(&found) || Instant::now() >= until {
                return Ok(found);
            }
            match &mut watching {
                Some(one) => {
                    if one.next(until).await.is_err() {
                        watching = None;
                    }
                }
                None => sleep_until(until.min(Instant::now() + AGAIN)).await,
            }
        }
    }
}
