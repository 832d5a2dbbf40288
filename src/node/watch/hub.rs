//! Who on this node waits for a change of what: each is woken by its own changes alone.
//!
//! One task follows the store's log while anybody waits; it gathers for a moment first, so that many writes wake somebody once.
//!
//! Invariant: it looks at every change, so whoever was not woken knows that there was nothing for it up to where the task has
//! looked, and whoever was that there was nothing before the changes that woke it. So nobody falls behind the log while it waits,
//! however much of other keys is stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use crate::ports::ChangeLog;
use crate::types::{Key, KeyChange, Watched};

/// How long changes are gathered before those who wait for them are woken.
const GATHER: Duration = Duration::from_millis(5);

/// How somebody is woken.
#[derive(Debug, Default)]
struct Bell {
    rung: Notify,
    /// Since it rang first, if it did: up to where there was nothing.
    before: Mutex<Option<u64>>,
}

impl Bell {
    fn ring(&self, before: u64) {
        self.before.lock().get_or_insert(before);
        self.rung.notify_one();
    }
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    keys: BTreeMap<Key, BTreeMap<u64, Arc<Bell>>>,
    prefixes: BTreeMap<u64, (Watched, Arc<Bell>)>,
    /// Every change up to here was looked at, and whoever it concerns was woken.
    looked: u64,
}

impl Places {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.prefixes.is_empty()
    }

    /// For a change that is behind that place.
    fn wake(&self, change: &KeyChange, before: u64) {
        for bell in self.keys.get(&change.key).into_iter().flat_map(BTreeMap::values) {
            bell.ring(before);
        }
        for (watched, bell) in self.prefixes.values() {
            if watched.holds(&change.key) {
                bell.ring(before);
            }
        }
    }

    fn wake_all(&self) {
        // Nothing is known of what was before.
        self.keys.values().flat_map(BTreeMap::values).for_each(|bell| bell.ring(0));
        self.prefixes.values().for_each(|(_, bell)| bell.ring(0));
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Hub {
    places: Mutex<Places>,
    /// Somebody waits.
    entered: Notify,
}

/// A place of somebody who waits; it is given up when this is dropped.
pub(super) struct Place {
    hub: Arc<Hub>,
    number: u64,
    watched: Watched,
    bell: Arc<Bell>,
}

impl Hub {
    /// From now on changes of what is watched wake the place.
    pub(super) fn enter(self: &Arc<Self>, watched: Watched) -> Place {
        let bell = Arc::<Bell>::default();
        let mut places = self.places.lock();
        places.next += 1;
        let number = places.next;
        match &watched {
            Watched::One(key) => {
                places.keys.entry(key.detached()).or_default().insert(number, Arc::clone(&bell));
            }
            Watched::Prefix(_) => drop(places.prefixes.insert(number, (watched.clone(), Arc::clone(&bell)))),
        }
        drop(places);
        self.entered.notify_one();
        Place { hub: Arc::clone(self), number, watched, bell }
    }

    /// Runs for the node's life.
    pub(super) async fn run(self: Arc<Self>, log: Arc<ChangeLog>) {
        loop {
            while self.places.lock().is_empty() {
                self.entered.notified().await;
            }
            // Whoever entered before looks at the log itself, behind what it knows.
            let mut seen = log.head();
            {
                let mut places = self.places.lock();
                places.looked = seen.seq;
                places.wake_all();
            }
            while !self.places.lock().is_empty() {
                tokio::select! {
                    biased;
                    () = log.grown(seen.seq) => {}
                    () = self.entered.notified() => continue,
                }
                sleep(GATHER).await;
                loop {
                    let page = log.all(seen);
                    let mut places = self.places.lock();
                    if !page.reaches {
                        // More was stored meanwhile than is kept.
                        places.wake_all();
                    }
                    page.changes.iter().for_each(|change| places.wake(change, seen.seq));
                    seen = page.at;
                    places.looked = seen.seq;
                    if !page.more {
                        break;
                    }
                }
            }
        }
    }
}

impl Place {
    /// Ends when there was a change, or the time is up; tells up to where there certainly was none.
    pub(super) async fn quiet_up_to(&self, until: Instant) -> u64 {
        let _ = timeout_at(until, self.bell.rung.notified()).await;
        let places = self.hub.places.lock();
        self.bell.before.lock().take().unwrap_or(places.looked)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.hub.places.lock();
        match &self.watched {
            Watched::Prefix(_) => drop(places.prefixes.remove(&self.number)),
            Watched::One(key) => {
                if let Some(of_key) = places.keys.get_mut(key) {
                    of_key.remove(&self.number);
                    if of_key.is_empty() {
                        places.keys.remove(key);
                    }
                }
            }
        }
    }
}
