//! The clock through lives, idle times and wrong wall clocks.

use super::*;
use crate::node::fakes::{FakeClock, FakeStore};
use crate::types::{Content, Version, Writer};
use tokio::task::JoinHandle;

const WALL: u64 = 1_700_000_000_000;
const MAX: Duration = Duration::from_secs(300);

struct World {
    wall: Arc<FakeClock>,
    store: Arc<FakeStore>,
}

impl World {
    fn new() -> Self {
        Self { wall: FakeClock::at(WALL), store: FakeStore::new() }
    }

    /// A node's life, from the reservation it finds on disk.
    async fn start(&self) -> (Arc<NodeClock>, JoinHandle<()>) {
        let reserved = self.store.clock_reservation().await.unwrap();
        let clock = NodeClock::new(Arc::clone(&self.wall) as Arc<dyn Clock>, MAX, reserved);
        let driver = Arc::clone(&clock).keep_reserved(Arc::clone(&self.store) as Arc<dyn Store>);
        #[expect(clippy::disallowed_methods, reason = "a test is its own node")]
        let driver = tokio::spawn(driver);
        (clock, driver)
    }
}

#[tokio::test(start_paused = true)]
async fn no_stamp_is_issued_twice_through_crashes_and_clocks_set_back() {
    let world = World::new();
    let mut last = Hlc::ZERO;
    for life in 0..6 {
        let (clock, driver) = world.start().await;
        assert_eq!(clock.stamp(Hlc::ZERO), None, "nothing is reserved yet");
        for _ in 0..50 {
            let stamp = clock.stamp_reserved(Hlc::ZERO).await.unwrap();
            assert!(stamp > last, "life {life}: {stamp:?} after {last:?}");
            assert!(stamp <= world.store.clock_reservation().await.unwrap(), "on disk before use");
            last = stamp;
            tokio::time::sleep(Duration::from_millis(300)).await;
            world.wall.advance(300);
        }
        driver.abort();
        world.wall.set(if life % 2 == 0 { WALL - 60_000 } else { WALL + 60_000 });
    }
}

