//! What a watch told lately: the last version of each of the last keys.

use std::collections::BTreeMap;

use crate::types::{Key, KeyChange, Version};

/// Keys that are remembered.
pub(super) const KEYS_MAX: usize = 8_192;
/// What they take together, in bytes, at most.
const BYTES_MAX: usize = 1024 * 1024;
/// What one takes beside its own bytes.
const KEY_OVERHEAD: usize = 160;

#[derive(Debug, Default)]
pub(super) struct Told {
    /// The last version of each, and which change that was.
    last: BTreeMap<Key, (Version, u64)>,
    /// By the number of the change that was told last.
    order: BTreeMap<u64, Key>,
    changes: u64,
    bytes: usize,
}

impl Told {
    /// Whether that was not told yet, nor a later version of the key. It is now.
    pub(super) fn is_news(&mut self, change: &KeyChange) -> bool {
        let known = self.last.get(&change.key);
        if known.is_some_and(|(version, _)| change.version <= *version) {
            return false;
        }
        let key = match known.and_then(|(_, at)| self.order.remove(at)) {
            Some(key) => key,
            None => {
                self.bytes += change.key.as_bytes().len() + KEY_OVERHEAD;
                // Not the message's memory that it came in.
                change.key.detached()
            }
        };
        self.changes += 1;
        self.last.insert(key.clone(), (change.version, self.changes));
        self.order.insert(self.changes, key);
        while self.order.len() > KEYS_MAX || self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.bytes -= oldest.as_bytes().len() + KEY_OVERHEAD;
            self.last.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ChangeKind, Hlc, Writer};

    fn change(key: String, hlc: u64) -> KeyChange {
        let version = Version::plain(Hlc(hlc), Writer(1));
        KeyChange { key: Key::new(key).unwrap(), version, kind: ChangeKind::Delete }
    }

    #[test]
    fn a_version_is_news_once_and_an_older_one_never() {
        let mut told = Told::default();
        let news: Vec<bool> = [1, 1, 3, 2, 3, 4].map(|hlc| told.is_news(&change("k".into(), hlc))).into();
        assert_eq!(news, [true, false, true, false, false, true]);
        assert!(told.is_news(&change("other".into(), 1)));
    }

    #[test]
    fn it_remembers_the_keys_that_were_told_last_and_no_more() {
        let mut told = Told::default();
        let name = |n: usize| format!("k{n}");
        let room = (0..).find(|n| n * (KEY_OVERHEAD + 5) > BYTES_MAX).unwrap_or(0).min(KEYS_MAX);
        for n in 0..room {
            assert!(told.is_news(&change(name(n), 1)));
        }
        // Told again, it is the last one to be forgotten.
        assert!(told.is_news(&change(name(0), 2)));
        for n in room..2 * room {
            assert!(told.is_news(&change(name(n), 1)));
            assert!(!told.is_news(&change(name(n), 1)));
        }
        assert!(told.is_news(&change(name(1), 1)), "that was long ago");
        for n in 0..2_000 {
            told.is_news(&change(format!("{n:01000}"), 1));
            assert!(told.bytes <= BYTES_MAX && told.last.len() == told.order.len());
        }
        assert!(told.order.len() > 800);
    }
}
