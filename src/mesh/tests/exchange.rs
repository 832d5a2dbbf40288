//! The hot path: requests, batches, and everything that can become of a link.

use super::*;
use crate::ports::{Peers, Refusal};
use crate::types::ContentType;
use crate::types::limits::SMALL_VALUE_BYTES_MAX;

const TWO: NodeNum = NodeNum(2);

fn pair() -> (Arc<Node>, Arc<Node>) {
    (Node::new(1, 9), Node::new(2, 9))
}

#[tokio::test]
async fn each_kind_of_request_and_answer_makes_the_round() {
    let (one, two) = pair();
    let listening = Listening::start(&two, None);
    let peers = peers(&one, Options::default());
    peers.introduce(TWO, two.header.instance, &listening.text());
    let key = Key::new(vec![0u8, 0xff, b'/', 0x80]).unwrap();
    let content = Content::Value {
        bytes: vec![0u8, 0xc3, 0x28, 0xff].into(),
        content_type: Some(ContentType::new("text/plain; charset=x").unwrap()),
        expires_at_ms: Some(77),
    };
    let version = Version { hlc: Hlc(8), writer: Writer(3), rmw: 2 };
    let record = Record::seal(&key, version, Hlc(6), content);
    let requests = [
        ReplicaRequest::Write { key: key.clone(), record: record.clone() },
        ReplicaRequest::Read { key: key.clone(), part: ReadPart::Record, hints: true },
        ReplicaRequest::Read { key: key.clone(), part: ReadPart::Version, hints: false },
        ReplicaRequest::Hint { target: NodeNum(65535), key: key.clone(), record: record.clone(), counted: true },
        ReplicaRequest::Prepare { key: key.clone(), ballot: Ballot { hlc: Hlc(3), writer: Writer(4) } },
        accept("k", vec![1; 100]).request,
    ];
    let answers = Answers::new();
    for (tag, request) in (0..).zip(requests.clone()) {
        peers.send(TWO, call(request.clone()), answers.reply_to(tag));
        let answer = answers.of(tag).await;
        assert_eq!(two.last.lock().take(), Some((NodeNum(1), call(request))));
        match tag {
            0 => assert_eq!(answer, Ok(ReplicaReply::Stored { replaced: Some(Seen::of(&record, Hlc::ZERO)) })),
            1 => assert_eq!(answer, Ok(ReplicaReply::Record { record: Some(record.clone()), floor: Floor::default() })),
            _ => assert!(answer.is_ok()),
        }
    }
    for (tag, said) in (10..).zip([
        Ok(ReplicaReply::Refused(Refusal::ClockSkew { ahead_ms: 5 })),
        Err(PeerError::Lost),
        Err(PeerError::Refused("because".into())),
        Ok(promised(Some(vec![1]), Some(vec![1]))),
        Ok(promised(Some(vec![1; SMALL_VALUE_BYTES_MAX]), Some(vec![2; SMALL_VALUE_BYTES_MAX]))),
        Ok(ReplicaReply::Accepted),
    ]) {
        *two.reply.lock() = Some(said.clone());
        peers.send(TWO, read("k"), answers.reply_to(tag));
        assert_eq!(answers.of(tag).await, said);
    }
    assert_eq!(one.heard.load(Ordering::SeqCst), 2000, "answers carry clocks, too");
    assert_eq!(two.heard.load(Ordering::SeqCst), 1000);
}

#[tokio::test]
async fn the_own_node_is_reached_without_a_wire() {
    let (one, _) = pair();
    let (peers, answers) = (peers(&one, Options::default()), Answers::new());
    peers.send(NodeNum(1), write("k", vec![1]), answers.reply_to(0));
    assert_eq!(answers.came(), 1, "at once");
    assert!(peers.connected(NodeNum(1)));
}

