//! Long polls: a read that waits until what it finds is something new.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Gone, Watches, Watching};
use crate::node::request::{Failure, Found};
use crate::types::{Key, Watched};

/// Before a watch that could not begin is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it looks whether to stop.
const LOOK: Duration = Duration::from_secs(1);

impl Watches {
    /// Reads until what is found is new, or that time has come, or `stops` says so; then what is found last. `read` reads once.
    /// Between two reads it waits for a change of the key.
    ///
    /// # Errors
    /// Where a read fails.
    pub async fn wait<R>(
        self: &Arc<Self>,
        key: &Key,
        (until, within): (Instant, Duration),
        is_new: impl Fn(&Found) -> bool,
        stops: impl Fn() -> bool,
        read: impl Fn() -> R,
    ) -> Result<Found, Failure>
    where
        R: Future<Output = Result<Found, Failure>>,
    {
        let mut watching: Option<Watching> = None;
        loop {
            let found = read().await?;
            if is_new(&found) || stops() || Instant::now() >= until {
                return Ok(found);
            }
            match &mut watching {
                Some(one) => {
                    if changes(one, until, &stops).await.is_err() {
                        watching = None;
                    }
                }
                None => {
                    // It is read again once that is in force: what comes behind that read is told.
                    let deadline = until.min(Instant::now() + within);
                    watching = self.begin(Watched::One(key.clone()), None, deadline).await.ok();
                    if watching.is_none() {
                        sleep_until(until.min(Instant::now() + AGAIN)).await;
                    }
                }
            }
        }
    }
}

/// Ends when there is a change, the time is up, or it is to stop.
async fn changes(watching: &mut Watching, until: Instant, stops: impl Fn() -> bool) -> Result<(), Gone> {
    while !stops() && Instant::now() < until {
        if !watching.next(until.min(Instant::now() + LOOK)).await?.changes.is_empty() {
            break;
        }
    }
    Ok(())
}
