//! Proposals: sent once, and what is said of those that got no answer.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::*;
use crate::ports::{Destination, Peers};
use crate::types::limits::PROPOSAL_TIMEOUT_MS_MAX;
use crate::types::{Condition, Edit, NewContent, Proposal, Tags, Verdict};

const TWO: NodeNum = NodeNum(2);

fn propose(value: usize) -> PeerRequest {
    let condition = Condition { if_none_match: Some(Tags::Any), ..Condition::default() };
    let key = Key::new("the-proposed-key").unwrap();
    let edit = Edit::Write(NewContent::value(vec![7; value]));
    let proposal = Proposal { key, condition, edit, op: OpId(Uuid::from_u128(7)), idempotency: None, ended: None };
    PeerRequest::Propose { proposal: Box::new(proposal), timeout_ms: 900, trace: None }
}

fn proposed(verdict: Verdict) -> PeerReply {
    PeerReply::Proposed(Box::new(verdict))
}

/// A node that knows the other at that address.
fn knowing(one: &Arc<Node>, address: &str, options: Options) -> Arc<MeshPeers> {
    let peers = peers(one, options);
    peers.introduce(TWO, instance(2), address);
    peers
}

async fn ask(peers: &Arc<MeshPeers>, request: PeerRequest) -> Result<PeerReply, PeerError> {
    peers.ask(Destination::Member(TWO), request, Instant::now() + PATIENCE).await
}

fn asking(peers: &Arc<MeshPeers>, request: PeerRequest) -> tokio::task::JoinHandle<Result<PeerReply, PeerError>> {
    let peers = peers.clone();
    tokio::runtime::Handle::current().spawn(async move { ask(&peers, request).await })
}

#[tokio::test]
async fn a_proposal_makes_the_round_and_its_verdict_comes_back() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let peers = knowing(&one, &listening.text(), Options::default());
    let verdicts = [
        Verdict::Applied {
            version: Version::plain(Hlc(5), Writer(1)),
            created: true,
            expires_at_ms: Some(9),
            acked: vec![NodeNum(1), TWO],
        },
        Verdict::ConditionFailed { current: Some(record("k", vec![1; 100_000])) },
        Verdict::Conflict,
        Verdict::Unknown { required: 2, acked: vec![TWO], failed: vec![(NodeNum(1), "timed out".into())] },
    ];
    for verdict in verdicts {
        *two.answer.lock() = Ok(proposed(verdict.clone()));
        assert_eq!(ask(&peers, propose(3)).await, Ok(proposed(verdict)));
        assert_eq!(two.asked.lock().pop(), Some(propose(3)));
    }
    for error in [PeerError::Overloaded, PeerError::Refused("not ready".into()), PeerError::Lost] {
        *two.answer.lock() = Err(error.clone());
        assert_eq!(ask(&peers, propose(3)).await, Err(error));
    }
}

#[tokio::test]
async fn nothing_was_done_where_nobody_listens_or_the_proposal_is_refused() {
    let one = Node::new(1, 9);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = knowing(&one, &free.to_string(), Options::default());
    assert_eq!(ask(&nobody, propose(3)).await, Err(PeerError::Unreachable));
    assert_eq!(ask(&nobody, propose(3)).await, Err(PeerError::Unreachable), "again");
    let other = Node::with_instance(2, 9, 77);
    let listening = Listening::start(&other, None);
    let peers = knowing(&one, &listening.text(), Options::default());
    assert_eq!(ask(&peers, propose(3)).await, Err(PeerError::WrongRecipient));
    other.lax.store(true, Ordering::SeqCst);
    let PeerRequest::Propose { proposal, .. } = propose(3) else { panic!("no proposal") };
    let late = PeerRequest::Propose { proposal, timeout_ms: PROPOSAL_TIMEOUT_MS_MAX + 1, trace: None };
    assert!(matches!(ask(&peers, late).await, Err(PeerError::Protocol(_))));
    assert!(other.asked.lock().is_empty());
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_a_proposal_in_doubt_and_it_is_never_repeated() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let address = listening.address;
    let peers = knowing(&one, &listening.text(), Options::default());
    two.mute.store(true, Ordering::SeqCst);
    let under_way = asking(&peers, propose(3));
    until("it arrived", || two.asked.lock().len() == 1).await;
    listening.kill();
    assert_eq!(under_way.await.unwrap(), Err(PeerError::Lost));
    assert_eq!(ask(&peers, propose(3)).await, Err(PeerError::Unreachable), "by now it is known to be down");
    let _again = Listening::start(&two, Some(address));
    two.mute.store(false, Ordering::SeqCst);
    *two.answer.lock() = Ok(PeerReply::Topology { topology: None });
    assert!(ask(&peers, PeerRequest::Topology).await.is_ok());
    *two.answer.lock() = Ok(proposed(Verdict::Conflict));
    assert_eq!(ask(&peers, propose(4)).await, Ok(proposed(Verdict::Conflict)), "it connects again");
    assert_eq!(*two.asked.lock(), [propose(3), PeerRequest::Topology, propose(4)]);
}

