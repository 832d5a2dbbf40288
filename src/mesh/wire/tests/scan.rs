//! Scans: what goes through comes out the same, and what makes no sense is refused.

use bytes::Bytes;

use super::tree::slot_set;
use super::*;
use crate::mesh::wire::scan;
use crate::ports::{PeerReply, PeerRequest};
use crate::types::limits::{DELIMITER_BYTES_MAX, KEY_BYTES_MAX, SCAN_ROWS_MAX};
use crate::types::{Outline, Scan, ScanEntry, ScanPage};

fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

fn question() -> impl Strategy<Value = Scan> {
    let numbers = (1..u32::MAX, 1..u32::MAX, any::<bool>(), any::<u64>());
    (slot_set(), bytes(20), bytes(20), bytes(DELIMITER_BYTES_MAX), numbers).prop_map(
        |(slots, prefix, from, delimiter, (samples, limit, values, now))| Scan {
            slots,
            prefix,
            from,
            delimiter,
            samples,
            limit,
            values,
            now: Hlc(now),
        },
    )
}

fn page() -> impl Strategy<Value = ScanPage> {
    let copy = (record(), any::<bool>()).prop_map(|(record, with_value)| Outline::of(&record, with_value));
    let entries = prop::collection::btree_map(key(), (prop::option::of(copy), any::<bool>()), 0..5);
    (entries, any::<bool>(), slot_set()).prop_map(|(entries, more, doubtful)| {
        let entries: Vec<ScanEntry> =
            entries.into_iter().map(|(key, (copy, skips))| ScanEntry { key, copy, skips }).collect();
        let next = entries.last().filter(|_| more).map(|entry| [entry.key.as_bytes(), &[0]].concat().into());
        ScanPage { entries, next, doubtful }
    })
}

proptest! {
    #[test]
    fn a_scan_comes_out_as_it_went_in(epoch: u64, asked in question(), page in page()) {
        let epoch = Epoch(epoch);
        let wire = wired(&scan::request(None, epoch, asked.clone()));
        prop_assert_eq!(scan::read_request(wire), Ok(PeerRequest::Scan { epoch, scan: asked }));
        let reply = PeerReply::Scanned(page);
        let wire = wired(&scan::reply(None, reply.clone()).unwrap());
        prop_assert_eq!(scan::read_reply(wire, &Bytes::new()), Ok(reply));
    }

    #[test]
    fn no_bytes_panic_who_lists(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(wire) = proto::ScanRequest::decode(&*bytes) {
            let _ = scan::read_request(wire);
        }
        if let Ok(wire) = proto::ScanReply::decode(&*bytes) {
            let _ = scan::read_reply(wire, &Bytes::from_static(b"k"));
        }
    }
}

#[test]
fn another_epoch_is_an_answer_and_another_answer_is_none() {
    let wrong = PeerReply::WrongEpoch { epoch: Epoch(0) };
    let told = scan::reply(None, wrong.clone()).unwrap();
    assert_eq!(scan::read_reply(wired(&told), &Bytes::new()), Ok(wrong));
    assert_eq!(scan::reply(None, PeerReply::Done), Err(PeerReply::Done));
}

#[test]
fn scans_that_make_no_sense_are_refused() {
    let long = Bytes::from(vec![1; KEY_BYTES_MAX + 2]);
    for request in [
        proto::ScanRequest { delimiter: vec![1; DELIMITER_BYTES_MAX + 1].into(), ..Default::default() },
        proto::ScanRequest { prefix: long.clone(), ..Default::default() },
        proto::ScanRequest { from: long, ..Default::default() },
        proto::ScanRequest { slots: Bytes::from_static(b"short"), ..Default::default() },
    ] {
        assert!(scan::read_request(request).is_err());
    }
    let read = |keys: &[&'static str], next: Option<&'static str>| {
        let entry = |key: &&'static str| proto::ScanEntry { key: (*key).into(), ..Default::default() };
        let entries = keys.iter().map(entry).collect();
        let reply = proto::ScanReply { entries, next: next.map(Bytes::from), ..Default::default() };
        scan::read_reply(reply, &Bytes::from_static(b"b")).map_err(|error| error.to_string())
    };
    assert!(read(&["b", "c"], Some("c\0")).is_ok() && read(&[], Some("c")).is_ok() && read(&[], None).is_ok());
    for (keys, next) in [(&["c", "b"][..], None), (&["a", "b"], None), (&["b", "b"], None)] {
        assert_eq!(read(keys, next).unwrap_err(), "a scan's keys out of order", "{keys:?}");
    }
    for (keys, next) in [(&["b", "c"][..], "c"), (&["b", "c"], "b"), (&[], "b")] {
        assert_eq!(read(keys, Some(next)).unwrap_err(), "a scan that leads backwards", "{keys:?}");
    }
    let many: Vec<proto::ScanEntry> = (0..=SCAN_ROWS_MAX)
        .map(|n| proto::ScanEntry { key: format!("k{n:05}").into(), ..Default::default() })
        .collect();
    let many = proto::ScanReply { entries: many, ..Default::default() };
    assert!(scan::read_reply(many, &Bytes::new()).is_err());
}
