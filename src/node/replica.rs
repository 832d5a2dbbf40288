//! The replica's door: what a coordinator claims is checked here, and a whole message goes to the store as one batch.
//!
//! Invariants:
//! - Nothing reaches the store that this node would not own up to: a stamp too far ahead, a value too large, a record
//!   that does not match its checksum, or a key whose home is elsewhere.
//! - While the node is being rebuilt (see `rebuild`) everything is refused: what it lost could be what is asked about.
//! - A message stays one batch, in its order, so that its writes become one transaction.
//!
//! A request computed under an older topology is told the newer one. One computed under a newer topology is served
//! where this node's own ring has it serve the key anyway, if that is the topology before; else it waits until that topology
//! is fetched (see `behind`). After more than one it may have to begin anew with the slot, and would drop what it acknowledged.
//!
//! Caveat: this node's own requests are not checked against their checksum: they were sealed a moment ago.

use std::fmt;
use std::sync::Arc;

use ::metrics::Counter;
use parking_lot::RwLock;

use super::behind::Behind;
use super::clock::NodeClock;
use super::events;
use super::parts::{Parts, Served};
use super::routing::Routing;
use crate::metrics;
use crate::ports::{Deliveries, Delivery, Refusal, ReplicaReply, ReplicaRequest, Store, Submission, Submissions};
use crate::protocol::replica::too_far_ahead;
use crate::protocol::ring::Ring;
use crate::types::{Content, Hlc, Key, NodeNum, Record, Token};

/// How a replica is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node.
    pub node: NodeNum,
    /// `VALUE_BYTES_MAX`, in bytes: longer values are refused.
    pub value_bytes_max: usize,
}

/// This node as a keeper of records.
pub struct Replica {
    options: Options,
    routing: Arc<Routing>,
    clock: Arc<NodeClock>,
    store: Arc<dyn Store>,
    served: Arc<Served>,
    stamps_refused: Counter,
    behind: Arc<Behind>,
    /// Held while a message is checked and queued: whoever held all of it knows that what came before is queued.
    under_way: RwLock<()>,
}

impl Replica {
    pub fn new(options: Options, parts: &Parts) -> Arc<Self> {
        Arc::new(Self {
            options,
            routing: Arc::clone(&parts.routing),
            clock: Arc::clone(&parts.clock),
            store: Arc::clone(&parts.store),
            served: Arc::clone(&parts.served),
            stamps_refused: metrics::counter(metrics::CLOCK_REFUSED, &[]),
            behind: Arc::default(),
            under_way: RwLock::new(()),
        })
    }

    /// What clients had of it so far.
    pub(super) fn served(&self) -> &Served {
        &self.served
    }

    /// Waits until every message that was let in under a topology before the one in force is queued at the store.
    pub fn settle(&self) {
        drop(self.under_way.write());
    }

