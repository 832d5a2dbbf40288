//! What a watch told lately: the last version of each of the last keys.

use std::collections::{BTreeMap, VecDeque};

use crate::types::{Key, KeyChange, Version};

/// Keys that are remembered.
pub(super) const KEYS_MAX: usize = 16_384;
/// Bytes that they have together, at most.
const KEY_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Told {
    last: BTreeMap<Key, Version>,
    /// In the order in which they were first told.
    order: VecDeque<Key>,
    key_bytes: usize,
}

impl Told {
    /// Whether that was not told yet, nor a later version of the key. It is now.
    pub(super) fn is_news(&mut self, change: &KeyChange) -> bool {
        if let Some(last) = self.last.get_mut(&change.key) {
            let is_news = change.version > *last;
            *last = change.version.max(*last);
            return is_news;
        }
        // Not the message's memory that it came in.
        let key = change.key.detached();
        self.key_bytes += key.as_bytes().len();
        self.last.insert(key.clone(), change.version);
        self.order.push_back(key);
        while self.order.len() > KEYS_MAX || self.key_bytes > KEY_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.key_bytes -= oldest.as_bytes().len();
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
    fn it_remembers_the_last_keys_and_no_more() {
        let mut told = Told::default();
        for n in 0..=KEYS_MAX {
            assert!(told.is_news(&change(format!("k{n}"), 1)));
        }
        assert!(!told.is_news(&change("k1".into(), 1)) && told.is_news(&change("k0".into(), 1)));
        for n in 0..2_000 {
            told.is_news(&change(format!("{n:01000}"), 1));
        }
        assert!(told.key_bytes <= KEY_BYTES_MAX && told.last.len() == told.order.len() && told.order.len() > 1_000);
    }
}
