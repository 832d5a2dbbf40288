//! Rare requests: every kind, refusals, deadlines.

use tokio::time::Instant;

use super::*;
use crate::mesh::wire::tests::{announcement, node_info, topology};
use crate::ports::{Destination, InfoStamp, Peers};
use crate::types::{CatchUp, Vote};

const TWO: NodeNum = NodeNum(2);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

#[tokio::test]
async fn each_kind_makes_the_round_to_a_member_and_to_an_address() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let peers = peers(&one, Options::default());
    peers.introduce(TWO, two.header.instance, &listening.text());
    let stamp = InfoStamp { node: NodeNum(3), instance: instance(3), generation: 4, info: 5 };
    let topology = Arc::new(topology(3));
    let none = PeerReply::Topology { topology: None };
    let ballot = Ballot { hlc: Hlc(7), writer: Writer(2) };
    let rounds = [
        (PeerRequest::Gossip(vec![0u8, 1, 255].into()), PeerReply::Done),
        (
            PeerRequest::NodeInfo { digest: vec![stamp] },
            PeerReply::NodeInfo { infos: vec![node_info(3)], digest: vec![stamp] },
        ),
        (PeerRequest::Topology, none),
        (PeerRequest::Topology, PeerReply::Topology { topology: Some(topology.clone()) }),
        (
            PeerRequest::Announce(announcement(4)),
            PeerReply::Announced { topology: Some(topology.clone()), heard: vec![announcement(4), announcement(5)] },
        ),
        (PeerRequest::Announce(announcement(4)), PeerReply::Announced { topology: None, heard: vec![] }),
        (PeerRequest::Found { topology: topology.clone() }, PeerReply::Done),
        (PeerRequest::Founded { topology: topology.clone() }, PeerReply::Done),
        (
            PeerRequest::Replace {
                epoch: Epoch(4),
                newcomer: announcement(4),
                succeeds: vec![instance(7), instance(8)],
            },
            PeerReply::Replaced { topology: Some(topology.clone()) },
        ),
        (
            PeerRequest::CatchUp { epoch: Epoch(4) },
            PeerReply::CaughtUp(CatchUp {
                slots: 128,
                done: 7,
                caught_up: false,
                keys: 9,
                bytes: 1000,
                hints: 3,
                stuck: Some("slot 3f waits for n2".into()),
            }),
        ),
        (PeerRequest::CatchUp { epoch: Epoch(4) }, PeerReply::WrongEpoch { epoch: Epoch(5) }),
        (
            PeerRequest::Replace { epoch: Epoch(4), newcomer: announcement(4), succeeds: vec![] },
            PeerReply::Replaced { topology: None },
        ),
        (
            PeerRequest::Vote { epoch: Epoch(2), ballot, proposal: None },
            PeerReply::Voted(Box::new(Vote { epoch: Epoch(2), promised: ballot, accepted: None })),
        ),
        (
            PeerRequest::Vote { epoch: Epoch(2), ballot, proposal: Some(topology.clone()) },
            PeerReply::Voted(Box::new(Vote {
                epoch: Epoch(2),
                promised: ballot,
                accepted: Some((ballot, (*topology).clone())),
            })),
        ),
    ];
    for to in [Destination::Member(TWO), Destination::Address(listening.text())] {
        for (request, reply) in rounds.clone() {
            *two.answer.lock() = Ok(reply.clone());
            assert_eq!(peers.ask(to.clone(), request.clone(), soon()).await, Ok(reply));
            assert_eq!(two.asked.lock().pop(), Some(request));
        }
    }
    assert_eq!(one.heard.load(Ordering::SeqCst), 2000);
}

#[tokio::test]
async fn what_goes_wrong_is_told_apart() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let peers = peers(&one, Options::default());
    let ask = |to| peers.ask(to, PeerRequest::Topology, soon());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(ask(Destination::Member(TWO)).await, Err(PeerError::Unreachable), "never introduced");
    assert_eq!(ask(Destination::Address(free.to_string())).await, Err(PeerError::Unreachable));
    assert_eq!(ask(Destination::Address("no address".into())).await, Err(PeerError::Unreachable));
    for error in [PeerError::Refused("not now".into()), PeerError::Lost, PeerError::Protocol("what?".into())] {
        *two.answer.lock() = Err(error.clone());
        assert_eq!(ask(Destination::Address(listening.text())).await, Err(error));
    }
    peers.introduce(TWO, instance(77), &listening.text());
    assert_eq!(ask(Destination::Member(TWO)).await, Err(PeerError::WrongRecipient));
    let foreign = Node::new(2, 8);
    let elsewhere = Listening::start(&foreign, None);
    assert_eq!(ask(Destination::Address(elsewhere.text())).await, Err(PeerError::ForeignCluster(cluster(8))));
    *two.answer.lock() = Ok(PeerReply::Done);
    assert_eq!(ask(Destination::Address(listening.text())).await, Err(PeerError::Lost), "an answer of another kind");
}

#[tokio::test]
async fn a_deadline_is_kept_by_a_listener_that_never_speaks() {
    let one = Node::new(1, 9);
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peers = peers(&one, Options::default());
    let to = Destination::Address(mute.local_addr().unwrap().to_string());
    let deadline = Instant::now() + Duration::from_millis(50);
    assert_eq!(peers.ask(to, PeerRequest::Topology, deadline).await, Err(PeerError::TimedOut));
}

#[tokio::test]
async fn a_restarted_peer_is_asked_again_over_a_new_connection() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let (address, to) = (listening.address, Destination::Address(listening.text()));
    let peers = peers(&one, Options { channels_max: 1, ..Options::default() });
    let gossip = || peers.ask(to.clone(), PeerRequest::Gossip(vec![1u8].into()), soon());
    assert_eq!(gossip().await, Ok(PeerReply::Done));
    listening.kill();
    let _ = gossip().await;
    let _again = Listening::start(&two, Some(address));
    assert_eq!(gossip().await, Ok(PeerReply::Done));
    // Another address takes the only place in the cache; the first one is simply connected again.
    let elsewhere = Listening::start(&two, None);
    let other = peers.ask(Destination::Address(elsewhere.text()), PeerRequest::Gossip(vec![2u8].into()), soon());
    assert_eq!(other.await, Ok(PeerReply::Done));
    assert_eq!(gossip().await, Ok(PeerReply::Done));
}
