//! The fold: one page of a listing out of the answers of many replicas.
//!
//! It asks as few nodes as can answer for all slots together, each once for all its slots, and walks their answers in key
//! order. The newest copy of a key counts. It walks only as far as a majority of every slot has told, so that what is on the
//! page is complete up to where the page ends; whose answers are at an end is asked on.
//!
//! Invariants:
//! - A key that stood in its slot's majority when the walk passed it is told, once; keys ascend.
//! - A common prefix is told where some key of it is live by the newest of its copies.
//! - A damaged copy is no answer: the key is read at quorum ([`ListingState::Unsure`]), which mends it; where that fails the
//!   key is told without anything of it.
//!
//! Nothing is written back: a write that was not acknowledged may be on one page and not on the next one.

use std::sync::Arc;

use bytes::Bytes;

use super::sources::Sources;
use super::{behind, common, past};
use crate::protocol::quorum::Asking;
use crate::protocol::ring::Ring;
use crate::types::limits::{LISTING_BYTES_MAX, LISTING_ROWS_MAX};
use crate::types::{Hlc, Key, NodeNum, Outline, Scan, ScanPage, Slot, SlotSet};

/// What a page is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub prefix: Bytes,
    /// Empty: none.
    pub delimiter: Bytes,
    /// The place to begin at.
    pub from: Bytes,
    /// Keys and common prefixes, at most; at least one.
    pub limit: usize,
    pub values: bool,
    /// Go on without the slots that cannot be had.
    pub partial: bool,
}

/// A scan to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanAsk {
    /// Its answer is told by this number.
    pub number: usize,
    pub to: NodeNum,
    pub scan: Scan,
}

/// Where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListingState {
    Waiting,
    /// A copy of this key is damaged: read it at quorum and say what was found.
    Unsure(Key),
    /// The page is complete.
    Met,
    /// Some slots cannot be had.
    Failed,
}

/// A key on the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub key: Key,
    /// `None`: its copies are damaged.
    pub outline: Option<Outline>,
}

/// A page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub items: Vec<Item>,
    pub common_prefixes: Vec<Bytes>,
    /// The place to begin the next page at; `None`: this was the last.
    pub next: Option<Bytes>,
    /// No stand-in was counted.
    pub strict: bool,
    /// Slots that could not be had; what lies there is not on the page.
    pub missing: SlotSet,
}

/// A key whose copy is damaged, and who skipped what behind it.
#[derive(Debug)]
struct Doubt {
    key: Key,
    skippers: Vec<usize>,
}

/// One page in the making.
#[derive(Debug)]
pub struct Listing {
    ring: Arc<Ring>,
    now: Hlc,
    question: Question,
    sources: Sources,
    /// All before this place is settled; `None`: everything is.
    at: Option<Bytes>,
    doubt: Option<Doubt>,
    items: Vec<Item>,
    common_prefixes: Vec<Bytes>,
    examined: usize,
    bytes: usize,
}

impl Listing {
    pub fn new(question: Question, me: NodeNum, ring: Arc<Ring>, now: Hlc) -> Self {
        let at = Some(question.from.clone().max(question.prefix.clone()));
        let at = at.filter(|at| past(&question.prefix).is_none_or(|end| *at < end));
        Self {
            ring,
            now,
            question,
            sources: Sources::new(me),
            at,
            doubt: None,
            items: Vec::new(),
            common_prefixes: Vec::new(),
            examined: 0,
            bytes: 0,
        }
    }

    /// Begins.
    pub fn start(&mut self, asking: Asking<'_>) -> Vec<ScanAsk> {
        let Some(at) = self.at.clone() else { return Vec::new() };
        self.sources.begin(&self.ring, &at, asking);
        self.walk();
        self.asks()
    }

    /// Another topology is in force: what is settled stays, and the rest is asked anew.
    pub fn restart(&mut self, ring: Arc<Ring>, asking: Asking<'_>) -> Vec<ScanAsk> {
        (self.ring, self.sources, self.doubt) = (ring, Sources::new(self.me()), None);
        self.start(asking)
    }

