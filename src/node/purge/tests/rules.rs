//! What each rule of `protocol::purge` is for: what would be lost, or come back, without it.

use super::*;
use crate::node::request::{ConditionalPut, Edit, Failure, FailureKind, NewContent, Receipt};
use crate::types::{Accepted, Ballot, Condition, Idempotency, OpId, Recent, Tags};

/// How long after that a seal lies in the past.
const SEAL_AGE_MS: u64 = 120_000 + 2_000;
const ALL: [NodeNum; 3] = [ONE, TWO, THREE];

fn plain(name: &str, at_ms: u64, content: Content) -> Record {
    let hlc = Hlc::from_ms(at_ms);
    Record::seal(&key(name), Version::plain(hlc, Writer(1)), hlc, content)
}

fn value(name: &str, at_ms: u64) -> Record {
    plain(name, at_ms, Content::value(b"old".to_vec()))
}

fn tombstone(name: &str, at_ms: u64) -> Record {
    plain(name, at_ms, Content::Tombstone)
}

/// A conditional write upon that version.
fn upon(version: Version, name: &str, written: Hlc) -> Record {
    Record::seal(&key(name), version.conditional().unwrap(), written, Content::value(b"new".to_vec()))
}

fn is(version: Version) -> Condition {
    Condition { if_match: Some(Tags::Of(vec![version])), ..Condition::default() }
}

impl Cluster {
    /// As a message that arrives.
    fn send(&self, node: NodeNum, request: ReplicaRequest) -> ReplicaReply {
        let token = self.wire.ring.get().unwrap().token(request.key());
        self.wire.stores[&node].apply(token, request)
    }

    fn write(&self, node: NodeNum, name: &str, record: &Record) -> ReplicaReply {
        self.send(node, ReplicaRequest::Write { key: key(name), record: record.clone() })
    }

    fn write_all(&self, name: &str, record: &Record) {
        self.wire.stores.keys().for_each(|node| drop(self.write(*node, name, record)));
    }

    fn accept(&self, node: NodeNum, name: &str, ballot: Ballot, record: &Record) {
        let (op, record) = (OpId(uuid::Uuid::from_u128(7)), Some(record.clone()));
        let accepted = Box::new(Accepted { ballot, op, record, recent: Recent::NONE });
        assert_eq!(self.send(node, ReplicaRequest::Accept { key: key(name), accepted }), ReplicaReply::Accepted);
    }

    fn stored(&self, node: NodeNum, name: &str) -> Option<Record> {
        self.wire.stores[&node].record(&key(name))
    }

    /// Delivers the hints for a node; what it answers.
    async fn hand_off(&self, to: NodeNum) -> Vec<ReplicaReply> {
        let mut replies = Vec::new();
        for store in self.wire.stores.values() {
            for Hint { target, slot, key, record, .. } in store.hints(to, None, 16).await.unwrap() {
                let delivered = (target, slot, key.clone(), record.version);
                replies.push(self.send(to, ReplicaRequest::Write { key, record }));
                store.forget_hints(vec![delivered]).await.unwrap();
            }
        }
        replies
    }

    /// Another key of the slot of "k".
    fn beside(&self) -> String {
        (0..).map(|n| format!("beside-{n}")).find(|name| self.slot(name) == self.slot("k")).unwrap()
    }

    async fn put(&self, condition: Condition, text: &str) -> Result<Receipt, Failure> {
        let (edit, deadline) = (Edit::Write(NewContent::value(text.to_owned())), Instant::now() + ASK_DEADLINE);
        let put = ConditionalPut { key: key("k"), condition, edit, idempotency: None, deadline };
        self.driver(ONE).conditional.put(put).await
    }

    /// The next look that raises a floor: the one before learns since when the last is complete.
    async fn next_floor(&self) -> Vec<(NodeNum, String)> {
        self.look_after(HOUR_MS / 8).await;
        self.look_after(HOUR_MS / 8).await
    }
}

