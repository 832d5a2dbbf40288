//! Comparing and repairing over real sockets: every kind, other epochs, refusals, and gossip beside it.

use tokio::time::Instant;

use super::*;
use crate::ports::{Destination, Peers};
use crate::types::{
    Agreement, ChunkHashes, ChunkState, Convergence, Difference, Digest, Entry, Exchange, Leaf, LeafSet, Look,
    Register, Slot, SlotSet, Span, Token,
};

const TWO: NodeNum = NodeNum(2);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn key(text: &'static str) -> Key {
    Key::new(text).unwrap()
}

fn digests() -> PeerRequest {
    PeerRequest::GetChunkHash { epoch: Epoch(3), left_out: [Slot(9)].into_iter().collect(), spans: vec![Span::ALL] }
}

fn list(entries: usize) -> PeerRequest {
    let version = Version::plain(Hlc(5), Writer(1));
    let held = vec![Entry { token: Token(0x3f00 << 48), version, checksum: 7 }; entries];
    let (epoch, slot, leaves) = (Epoch(3), Slot(0x3f), vec![Leaf(0x3f00)]);
    PeerRequest::FetchRange(Exchange { epoch, slot, leaves, held, names_only: false, up_to: None })
}

fn page(after: Option<Key>) -> PeerRequest {
    PeerRequest::FetchSlot { epoch: Epoch(3), slot: Slot(0x3f), leaves: LeafSet::ALL, after }
}

fn converge() -> PeerRequest {
    PeerRequest::Converge { with: NodeNum(3), look: Look::Deep }
}

fn hashes(digests: usize) -> PeerReply {
    PeerReply::ChunkHashes(ChunkHashes { left_out: SlotSet::NONE, digests: vec![Digest(7); digests] })
}

fn difference(value: usize) -> PeerReply {
    let records = vec![(key("k"), record("k", vec![1; value]))];
    let (wanted, names) = (vec![Token(0x3f00 << 48)], vec![]);
    PeerReply::Differences(Difference { wanted, records, names, more: true, serving: true })
}

fn convergence() -> PeerReply {
    let chunk = ChunkState { chunk: 15, agreement: Agreement::Differs, since_ms: 5, equal_up_to_ms: 4 };
    PeerReply::Convergence(Box::new(Convergence {
        chunks: vec![chunk],
        keys: vec![key("k")],
        differing: 1,
        scrubbed_ms: 7,
    }))
}

/// A node's view of another, which listens.
fn pair() -> (Arc<Node>, Arc<Node>, Listening, Arc<MeshPeers>) {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let peers = peers(&one, Options { bytes_in_flight_max: 4 * 1024 * 1024, ..Options::default() });
    peers.introduce(TWO, two.header.instance, &listening.text());
    (one, two, listening, peers)
}

#[tokio::test]
async fn each_kind_makes_the_round() {
    let (_one, two, _listening, peers) = pair();
    let stored = record("l", vec![1; 100]);
    let register = Register { promised: Ballot::default(), accepted: Some(state(stored.clone())) };
    let entries = vec![(key("l"), Some(stored), Some(register)), (key("m"), None, Some(Register::default()))];
    let slot = PeerReply::SlotPage { entries, floor: Floor::default(), next: Some(key("m")) };
    let wrong = PeerReply::WrongEpoch { epoch: Epoch(4) };
    let rounds = [
        (digests(), hashes(16)),
        (digests(), wrong.clone()),
        (list(3), difference(100_000)),
        (list(0), wrong.clone()),
        (page(Some(key("k"))), slot),
        (page(None), wrong),
        (converge(), convergence()),
    ];
    for (request, reply) in rounds {
        *two.answer.lock() = Ok(reply.clone());
        assert_eq!(peers.ask(Destination::Member(TWO), request.clone(), soon()).await, Ok(reply));
        assert_eq!(two.asked.lock().pop(), Some(request));
    }
}

#[tokio::test]
async fn what_goes_wrong_is_told_apart() {
    let (_one, two, _listening, peers) = pair();
    let ask = |request| peers.ask(Destination::Member(TWO), request, soon());
    for request in [digests(), list(1), page(None), converge()] {
        for error in [PeerError::Overloaded, PeerError::Refused("not ready".into())] {
            *two.answer.lock() = Err(error.clone());
            assert_eq!(ask(request.clone()).await, Err(error));
        }
        *two.answer.lock() = Ok(PeerReply::Done);
        assert_eq!(ask(request).await, Err(PeerError::Lost), "an answer of another kind");
    }
    let protocol = |answer: &Result<PeerReply, PeerError>| matches!(answer, Err(PeerError::Protocol(_)));
    *two.answer.lock() = Ok(hashes(15));
    assert!(protocol(&ask(digests()).await), "an answer that makes no sense");
    two.asked.lock().clear();
    let mixed = vec![Span::chunk(1), Span::of_slot(Slot(1))];
    let senseless = PeerRequest::GetChunkHash { epoch: Epoch(3), left_out: SlotSet::NONE, spans: mixed };
    assert!(protocol(&ask(senseless).await), "a question that makes none");
    assert!(two.asked.lock().is_empty(), "and never arrives");
    two.mute.store(true, Ordering::SeqCst);
    let late = peers.ask(Destination::Member(TWO), digests(), Instant::now() + Duration::from_millis(50));
    assert_eq!(late.await, Err(PeerError::TimedOut));
}

#[tokio::test]
async fn what_is_under_way_is_bounded_and_gossip_passes_by() {
    let (_one, two, _listening, peers) = pair();
    two.mute.store(true, Ordering::SeqCst);
    let asking = |request| {
        let peers = peers.clone();
        let waiting = async move { peers.ask(Destination::Member(TWO), request, soon()).await };
        tokio::runtime::Handle::current().spawn(waiting)
    };
    let waiting = [asking(list(1)), asking(list(1)), asking(page(None))];
    until("all arrived", || two.asked.lock().len() == 3).await;
    let refused = peers.ask(Destination::Member(TWO), list(1), soon()).await;
    assert_eq!(refused, Err(PeerError::Overloaded), "a fourth answer of 1 MiB would be too much");
    two.mute.store(false, Ordering::SeqCst);
    let gossip = peers.ask(Destination::Member(TWO), PeerRequest::Gossip(vec![1u8].into()), soon());
    assert_eq!(gossip.await, Ok(PeerReply::Done));
    for call in waiting {
        call.abort();
    }
}
