//! Listing: what a replica tells of its keys ([`Telling`]), and how the answers of many become one page ([`Listing`]).
//!
//! Both walk in key order. A *place* is where a walk stands: bytes, of which every key from there on, itself included, is
//! still ahead. It need not be a key, and may be a byte longer than one.

mod fold;
mod sources;
mod telling;

pub use fold::{Item, Listing, ListingState, Page, Question, ScanAsk};
pub use telling::{Step, Telling, tell_all};

use bytes::Bytes;

use crate::types::Key;

/// The first place behind a key.
pub fn behind(key: &Key) -> Bytes {
    [key.as_bytes(), &[0]].concat().into()
}

/// The first place behind every key that begins so; `None`: there is none.
pub fn past(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut place = prefix[..=last].to_vec();
    // Not 0xff, as it was looked for.
    place[last] += 1;
    Some(place.into())
}

/// The common prefix of a key that begins with `prefix`: up to the first delimiter behind that, and with it. `None` where
/// there is none, or no delimiter is asked about.
pub fn common<'a>(prefix: &[u8], delimiter: &[u8], key: &'a Key) -> Option<&'a [u8]> {
    let rest = key.as_bytes().get(prefix.len()..).filter(|_| !delimiter.is_empty())?;
    let at = rest.windows(delimiter.len()).position(|window| window == delimiter)?;
    key.as_bytes().get(..prefix.len() + at + delimiter.len())
}

#[cfg(test)]
mod tests;