/// The write was judged when the tombstone was not there yet, on a value that ended a moment after its ballot began: it was
/// written later than its ballot and than this seal. Only the floor after this one covers it.
#[tokio::test(start_paused = true)]
async fn a_write_judged_before_the_tombstone_came_does_not_outlive_it() {
    let three = three();
    three.write(ONE, "k", &tombstone("k", NOW_MS));
    three.come_of_age().await;
    let sealed_ms = NOW_MS + HOUR_MS - SEAL_AGE_MS;
    let ended = Version::plain(Hlc::from_ms(NOW_MS - 1), Writer(1)).ended();
    let late = upon(ended, "k", Hlc::from_ms(sealed_ms + 1));
    for node in [TWO, THREE] {
        three.accept(node, "k", Ballot { hlc: Hlc::from_ms(sealed_ms), writer: Writer(2) }, &late);
        three.write(node, "k", &late);
    }
    assert_eq!(three.look_after(0).await, []);
    assert_eq!(three.kept()[0].floor.written.ms(), sealed_ms);
    // A hint for it is delivered now.
    three.write(ONE, "k", &late);
    assert_eq!(ALL.map(|node| three.stored(node, "k")), [(); 3].map(|()| Some(tombstone("k", NOW_MS))));
    assert_eq!(three.next_floor().await, []);
    assert_eq!(three.left(), [0, 0, 0]);
    assert!(matches!(three.write(ONE, "k", &late), ReplicaReply::BelowFloor { .. }));
}

/// A floor refuses whatever is older than the tombstones of its slot, an acknowledged write of another key, too.
#[tokio::test(start_paused = true)]
async fn an_acknowledged_write_is_not_lost_while_it_is_a_hint() {
    let (three, record) = (three(), value("k", NOW_MS - 1));
    three.write_all(&three.beside(), &tombstone(&three.beside(), NOW_MS));
    let (target, slot) = (THREE, three.slot("k"));
    let hint = Hint { target, slot, key: key("k"), record: record.clone(), counted: true, kept_at_ms: NOW_MS };
    three.wire.stores[&TWO].put_hint(hint);
    three.come_of_age().await;
    three.look_after(0).await;
    three.next_floor().await;
    assert_eq!(three.hand_off(THREE).await, [ReplicaReply::Stored { replaced: None }]);
    assert_eq!(three.look_after(0).await, []);
    assert_eq!(three.next_floor().await, []);
    assert_eq!(three.left(), [0, 0, 0]);
    assert_eq!(ALL.map(|node| three.stored(node, "k")), [(); 3].map(|()| Some(record.clone())));
}

/// What three of five hold and acknowledged moves to the raiser after it has compared itself with the second: that one would
/// refuse it from then on, and the copies differ for ever.
#[tokio::test(start_paused = true)]
async fn what_moves_while_copies_are_compared_gets_to_all_before_the_floor() {
    let five = cluster(5);
    let all = [ONE, TWO, THREE, NodeNum(4), NodeNum(5)];
    five.write_all(&five.beside(), &tombstone(&five.beside(), NOW_MS));
    five.come_of_age().await;
    assert_eq!(five.look_after(0).await, []);
    // A key that did not exist is created.
    let created = upon(Version::default(), "k", Hlc::from_ms(NOW_MS + HOUR_MS));
    all[2..].iter().for_each(|node| drop(five.write(*node, "k", &created)));
    let (store, token) = (Arc::clone(&five.wire.stores[&ONE]), five.wire.ring.get().unwrap().token(&key("k")));
    let repair = ReplicaRequest::Write { key: key("k"), record: created.clone() };
    five.look_after(HOUR_MS / 8).await;
    *five.wire.when_compared.lock() = Some((THREE, Box::new(move || drop(store.apply(token, repair)))));
    assert_eq!(five.look_after(HOUR_MS / 8).await, []);
    assert_eq!(five.left(), [0, 0, 0], "that floor was raised");
    for node in all {
        five.write(node, "k", &created);
        assert_eq!(five.stored(node, "k").as_ref(), Some(&created), "{node}");
    }
}

/// As above, but nobody repairs it: the raiser learns it from the others when it is done with the second.
#[tokio::test(start_paused = true)]
async fn what_the_raiser_learns_from_the_last_one_gets_to_the_first_one_too() {
    let five = cluster(5);
    let all = [ONE, TWO, THREE, NodeNum(4), NodeNum(5)];
    five.write_all(&five.beside(), &tombstone(&five.beside(), NOW_MS));
    five.come_of_age().await;
    assert_eq!(five.look_after(0).await, []);
    let created = upon(Version::default(), "k", Hlc::from_ms(NOW_MS + HOUR_MS));
    all[2..].iter().for_each(|node| drop(five.write(*node, "k", &created)));
    assert_eq!(five.next_floor().await, []);
    assert_eq!(five.left(), [0, 0, 0], "that floor was raised");
    for node in all {
        five.write(node, "k", &created);
        assert_eq!(five.stored(node, "k").as_ref(), Some(&created), "{node}");
    }
}

