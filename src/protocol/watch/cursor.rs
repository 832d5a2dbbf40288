//! A place in a watch, as bytes that any member can go on from.

use crate::types::{Epoch, NodeNum, Position};

/// The format; a cursor of another one is refused.
const FORMAT: u8 = 1;
/// Format, cluster, epoch.
const HEAD_BYTES: usize = 1 + 4 + 8;
/// Node, boot, number.
const PLACE_BYTES: usize = 2 + 8 + 8;

/// Up to where a watch told everything: a place in the log of each member that covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Tells clusters apart: [`ClusterId::digest`](crate::types::ClusterId::digest).
    pub cluster: u32,
    pub epoch: Epoch,
    /// By node, in order.
    pub places: Vec<(NodeNum, Position)>,
}

/// The bytes are no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not what a watch gave")]
pub struct CursorError;

impl Cursor {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.places.len() * PLACE_BYTES);
        bytes.push(FORMAT);
        bytes.extend(self.cluster.to_be_bytes());
        bytes.extend(self.epoch.0.to_be_bytes());
        for (node, at) in &self.places {
            bytes.extend(node.0.to_be_bytes());
            bytes.extend(at.boot.to_be_bytes());
            bytes.extend(at.seq.to_be_bytes());
        }
        bytes
    }

    /// # Errors
    /// Where [`Self::to_bytes`] does not make these.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CursorError> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(CursorError)?;
        let [format, cluster @ .., e0, e1, e2, e3, e4, e5, e6, e7] = *head;
        let (places, left) = rest.as_chunks::<PLACE_BYTES>();
        let places: Vec<_> = places.iter().map(place).collect();
        if format != FORMAT || !left.is_empty() || !places.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Err(CursorError);
        }
        let epoch = Epoch(u64::from_be_bytes([e0, e1, e2, e3, e4, e5, e6, e7]));
        Ok(Self { cluster: u32::from_be_bytes(cluster), epoch, places })
    }
}

fn place(bytes: &[u8; PLACE_BYTES]) -> (NodeNum, Position) {
    let [n0, n1, b0, b1, b2, b3, b4, b5, b6, b7, seq @ ..] = *bytes;
    let boot = u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
    (NodeNum(u16::from_be_bytes([n0, n1])), Position { boot, seq: u64::from_be_bytes(seq) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_comes_back(cluster: u32, epoch: u64, places in prop::collection::btree_map(any::<u16>(), any::<(u64, u64)>(), 0..5)) {
            let places = places.into_iter().map(|(node, (boot, seq))| (NodeNum(node), Position { boot, seq })).collect();
            let cursor = Cursor { cluster, epoch: Epoch(epoch), places };
            let bytes = cursor.to_bytes();
            prop_assert_eq!(Cursor::from_bytes(&bytes[..bytes.len() - 1]), Err(CursorError));
            prop_assert_eq!(Cursor::from_bytes(&[&bytes[..], &[0]].concat()), Err(CursorError));
            prop_assert_eq!(Cursor::from_bytes(&bytes), Ok(cursor));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(cursor) = Cursor::from_bytes(&bytes) {
                prop_assert_eq!(cursor.to_bytes(), bytes);
            }
        }
    }
}