    /// While this is held no newer topology is taken to be in force by [`Self::settle`]: what is checked against the one that is
    /// must be queued by then.
    pub(super) fn enter(&self) -> impl Drop + '_ {
        self.under_way.read()
    }

    /// A whole message of requests. Only queues; each is answered where its `reply_to` says, those that are refused at
    /// once and the rest when the store has them on disk.
    pub fn deliver(&self, from: NodeNum, batch: Deliveries) {
        self.take(from, batch, false);
    }

    /// The same, of requests that waited for a newer topology.
    pub(super) fn deliver_late(&self, from: NodeNum, batch: Deliveries) {
        self.take(from, batch, true);
    }

    /// Where requests wait that this replica is behind for.
    pub(super) fn behind(&self) -> &Arc<Behind> {
        &self.behind
    }

    fn take(&self, from: NodeNum, batch: Deliveries, late: bool) {
        let _under_way = self.under_way.read();
        let Some(ring) = self.routing.ring().filter(|_| !self.routing.is_rebuilding()) else {
            return refuse_all(batch, Refusal::NotReady);
        };
        let is_member = ring.topology().member(from).is_some();
        let door = Door { replica: self, ring: &ring, from, wall_ms: self.clock.wall_ms() };
        let mut passed = Submissions::with_capacity(batch.len());
        let mut newest = Hlc::ZERO;
        let log = events::shown();
        for delivery in batch {
            let call = delivery.call;
            if call.epoch < ring.epoch() {
                let topology = Arc::clone(ring.topology());
                delivery.reply_to.send(Ok(ReplicaReply::WrongEpoch { topology }));
                continue;
            }
            let far_behind = call.epoch.0 > ring.epoch().0 + 1;
            let checked = if is_member && !far_behind { door.check(&call.request) } else { Err(Refusal::NotMember) };
            match checked {
                Ok((token, stamp)) => {
                    newest = newest.max(stamp);
                    let reply_to = match log {
                        true => events::noted(self.options.node, from, &call, delivery.reply_to),
                        false => delivery.reply_to,
                    };
                    passed.push(Submission { token, request: call.request, reply_to, behind: call.behind });
                }
                Err(refusal @ Refusal::NotMember) if call.epoch > ring.epoch() && !late => {
                    self.behind.wait(from, Delivery { call, reply_to: delivery.reply_to }, refusal);
                }
                Err(refusal) => delivery.reply_to.send(Ok(ReplicaReply::Refused(refusal))),
            }
        }
        if passed.is_empty() {
            return;
        }
        self.served.add(passed.iter().filter(|submission| !submission.behind).count() as u64);
        self.clock.observe(newest);
        self.store.observe(self.clock.seen());
        self.store.submit(passed);
    }
}

fn refuse_all(batch: Deliveries, refusal: Refusal) {
    for delivery in batch {
        delivery.reply_to.send(Ok(ReplicaReply::Refused(refusal)));
    }
}

/// What one message is checked against.
struct Door<'a> {
    replica: &'a Replica,
    ring: &'a Ring,
    from: NodeNum,
    wall_ms: u64,
}

