//! Changes: what goes through comes out the same, and what makes no sense is refused.

use bytes::Bytes;

use super::*;
use crate::mesh::wire::changes;
use crate::ports::{PeerReply, PeerRequest};
use crate::types::limits::{CHANGES_PAGE_MAX, CHANGES_WAIT_MS_MAX, KEY_BYTES_MAX};
use crate::types::{ChangesAsk, ChangesPage, KeyChange, Position, Watched};

fn position() -> impl Strategy<Value = Position> {
    any::<(u64, u64)>().prop_map(|(boot, seq)| Position { boot, seq })
}

fn ask() -> impl Strategy<Value = ChangesAsk> {
    let prefix = prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Watched::Prefix(bytes.into()));
    let watched = prop_oneof![prefix, key().prop_map(Watched::One)];
    (watched, prop::option::of(position()), 0..CHANGES_WAIT_MS_MAX).prop_map(|(watched, from, wait_ms)| ChangesAsk {
        watched,
        from,
        wait_ms,
    })
}

fn page() -> impl Strategy<Value = ChangesPage> {
    let change = (key(), record()).prop_map(|(key, record)| KeyChange::of(&key, &record));
    (prop::collection::vec(change, 0..5), position(), any::<bool>()).prop_map(|(changes, at, more)| ChangesPage {
        changes,
        at,
        reaches: true,
        more,
    })
}

proptest! {
    #[test]
    fn changes_come_out_as_they_went_in(epoch: u64, asked in ask(), page in page(), back: u64) {
        let epoch = Epoch(epoch);
        let wire = wired(&changes::request(None, epoch, asked.clone()));
        prop_assert_eq!(changes::read_request(wire), Ok(PeerRequest::Changes { epoch, ask: asked }));
        let from = Some(Position { seq: page.at.seq.saturating_sub(back), ..page.at });
        let reply = PeerReply::Changed(page);
        let wire = wired(&changes::reply(None, reply.clone()).unwrap());
        prop_assert_eq!(changes::read_reply(wire, from), Ok(reply));
    }

    #[test]
    fn no_bytes_panic_who_watches(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(wire) = proto::ChangesRequest::decode(&*bytes) {
            let _ = changes::read_request(wire);
        }
        if let Ok(wire) = proto::ChangesReply::decode(&*bytes) {
            let _ = changes::read_reply(wire, None);
        }
    }
}

#[test]
fn another_epoch_is_an_answer_and_another_answer_is_none() {
    let wrong = PeerReply::WrongEpoch { epoch: Epoch(7) };
    let told = changes::reply(None, wrong.clone()).unwrap();
    assert_eq!(changes::read_reply(wired(&told), None), Ok(wrong));
    assert_eq!(changes::reply(None, PeerReply::Done), Err(PeerReply::Done));
}

#[test]
fn changes_that_make_no_sense_are_refused() {
    let prefix = |bytes: usize| {
        let watched = Some(proto::changes_request::Watched::Prefix(Bytes::from(vec![1; bytes])));
        changes::read_request(proto::ChangesRequest { watched, ..Default::default() })
    };
    assert!(prefix(KEY_BYTES_MAX).is_ok() && prefix(KEY_BYTES_MAX + 1).is_err());
    assert!(changes::read_request(proto::ChangesRequest::default()).is_err());
    let read = |many: usize, at: Option<(u64, u64)>, reaches: bool, from: Option<(u64, u64)>| {
        let changes = vec![proto::Change { key: "k".into(), ..Default::default() }; many];
        let at = at.map(|(boot, seq)| proto::Position { boot, seq });
        let reply = proto::ChangesReply { changes, at, reaches, ..Default::default() };
        changes::read_reply(reply, from.map(|(boot, seq)| Position { boot, seq })).is_ok()
    };
    assert!(read(1, Some((2, 5)), true, Some((2, 5))) && read(0, Some((2, 5)), false, None));
    assert!(read(CHANGES_PAGE_MAX, Some((2, 5)), true, Some((2, 1))));
    assert!(!read(CHANGES_PAGE_MAX + 1, Some((2, 5)), true, Some((2, 1))));
    assert!(!read(0, None, false, None), "up to nowhere");
    assert!(!read(1, Some((2, 5)), false, None), "told from nowhere");
    for from in [None, Some((1, 1)), Some((2, 6))] {
        assert!(!read(1, Some((2, 5)), true, from), "{from:?}");
    }
}
