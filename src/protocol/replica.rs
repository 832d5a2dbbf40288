//! The replica's rules: (what is stored, the floor, a message) -> what to answer and what to change.
//!
//! A store loads the row, asks here, saves what is said in one transaction, and answers when it is on disk.

use crate::types::{Floor, Hlc, Record, Version};

/// What a `Write` does to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRule {
    /// Store it.
    Store,
    /// Something at least as new stands there; change nothing.
    Dominated,
    /// Nothing stands there and it may have been purged; change nothing.
    BelowFloor,
    /// One version, two contents: must not happen, but must converge. `stored` says which one stays.
    Conflict { replace: bool },
}

/// The rule of `Write{record}`: greater than stored is stored, the rest is dominated; where nothing is stored, the
/// floor decides.
pub fn write(stored: Option<&StoredRow>, floor: &Floor, record: &Record) -> WriteRule {
    match stored {
        None if floor.covers(&record.version, record.written) => WriteRule::BelowFloor,
        None => WriteRule::Store,
        Some(row) if record.version > row.version => WriteRule::Store,
        Some(row) if record.version < row.version || record.checksum == row.checksum => WriteRule::Dominated,
        Some(row) => {
            let incoming = (record.is_tombstone(), record.checksum);
            WriteRule::Conflict { replace: incoming > (row.tombstone, row.checksum) }
        }
    }
}

/// What the rule needs to know of a stored row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRow {
    pub version: Version,
    pub tombstone: bool,
    pub checksum: u64,
}

impl StoredRow {
    pub fn of(record: &Record) -> Self {
        Self { version: record.version, tombstone: record.is_tombstone(), checksum: record.checksum }
    }
}

/// What a `Hint` does to the hint kept for the same home replica and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintRule {
    /// Keep it in place of what was there. A hint in place of one that counts must outlive it, so it counts too.
    Keep { counted: bool },
    /// The same version is kept, or a newer one, but not as one that counts: mark it, as it stands for this one too.
    Promote,
    /// The kept one is as new, or newer: it stands for both.
    Kept,
    /// No room; change nothing.
    Full,
}

/// The rule of `Hint{record}`. `room` is what may still be kept, in bytes, and `bytes` what this hint takes.
/// A replacement of a kept hint goes by its own size, as the old one makes room.
pub fn hint(kept: Option<(Version, bool)>, version: Version, counted: bool, bytes: u64, room: u64) -> HintRule {
    match kept {
        Some((v, c)) if v >= version && counted && !c => HintRule::Promote,
        Some((v, _)) if v >= version => HintRule::Kept,
        _ if bytes > room => HintRule::Full,
        _ => HintRule::Keep { counted: counted || kept.is_some_and(|(_, c)| c) },
    }
}

/// Whether a stamp is so far ahead of this replica's wall clock that storing it would poison the key; says by how much.
pub fn too_far_ahead(stamp: Hlc, wall_ms: u64, skew_max_ms: u64) -> Option<u64> {
    let ahead = stamp.ms().saturating_sub(wall_ms);
    (ahead > skew_max_ms).then_some(ahead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Content, Key, Writer};
    use proptest::prelude::*;

    fn record(hlc: u64, value: Option<u8>) -> Record {
        let key = Key::new("k").unwrap();
        let content = value.map_or(Content::Tombstone, |v| Content::value(vec![v]));
        Record::seal(&key, Version::plain(Hlc(hlc), Writer(1)), Hlc(hlc), content)
    }

    fn rule(stored: Option<&Record>, floor: &Floor, incoming: &Record) -> WriteRule {
        write(stored.map(StoredRow::of).as_ref(), floor, incoming)
    }

    #[test]
    fn the_floor_refuses_only_where_nothing_is_stored() {
        let floor = Floor { written: Hlc(10), version: Version::plain(Hlc(10), Writer(9)), ballot: Default::default() };
        assert_eq!(rule(None, &floor, &record(10, Some(1))), WriteRule::BelowFloor);
        assert_eq!(rule(None, &floor, &record(11, Some(1))), WriteRule::Store);
        assert_eq!(rule(Some(&record(5, None)), &floor, &record(10, Some(1))), WriteRule::Store);
    }

    #[test]
    fn a_hint_is_kept_promoted_or_stands() {
        let v = |h| Version::plain(Hlc(h), Writer(1));
        assert_eq!(hint(None, v(1), false, 5, 5), HintRule::Keep { counted: false });
        assert_eq!(hint(None, v(1), true, 6, 5), HintRule::Full);
        assert_eq!(hint(Some((v(1), false)), v(1), true, 6, 5), HintRule::Promote);
        assert_eq!(hint(Some((v(1), true)), v(1), false, 6, 5), HintRule::Kept);
        assert_eq!(hint(Some((v(2), false)), v(1), true, 6, 5), HintRule::Promote, "it stands for both");
        assert_eq!(hint(Some((v(2), true)), v(1), true, 6, 5), HintRule::Kept);
        assert_eq!(hint(Some((v(2), false)), v(1), false, 6, 5), HintRule::Kept);
        assert_eq!(hint(Some((v(1), true)), v(2), false, 5, 5), HintRule::Keep { counted: true });
    }

    #[test]
    fn a_stamp_may_be_ahead_by_the_skew_and_no_more() {
        assert_eq!(too_far_ahead(Hlc::from_ms(110), 100, 10), None);
        assert_eq!(too_far_ahead(Hlc::from_ms(111), 100, 10), Some(11));
        assert_eq!(too_far_ahead(Hlc::from_ms(1), 100, 10), None);
    }

    proptest! {
        /// The rule is the merge of records, said in terms of a row.
        #[test]
        fn a_write_is_a_merge(stored in (0u64..3, prop::option::of(0u8..2)), incoming in (0u64..3, prop::option::of(0u8..2))) {
            let (stored, incoming) = (record(stored.0, stored.1), record(incoming.0, incoming.1));
            let said = rule(Some(&stored), &Floor::default(), &incoming);
            let replaces = matches!(said, WriteRule::Store | WriteRule::Conflict { replace: true });
            prop_assert_eq!(replaces, incoming.beats(&stored));
        }
    }
}
