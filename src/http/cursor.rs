//! Cursors: places that one answer gave and a later request goes on from, as text. Opaque to clients.
//!
//! Each ends with a sum, so that what was cut short, made up or meant for another path is refused and not taken for a place.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a cursor leads through.
#[derive(Clone, Copy, Debug)]
pub(super) enum Through {
    Listing = 0,
    Watch = 1,
}

/// Bytes that tell a cursor from other text.
const SUM_BYTES: usize = 4;

pub(super) fn encoded(through: Through, place: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode([place, &sum_of(through, place)].concat())
}

pub(super) fn decoded(through: Through, cursor: &str) -> Option<Bytes> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (place, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
    (sum == sum_of(through, place)).then(|| Bytes::copy_from_slice(place))
}

fn sum_of(through: Through, place: &[u8]) -> [u8; SUM_BYTES] {
    (xxh3_64_with_seed(place, through as u64) as u32).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_leads_where_it_was_made(place in prop::collection::vec(any::<u8>(), 0..40), cut in 1usize..4) {
            let cursor = encoded(Through::Listing, &place);
            prop_assert_eq!(decoded(Through::Listing, &cursor[..cursor.len() - cut]), None);
            prop_assert_eq!(decoded(Through::Watch, &cursor), None);
            prop_assert_eq!(decoded(Through::Listing, &cursor), Some(Bytes::from(place)));
        }
    }
}
