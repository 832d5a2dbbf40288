//! The store's own metrics, taken once.

use std::fmt::Display;
use std::sync::{Arc, OnceLock};

use metrics::{Counter, Gauge, Histogram};
use rusqlite::ErrorCode;

use crate::metrics::{
    HINTS_DROPPED, HINTS_STORED, STORE_CHECKPOINTS, STORE_COMMIT_BATCH, STORE_COMMIT_SECONDS, STORE_CONFLICTS,
    STORE_DAMAGED, STORE_WRITABLE, counter, gauge, histogram,
};
use crate::types::{Key, Slot, Version};

#[derive(Clone)]
pub(super) struct Meters {
    pub(super) commit_seconds: Histogram,
    pub(super) commit_batch: Histogram,
    pub(super) checkpoints: Counter,
    pub(super) writable: Gauge,
    pub(super) hints_stored: Counter,
    pub(super) hints_dropped: Counter,
    damaged: Counter,
    conflicts: Counter,
    /// What SQLite said of the first damaged page.
    page: Arc<OnceLock<String>>,
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            commit_seconds: histogram(STORE_COMMIT_SECONDS, &[]),
            commit_batch: histogram(STORE_COMMIT_BATCH, &[]),
            checkpoints: counter(STORE_CHECKPOINTS, &[]),
            writable: gauge(STORE_WRITABLE, &[]),
            hints_stored: counter(HINTS_STORED, &[]),
            hints_dropped: counter(HINTS_DROPPED, &[]),
            damaged: counter(STORE_DAMAGED, &[]),
            conflicts: counter(STORE_CONFLICTS, &[]),
            page: Arc::default(),
        }
    }

    /// A row that is not what was written.
    pub(super) fn damaged(&self, slot: Slot, key: &dyn Display, what: &dyn Display) {
        self.damaged.increment(1);
        tracing::error!(%slot, %key, %what, "a stored row is damaged; nothing in it is believed");
    }

    /// Remembers the error where it means that the file is damaged outside of its rows.
    pub(super) fn met(&self, error: &rusqlite::Error) {
        if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) {
            self.page.get_or_init(|| error.to_string());
        }
    }

    /// The first damaged page that was met.
    pub(super) fn page(&self) -> Option<&str> {
        self.page.get().map(String::as_str)
    }

    /// One version with two contents.
    pub(super) fn conflict(&self, slot: Slot, key: &Key, version: &Version) {
        self.conflicts.increment(1);
        tracing::error!(%slot, %key, %version, "two records of one version differ; was a file restored?");
    }
}
