//! Voting, and who may take whose place.

use uuid::Uuid;

use super::*;
use crate::node::fakes::{FakeClock, FakePeers, FakeStore, journal, topology};
use crate::node::world::{Disk, DiskStore, Seeded, Tasks};
use crate::ports::{Announcement, Store, StoreError};
use crate::protocol::succession::change::{self, Wish};
use crate::types::{Hlc, Writer};

const NOW_MS: u64 = 1_700_000_000_000;

/// Node 1 of three, which reaches nobody.
fn member(store: Arc<dyn Store>) -> Arc<Succession> {
    let routing = Arc::new(Routing::default());
    routing.install(topology(1, 3, 3));
    let ports = Ports {
        peers: FakePeers::new(),
        store,
        clock: FakeClock::at(NOW_MS),
        entropy: Seeded::new(1),
        spawn: Arc::new(Tasks::default()),
    };
    let clock = NodeClock::new(FakeClock::at(NOW_MS), Duration::from_secs(300), Hlc::ZERO);
    Succession::new(NodeNum(1), &ports, &routing, &clock, &Arc::default(), &journal())
}

fn newcomer(node: u16, instance: u128) -> Announcement {
    let listed = topology(1, 3, 3).member(NodeNum(2)).unwrap().clone();
    Announcement {
        node: NodeNum(node),
        instance: InstanceId(Uuid::from_u128(instance)),
        zone: None,
        weight: 1,
        mesh_address: listed.mesh_address,
        http_address: listed.http_address,
        cluster_size: 3,
        rf: 3,
    }
}

fn ballot(hlc: u64) -> Ballot {
    Ballot { hlc: Hlc(hlc), writer: Writer(2) }
}

#[tokio::test(start_paused = true)]
async fn a_vote_is_on_disk_before_it_is_told_and_outlives_the_process() {
    let disk = Disk::fresh(1, 1);
    let one = member(Arc::new(DiskStore(Arc::clone(&disk))));
    let told = one.answer_vote(Epoch(2), ballot(5), None).await;
    let Ok(PeerReply::Voted(vote)) = told else { panic!("{told:?}") };
    assert_eq!((vote.promised, disk.vote.lock().as_ref()), (ballot(5), Some(&*vote)));
    let again = member(Arc::new(DiskStore(Arc::clone(&disk))));
    for lower in [ballot(4), ballot(5)] {
        let stands = again.answer_vote(Epoch(2), lower, None).await;
        assert_eq!(stands, Ok(PeerReply::Voted(vote.clone())), "what was promised stands");
    }
    let proposal = Arc::new(succession::replaced(&topology(1, 3, 3), &newcomer(2, 99)).unwrap());
    let lower = again.answer_vote(Epoch(2), ballot(4), Some(Arc::clone(&proposal))).await;
    assert_eq!(lower, Ok(PeerReply::Voted(vote)));
    again.answer_vote(Epoch(2), ballot(5), Some(Arc::clone(&proposal))).await.unwrap();
    let accepted = disk.vote.lock().as_ref().and_then(|vote| vote.accepted.clone());
    assert_eq!(accepted, Some((ballot(5), (*proposal).clone())));
}

#[tokio::test(start_paused = true)]
async fn a_vote_that_cannot_be_stored_or_is_for_no_next_epoch_is_none() {
    let store = FakeStore::new();
    let one = member(store.clone());
    for epoch in [0, 1, 3] {
        assert!(matches!(one.answer_vote(Epoch(epoch), ballot(5), None).await, Err(PeerError::Refused(_))));
    }
    store.fail_with(Some(StoreError::DiskFull));
    assert!(matches!(one.answer_vote(Epoch(2), ballot(5), None).await, Err(PeerError::Refused(_))));
}

#[tokio::test(start_paused = true)]
async fn a_place_is_not_given_to_a_stranger_before_its_member_was_down_for_long() {
    let one = member(Arc::new(DiskStore(Disk::fresh(1, 1))));
    let itself = one.answer_replace(Epoch(1), newcomer(2, 2), Vec::new()).await;
    assert_eq!(itself, Ok(PeerReply::Replaced { topology: Some(topology(1, 3, 3)) }));
    for (node, succeeds) in [(2, Vec::new()), (1, vec![InstanceId(Uuid::from_u128(1))])] {
        let told = one.answer_replace(Epoch(1), newcomer(node, 99), succeeds).await;
        assert_eq!(told, Ok(PeerReply::Replaced { topology: None }), "n{node}: not known to be gone, or the asked one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_number_that_is_nobodys_has_to_wait_while_another_change_is_under_way() {
    let one = member(Arc::new(DiskStore(Disk::fresh(1, 1))));
    let joins = change::begin(&topology(1, 3, 3), &Wish::Join(newcomer(8, 98))).unwrap();
    one.adopt(Arc::new(joins)).await;
    let told = one.answer_replace(Epoch(2), newcomer(9, 99), Vec::new()).await;
    assert_eq!(told, Err(PeerError::Refused("another change of the topology is under way: n8 joins".into())));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_asked_for_under_another_epoch_is_not_given() {
    let one = member(Arc::new(DiskStore(Disk::fresh(1, 1))));
    let joins = change::begin(&topology(1, 3, 3), &Wish::Join(newcomer(8, 98))).unwrap();
    let back = change::abort(&joins).unwrap();
    one.adopt(Arc::new(joins)).await;
    one.adopt(Arc::new(back)).await;
    for epoch in [1, 2, 4] {
        for (node, succeeds) in [(8, Vec::new()), (2, vec![InstanceId(Uuid::from_u128(2))])] {
            let told = one.answer_replace(Epoch(epoch), newcomer(node, 98), succeeds).await;
            assert_eq!(told, Ok(PeerReply::Replaced { topology: None }), "n{node} under epoch {epoch}");
        }
    }
    let under_it = one.answer_replace(Epoch(3), newcomer(8, 98), Vec::new());
    tokio::pin!(under_it);
    assert!(futures_util::poll!(&mut under_it).is_pending());
    assert!(one.proposing.try_lock().is_err(), "under the one in force it is proposed");
}