#[tokio::test(start_paused = true)]
async fn in_use_no_stamp_waits_and_an_idle_node_does_not_write() {
    let world = World::new();
    let (clock, _driver) = world.start().await;
    assert!(clock.stamp_reserved(Hlc::ZERO).await.is_some());
    let writes = world.store.reservations();
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.wall.advance(100);
        assert!(clock.stamp(Hlc::ZERO).is_some());
    }
    let in_use = world.store.reservations() - writes;
    assert!((20..=40).contains(&in_use), "{in_use} in 30 s");
    let idle = async || {
        let writes = world.store.reservations();
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.wall.advance(1_000);
        }
        world.store.reservations() - writes
    };
    assert!(idle().await <= 11, "it is in use for ten seconds more");
    assert_eq!(idle().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_reading_seen_far_ahead_is_outbid_after_a_wait_and_an_absurd_one_ignored() {
    let world = World::new();
    let (clock, _driver) = world.start().await;
    clock.stamp_reserved(Hlc::ZERO).await.unwrap();
    let ahead = Hlc::from_ms(WALL + 299_000);
    clock.observe(ahead);
    assert_eq!(clock.stamp(Hlc::ZERO), None, "beyond the reservation");
    assert!(clock.stamp_reserved(Hlc::ZERO).await.unwrap() > ahead);
    clock.observe(Hlc::from_ms(WALL + 301_000));
    assert!(clock.now() < Hlc::from_ms(WALL + 300_000));
    assert_eq!(clock.stamp_reserved(Hlc::from_ms(WALL + 301_000)).await, None);
    assert_eq!(clock.skewed_by_ms(), None);
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_are_served_in_the_order_they_came() {
    let world = World::new();
    let (clock, _driver) = world.start().await;
    let waiting = (0..40).map(|_| clock.stamp_reserved(Hlc::ZERO));
    let mut served: futures_util::stream::FuturesUnordered<_> = waiting.collect();
    let mut last = Hlc::ZERO;
    while let Some(stamp) = futures_util::StreamExt::next(&mut served).await {
        assert!(stamp > Some(last), "{stamp:?} after {last:?}");
        last = stamp.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_ends_the_wait_and_is_tried_again() {
    let world = World::new();
    let (clock, _driver) = world.start().await;
    world.store.fail_with(Some(StoreError::DiskFull));
    for _ in 0..2 {
        let waited = tokio::time::timeout(Duration::from_secs(5), clock.stamp_reserved(Hlc::ZERO)).await;
        assert_eq!(waited, Ok(None));
    }
    world.store.fail_with(None);
    assert!(clock.stamp_reserved(Hlc::ZERO).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_an_hour_ahead_reserves_nothing_and_leaves_no_trace() {
    let world = World::new();
    world.wall.set(WALL + 3_600_000);
    let (clock, _driver) = world.start().await;
    assert!(!clock.is_compared());
    clock.heard(NodeNum(2), WALL);
    clock.heard(NodeNum(3), WALL + 20);
    assert!(clock.is_compared());
    assert_eq!(clock.skewed_by_ms(), Some(3_600_000 - 20));
    assert_eq!(clock.stamp_reserved(Hlc::ZERO).await, None);
    world.wall.set(WALL);
    assert_eq!(clock.skewed_by_ms(), None);
    let stamp = clock.stamp_reserved(Hlc::ZERO).await.unwrap();
    assert!(stamp.ms() < WALL + 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stamped_an_hour_ahead_says_so_after_the_clock_is_set_right() {
    let world = World::new();
    world.wall.set(WALL + 3_600_000);
    let (clock, _driver) = world.start().await;
    clock.stamp_reserved(Hlc::ZERO).await.unwrap();
    world.wall.set(WALL);
    assert!(clock.skewed_by_ms().is_some_and(|by| by >= 3_600_000));
}

#[tokio::test(start_paused = true)]
async fn restarts_in_quick_succession_do_not_run_away() {
    let world = World::new();
    for _ in 0..30 {
        let (clock, driver) = world.start().await;
        clock.stamp_reserved(Hlc::ZERO).await.unwrap();
        driver.abort();
    }
    assert!(world.store.clock_reservation().await.unwrap().ms() <= WALL + 2_000 + 30 * 1_001);
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_good_order_gives_back_what_was_reserved_and_no_stamp_is_issued_after_it() {
    let world = World::new();
    let mut last = Hlc::ZERO;
    for _ in 0..20 {
        let (clock, driver) = world.start().await;
        for _ in 0..10 {
            let stamp = clock.stamp_reserved(Hlc::ZERO).await.unwrap();
            assert!(stamp > last);
            last = stamp;
        }
        let left = clock.close();
        assert_eq!((left, clock.stamp(Hlc::ZERO)), (last, None));
        assert_eq!(clock.stamp_reserved(Hlc::ZERO).await, None);
        driver.abort();
        world.store.release_clock(left).await.unwrap();
    }
    assert_eq!(last.ms(), WALL, "it did not run ahead");
}

fn value(expires_at_ms: u64) -> (Key, Record) {
    let key = Key::new("k").unwrap();
    let content = Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: Some(expires_at_ms) };
    let record = Record::seal(&key, Version::plain(Hlc::from_ms(WALL), Writer(1)), Hlc::from_ms(WALL), content);
    (key, record)
}

#[tokio::test(start_paused = true)]
async fn an_end_that_another_told_is_an_end_here_too() {
    let world = World::new();
    let (clock, _driver) = world.start().await;
    let (key, record) = value(WALL + 2_000);
    clock.trust();
    assert_eq!(clock.end_of(&key, &record), None);
    assert_eq!(clock.end_of(&key, &record.end(&key).unwrap()), None, "it is the tombstone already");
    assert_eq!(clock.end_of(&key, &record), record.end(&key), "a replica that has none yet was asked");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_told_stays_though_the_clock_is_set_back() {
    let world = World::new();
    let (clock, _driver) = world.start().await;
    let (key, record) = value(WALL + 2_000);
    clock.trust();
    world.wall.advance(1_999);
    assert_eq!(clock.end_of(&key, &record), None);
    world.wall.advance(1);
    assert_eq!(clock.end_of(&key, &record), record.end(&key));
    for back_ms in [0, 3_600_000] {
        world.wall.set(WALL - back_ms);
        assert!(clock.end_of(&key, &record).is_some(), "set back by {back_ms} ms");
        assert_eq!(clock.end_of(&key, &value(WALL + 2_001).1), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_wrong_or_was_not_compared_ends_nothing_but_what_others_say() {
    let world = World::new();
    let (clock, _driver) = world.start().await;
    let (key, record) = value(WALL + 2_000);
    world.wall.advance(2_000);
    assert_eq!(clock.end_of(&key, &record), None, "not compared yet");
    clock.trust();
    for node in [2, 3] {
        clock.heard(NodeNum(node), WALL);
    }
    world.wall.set(WALL + 3_600_000);
    assert!(clock.skewed_by_ms().is_some());
    assert_eq!(clock.end_of(&key, &record), None, "an hour ahead of the others");
    clock.observe(Hlc::from_ms(WALL + 2_000));
    assert!(clock.end_of(&key, &record).is_some());
}
