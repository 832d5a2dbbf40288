//! The log of changes: what a store kept lately, in memory, numbered in the order of its commits.
//!
//! The store adds, the node reads; both hold the same log.
//!
//! Invariants:
//! - A change is added after it is on disk and before anybody is told that it is.
//! - The numbers are those of this life: they begin at 1, and whoever asks from another life's place is told so.
//! - It keeps the last [`CHANGES_MAX`] changes, or as many as have [`KEY_BYTES_MAX`] bytes of keys; older ones are forgotten.

use std::collections::VecDeque;
use std::fmt;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::types::limits::{CHANGES_BYTES_MAX, CHANGES_PAGE_MAX};
use crate::types::{ChangesPage, KeyChange, Position, Watched};

/// Changes that are kept.
pub const CHANGES_MAX: usize = 100_000;
/// The keys of those that are kept have at most so many bytes together.
const KEY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Changes looked at for one page: some 50 µs during which the writer may wait.
const LOOKED_MAX: usize = 4_096;

#[derive(Debug, Default)]
struct Kept {
    changes: VecDeque<KeyChange>,
    key_bytes: usize,
    /// The number of the newest.
    head: u64,
}

/// See the module.
#[derive(Default)]
pub struct ChangeLog {
    boot: u64,
    kept: Mutex<Kept>,
    added: Notify,
}

impl ChangeLog {
    /// The log of a life, which `boot` tells from all others.
    pub fn new(boot: u64) -> Self {
        Self { boot, ..Self::default() }
    }

    pub fn add(&self, changes: impl IntoIterator<Item = KeyChange>) {
        let mut kept = self.kept.lock();
        let before = kept.head;
        for change in changes {
            kept.head += 1;
            kept.key_bytes += change.key.as_bytes().len();
            kept.changes.push_back(change);
            while kept.changes.len() > CHANGES_MAX || kept.key_bytes > KEY_BYTES_MAX {
                let Some(oldest) = kept.changes.pop_front() else { break };
                kept.key_bytes -= oldest.key.as_bytes().len();
            }
        }
        let grew = kept.head > before;
        drop(kept);
        if grew {
            self.added.notify_waiters();
        }
    }

    /// Forgets all that is kept: it is no news to anybody.
    pub fn forget(&self) {
        let mut kept = self.kept.lock();
        *kept = Kept { head: kept.head, ..Kept::default() };
    }

    /// Where it ends.
    pub fn head(&self) -> Position {
        Position { boot: self.boot, seq: self.kept.lock().head }
    }

    /// Changes of what is watched behind that place; a page of them. Of one key the last is told.
    pub fn page(&self, from: Option<Position>, watched: &Watched) -> ChangesPage {
        let mut page = self.look(from, |change| watched.holds(&change.key));
        if let Watched::One(_) = watched {
            page.changes.drain(..page.changes.len().saturating_sub(1));
        }
        page
    }

    /// A page of all changes behind that place.
    pub fn all(&self, from: Position) -> ChangesPage {
        self.look(Some(from), |_| true)
    }

    fn look(&self, from: Option<Position>, mut wanted: impl FnMut(&KeyChange) -> bool) -> ChangesPage {
        let kept = self.kept.lock();
        let forgotten = kept.head - kept.changes.len() as u64;
        let at = |seq| Position { boot: self.boot, seq };
        let reaching = from.filter(|from| from.boot == self.boot && (forgotten..=kept.head).contains(&from.seq));
        let Some(from) = reaching else { return ChangesPage { at: at(kept.head), ..ChangesPage::default() } };
        let (mut changes, mut bytes, mut seq) = (Vec::new(), 0, from.seq);
        // No log is longer than its changes that are kept, which are few.
        let behind = usize::try_from(from.seq - forgotten).unwrap_or(usize::MAX);
        for change in kept.changes.range(behind.min(kept.changes.len())..).take(LOOKED_MAX) {
            if wanted(change) {
                if changes.len() == CHANGES_PAGE_MAX || bytes >= CHANGES_BYTES_MAX {
                    break;
                }
                bytes += change.key.as_bytes().len();
                changes.push(change.clone());
            }
            seq += 1;
        }
        ChangesPage { changes, at: at(seq), reaches: true, more: seq < kept.head }
    }