impl Door<'_> {
    /// Where the key lives and the newest clock reading in the request, or why it is refused.
    fn check(&self, request: &ReplicaRequest) -> Result<(Token, Hlc), Refusal> {
        let me = self.replica.options.node;
        let token = self.ring.token(request.key());
        let placement = self.ring.placement(token.slot());
        let home = placement.is_home(me);
        let serves = match request {
            ReplicaRequest::Read { hints: true, .. } => home || placement.fallbacks.contains(&me),
            // Who leaves takes no more: nothing may be left with it when it goes.
            ReplicaRequest::Hint { .. } if self.ring.topology().passes() == Some(me) => false,
            ReplicaRequest::Hint { target, .. } => {
                *target != me && placement.is_home(*target) && (home || placement.fallbacks.contains(&me))
            }
            ReplicaRequest::Read { hints: false, .. }
            | ReplicaRequest::Write { .. }
            | ReplicaRequest::Prepare { .. }
            | ReplicaRequest::Accept { .. } => home,
        };
        if !serves {
            return Err(Refusal::NotMember);
        }
        let stamp = match request {
            ReplicaRequest::Read { .. } => Hlc::ZERO,
            ReplicaRequest::Write { key, record } | ReplicaRequest::Hint { key, record, .. } => {
                self.check_record(key, record)?
            }
            ReplicaRequest::Prepare { ballot, .. } => self.check_stamp(ballot.hlc)?,
            ReplicaRequest::Accept { key, accepted } => {
                let record = accepted.record.as_ref().map(|record| self.check_record(key, record)).transpose()?;
                self.check_stamp(accepted.ballot.hlc)?.max(record.unwrap_or_default())
            }
        };
        Ok((token, stamp))
    }

    /// A stamp far ahead would poison the key: nobody else could outbid it.
    fn check_stamp(&self, stamp: Hlc) -> Result<Hlc, Refusal> {
        match too_far_ahead(stamp, self.wall_ms, self.replica.clock.skew_max_ms()) {
            None => Ok(stamp),
            Some(ahead_ms) => {
                self.replica.stamps_refused.increment(1);
                Err(Refusal::ClockSkew { ahead_ms })
            }
        }
    }

    fn check_record(&self, key: &Key, record: &Record) -> Result<Hlc, Refusal> {
        if let Content::Value { bytes, .. } = &record.content
            && bytes.len() > self.replica.options.value_bytes_max
        {
            return Err(Refusal::TooLarge { bytes: bytes.len() as u64 });
        }
        let stamp = self.check_stamp(record.version.hlc.max(record.written))?;
        if self.from != self.replica.options.node && !record.is_intact(key) {
            return Err(Refusal::Corrupt);
        }
        Ok(stamp)
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::node::answers::Answers;
    use crate::node::fakes::{FakeClock, FakeEntropy, FakePeers, FakeStore, journal, topology};
    use crate::node::reach::Reach;
    use crate::ports::{ReadPart, ReplicaCall};
    use crate::types::{Epoch, Moving, TopologyChange, Version, Writer};

    const ME: NodeNum = NodeNum(1);
    const FROM: NodeNum = NodeNum(2);
    const WALL: u64 = 1_700_000_000_000;

    struct World {
        routing: Arc<Routing>,
        wall: Arc<FakeClock>,
        clock: Arc<NodeClock>,
        store: Arc<FakeStore>,
        replica: Arc<Replica>,
    }

    /// Node 1 of three, two copies.
    fn world(epoch: Option<u64>) -> World {
        let routing = Arc::new(Routing::default());
        if let Some(epoch) = epoch {
            routing.install(topology(epoch, 3, 2));
        }
        let wall = FakeClock::at(WALL);
        let clock = NodeClock::new(wall.clone(), Duration::from_secs(300), Hlc::ZERO);
        let store = FakeStore::new();
        let options = Options { node: ME, value_bytes_max: 10 };
        let peers = FakePeers::new();
        let parts = Parts {
            me: ME,
            store: Arc::clone(&store) as Arc<dyn Store>,
            peers: Arc::clone(&peers) as Arc<dyn crate::ports::Peers>,
            entropy: Arc::new(FakeEntropy::default()),
            reach: Reach::new(peers, ME, journal()),
            routing: Arc::clone(&routing),
            clock: Arc::clone(&clock),
            served: Arc::default(),
            journal: journal(),
        };
        let replica = Replica::new(options, &parts);
        World { routing, wall, clock, store, replica }
    }

    impl World {
        /// A key that this node keeps or not, and another one too where asked.
        fn key(&self, home: bool, also: Option<NodeNum>) -> Key {
            let ring = self.routing.ring().unwrap();
            (0..1000u32)
                .map(|n| Key::new(format!("k{n}")).unwrap())
                .find(|key| {
                    let placement = ring.placement(ring.token(key).slot());
                    placement.is_home(ME) == home && also.is_none_or(|node| placement.is_home(node))
                })
                .unwrap()
        }

        fn ask(&self, from: NodeNum, epoch: u64, requests: Vec<ReplicaRequest>) -> Vec<ReplicaReply> {
            let answers = Answers::new();
            let delivery = |(tag, request)| Delivery {
                call: ReplicaCall { epoch: Epoch(epoch), request, deadline: None, behind: false, trace: None },
                reply_to: answers.reply_to(tag),
            };
            let count = requests.len();
            self.replica.deliver(from, (0..).zip(requests).map(delivery).collect());
            let mut all: Vec<_> = std::iter::from_fn(|| answers.try_next()).collect();
            assert_eq!(all.len(), count, "each is answered once");
            all.sort_by_key(|(tag, _)| *tag);
            all.into_iter().map(|(_, answer)| answer.unwrap()).collect()
        }

        fn ask_one(&self, request: ReplicaRequest) -> ReplicaReply {
            self.ask(FROM, 5, vec![request]).remove(0)
        }
    }

    fn record(key: &Key, hlc: Hlc, value: &'static [u8]) -> Record {
        Record::seal(key, Version::plain(hlc, Writer(2)), hlc, Content::value(value))
    }

    fn write(key: &Key, ms: u64, value: &'static [u8]) -> ReplicaRequest {
        ReplicaRequest::Write { key: key.clone(), record: record(key, Hlc::from_ms(ms), value) }
    }

    fn refused(refusal: Refusal) -> ReplicaReply {
        ReplicaReply::Refused(refusal)
    }

    #[tokio::test]
    async fn a_message_stays_one_batch_and_moves_the_clock() {
        let world = world(Some(5));
        let key = world.key(true, None);
        let elsewhere = world.key(false, None);
        let batch = vec![write(&key, WALL, b"a"), write(&elsewhere, WALL, b"b"), write(&key, WALL + 200_000, b"c")];
        let replies = world.ask(FROM, 5, batch);
        assert!(matches!(replies[0], ReplicaReply::Stored { replaced: None }));
        assert_eq!(replies[1], refused(Refusal::NotMember));
        assert!(matches!(replies[2], ReplicaReply::Stored { replaced: Some(_) }));
        assert_eq!(world.store.batches(), [2]);
        assert_eq!(world.clock.now(), Hlc::from_ms(WALL + 200_000));
    }

    #[tokio::test]
    async fn a_wall_clock_that_was_ahead_leaves_no_trace_in_the_store() {
        let world = world(Some(5));
        let key = world.key(true, None);
        world.wall.set(WALL + 3_600_000);
        assert!(matches!(world.ask_one(write(&key, WALL, b"a")), ReplicaReply::Stored { .. }));
        assert_eq!(world.store.observed(), Hlc::from_ms(WALL));
    }

    #[tokio::test]
    async fn no_topology_and_no_member_are_refused() {
        let blank = world(None);
        let key = Key::new("k").unwrap();
        assert_eq!(blank.ask(FROM, 1, vec![write(&key, WALL, b"a")]), [refused(Refusal::NotReady)]);
        let world = world(Some(5));
        let request = write(&world.key(true, None), WALL, b"a");
        assert_eq!(world.ask(NodeNum(9), 5, vec![request]), [refused(Refusal::NotMember)]);
        assert!(world.store.batches().is_empty());
    }

    #[tokio::test]
    async fn an_older_epoch_is_told_and_a_newer_one_served() {
        let world = world(Some(5));
        let key = world.key(true, None);
        let told = world.ask(FROM, 4, vec![write(&key, WALL, b"a")]);
        assert!(matches!(&told[0], ReplicaReply::WrongEpoch { topology } if topology.epoch == Epoch(5)));
        assert_eq!(world.store.record(&key), None);
        let served = world.ask(FROM, 6, vec![write(&key, WALL, b"a"), write(&key, WALL + 1, b"a")]);
        assert!(served.iter().all(|r| matches!(r, ReplicaReply::Stored { .. })));
    }

    #[tokio::test]
    async fn what_it_would_refuse_under_an_older_topology_waits_for_the_newer_one() {
        let world = world(Some(5));
        let elsewhere = world.key(false, None);
        let answers = Answers::new();
        let call = |epoch| ReplicaCall {
            epoch: Epoch(epoch),
            request: write(&elsewhere, WALL, b"a"),
            deadline: None,
            behind: false,
            trace: None,
        };
        let deliver = |from, epoch, late: bool| {
            let batch = Deliveries::from_iter([Delivery { call: call(epoch), reply_to: answers.reply_to(epoch) }]);
            if late { world.replica.deliver_late(from, batch) } else { world.replica.deliver(from, batch) }
        };
        deliver(FROM, 6, false);
        deliver(NodeNum(9), 7, false);
        assert!(answers.try_next().is_none(), "it may be told by whoever sent it");
        // Its own ring has it keep this one; by the topology after the next it may begin anew with it.
        let kept = world.key(true, None);
        let far = ReplicaCall { request: write(&kept, WALL, b"a"), ..call(7) };
        let far = || Deliveries::from_iter([Delivery { call: far.clone(), reply_to: answers.reply_to(7) }]);
        world.replica.deliver(FROM, far());
        assert!(answers.try_next().is_none() && world.store.record(&kept).is_none());
        world.replica.deliver_late(FROM, far());
        assert_eq!(answers.try_next(), Some((7, Ok(refused(Refusal::NotMember)))));
        deliver(FROM, 5, false);
        assert_eq!(answers.try_next(), Some((5, Ok(refused(Refusal::NotMember)))));
        deliver(FROM, 6, true);
        assert_eq!(answers.try_next(), Some((6, Ok(refused(Refusal::NotMember)))), "nothing newer was found");
        world.routing.install(topology(6, 3, 3));
        deliver(FROM, 6, true);
        assert!(matches!(answers.try_next(), Some((6, Ok(ReplicaReply::Stored { .. })))));
    }

    #[tokio::test]
    async fn what_a_coordinator_claims_is_checked() {
        let world = world(Some(5));
        let key = world.key(true, None);
        let far = world.ask_one(write(&key, WALL + 300_001, b"a"));
        assert_eq!(far, refused(Refusal::ClockSkew { ahead_ms: 300_001 }));
        assert!(world.clock.now() < Hlc::from_ms(WALL + 1), "and was not observed");
        assert_eq!(world.ask_one(write(&key, WALL, b"01234567890")), refused(Refusal::TooLarge { bytes: 11 }));
        let mut bad = record(&key, Hlc::from_ms(WALL), b"a");
        bad.checksum ^= 1;
        let bad = ReplicaRequest::Write { key: key.clone(), record: bad };
        assert_eq!(world.ask_one(bad), refused(Refusal::Corrupt));
        assert_eq!(world.store.record(&key), None);
        assert!(matches!(world.ask_one(write(&key, WALL + 300_000, b"0123456789")), ReplicaReply::Stored { .. }));
    }

    #[tokio::test]
    async fn hints_are_kept_for_home_replicas_and_reads_answered_where_they_belong() {
        let world = world(Some(5));
        let elsewhere = world.key(false, None);
        let hint = |target, key: &Key| ReplicaRequest::Hint {
            target,
            key: key.clone(),
            record: record(key, Hlc::from_ms(WALL), b"a"),
            counted: true,
        };
        assert_eq!(world.ask_one(hint(FROM, &elsewhere)), ReplicaReply::Hinted);
        assert_eq!(world.ask_one(hint(ME, &elsewhere)), refused(Refusal::NotMember));
        let mine = world.key(true, Some(FROM));
        assert_eq!(world.ask_one(hint(ME, &mine)), refused(Refusal::NotMember), "a hint for oneself is a write");
        assert_eq!(world.ask_one(hint(NodeNum(3), &mine)), refused(Refusal::NotMember), "not a home replica of it");
        let read = |hints| ReplicaRequest::Read { key: elsewhere.clone(), part: ReadPart::Record, hints };
        assert_eq!(world.ask_one(read(false)), refused(Refusal::NotMember));
        assert!(matches!(world.ask_one(read(true)), ReplicaReply::Record { .. }));
        let mut leaving = (*topology(5, 3, 2)).clone();
        let change = TopologyChange::Leave { node: ME };
        leaving.moving = Some(Moving { since: Epoch(5), change, rf: 2, ring: leaving.ring.clone() });
        leaving.epoch = Epoch(6);
        world.routing.install(Arc::new(leaving));
        let asked = world.ask(FROM, 6, vec![hint(FROM, &elsewhere), read(true)]);
        assert_eq!(asked[0], refused(Refusal::NotMember), "it would be left with who goes");
        assert!(matches!(asked[1], ReplicaReply::Record { .. }), "what it keeps is still told");
    }
}