    /// The answer to a scan, or why there is none.
    pub fn on_answer(&mut self, number: usize, answer: Result<ScanPage, String>, asking: Asking<'_>) -> Vec<ScanAsk> {
        let Some(at) = self.at.clone() else { return Vec::new() };
        let Some(source) = self.sources.get_mut(number).filter(|source| source.asked) else { return Vec::new() };
        match answer {
            Ok(page) => {
                let doubtful = page.doubtful;
                source.take(page, &self.ring, &at);
                if !doubtful.is_empty() {
                    let why = ("rows of these slots are damaged", false);
                    self.sources.fail(number, doubtful, why, (&self.ring, &at, asking));
                }
            }
            Err(why) => {
                source.asked = false;
                let slots = source.slots;
                self.sources.fail(number, slots, (&why, false), (&self.ring, &at, asking));
            }
        }
        self.walk();
        self.asks()
    }

    /// It is silent for longer than is usual: others are asked in its place. Where there is nobody, it is waited for.
    pub fn on_silence(&mut self, number: usize, asking: Asking<'_>) -> Vec<ScanAsk> {
        let Some(at) = self.at.clone() else { return Vec::new() };
        let Some(source) = self.sources.get(number).filter(|source| source.asked) else { return Vec::new() };
        let slots = source.slots;
        self.sources.fail(number, slots, ("no answer so far", true), (&self.ring, &at, asking));
        self.walk();
        self.asks()
    }

    /// What a read at quorum found of the key in doubt; an error where it failed.
    pub fn on_read(&mut self, found: Result<Option<Outline>, ()>) -> Vec<ScanAsk> {
        let Some(Doubt { key, skippers }) = self.doubt.take() else { return Vec::new() };
        match found {
            Ok(newest) => self.settle(key, newest.map(Some), &skippers),
            Err(()) => self.settle(key, Some(None), &skippers),
        }
        self.walk();
        self.asks()
    }

    pub fn state(&self) -> ListingState {
        match &self.doubt {
            _ if self.is_failed() => ListingState::Failed,
            Some(doubt) => ListingState::Unsure(doubt.key.clone()),
            None if self.at.is_none() || self.is_full() => ListingState::Met,
            None => ListingState::Waiting,
        }
    }

    /// Whether it came anywhere: then what is settled is a page, if a short one.
    pub fn has_advanced(&self) -> bool {
        self.at.as_ref().is_none_or(|at| *at > self.question.from.clone().max(self.question.prefix.clone()))
    }

    pub fn missing(&self) -> SlotSet {
        self.sources.missing()
    }

    /// Who did not answer, and why.
    pub fn failed(&self) -> Vec<(NodeNum, String)> {
        self.sources.failed()
    }

    /// What is settled so far.
    pub fn into_page(self) -> Page {
        let told_all = self.sources.live().all(|source| source.next.is_none() && source.told.is_empty());
        let told_all = told_all && !self.is_failed();
        Page {
            strict: self.sources.is_strict(),
            missing: if self.question.partial { self.sources.missing() } else { SlotSet::NONE },
            next: self.at.filter(|_| !told_all || self.doubt.is_some()),
            items: self.items,
            common_prefixes: self.common_prefixes,
        }
    }

    // ------------------------------------------------------------------------------------------------------ inside

    fn me(&self) -> NodeNum {
        self.sources.me()
    }

    /// Slots are lost: what was settled before stays a page, and nothing comes to it.
    fn is_failed(&self) -> bool {
        !self.question.partial && !self.sources.missing().is_empty()
    }

    fn told(&self) -> usize {
        self.items.len() + self.common_prefixes.len()
    }

    fn is_full(&self) -> bool {
        self.told() >= self.question.limit || self.examined >= LISTING_ROWS_MAX || self.bytes >= LISTING_BYTES_MAX
    }