    /// Ends when there are changes behind that place (of this life).
    pub async fn grown(&self, beyond: u64) {
        loop {
            let added = self.added.notified();
            tokio::pin!(added);
            // From here on what is added wakes it.
            added.as_mut().enable();
            if self.kept.lock().head > beyond {
                return;
            }
            added.await;
        }
    }
}

impl fmt::Debug for ChangeLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeLog").field("head", &self.head()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ChangeKind, Key, Version};
    use bytes::Bytes;

    fn change(key: impl Into<Bytes>) -> KeyChange {
        KeyChange { key: Key::new(key).unwrap(), version: Version::default(), kind: ChangeKind::Delete }
    }

    fn from(boot: u64, seq: u64) -> Option<Position> {
        Some(Position { boot, seq })
    }

    fn everything() -> Watched {
        Watched::Prefix(Bytes::new())
    }

    fn names(page: &ChangesPage) -> Vec<String> {
        page.changes.iter().map(|change| change.key.to_string()).collect()
    }

    #[test]
    fn a_page_has_what_is_watched_behind_a_place() {
        let log = ChangeLog::new(3);
        log.add(["a1", "b1", "a2", "b2", "b1"].map(change));
        let page = log.page(from(3, 1), &Watched::Prefix(Bytes::from_static(b"a")));
        assert_eq!((names(&page), page.at.seq, page.reaches, page.more), (vec!["a2".to_owned()], 5, true, false));
        let one = log.page(from(3, 0), &Watched::One(Key::new("b1").unwrap()));
        assert_eq!(names(&one), ["b1"]);
        let end = log.page(from(3, 5), &everything());
        assert_eq!((end.changes.len(), end.at.seq, end.reaches, end.more), (0, 5, true, false));
    }

    #[test]
    fn a_place_it_does_not_reach_is_told_as_such() {
        let log = ChangeLog::new(3);
        log.add(["a", "b"].map(change));
        for place in [None, from(2, 1), from(4, 1), from(3, 3)] {
            let page = log.page(place, &everything());
            assert_eq!(
                (page.changes.len(), page.at, page.reaches),
                (0, Position { boot: 3, seq: 2 }, false),
                "{place:?}"
            );
        }
        log.forget();
        assert!(!log.page(from(3, 1), &everything()).reaches && log.page(from(3, 2), &everything()).reaches);
        log.add([change("c")]);
        assert_eq!(names(&log.page(from(3, 2), &everything())), ["c"]);
    }

    #[test]
    fn it_keeps_so_many_and_pages_are_bounded() {
        let log = ChangeLog::new(1);
        log.add((0..CHANGES_MAX + 10).map(|n| change(format!("k{n}"))));
        assert!(!log.page(from(1, 9), &everything()).reaches);
        let (mut at, mut told) = (Position { boot: 1, seq: 10 }, 0);
        loop {
            let page = log.all(at);
            assert!(page.reaches && page.changes.len() <= CHANGES_PAGE_MAX && page.at > at);
            assert_eq!(page.changes[0].key.to_string(), format!("k{}", at.seq));
            (at, told) = (page.at, told + page.changes.len());
            if !page.more {
                break;
            }
        }
        assert_eq!(told, CHANGES_MAX);
        let none = log.page(from(1, 10), &Watched::Prefix(Bytes::from_static(b"x")));
        assert_eq!((none.changes.len(), none.at.seq, none.more), (0, 10 + LOOKED_MAX as u64, true));
        log.add((0..CHANGES_MAX).map(|n| change(format!("{n:01024}"))));
        assert!(log.kept.lock().key_bytes <= KEY_BYTES_MAX);
    }

    #[tokio::test]
    async fn who_waits_for_a_change_is_woken() {
        let log = ChangeLog::new(1);
        let waiting = log.grown(0);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        log.add([]);
        assert!(futures_util::poll!(&mut waiting).is_pending(), "nothing was added");
        log.add([change("a")]);
        assert!(futures_util::poll!(&mut waiting).is_ready());
        log.grown(0).await;
    }
}
