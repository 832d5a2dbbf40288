//! Failure stories of the first start, in virtual time over a small network.

mod world;

use super::*;
use crate::node::world::{Disk, Seeded};
use crate::types::{Epoch, Identity, NodeNum};
use world::{Life, World, at, disks, one_cluster, until};

#[tokio::test(start_paused = true)]
async fn three_nodes_race_and_found_one_cluster() {
    for seed in 0..20 {
        let world = World::new(seed, 3);
        *world.network.lost.lock() = 200;
        *world.network.doubled.lock() = 200;
        let disks = disks(1..=3);
        let lives: Vec<Life> = disks.iter().map(|d| world.start(d)).collect();
        let cluster = one_cluster(&lives.iter().collect::<Vec<_>>()).await;
        for (life, disk) in lives.into_iter().zip(&disks) {
            life.run.await.unwrap().unwrap();
            let identity = disk.identity.lock().clone();
            assert_eq!(identity.cluster, Some(cluster));
            assert_eq!(identity.known_addresses.len(), 2);
            let topology = disk.topology.lock().clone().unwrap();
            assert_eq!(topology.members.iter().map(|m| m.writer.0).collect::<Vec<_>>(), [1, 2, 3]);
            assert_eq!(topology.next_writer.0, 4);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn seeds_that_start_later_are_waited_for_and_named() {
    let world = World { seeds: vec![at(1)], ..World::new(7, 3) };
    let disks = disks(1..=3);
    let late: Vec<Life> = disks[1..].iter().map(|d| world.start(d)).collect();
    sleep(Duration::from_secs(20)).await;
    assert!(late.iter().all(|l| l.cluster().is_none()));
    let text = late[0].founding.waiting();
    assert_eq!(text, "waits for 2 more of 3 nodes, heard n2; 10.0.0.1:50050 unreachable");
    let seed = world.start(&disks[0]);
    one_cluster(&[&seed, &late[0], &late[1]]).await;
    assert_eq!(seed.founding.waiting(), "");
}

#[tokio::test(start_paused = true)]
async fn a_node_without_seeds_founds_its_own_and_needs_size_one() {
    let world = World { seeds: Vec::new(), ..World::new(1, 1) };
    let disk = Disk::fresh(1, 1);
    let life = world.start(&disk);
    let cluster = one_cluster(&[&life]).await;
    life.crash();
    assert_eq!(one_cluster(&[&world.start(&disk)]).await, cluster, "a restart founds nothing new");

    let world = World { seeds: Vec::new(), ..World::new(1, 3) };
    let error = world.start(&Disk::fresh(1, 1)).end().await;
    assert_eq!(error, Stop::Alone { cluster_size: 3 }.into());
}

#[tokio::test(start_paused = true)]
async fn a_node_with_seeds_never_founds_alone() {
    let world = World { seeds: vec![at(1), "alias:50050".into()], ..World::new(1, 1) };
    let life = world.start(&Disk::fresh(1, 1));
    sleep(Duration::from_secs(60)).await;
    assert!(life.cluster().is_none());
    assert!(
        life.founding.waiting().starts_with("waits for a seed that knows a cluster"),
        "{}",
        life.founding.waiting()
    );
}

/// The proposer dies after all have accepted and before it commits; and after it committed, unheard.
#[tokio::test(start_paused = true)]
async fn a_crash_between_accept_and_commit_resumes() {
    for committed in [false, true] {
        let world = World::new(3, 3);
        let disks = disks(1..=3);
        if committed {
            world.network.cut_requests(|_, _, r| matches!(r, PeerRequest::Founded { .. }));
            world.network.cut_replies(|_, to, r| to == at(1) && matches!(r, PeerRequest::Announce(_)));
        } else {
            world.network.cut_replies(|_, _, r| matches!(r, PeerRequest::Found { .. }));
        }
        let mut lives: Vec<Life> = disks.iter().map(|d| world.start(d)).collect();
        until("all accept", || disks.iter().all(|d| d.proposal.lock().is_some())).await;
        if committed {
            until("the proposer commits", || disks[0].topology.lock().is_some()).await;
        }
        let proposed = disks[0].proposal.lock().clone().unwrap().cluster_id;
        lives.remove(0).crash();
        sleep(Duration::from_secs(10)).await;
        assert!(lives.iter().all(|l| l.cluster().is_none()), "nobody else may commit");
        assert!(lives[0].founding.waiting().contains("waits for n1 to complete the founding of n1, n2, n3"));
        // One who accepted is restarted, too.
        lives.remove(0).crash();
        world.network.cut_requests(|_, _, _| false);
        world.network.cut_replies(|_, _, _| false);
        let (first, second) = (world.start(&disks[0]), world.start(&disks[1]));
        assert_eq!(one_cluster(&[&first, &second, &lives[0]]).await, proposed);
    }
}

#[tokio::test(start_paused = true)]
async fn crashes_at_any_time_leave_one_cluster_in_the_end() {
    for seed in 0..30 {
        let world = World::new(seed, 3);
        *world.network.lost.lock() = 100;
        let entropy = Seeded::new(seed);
        let disks = disks(1..=3);
        let mut lives: Vec<Option<Life>> = disks.iter().map(|d| Some(world.start(d))).collect();
        for _ in 0..12 {
            sleep(Duration::from_millis(entropy.below(300))).await;
            let at = entropy.below(3) as usize;
            match lives[at].take() {
                Some(life) => drop(life.crash()),
                None => lives[at] = Some(world.start(&disks[at])),
            }
        }
        for (life, disk) in lives.iter_mut().zip(&disks) {
            life.get_or_insert_with(|| world.start(disk));
        }
        one_cluster(&lives.iter().flatten().collect::<Vec<_>>()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_live_instances_with_one_number_stop_and_name_both() {
    let world = World { seeds: vec![at(1)], ..World::new(5, 3) };
    let one = world.start(&Disk::fresh(1, 1));
    let two = world.start(&Disk::fresh(2, 2));
    sleep(Duration::from_secs(3)).await;
    let other = world.start_at(&Disk::fresh(2, 22), "10.0.0.22:50050");
    // Whoever meets the other first stops; with it gone, the other may go on.
    until("one of them stops", || two.run.is_finished() || other.run.is_finished()).await;
    let (stopped, lives, mine) = if two.run.is_finished() { (two, other, 2) } else { (other, two, 22) };
    let error = stopped.end().await;
    let FoundingError::Stop(Stop::SameNumber { node, mine: m, .. }) = &error else { panic!("{error}") };
    assert_eq!((*node, m.0.as_u128()), (NodeNum(2), mine));
    let text = error.to_string();
    assert!(text.contains("10.0.0.2:50050") && text.contains("10.0.0.22:50050"), "{text}");
    assert!(one.cluster().is_none());
    assert!(one.founding.waiting().contains("two nodes started as n2"), "{}", one.founding.waiting());

    // The other is wiped, and so another instance again, but not beside a live one.
    lives.crash();
    let (two, three) = (world.start(&Disk::fresh(2, 222)), world.start(&Disk::fresh(3, 3)));
    one_cluster(&[&one, &two, &three]).await;
}

#[tokio::test(start_paused = true)]
async fn different_settings_stop_with_both_values() {
    let world = World::new(5, 3);
    let _one = world.start(&Disk::fresh(1, 1));
    let error = World { size: 4, network: world.network.clone(), ..World::new(0, 3) }.start(&Disk::fresh(2, 2)).end();
    let text = error.await.to_string();
    assert!(text.starts_with("CLUSTER_SIZE differs: 4 here and 3 at n1 (10.0.0.1:50050)"), "{text}");
    let world = World::new(5, 3);
    let _one = world.start(&Disk::fresh(1, 1));
    let error = World { rf: 3, network: world.network.clone(), ..World::new(0, 3) }.start(&Disk::fresh(2, 2)).end();
    let text = error.await.to_string();
    assert!(text.starts_with("REPLICATION_FACTOR differs: 3 here and 2 at n1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn more_nodes_than_asked_for_found_nothing() {
    let world = World { seeds: (1..=4).map(at).collect(), ..World::new(9, 3) };
    // All four in the same instant: no three of them are alone with each other.
    let lives: Vec<Life> = disks(1..=4).iter().map(|d| world.start(d)).collect();
    sleep(Duration::from_secs(30)).await;
    assert!(lives.iter().all(|l| l.cluster().is_none()));
    let text = lives[0].founding.waiting();
    assert!(text.contains("CLUSTER_SIZE is 3, and there are n1, n2, n3, n4"), "{text}");
}

/// The epoch before that one, in which the owner of that disk was a member, too.
fn listing(mut topology: Topology, disk: &Disk) -> Topology {
    let Identity { node, instance, .. } = disk.identity.lock().clone();
    let mut member = topology.members[0].clone();
    (member.node, member.instance, member.writer) = (node, instance, topology.next_writer);
    topology.next_writer.0 += 1;
    topology.members.push(member);
    topology.epoch.0 -= 1;
    topology
}

#[tokio::test(start_paused = true)]
async fn a_served_cluster_takes_back_its_own_and_refuses_others() {
    let world = World::new(11, 3);
    let disks = disks(1..=3);
    let mut lives: Vec<Life> = disks.iter().map(|d| world.start(d)).collect();
    let cluster = one_cluster(&lives.iter().collect::<Vec<_>>()).await;
    lives.remove(0).crash();

    // The founder's directory is wiped: the members know its number as another instance.
    let error = world.start(&Disk::fresh(1, 100)).end().await;
    assert!(matches!(&error, FoundingError::Stop(Stop::Replaced { node: NodeNum(1), .. })), "{error}");
    // A fourth node.
    let fourth = world.start(&Disk::fresh(4, 4));
    sleep(Duration::from_secs(30)).await;
    let waits = fourth.founding.waiting();
    assert!(waits.starts_with("asks to become a member of cluster") && fourth.routing.ring().is_none(), "{waits}");
    fourth.crash();
    // One that was a member.
    let removed = Disk::fresh(5, 5);
    removed.identity.lock().cluster = Some(cluster);
    *removed.topology.lock() = Some(listing(disks[1].topology.lock().clone().unwrap(), &removed));
    let error = world.start(&removed).end().await;
    let stop =
        |epoch| matches!(&error, FoundingError::Stop(Stop::Removed { node: NodeNum(5), epoch: e, .. }) if *e == epoch);
    assert!(stop(Epoch(1)), "{error}");
    let told = error.to_string();
    assert!(told.contains("was removed") && told.contains("in epoch 1 ") && told.contains("may be deleted"), "{told}");
    // The same again, also once it has on its disk that it is none.
    let again = world.start(&removed);
    let routing = Arc::clone(&again.routing);
    assert_eq!(again.end().await.to_string(), told);
    assert!(routing.ring().is_none(), "it was no member for a moment");
    *removed.topology.lock() = disks[1].topology.lock().clone();
    assert_eq!(world.start(&removed).end().await.to_string(), told);
    // And where its database was damaged since: it must not be taken in as a new member.
    *removed.topology.lock() = None;
    removed.identity.lock().rebuilding = true;
    assert_eq!(world.start(&removed).end().await.to_string(), told);
    assert_eq!(lives[0].routing.epoch(), Epoch(1), "the cluster goes on as it was");
    // A node of another cluster.
    let foreign = Disk::fresh(1, 1);
    foreign.identity.lock().cluster = Some(ClusterId(uuid::Uuid::from_u128(99)));
    *foreign.topology.lock() = disks[1].topology.lock().clone();
    let error = world.start(&foreign).end().await;
    assert!(matches!(&error, FoundingError::Stop(Stop::Foreign { .. })), "{error}");
    // The same with a topology of its own: it must not serve alone beside seeds that are not its members.
    let mut own = disks[1].topology.lock().clone().unwrap();
    own.cluster_id = ClusterId(uuid::Uuid::from_u128(99));
    own.members.iter_mut().for_each(|m| m.instance.0 = uuid::Uuid::from_u128(m.node.0.into()));
    *foreign.topology.lock() = Some(own);
    let error = world.start(&foreign).end().await.to_string();
    assert!(error.contains(&cluster.to_string()) && error.contains("-000000000063"), "{error}");
    // The founder with its database set aside: it must not answer for records that it does not have.
    *disks[0].topology.lock() = None;
    let error = world.start(&disks[0]).end().await;
    assert!(matches!(&error, FoundingError::Stop(Stop::DatabaseLost { .. })), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_identity_with_a_cluster_never_founds_another() {
    let world = World::new(12, 2);
    let disk = Disk::fresh(1, 1);
    disk.identity.lock().cluster = Some(ClusterId(uuid::Uuid::from_u128(7)));
    let error = world.start(&disk).end().await;
    assert!(matches!(&error, FoundingError::Stop(Stop::DatabaseLost { .. })), "{error}");
    assert!(disk.topology.lock().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_promise_binds_to_its_proposer() {
    let world = World::new(13, 3);
    world.network.cut_replies(|_, _, r| matches!(r, PeerRequest::Found { .. }));
    let disks = disks(1..=3);
    let mut lives: Vec<Life> = disks.iter().map(|d| world.start(d)).collect();
    until("all accept", || disks.iter().all(|d| d.proposal.lock().is_some())).await;
    // The proposer is wiped: it might have committed, so the others keep their promise and say so.
    lives.remove(0).crash();
    world.network.cut_replies(|_, _, _| false);
    let wiped = world.start(&Disk::fresh(1, 100));
    sleep(Duration::from_secs(30)).await;
    assert!(wiped.cluster().is_none() && lives.iter().all(|l| l.cluster().is_none()));
    assert!(wiped.founding.waiting().contains("has accepted a proposal of n1"), "{}", wiped.founding.waiting());
    // And none of them founds alone behind the others' backs.
    let alone = World { seeds: Vec::new(), ..World::new(0, 1) };
    let error = alone.start(&disks[1]).end().await;
    assert!(matches!(&error, FoundingError::Stop(Stop::Promised { .. })), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_the_number_does_not_stand_for_is_refused_and_the_other_command_named() {
    let mut world = World::new(15, 3);
    let disks = disks(1..=3);
    let mut lives: Vec<Life> = disks.iter().map(|d| world.start(d)).collect();
    one_cluster(&lives.iter().collect::<Vec<_>>()).await;
    lives.pop().unwrap().crash();
    world.place = Place::OfItsOwn;
    let error = world.start(&Disk::fresh(3, 33)).end().await;
    assert!(matches!(&error, FoundingError::Stop(Stop::NumberTaken { node: NodeNum(3), .. })), "{error}");
    assert!(error.to_string().ends_with("a3 replace n3"), "{error}");
    let fourth = world.start(&Disk::fresh(4, 4));
    until("it asks", || fourth.founding.waiting().starts_with("asks to become a member of cluster")).await;
    fourth.crash();

    world.place = Place::OfAMember;
    world.network.cut_requests(|_, _, r| matches!(r, PeerRequest::Replace { .. }));
    let third = world.start(&Disk::fresh(3, 33));
    let waits = || third.founding.waiting();
    until("it waits for its place", || waits().starts_with("waits for the place of another instance of n3")).await;
    assert!(waits().contains("fetches its slots") && waits().ends_with("timed out"), "{}", waits());
    // Members that are not ready refuse, and that passes.
    world.network.cut_requests(|_, _, _| false);
    until("it is refused, and waits", || waits().contains("not a question about")).await;
    third.crash();
    let error = world.start(&Disk::fresh(5, 5)).end().await;
    assert!(matches!(&error, FoundingError::Stop(Stop::NumberFree { node: NodeNum(5), .. })), "{error}");
    assert!(error.to_string().ends_with("a3 join --node-num 5"), "{error}");
}

/// The members let it in, and it ended before it heard of that: it has nothing of what the one before knew.
#[tokio::test(start_paused = true)]
async fn who_finds_itself_listed_and_founded_nothing_is_to_be_rebuilt() {
    let world = World::new(16, 3);
    let disks = disks(1..=3);
    let founders: Vec<Life> = disks.iter().map(|d| world.start(d)).collect();
    one_cluster(&founders.iter().collect::<Vec<_>>()).await;
    assert!(founders.iter().all(|life| !life.routing.is_rebuilding()), "founders have all there is");
    for founder in founders {
        founder.crash();
    }
    let newcomer = Disk::fresh(3, 33);
    for disk in &disks[..2] {
        let mut topology = disk.topology.lock();
        let topology = topology.as_mut().unwrap();
        topology.epoch.0 += 1;
        let listed = topology.members.iter_mut().find(|m| m.node == NodeNum(3)).unwrap();
        listed.instance = newcomer.identity.lock().instance;
    }
    let [first, second] = [&disks[0], &disks[1]].map(|disk| world.start(disk));
    let third = world.start(&newcomer);
    one_cluster(&[&first, &second, &third]).await;
    assert!(third.routing.is_rebuilding() && newcomer.identity.lock().rebuilding);
    assert!(!first.routing.is_rebuilding());
}

/// A topology without it is what it has on disk. Who let it in again decides, where they can be asked.
#[tokio::test(start_paused = true)]
async fn who_was_removed_and_let_in_again_comes_back() {
    let world = World::new(17, 3);
    let disks = disks(1..=3);
    let founders: Vec<Life> = disks.iter().map(|d| world.start(d)).collect();
    one_cluster(&founders.iter().collect::<Vec<_>>()).await;
    for founder in founders {
        founder.crash();
    }
    let advance = |disk: &Disk, epochs| disk.topology.lock().as_mut().unwrap().epoch.0 += epochs;
    advance(&disks[2], 1);
    disks[2].topology.lock().as_mut().unwrap().members.retain(|m| m.node != NodeNum(3));
    let error = world.start(&disks[2]).end().await;
    assert!(matches!(&error, FoundingError::Stop(Stop::Removed { epoch: Epoch(2), .. })), "{error}");
    disks[..2].iter().for_each(|disk| advance(disk, 2));
    let [first, second] = [&disks[0], &disks[1]].map(|disk| world.start(disk));
    one_cluster(&[&first, &second]).await;
    let third = world.start(&disks[2]);
    one_cluster(&[&first, &second, &third]).await;
    assert_eq!(third.routing.epoch(), Epoch(3));
}

/// Another cluster's node took over the port of one seed: the members that answer are enough.
#[tokio::test(start_paused = true)]
async fn a_stranger_on_one_seed_stops_no_member() {
    let world = World::new(14, 3);
    let disks = disks(1..=3);
    let lives: Vec<Life> = disks.iter().map(|d| world.start(d)).collect();
    let cluster = one_cluster(&lives.iter().collect::<Vec<_>>()).await;
    let mut lives = lives.into_iter();
    lives.next().unwrap().crash();
    lives.next().unwrap().crash();
    let own = World { seeds: Vec::new(), network: world.network.clone(), ..World::new(0, 1) };
    let stranger = own.start_at(&Disk::fresh(9, 9), &at(2));
    until("the stranger has its own", || stranger.cluster().is_some()).await;

    let restarted = world.start(&disks[0]);
    assert_eq!(one_cluster(&[&restarted]).await, cluster);
    // With nobody but the stranger there, it waits for a member and then refuses to serve on alone.
    restarted.crash();
    lives.next().unwrap().crash();
    let waiting = world.start(&disks[0]);
    sleep(FOREIGN_FOR / 2).await;
    assert!(waiting.cluster().is_none());
    let third = world.start(&disks[2]);
    assert_eq!(one_cluster(&[&waiting, &third]).await, cluster, "two members that start meet each other");
    waiting.crash();
    third.crash();
    let error = world.start(&disks[0]).end().await;
    assert!(matches!(&error, FoundingError::Stop(Stop::Foreign { .. })), "{error}");
}