#[tokio::test]
async fn a_proposal_without_an_answer_times_out_and_a_silent_connection_is_given_up() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    two.mute.store(true, Ordering::SeqCst);
    let listening = Listening::start(&two, None);
    let keen = Duration::from_millis(250);
    let options = Options { keep_alive_interval: keen, keep_alive_timeout: keen, ..Options::default() };
    let silence = Silence::before(listening.address).await;
    let peers = peers(&one, options);
    let by = |deadline| peers.ask(Destination::Address(silence.address.clone()), propose(3), deadline);
    assert_eq!(by(Instant::now() + Duration::from_millis(50)).await, Err(PeerError::TimedOut));
    two.asked.lock().clear();
    let falling_silent = async {
        until("it arrived", || !two.asked.lock().is_empty()).await;
        silence.begin();
    };
    let (answer, ()) = futures_util::join!(by(Instant::now() + PATIENCE), falling_silent);
    assert_eq!(answer, Err(PeerError::Lost));
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_leaves_a_proposal_in_doubt() {
    let (one, other) = (Node::new(1, 9), Node::with_instance(2, 9, 77));
    let listening = Listening::start(&other, None);
    let peers = knowing(&one, &listening.text(), Options::default());
    // Another instance, which does not mind that it was not meant, and answers.
    other.lax.store(true, Ordering::SeqCst);
    *other.answer.lock() = Ok(proposed(Verdict::Conflict));
    assert_eq!(ask(&peers, propose(3)).await, Err(PeerError::Lost));
    *other.answer.lock() = Ok(PeerReply::Done);
    assert_eq!(ask(&peers, propose(3)).await, Err(PeerError::Lost), "an answer to another question");
    assert_eq!(other.asked.lock().len(), 2);
}

/// HTTP/2 speaks of pace with the words that gRPC uses for a refusal; the call may have been handled all the same.
#[tokio::test]
async fn a_stream_reset_for_its_pace_leaves_a_proposal_in_doubt() {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const RESET_OF_STREAM_1_FOR_CALM: [u8; 13] = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 0xb];
    let one = Node::new(1, 9);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peers = peers(&one, Options::default());
    let to = Destination::Address(listener.local_addr().unwrap().to_string());
    let asked = peers.ask(to, propose(3), Instant::now() + PATIENCE);
    let serving = async {
        let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
        stream.write_all(&SETTINGS).await.unwrap();
        let (mut came, proposal) = (Vec::new(), b"the-proposed-key");
        while !came.windows(proposal.len()).any(|bytes| bytes == proposal) {
            assert!(stream.read_buf(&mut came).await.unwrap() > 0);
        }
        stream.write_all(&RESET_OF_STREAM_1_FOR_CALM).await.unwrap();
        stream
    };
    let (answer, _stream) = futures_util::join!(asked, serving);
    assert_eq!(answer, Err(PeerError::Lost));
}

#[tokio::test]
async fn what_is_under_way_is_bounded_and_gossip_passes_by() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let peers = knowing(&one, &listening.text(), Options { bytes_in_flight_max: 100_000, ..Options::default() });
    two.mute.store(true, Ordering::SeqCst);
    let waiting = [asking(&peers, propose(60_000)), asking(&peers, propose(30_000))];
    until("both arrived", || two.asked.lock().len() == 2).await;
    assert_eq!(ask(&peers, propose(20_000)).await, Err(PeerError::Overloaded));
    two.mute.store(false, Ordering::SeqCst);
    assert_eq!(ask(&peers, PeerRequest::Gossip(vec![1u8].into())).await, Ok(PeerReply::Done));
    for call in &waiting {
        call.abort();
    }
    *two.answer.lock() = Ok(proposed(Verdict::Conflict));
    let mut answer = Err(PeerError::Overloaded);
    while answer == Err(PeerError::Overloaded) {
        tokio::task::yield_now().await;
        answer = ask(&peers, propose(200_000)).await;
    }
    assert_eq!(answer, Ok(proposed(Verdict::Conflict)), "one always fits");
}

#[tokio::test]
async fn more_calls_than_a_connection_has_streams_are_refused_unsent() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let peers = knowing(&one, &listening.text(), Options::default());
    two.mute.store(true, Ordering::SeqCst);
    let streams = super::super::endpoint::STREAMS_MAX as usize;
    let _waiting: Vec<_> = (0..streams).map(|_| asking(&peers, propose(3))).collect();
    until("all arrived", || two.asked.lock().len() == streams).await;
    assert_eq!(ask(&peers, propose(3)).await, Err(PeerError::Overloaded));
    assert_eq!(two.asked.lock().len(), streams);
}
