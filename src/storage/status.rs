//! Whether the store writes, and what time it is: shared by all its threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::engine::Now;
use super::meters::Meters;
use crate::ports::{Clock, StoreError};
use crate::types::Hlc;

pub(super) struct Status {
    pub(super) meters: Meters,
    clock: Arc<dyn Clock>,
    /// What the node's hybrid clock shows at least.
    observed: AtomicU64,
    failure: watch::Sender<Option<StoreError>>,
    full: AtomicBool,
    /// Others have these records: a database with damaged pages is better rebuilt than served on.
    replaceable: AtomicBool,
    damage: OnceLock<String>,
}

impl Status {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let meters = Meters::new();
        meters.writable.set(1.0);
        let (observed, full) = (AtomicU64::new(0), AtomicBool::new(false));
        let (failure, replaceable, damage) = (watch::Sender::new(None), AtomicBool::new(false), OnceLock::new());
        Self { meters, clock, observed, failure, full, replaceable, damage }
    }

    pub(super) fn observe(&self, now: Hlc) {
        self.observed.fetch_max(now.0, Ordering::Relaxed);
    }

    pub(super) fn hlc(&self) -> Hlc {
        Hlc(self.observed.load(Ordering::Relaxed)).max(Hlc::from_ms(self.clock.wall_ms()))
    }

    pub(super) fn now(&self) -> Now {
        Now { hlc: self.hlc(), wall_ms: self.clock.wall_ms() }
    }

    /// The store stops writing, for good. Answers with what everybody is told: the first reason stands.
    pub(super) fn fail(&self, reason: String) -> StoreError {
        let mut error = StoreError::Failed(reason);
        self.failure.send_if_modified(|failure| match failure {
            Some(first) => {
                error = first.clone();
                false
            }
            None => {
                tracing::error!(%error, "the store stops writing");
                *failure = Some(error.clone());
                true
            }
        });
        self.meters.writable.set(0.0);
        error
    }

    pub(super) fn set_replaceable(&self, replaceable: bool) {
        self.replaceable.store(replaceable, Ordering::Relaxed);
    }

    /// Where others have the records, ends the store once one of its threads met a damaged page: at the next start the
    /// database is moved aside. Elsewhere what can be read is all there is, and is served on.
    pub(super) fn stop_if_damaged(&self, met: &Meters) {
        if let Some(page) = met.page() {
            self.condemn(page);
        }
    }

    /// The same for damage that somebody else found.
    pub(super) fn condemn(&self, what: &str) {
        if self.replaceable.load(Ordering::Relaxed) && self.damage.set(what.to_owned()).is_ok() {
            self.fail(format!("the database is damaged ({what}); at the next start it is moved aside and rebuilt"));
        }
    }

    /// Why the database must not be opened again.
    pub(super) fn damage(&self) -> Option<String> {
        self.damage.get().cloned()
    }

    pub(super) fn failure(&self) -> Option<StoreError> {
        self.failure.borrow().clone()
    }

    pub(super) fn writable(&self) -> bool {
        self.failure.borrow().is_none()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<StoreError>> {
        self.failure.subscribe()
    }

    /// Says once that the disk is full, until something was written again.
    pub(super) fn disk_full(&self) {
        if !self.full.swap(true, Ordering::Relaxed) {
            self.meters.writable.set(0.0);
            tracing::error!("the disk is full; writes are refused until there is space");
        }
    }

    pub(super) fn wrote(&self) {
        if self.full.load(Ordering::Relaxed) && self.full.swap(false, Ordering::Relaxed) {
            self.meters.writable.set(f64::from(u8::from(self.writable())));
            tracing::info!("the disk has space again; writes go on");
        }
    }
}