/// A majority accepted it, and its proposer fell silent before it wrote it. What it has sent may arrive at any time.
#[tokio::test(start_paused = true)]
async fn what_was_decided_before_a_seal_is_not_decided_otherwise_after_it() {
    let (three, first) = (three(), value("k", NOW_MS));
    three.write_all("k", &first);
    three.write_all(&three.beside(), &tombstone(&three.beside(), NOW_MS));
    let decided = upon(first.version, "k", Hlc::from_ms(NOW_MS + 1));
    let ballot = Ballot { hlc: decided.written, writer: Writer(2) };
    [TWO, THREE].iter().for_each(|node| three.accept(*node, "k", ballot, &decided));
    three.come_of_age().await;
    assert_eq!(three.look_after(0).await, []);
    assert!(three.kept()[0].floor.written.ms() > NOW_MS);
    let told = three.put(is(first.version), "otherwise").await;
    three.write(THREE, "k", &decided);
    let told = told.map(|receipt| (receipt.version, ALL.map(|node| three.stored(node, "k"))));
    assert_eq!(told.unwrap_err().kind, FailureKind::ConditionFailed, "not the version of what was decided");
    assert_eq!(ALL.map(|node| three.stored(node, "k")), [(); 3].map(|()| Some(decided.clone())));
}

/// Between the seal and the floor. One replica has what was decided in its row already.
#[tokio::test(start_paused = true)]
async fn a_seal_hides_nothing_that_may_have_been_decided() {
    let (three, first) = (three(), value("k", NOW_MS));
    three.write_all("k", &first);
    let decided = upon(first.version, "k", Hlc::from_ms(NOW_MS + 1));
    let ballot = Ballot { hlc: decided.written, writer: Writer(2) };
    [TWO, THREE].iter().for_each(|node| three.accept(*node, "k", ballot, &decided));
    three.write(THREE, "k", &decided);
    three.wall.advance(HOUR_MS);
    let seal = PurgeStep::Seal { slots: [three.slot("k")].into_iter().collect(), up_to: Hlc::from_ms(NOW_MS + 2) };
    for node in ALL {
        assert!(three.driver(node).answer(ONE, Epoch(1), seal.clone()).await.is_ok());
    }
    three.cut(&[THREE]);
    let told = three.put(is(first.version), "otherwise").await.map(|receipt| receipt.version);
    assert_eq!(told.unwrap_err().kind, FailureKind::ConditionFailed, "not the version of what was decided");
    assert_eq!(three.stored(ONE, "k"), Some(decided));
}

/// One replica keeps the tombstone for its register's sake. A repeat that is refused has it accepted again, also where it is
/// purged, and nobody takes it there any more: that settles nothing, and needs not.
#[tokio::test(start_paused = true)]
async fn a_tombstone_that_is_accepted_where_it_is_purged_holds_no_floor_up() {
    let three = three();
    three.write_all("k", &tombstone("k", NOW_MS));
    three.come_of_age().await;
    assert_eq!(three.look_after(0).await, []);
    let ballot = Ballot { hlc: Hlc::from_ms(NOW_MS + HOUR_MS * 5 / 4), writer: Writer(2) };
    three.look_after(HOUR_MS / 8).await;
    three.send(TWO, ReplicaRequest::Prepare { key: key("k"), ballot });
    assert_eq!(three.look_after(HOUR_MS / 8).await, []);
    assert_eq!(three.left(), [0, 1, 0]);
    three.cut(&[THREE]);
    let (edit, deadline) = (Edit::Write(NewContent::value("x")), Instant::now() + ASK_DEADLINE);
    let (condition, idempotency) = (is(Version::default()), Some(Idempotency { key: 1, request: 1 }));
    let put = ConditionalPut { key: key("k"), condition, edit, idempotency, deadline };
    let told = three.driver(ONE).conditional.put(put).await;
    assert_eq!(told.unwrap_err().kind, FailureKind::ConditionFailed);
    three.cut(&[]);
    three.hand_off(THREE).await;
    three.look_after(HOUR_MS).await;
    assert_eq!(three.next_floor().await, []);
    assert_eq!(three.next_floor().await, []);
    assert_eq!(three.left(), [0, 0, 0]);
    assert!(three.wire.stores.values().all(|store| !store.has_register(&key("k"))));
}
