//! The replica's part: it is shown its keys in order, and says what to tell of them, what to skip and when to stop.
//!
//! Under a delimiter one live key is enough to know of its common prefix, so the others of it are skipped, in all slots.
//! Whether that key is live is decided by all replicas together. Where they find that it is not, they ask again, from behind
//! it and for more samples.

use bytes::Bytes;

use super::{behind, common, past};
use crate::types::limits::{SCAN_BYTES_MAX, SCAN_ROWS_MAX};
use crate::types::{Key, Outline, Scan, ScanEntry, ScanPage};

/// What to show next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The key behind.
    On,
    /// The first key from that place on.
    Skip(Bytes),
    /// Nothing: the answer is complete.
    Stop,
}

/// An answer in the making.
#[derive(Debug)]
pub struct Telling<'a> {
    scan: &'a Scan,
    page: ScanPage,
    /// Live keys and common prefixes so far.
    told: u32,
    bytes: usize,
    /// The common prefix of the last live key, and how many of it were told.
    within: Option<(Bytes, u32)>,
}

impl<'a> Telling<'a> {
    pub fn new(scan: &'a Scan) -> Self {
        Self { scan, page: ScanPage::default(), told: 0, bytes: 0, within: None }
    }

    /// Is shown a key at or behind the place that the last step named, with the newest of what is held of it; `None` where
    /// some of that is damaged.
    pub fn tell(&mut self, key: Key, copy: Option<Outline>) -> Step {
        if !key.as_bytes().starts_with(&self.scan.prefix) {
            return Step::Stop;
        }
        self.bytes += key.as_bytes().len() + copy.as_ref().map_or(0, Outline::weight);
        let live = copy.as_ref().is_some_and(|copy| copy.is_live(self.scan.now));
        let skipped = if live { self.sample(&key) } else { None };
        let place = match &skipped {
            Some(common) => past(common),
            None => Some(behind(&key)),
        };
        self.page.entries.push(ScanEntry { key, copy, skips: skipped.is_some() });
        let full =
            self.told >= self.scan.limit || self.bytes >= SCAN_BYTES_MAX || self.page.entries.len() >= SCAN_ROWS_MAX;
        match (place, skipped) {
            (Some(place), _) if full => {
                self.page.next = Some(place);
                Step::Stop
            }
            (Some(place), Some(_)) => Step::Skip(place),
            (Some(_), None) => Step::On,
            // Nothing can be behind it.
            (None, _) => Step::Stop,
        }
    }

    /// Notes a live key. Answers its common prefix, where enough of that is told.
    fn sample(&mut self, key: &Key) -> Option<Bytes> {
        let Some(common) = common(&self.scan.prefix, &self.scan.delimiter, key) else {
            self.told += 1;
            return None;
        };
        match &mut self.within {
            Some((within, samples)) if *within == common => *samples += 1,
            within => {
                *within = Some((Bytes::copy_from_slice(common), 1));
                self.told += 1;
            }
        }
        self.within.clone().filter(|(_, samples)| *samples >= self.scan.samples).map(|(common, _)| common)
    }

    /// All keys up to that place were shown; the page ends there, and the next begins behind it.
    pub fn cut(&mut self, place: Bytes) {
        self.page.next = Some(place);
    }

    pub fn finish(self) -> ScanPage {
        self.page
    }
}

/// The answer of a replica that holds these, in key order.
pub fn tell_all(held: impl IntoIterator<Item = (Key, Option<Outline>)>, scan: &Scan) -> ScanPage {
    let mut telling = Telling::new(scan);
    let mut from = scan.from.clone().max(scan.prefix.clone());
    for (key, copy) in held {
        if key.as_bytes() < &from[..] {
            continue;
        }
        match telling.tell(key, copy) {
            Step::On => {}
            Step::Skip(place) => from = place,
            Step::Stop => break,
        }
    }
    telling.finish()
}