    /// Goes on as far as is told.
    fn walk(&mut self) {
        while self.doubt.is_none() && !self.is_full() && self.at.is_some() && !self.is_failed() {
            let bound = self.sources.live().filter_map(|source| source.next.clone()).min();
            let head = self.sources.live().filter_map(|source| source.told.front()).map(|entry| &entry.key).min();
            match (head.cloned(), bound) {
                (Some(key), bound) if bound.as_ref().is_none_or(|bound| key.as_bytes() < &bound[..]) => self.take(key),
                (_, Some(bound)) => {
                    if self.at.as_ref().is_none_or(|at| *at < bound) {
                        self.advance(Some(bound));
                    }
                    return;
                }
                (_, None) => return self.advance(None),
            }
        }
    }

    /// The next key: the newest of its copies.
    fn take(&mut self, key: Key) {
        let (mut newest, mut damaged, mut skippers) = (None::<Outline>, false, Vec::new());
        for (number, source) in self.sources.live_mut() {
            if source.told.front().is_none_or(|entry| entry.key != key) {
                continue;
            }
            let Some(entry) = source.told.pop_front() else { continue };
            if entry.skips {
                skippers.push(number);
            }
            match entry.copy {
                None => damaged = true,
                Some(copy) if newest.as_ref().is_none_or(|newest| copy.beats(newest)) => newest = Some(copy),
                Some(_) => {}
            }
        }
        self.examined += 1;
        if damaged {
            self.doubt = Some(Doubt { key, skippers });
        } else {
            self.settle(key, newest.map(Some), &skippers);
        }
    }

    /// `found`: nothing, or what the page says of it.
    fn settle(&mut self, key: Key, found: Option<Option<Outline>>, skippers: &[usize]) {
        let place = behind(&key);
        let live = found.filter(|found| found.as_ref().is_none_or(|outline| outline.is_live(self.now)));
        let Some(outline) = live else {
            // Whoever skipped the rest of its common prefix thought it live.
            for number in skippers {
                if let Some(source) = self.sources.get_mut(*number) {
                    source.unskip(&key);
                }
            }
            return self.advance(Some(place));
        };
        match common(&self.question.prefix, &self.question.delimiter, &key) {
            Some(common) => {
                self.bytes += common.len();
                self.common_prefixes.push(Bytes::copy_from_slice(common));
                self.advance(past(common));
            }
            None => {
                self.bytes += key.as_bytes().len() + outline.as_ref().map_or(0, Outline::weight);
                self.items.push(Item { key, outline });
                self.advance(Some(place));
            }
        }
    }

    fn advance(&mut self, at: Option<Bytes>) {
        let end = past(&self.question.prefix);
        self.at = at.filter(|at| end.as_ref().is_none_or(|end| at < end));
        for (_, source) in self.sources.live_mut() {
            source.advance(self.at.as_ref());
        }
    }

    /// Asks those on who have nothing more to tell.
    fn asks(&mut self) -> Vec<ScanAsk> {
        if self.state() != ListingState::Waiting {
            return Vec::new();
        }
        let left = self.question.limit - self.told();
        let Self { question, now, sources, .. } = self;
        let due = |source: &super::sources::Source| !source.asked && source.told.is_empty();
        let asks = sources.live_mut().filter(|(_, source)| due(source)).filter_map(|(number, source)| {
            let scan = Scan {
                slots: source.slots,
                prefix: question.prefix.clone(),
                from: source.next.clone()?,
                delimiter: question.delimiter.clone(),
                samples: source.samples,
                limit: share(left, &source.slots, !question.delimiter.is_empty()),
                values: question.values,
                now: *now,
            };
            source.asked = true;
            Some(ScanAsk { number, to: source.node, scan })
        });
        asks.collect()
    }
}

/// How much of what is left a source of these slots has, at a guess: keys are spread evenly over slots, common prefixes are in
/// all of them. A little more is asked for, so that most pages take one answer each.
fn share(left: usize, slots: &SlotSet, all: bool) -> u32 {
    let even = if all { left } else { left * slots.count() / Slot::COUNT };
    let some = even + even / 8 + 8;
    some.min(left) as u32
}