#[tokio::test]
async fn requests_queued_together_travel_together() {
    let (one, two) = pair();
    let listening = Listening::start(&two, None);
    let (peers, answers) = (peers(&one, Options::default()), Answers::new());
    peers.introduce(TWO, two.header.instance, &listening.text());
    for tag in 0..2000 {
        peers.send(TWO, write("k", vec![1; 100]), answers.reply_to(tag));
    }
    for tag in 0..2000 {
        assert!(answers.of(tag).await.is_ok());
    }
    let messages = two.messages.load(Ordering::SeqCst);
    assert!(messages < 200, "{messages} messages for 2000 requests");
}

#[tokio::test]
async fn another_instance_or_cluster_gets_nothing() {
    let one = Node::new(1, 9);
    // The caller looks for itself, too.
    let lax = Node::with_instance(2, 9, 98);
    lax.lax.store(true, Ordering::SeqCst);
    for (other, error) in [
        (lax, PeerError::WrongRecipient),
        (Node::with_instance(2, 9, 99), PeerError::WrongRecipient),
        (Node::new(2, 8), PeerError::ForeignCluster(cluster(8))),
    ] {
        let listening = Listening::start(&other, None);
        let (peers, answers) = (peers(&one, Options::default()), Answers::new());
        peers.introduce(TWO, instance(2), &listening.text());
        peers.send(TWO, read("k"), answers.reply_to(0));
        assert_eq!(answers.of(0).await, Err(error.clone()));
        until("known as not connected", || !peers.connected(TWO)).await;
        peers.send(TWO, read("k"), answers.reply_to(1));
        assert_eq!(answers.of(1).await, Err(error));
        assert_eq!(other.requests.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_killed_peer_is_lost_then_unreachable_then_back_on_the_same_port() {
    let (one, two) = pair();
    let listening = Listening::start(&two, None);
    let address = listening.address;
    let (peers, answers) = (peers(&one, Options::default()), Answers::new());
    assert!(!peers.connected(TWO), "never introduced");
    peers.introduce(TWO, two.header.instance, &listening.text());
    assert!(peers.connected(TWO), "never tried");
    two.hold();
    peers.send(TWO, read("k"), answers.reply_to(0));
    until("the request arrived", || two.requests.load(Ordering::SeqCst) == 1).await;
    listening.kill();
    assert_eq!(answers.of(0).await, Err(PeerError::Lost));
    assert!(!peers.connected(TWO));
    peers.send(TWO, read("k"), answers.reply_to(1));
    assert_eq!(answers.came(), 2, "at once");
    assert_eq!(answers.of(1).await, Err(PeerError::Unreachable));

    *two.held.lock() = None;
    let _again = Listening::start(&two, Some(address));
    until("reconnected", || peers.connected(TWO)).await;
    peers.send(TWO, read("k"), answers.reply_to(2));
    assert!(answers.of(2).await.is_ok());
}

#[tokio::test]
async fn an_introduction_moves_the_link_to_another_port_and_instance() {
    let (one, two) = pair();
    let listening = Listening::start(&two, None);
    let (peers, answers) = (peers(&one, Options::default()), Answers::new());
    peers.introduce(TWO, two.header.instance, &listening.text());
    peers.send(TWO, read("k"), answers.reply_to(0));
    assert!(answers.of(0).await.is_ok());

    let other = Node::with_instance(2, 9, 22);
    let elsewhere = Listening::start(&other, None);
    peers.introduce(TWO, other.header.instance, &elsewhere.text());
    peers.send(TWO, read("k"), answers.reply_to(1));
    assert!(answers.of(1).await.is_ok(), "queued until the new link is up");
    assert_eq!(other.requests.load(Ordering::SeqCst), 1);

    peers.introduce(TWO, other.header.instance, &elsewhere.text());
    peers.send(TWO, read("k"), answers.reply_to(2));
    assert!(answers.of(2).await.is_ok(), "saying it again changes nothing");
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_told_at_once() {
    let (one, _) = pair();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (peers, answers) = (peers(&one, Options::default()), Answers::new());
    peers.send(TWO, read("k"), answers.reply_to(0));
    assert_eq!(answers.of(0).await, Err(PeerError::Unreachable), "never introduced");
    peers.introduce(TWO, instance(2), &free.to_string());
    peers.send(TWO, read("k"), answers.reply_to(1));
    assert_eq!(answers.of(1).await, Err(PeerError::Unreachable));
}

#[tokio::test]
async fn a_listener_that_never_speaks_is_given_up() {
    let (one, _) = pair();
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options { connect_timeout: Duration::from_millis(200), ..Options::default() };
    let (peers, answers) = (peers(&one, options), Answers::new());
    peers.introduce(TWO, instance(2), &mute.local_addr().unwrap().to_string());
    peers.send(TWO, read("k"), answers.reply_to(0));
    assert_eq!(answers.of(0).await, Err(PeerError::Unreachable), "nothing was sent");
}

#[tokio::test]
async fn a_link_that_falls_silent_is_given_up() {
    let (one, two) = pair();
    let listening = Listening::start(&two, None);
    let silence = Silence::before(listening.address).await;
    let options = Options {
        keep_alive_interval: Duration::from_millis(50),
        keep_alive_timeout: Duration::from_millis(100),
        ..Options::default()
    };
    let (peers, answers) = (peers(&one, options), Answers::new());
    peers.introduce(TWO, two.header.instance, &silence.address);
    peers.send(TWO, read("k"), answers.reply_to(0));
    assert!(answers.of(0).await.is_ok());
    silence.begin();
    peers.send(TWO, read("k"), answers.reply_to(1));
    assert_eq!(answers.of(1).await, Err(PeerError::Lost), "long before its deadline");
    assert!(!peers.connected(TWO));
}

#[tokio::test]
async fn a_deadline_ends_the_waiting_and_a_late_answer_finds_nobody() {
    let (one, two) = pair();
    let listening = Listening::start(&two, None);
    let (peers, answers) = (peers(&one, Options::default()), Answers::new());
    peers.introduce(TWO, two.header.instance, &listening.text());
    peers.send(TWO, read("k"), answers.reply_to(9));
    assert!(answers.of(9).await.is_ok(), "the link is up");
    two.hold();
    let deadline = Some(tokio::time::Instant::now() + Duration::from_millis(50));
    peers.send(TWO, ReplicaCall { deadline, ..read("k") }, answers.reply_to(0));
    assert_eq!(answers.of(0).await, Err(PeerError::TimedOut));
    for batch in two.held.lock().take().unwrap() {
        batch.into_iter().for_each(|d| d.reply_to.send(Ok(ReplicaReply::Hinted)));
    }
    peers.send(TWO, read("k"), answers.reply_to(1));
    assert!(matches!(answers.of(1).await, Ok(ReplicaReply::Record { .. })));
    assert_eq!(answers.came(), 3);
}

#[tokio::test]
async fn beyond_the_bound_requests_are_turned_away_until_answers_come() {
    let (one, two) = pair();
    let listening = Listening::start(&two, None);
    let options = Options { bytes_in_flight_max: 10_000, ..Options::default() };
    let (peers, answers) = (peers(&one, options), Answers::new());
    peers.introduce(TWO, two.header.instance, &listening.text());
    two.hold();
    for tag in 0..20 {
        peers.send(TWO, write("k", vec![0; 1000]), answers.reply_to(tag));
    }
    let turned_away = answers.came();
    assert!((11..15).contains(&turned_away), "{turned_away} of 20");
    assert_eq!(answers.of(19).await, Err(PeerError::Overloaded));
    until("what was taken arrived", || two.requests.load(Ordering::SeqCst) == 20 - turned_away).await;
    for batch in two.held.lock().take().unwrap() {
        batch.into_iter().for_each(|d| d.reply_to.send(Ok(ReplicaReply::Hinted)));
    }
    assert!(answers.of(0).await.is_ok());
    peers.send(TWO, read("k"), answers.reply_to(20));
    assert!(answers.of(20).await.is_ok());
}

#[tokio::test]
async fn a_server_at_its_bound_reads_on_with_the_next_answer() {
    let (one, two) = pair();
    let listening = Listening::with(&two, None, Options { requests_in_flight_max: 1, ..Options::default() });
    let (peers, answers) = (peers(&one, Options::default()), Answers::new());
    peers.introduce(TWO, two.header.instance, &listening.text());
    until("up", || peers.connected(TWO)).await;
    two.hold();
    peers.send(TWO, read("k"), answers.reply_to(0));
    until("the first arrived", || two.requests.load(Ordering::SeqCst) == 1).await;
    peers.send(TWO, read("k"), answers.reply_to(1));
    let held = two.held.lock().take().unwrap();
    held.into_iter().flatten().for_each(|d| d.reply_to.send(Ok(ReplicaReply::Hinted)));
    assert!(answers.of(0).await.is_ok());
    assert!(answers.of(1).await.is_ok());
}

#[tokio::test]
async fn large_values_do_not_delay_small_requests() {
    let (one, two) = pair();
    let listening = Listening::start(&two, None);
    let (peers, answers) = (peers(&one, Options::default()), Answers::new());
    peers.introduce(TWO, two.header.instance, &listening.text());
    peers.send(TWO, read("none"), answers.reply_to(0));
    assert!(answers.of(0).await.is_ok());
    // 48 MiB are queued before the small request, and 48 MiB of answers before its answer.
    let large = |n: u8| write("large", vec![n; 1024 * 1024]);
    (0..48).for_each(|n| peers.send(TWO, large(n), answers.reply_to(100 + u64::from(n))));
    peers.send(TWO, read("none"), answers.reply_to(1));
    assert!(answers.of(1).await.is_ok());
    let before = answers.came();
    assert!(before < 40, "the small request waited behind {before} large ones");
    for n in 0..48 {
        assert!(answers.of(100 + n).await.is_ok());
    }
    (0..48).for_each(|n| peers.send(TWO, read("large"), answers.reply_to(200 + n)));
    peers.send(TWO, write("small", vec![1]), answers.reply_to(2));
    let before = answers.came();
    assert!(answers.of(2).await.is_ok());
    let delayed = answers.came() - before;
    assert!(delayed < 40, "the small answer waited behind {delayed} large ones");
    for n in 0..48 {
        let Ok(ReplicaReply::Record { record: Some(record), .. }) = answers.of(200 + n).await else { panic!() };
        assert!(record.content_bytes() > SMALL_VALUE_BYTES_MAX);
    }
}

#[tokio::test]
async fn a_server_that_is_stopped_finishes_what_it_has_and_ends() {
    let (one, two) = pair();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let handler: Arc<dyn PeerHandler> = two.clone();
    let options = Options { drain_timeout: PATIENCE * 2, ..Options::default() };
    let server = serve(listener, handler, options, async { drop(stopped.await) });
    let client = async {
        let (peers, answers) = (peers(&one, Options::default()), Answers::new());
        peers.introduce(TWO, two.header.instance, &address);
        two.hold();
        peers.send(TWO, read("k"), answers.reply_to(0));
        until("the request arrived", || two.requests.load(Ordering::SeqCst) == 1).await;
        stop.send(()).unwrap();
        tokio::task::yield_now().await;
        let held = two.held.lock().take().unwrap();
        held.into_iter().flatten().for_each(|d| d.reply_to.send(Ok(ReplicaReply::Hinted)));
        assert_eq!(answers.of(0).await, Ok(ReplicaReply::Hinted));
        until("the link ended", || !peers.connected(TWO)).await;
        peers
    };
    let both = async { tokio::join!(server, client) };
    tokio::time::timeout(PATIENCE, both).await.expect("the server ends").0.unwrap();
}
