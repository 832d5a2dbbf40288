//! Importing: records under versions that they have already, floors that are not the same everywhere, and attempts that are
//! made again.

use super::*;
use crate::node::coordinator::{Import, Importing};
use crate::ports::Purging as _;
use crate::protocol::quorum::Imported;
use crate::types::{Ballot, Floor, Slot};

const OLDER: Import = Import::Done(Imported::Older { take_back: false });
const STORED: Import = Import::Done(Imported::Stored);
const UNCHANGED: Import = Import::Done(Imported::Unchanged);

fn at(ms: u64) -> Version {
    Version::plain(Hlc::from_ms(ms), Writer(7))
}

fn value(key: &Key, version: Version) -> Record {
    Record::seal(key, version, version.hlc, Content::value("v"))
}

fn tombstone(key: &Key, version: Version) -> Record {
    Record::seal(key, version, version.hlc, Content::Tombstone)
}

impl World {
    async fn import(&self, key: &Key, record: Record) -> Result<Import, Failure> {
        let deadline = Instant::now() + Duration::from_secs(1);
        self.coordinator.import_attended(&mut Importing::new(key.clone(), record), deadline).await
    }

    /// The floor of the key's slot at that node covers what was written up to then.
    async fn raise(&self, node: u16, key: &Key, up_to: u64) {
        let slot: Slot = self.net.ring.token(key).slot();
        let floor = Floor { written: Hlc::from_ms(up_to), version: at(up_to), ballot: Ballot::default() };
        self.net.disks[&NodeNum(node)].raise(vec![(slot, floor)]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_keeps_its_version_and_twice_is_once() {
    let world = world(3, 3);
    let key = world.key(1);
    let record = value(&key, at(5));
    assert_eq!(world.import(&key, record.clone()).await.unwrap(), STORED);
    for node in 1..=3 {
        assert_eq!(world.on(node, &key), Some(record.clone()));
    }
    assert_eq!(world.import(&key, record.clone()).await.unwrap(), UNCHANGED);
    assert_eq!(world.import(&key, value(&key, at(4))).await.unwrap(), OLDER);
    assert_eq!(world.import(&key, value(&key, at(6))).await.unwrap(), STORED);
    // A client's write outbids it, as any write does.
    let receipt = world.put(&key, "new", Level::Quorum).await.unwrap();
    assert!(receipt.version > at(6) && receipt.strict);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_stays_deleted() {
    let world = world(3, 3);
    let key = world.key(1);
    world.put(&key, "x", Level::Quorum).await.unwrap();
    let content = NewContent::Tombstone;
    let deadline = Instant::now() + Duration::from_secs(1);
    world.coordinator.put(Put { key: key.clone(), content, level: Level::Quorum, deadline }).await.unwrap();
    assert_eq!(world.import(&key, value(&key, at(5))).await.unwrap(), OLDER);
    assert_eq!(world.get(&key, Level::Quorum).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_below_the_floor_is_stored_nowhere_and_kept_for_nobody() {
    let world = world(4, 3);
    let key = world.key(1);
    let homes = world.net.ring.placement(world.net.ring.token(&key).slot()).home_replicas();
    for node in homes.iter() {
        world.raise(node.0, &key, 10).await;
    }
    assert_eq!(world.import(&key, value(&key, at(5))).await.unwrap(), OLDER);
    world.net.set(homes[2].0, Mode::Down);
    assert_eq!(world.import(&key, value(&key, at(5))).await.unwrap(), OLDER);
    world.net.set(homes[1].0, Mode::Down);
    assert!(world.import(&key, value(&key, at(5))).await.is_err());
    for node in 1..=4 {
        assert_eq!((world.on(node, &key), world.net.disks[&NodeNum(node)].hint_count()), (None, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_some_took_and_one_refuses_for_ever_is_taken_back() {
    let world = world(3, 3);
    let key = world.key(1);
    world.raise(3, &key, 10).await;
    let record = value(&key, at(5));
    let taken_back = Import::Done(Imported::Older { take_back: true });
    assert_eq!(world.import(&key, record.clone()).await.unwrap(), taken_back);
    let left = world.on(1, &key).unwrap();
    assert!(left.is_tombstone() && left.version == record.version.ended() && left.written == Hlc::from_ms(NOW_MS));
    assert_eq!((world.on(2, &key), world.on(3, &key)), (Some(left.clone()), Some(left)), "no floor covers it");
    assert_eq!(world.import(&key, record).await.unwrap(), OLDER);
    assert!(world.put(&key, "new", Level::Quorum).await.unwrap().strict);
    assert_eq!(world.get(&key, Level::Quorum).await.unwrap(), Some("new".into()));
}

#[tokio::test(start_paused = true)]
async fn taking_back_is_done_before_the_answer_however_many_attempts_it_needs() {
    let world = world(3, 3);
    let key = world.key(1);
    world.raise(3, &key, 10).await;
    let mut of = Importing::new(key.clone(), value(&key, at(5)));
    let soon = || Instant::now() + Duration::from_secs(1);
    // The answers are in when the others go away.
    of.over = Some(tombstone(&key, at(5).ended()));
    world.plant(1, &key, at(5), "v");
    world.net.set(2, Mode::Broken(PeerError::Lost));
    world.net.set(3, Mode::Broken(PeerError::Lost));
    assert!(world.coordinator.import_attended(&mut of, soon()).await.is_err());
    world.net.set(2, Mode::Up);
    let taken_back = Import::Done(Imported::Older { take_back: true });
    assert_eq!(world.coordinator.import_attended(&mut of, soon()).await.unwrap(), taken_back);
    assert!(world.on(2, &key).unwrap().is_tombstone());
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_counts_its_age_from_now_and_is_written_once() {
    let world = world(3, 2);
    let key = world.key(1);
    let record = tombstone(&key, at(5));
    assert_eq!(world.import(&key, record.clone()).await.unwrap(), STORED);
    let kept = world.on(1, &key).unwrap();
    assert_eq!((kept.version, kept.written), (at(5), Hlc::from_ms(NOW_MS)));
    world.clock.set(NOW_MS + 5_000);
    assert_eq!(world.import(&key, record).await.unwrap(), UNCHANGED);
    assert_eq!(world.on(1, &key), Some(kept));
    assert_eq!(world.import(&key, value(&key, at(4))).await.unwrap(), OLDER);
    // A value under it goes; one above it stays.
    assert_eq!(world.import(&key, value(&key, at(9))).await.unwrap(), STORED);
    assert_eq!(world.import(&key, tombstone(&key, at(8))).await.unwrap(), OLDER);
    assert_eq!(world.import(&key, tombstone(&key, at(9).ended())).await.unwrap(), STORED);
    assert_eq!(world.get(&key, Level::Quorum).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_that_is_tried_again_is_the_same_one() {
    let (world, later) = (world(3, 3), world(3, 3));
    let key = world.key(1);
    let mut of = Importing::new(key.clone(), tombstone(&key, at(5)));
    let soon = || Instant::now() + Duration::from_secs(1);
    world.coordinator.import_attended(&mut of, soon()).await.unwrap();
    // As if those that have it had not answered: others get it later.
    later.clock.set(NOW_MS + 5_000);
    later.coordinator.import_attended(&mut of, soon()).await.unwrap();
    assert_eq!(later.on(1, &key).unwrap(), world.on(1, &key).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_home_replica_that_is_away_is_stood_in_for() {
    let world = world(3, 2);
    let key = world.key(1);
    let homes = world.net.ring.placement(world.net.ring.token(&key).slot()).home_replicas();
    let fallback = (1..=3).find(|n| !homes.contains(&NodeNum(*n))).unwrap();
    world.net.set(homes[1].0, Mode::Down);
    // One that was not written just now needs its home replicas.
    let failure = world.import(&key, value(&key, at(5))).await.unwrap_err();
    assert_eq!((failure.kind, failure.required, failure.acked.len()), (FailureKind::Unavailable, 2, 1));
    assert_eq!(world.net.disks[&NodeNum(fallback)].hint_count(), 0);
    assert_eq!(world.import(&key, value(&key, at(NOW_MS - 9_000))).await.unwrap(), STORED);
    assert_eq!(world.net.disks[&NodeNum(fallback)].hint_count(), 1);
    world.net.set(fallback, Mode::Down);
    let failure = world.import(&key, value(&key, at(NOW_MS - 8_000))).await.unwrap_err();
    assert_eq!((failure.kind, failure.required), (FailureKind::Unavailable, 2));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_made_again_says_what_the_first_one_did() {
    let world = world(2, 2);
    let key = world.key(1);
    let mut of = Importing::new(key.clone(), value(&key, at(5)));
    let soon = || Instant::now() + Duration::from_secs(1);
    world.net.lose_writes(2, true);
    assert!(world.coordinator.import_attended(&mut of, soon()).await.is_err());
    assert!(world.on(1, &key).is_some());
    world.net.lose_writes(2, false);
    assert_eq!(
        world.coordinator.import_attended(&mut of, soon()).await.unwrap(),
        STORED,
        "the read has brought it there"
    );
}

#[tokio::test(start_paused = true)]
async fn another_content_under_its_version_stays_whichever_checksum_is_greater() {
    let conditional = at(5).conditional().unwrap();
    for (mine, theirs) in [("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")] {
        let world = world(3, 3);
        let key = world.key(1);
        let record = |text: &'static str| Record::seal(&key, conditional, Hlc::from_ms(8), Content::value(text));
        // A client's acknowledged write, on a majority.
        for node in [2, 3] {
            world.plant_record(node, &key, record(mine));
        }
        assert_eq!(world.import(&key, record(theirs)).await.unwrap(), Import::Differs);
        // A deletion under it would take it away, too.
        let deletion = Record::seal(&key, conditional, Hlc::from_ms(8), Content::Tombstone);
        assert_eq!(world.import(&key, deletion).await.unwrap(), Import::Differs);
        for node in [2, 3] {
            assert_eq!(world.on(node, &key), Some(record(mine)));
        }
        // The same content is the same, though it was written at another time.
        let again = Record::seal(&key, conditional, Hlc::from_ms(9), Content::value(mine));
        assert_eq!(world.import(&key, again).await.unwrap(), UNCHANGED);
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_attempt_left_is_taken_back_when_a_floor_is_met() {
    let world = world(3, 3);
    let key = world.key(1);
    let mut of = Importing::new(key.clone(), value(&key, at(5)));
    let soon = || Instant::now() + Duration::from_secs(1);
    world.net.lose_writes(2, true);
    world.net.lose_writes(3, true);
    assert!(world.coordinator.import_attended(&mut of, soon()).await.is_err());
    assert!(world.on(1, &key).is_some_and(|left| !left.is_tombstone()));
    // Meanwhile the floor was raised where it is not, and the next read takes it to one of them.
    world.raise(3, &key, 10).await;
    world.net.lose_writes(2, false);
    world.net.lose_writes(3, false);
    let taken_back = Import::Done(Imported::Older { take_back: true });
    assert_eq!(world.coordinator.import_attended(&mut of, soon()).await.unwrap(), taken_back);
    for node in 1..=3 {
        assert!(world.on(node, &key).unwrap().is_tombstone(), "{node}");
    }
}

#[tokio::test(start_paused = true)]
async fn over_a_tombstone_that_others_have_purged_it_is_taken_back() {
    let world = world(3, 3);
    let key = world.key(1);
    for node in [1, 2] {
        world.plant_record(node, &key, tombstone(&key, at(3)));
    }
    world.raise(3, &key, 10).await;
    let taken_back = Import::Done(Imported::Older { take_back: true });
    // The read brings the tombstone to nobody who purged it.
    assert_eq!(world.import(&key, value(&key, at(5))).await.unwrap(), taken_back);
    assert_eq!(world.get(&key, Level::Quorum).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_leaves_nothing_behind_that_must_not_be_there() {
    let world = world(3, 3);
    let key = world.key(1);
    world.raise(3, &key, 10).await;
    // The third has the write, and has not answered yet when the client goes.
    world.net.hold_writes(3, true);
    let of = Arc::new(tokio::sync::Mutex::new(Importing::new(key.clone(), value(&key, at(5)))));
    let tasks = crate::node::world::Tasks::default();
    {
        let asked = world.coordinator.import(&tasks, &of, Instant::now() + Duration::from_secs(1));
        tokio::pin!(asked);
        while world.on(1, &key).is_none() {
            assert!(futures_util::poll!(&mut asked).is_pending());
            tokio::task::yield_now().await;
        }
    }
    world.net.hold_writes(3, false);
    let until = Instant::now() + Duration::from_secs(5);
    while !(1..=3).all(|node| world.on(node, &key).is_some_and(|left| left.is_tombstone())) {
        assert!(Instant::now() < until, "what was stored is taken back");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
