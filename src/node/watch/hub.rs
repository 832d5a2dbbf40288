//! Who on this node waits for a change of what: each is woken by its own changes alone.
//!
//! One task follows the store's log while anybody waits; it gathers for a moment first, so that many writes wake somebody once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::ports::ChangeLog;
use crate::types::{Key, KeyChange, Watched};

/// How long changes are gathered before those who wait for them are woken.
const GATHER: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Places {
    next: u64,
    keys: BTreeMap<Key, BTreeMap<u64, Arc<Notify>>>,
    prefixes: BTreeMap<u64, (Watched, Arc<Notify>)>,
}

impl Places {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.prefixes.is_empty()
    }

    fn wake(&self, change: &KeyChange) {
        for notify in self.keys.get(&change.key).into_iter().flat_map(BTreeMap::values) {
            notify.notify_one();
        }
        for (watched, notify) in self.prefixes.values() {
            if watched.holds(&change.key) {
                notify.notify_one();
            }
        }
    }

    fn wake_all(&self) {
        self.keys.values().flat_map(BTreeMap::values).for_each(|notify| notify.notify_one());
        self.prefixes.values().for_each(|(_, notify)| notify.notify_one());
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
    woken: Arc<Notify>,
}

impl Hub {
    /// From now on changes of what is watched wake the place.
    pub(super) fn enter(self: &Arc<Self>, watched: Watched) -> Place {
        let woken = Arc::new(Notify::new());
        let mut places = self.places.lock();
        places.next += 1;
        let number = places.next;
        match &watched {
            Watched::One(key) => {
                places.keys.entry(key.detached()).or_default().insert(number, Arc::clone(&woken));
            }
            Watched::Prefix(_) => drop(places.prefixes.insert(number, (watched.clone(), Arc::clone(&woken)))),
        }
        drop(places);
        self.entered.notify_one();
        Place { hub: Arc::clone(self), number, watched, woken }
    }

    /// Runs for the node's life.
    pub(super) async fn run(self: Arc<Self>, log: Arc<ChangeLog>) {
        loop {
            while self.places.lock().is_empty() {
                self.entered.notified().await;
            }
            // Whoever entered before looks at the log itself, behind what it knows.
            let mut seen = log.head();
            self.places.lock().wake_all();
            while !self.places.lock().is_empty() {
                tokio::select! {
                    biased;
                    () = log.grown(seen.seq) => {}
                    () = self.entered.notified() => continue,
                }
                sleep(GATHER).await;
                loop {
                    let page = log.all(seen);
                    let places = self.places.lock();
                    if !page.reaches {
                        // More was stored meanwhile than is kept.
                        places.wake_all();
                    }
                    page.changes.iter().for_each(|change| places.wake(change));
                    seen = page.at;
                    if !page.more {
                        break;
                    }
                }
            }
        }
    }
}

impl Place {
    /// Ends when there was a change since it last ended, or since the place was entered.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
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
