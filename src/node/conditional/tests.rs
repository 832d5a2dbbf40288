//! Three nodes that propose, over replicas that answer or fail as they are told; time is virtual.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use metrics_exporter_prometheus::PrometheusBuilder;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::*;
use crate::node::fakes::{FakeClock, FakeStore, journal, topology};
use crate::node::request::{Edit, Get, NewContent, Put};
use crate::node::routing::Routing;
use crate::node::world::{Seeded, Tasks};
use crate::ports::{Destination, PeerRequest, ReplicaCall, ReplicaReply, ReplicaRequest, ReplyTo, Store};
use crate::protocol::ring::Ring;
use crate::types::{
    Ballot, Condition, Content, Epoch, Hlc, Idempotency, InstanceId, Key, Record, Tags, Version, Writer,
};

const NOW_MS: u64 = 1_700_000_000_000;

/// What becomes of what is sent to a node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Up,
    Down,
    /// Answers nothing.
    Silent,
    /// Serves as a replica, and turns proposals away.
    NoProposer,
}

struct Net {
    ring: Ring,
    disks: BTreeMap<NodeNum, Arc<FakeStore>>,
    modes: Mutex<BTreeMap<NodeNum, Mode>>,
    proposers: Mutex<BTreeMap<NodeNum, Arc<Conditional>>>,
    forwarded: Mutex<Vec<NodeNum>>,
    silenced: Mutex<Vec<ReplyTo>>,
}

impl Net {
    fn mode(&self, node: NodeNum) -> Mode {
        self.modes.lock().get(&node).copied().unwrap_or(Mode::Up)
    }
}

impl Peers for Net {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        match self.mode(to) {
            Mode::Up | Mode::NoProposer => {
                let token = self.ring.token(call.request.key());
                reply_to.send(Ok(self.disks[&to].apply(token, call.request)));
            }
            Mode::Down => reply_to.send(Err(PeerError::Unreachable)),
            Mode::Silent => self.silenced.lock().push(reply_to),
        }
    }

    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        _: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let (Destination::Member(to), PeerRequest::Propose { proposal, timeout_ms, .. }) = (to, request) else {
            return async { Err(PeerError::Unreachable) }.boxed();
        };
        self.forwarded.lock().push(to);
        let proposer = Arc::clone(&self.proposers.lock()[&to]);
        match self.mode(to) {
            Mode::Up => async move { proposer.answer(*proposal, Duration::from_millis(timeout_ms)).await }.boxed(),
            Mode::Down => async { Err(PeerError::Unreachable) }.boxed(),
            Mode::NoProposer => async { Err(PeerError::Refused("not now".into())) }.boxed(),
            Mode::Silent => async {
                sleep(Duration::from_secs(1)).await;
                Err(PeerError::TimedOut)
            }
            .boxed(),
        }
    }

    fn introduce(&self, _: NodeNum, _: InstanceId, _: &str) {}

    fn connected(&self, to: NodeNum) -> bool {
        self.mode(to) != Mode::Down
    }
}

struct World {
    net: Arc<Net>,
    nodes: Vec<(Arc<Coordinator>, Arc<Conditional>)>,
    key: Key,
    /// They end with it.
    _tasks: Arc<Tasks>,
}

fn world(rf: u8) -> World {
    world_with(rf, |_| NOW_MS)
}

/// Where the nodes' wall clocks stand there.
fn world_with(rf: u8, wall_ms: impl Fn(NodeNum) -> u64) -> World {
    let topology = topology(1, 3, rf);
    let disks = (1..=3).map(|n| (NodeNum(n), FakeStore::new())).collect::<BTreeMap<_, _>>();
    let net = Arc::new(Net {
        ring: Ring::new(Arc::clone(&topology)),
        disks,
        modes: Mutex::default(),
        proposers: Mutex::default(),
        forwarded: Mutex::default(),
        silenced: Mutex::default(),
    });
    let (mut nodes, tasks) = (Vec::new(), Arc::new(Tasks::default()));
    for me in (1..=3).map(NodeNum) {
        let routing = Arc::new(Routing::default());
        routing.install(Arc::clone(&topology));
        let ports = Ports {
            peers: Arc::clone(&net) as Arc<dyn Peers>,
            store: Arc::clone(&net.disks[&me]) as Arc<dyn Store>,
            clock: FakeClock::at(wall_ms(me)),
            entropy: Seeded::new(u64::from(me.0)),
            spawn: Arc::clone(&tasks) as Arc<dyn crate::ports::Spawn>,
        };
        let clock = NodeClock::new(Arc::clone(&ports.clock), Duration::from_secs(300), Hlc::from_ms(NOW_MS - 1));
        clock.trust();
        let reach = Reach::new(Arc::clone(&ports.peers), me, journal());
        ports.spawn.spawn(Box::pin(Arc::clone(&clock).keep_reserved(Arc::clone(&ports.store))));
        let coordinator = Coordinator::new(
            me,
            Arc::clone(&ports.peers),
            Arc::clone(&ports.store),
            routing,
            Arc::clone(&clock),
            Arc::clone(&reach),
        );
        let conditional = Conditional::new(me, &ports, clock, reach, Arc::clone(&coordinator));
        net.proposers.lock().insert(me, Arc::clone(&conditional));
        nodes.push((coordinator, conditional));
    }
    let first = |k: &Key| net.ring.placement(net.ring.token(k).slot()).home_replicas()[0];
    let key = (0..).map(|i| Key::new(format!("key-{i}")).unwrap()).find(|k| first(k) == NodeNum(1)).unwrap();
    World { net, nodes, key, _tasks: tasks }
}

impl World {
    /// A value of that end, on all disks.
    fn everywhere_until(&self, expires_at_ms: u64) -> Record {
        let version = Version::plain(Hlc::from_ms(NOW_MS - 10), Writer(1));
        let content = Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: Some(expires_at_ms) };
        let (value, token) = (Record::seal(&self.key, version, version.hlc, content), self.net.ring.token(&self.key));
        for disk in self.net.disks.values() {
            disk.apply(token, ReplicaRequest::Write { key: self.key.clone(), record: value.clone() });
        }
        value
    }

    fn get(&self) -> Get {
        let deadline = Instant::now() + Duration::from_secs(1);
        Get { key: self.key.clone(), level: Level::Linearizable, deadline, every_copy: false }
    }
}

fn value(text: &str) -> NewContent {
    NewContent::value(text.to_owned())
}

fn absent() -> Condition {
    Condition { if_none_match: Some(Tags::Any), ..Condition::default() }
}

fn is(version: Version) -> Condition {
    Condition { if_match: Some(Tags::Of(vec![version])), ..Condition::default() }
}

impl World {
    fn set(&self, node: u16, mode: Mode) {
        self.net.modes.lock().insert(NodeNum(node), mode);
    }

    async fn put_with(
        &self,
        at: usize,
        condition: Condition,
        text: &str,
        idempotency: Option<Idempotency>,
    ) -> Result<Receipt, Failure> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let (key, edit) = (self.key.clone(), Edit::Write(value(text)));
        self.nodes[at - 1].1.put(ConditionalPut { key, condition, edit, idempotency, deadline }).await
    }

    async fn put(&self, at: usize, condition: Condition, text: &str) -> Result<Receipt, Failure> {
        self.put_with(at, condition, text, None).await
    }

    async fn read(&self, at: usize) -> Option<String> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let get = Get { key: self.key.clone(), level: Level::Linearizable, deadline, every_copy: false };
        let found = self.nodes[at - 1].1.get(get).await.unwrap();
        let Content::Value { bytes, .. } = found.record?.content else { return None };
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_condition_decides_wherever_it_is_asked() {
    let world = world(3);
    let first = world.put(2, absent(), "a").await.unwrap();
    assert!(first.created && first.strict && first.level == Level::Linearizable);
    assert_eq!((first.version.hlc, first.version.rmw), (Hlc::ZERO, 2));
    let again = world.put(3, absent(), "b").await.unwrap_err();
    assert_eq!((again.kind, again.outcome), (FailureKind::ConditionFailed, Some(Outcome::NotApplied)));
    assert_eq!(again.met.unwrap().version, Some(first.version));
    let second = world.put(3, is(first.version), "c").await.unwrap();
    assert_eq!((second.version.rmw, second.created), (4, false));
    assert_eq!(world.put(1, is(first.version), "d").await.unwrap_err().kind, FailureKind::ConditionFailed);
    assert_eq!(world.read(1).await.as_deref(), Some("c"));
    assert_eq!(*world.net.forwarded.lock(), [NodeNum(1); 3]);
}

#[tokio::test(start_paused = true)]
async fn of_many_at_once_one_wins() {
    let world = world(3);
    let texts: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    let told = join_all(texts.iter().enumerate().map(|(n, text)| world.put(1 + n % 3, absent(), text))).await;
    assert_eq!(told.iter().filter(|t| t.is_ok()).count(), 1);
    assert!(told.iter().flat_map(|t| t.as_ref().err()).all(|f| f.kind == FailureKind::ConditionFailed));
}

#[tokio::test(start_paused = true)]
async fn who_turns_a_proposal_away_is_stood_in_for_by_the_next_for_all() {
    let world = world(3);
    let order = world.net.ring.placement(world.net.ring.token(&world.key).slot()).home_replicas();
    let [first, second, third] = order[..] else { panic!("not three replicas") };
    world.set(first.0, Mode::NoProposer);
    assert!(world.put(usize::from(third.0), absent(), "a").await.is_ok());
    assert_eq!(*world.net.forwarded.lock(), [first, second], "passed on to the next");
    let false_there = world.put(usize::from(second.0), absent(), "b").await.unwrap_err();
    assert_eq!(false_there.kind, FailureKind::ConditionFailed);
    assert_eq!(world.net.forwarded.lock()[2..], [first], "decided at its own turn");
    world.set(second.0, Mode::Down);
    let false_here = world.put(usize::from(third.0), absent(), "c").await.unwrap_err();
    assert_eq!(false_here.kind, FailureKind::ConditionFailed);
    assert_eq!(world.net.forwarded.lock()[3..], [first], "who is down is not asked");
}

#[tokio::test(start_paused = true)]
async fn who_takes_leave_passes_on_what_comes_to_it() {
    let world = world(3);
    let order = world.net.ring.placement(world.net.ring.token(&world.key).slot()).home_replicas();
    let [first, second, third] = order[..] else { panic!("not three replicas") };
    world.nodes[usize::from(first.0) - 1].1.retire();
    assert!(world.put(usize::from(first.0), absent(), "a").await.is_ok());
    assert_eq!(*world.net.forwarded.lock(), [second]);
    world.set(second.0, Mode::NoProposer);
    world.set(third.0, Mode::NoProposer);
    let here = world.put(usize::from(first.0), absent(), "b").await.unwrap_err();
    assert_eq!(here.kind, FailureKind::ConditionFailed, "nobody else proposes");
    assert_eq!(world.net.forwarded.lock()[1..], [second, third]);
}

#[tokio::test(start_paused = true)]
async fn a_forward_without_an_answer_is_unknown_and_the_next_go_elsewhere() {
    let world = world(3);
    world.set(1, Mode::Silent);
    for _ in 0..3 {
        let lost = world.put(2, absent(), "a").await.unwrap_err();
        assert_eq!((lost.kind, lost.outcome), (FailureKind::TimedOut, Some(Outcome::Unknown)));
    }
    assert!(world.put(2, absent(), "b").await.is_ok());
    assert_eq!(*world.net.forwarded.lock(), [NodeNum(1); 3]);
    assert_eq!(world.read(3).await.as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn without_a_majority_nothing_is_written_and_later_it_is() {
    let world = world(2);
    let second = world.net.ring.placement(world.net.ring.token(&world.key).slot()).home_replicas()[1];
    world.set(second.0, Mode::Down);
    let failure = world.put(1, absent(), "a").await.unwrap_err();
    assert_eq!((failure.kind, failure.outcome), (FailureKind::Unavailable, Some(Outcome::NotApplied)));
    assert_eq!((failure.required, failure.failed.len()), (2, 2));
    world.set(second.0, Mode::Up);
    assert!(world.put(1, absent(), "b").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_write_is_done_once() {
    let world = world(3);
    let key = |request: &str| Some(Idempotency::of(b"once", &[request.as_bytes()]));
    let first = world.put_with(1, Condition::default(), "a", key("a")).await.unwrap();
    world.put(2, is(first.version), "b").await.unwrap();
    let again = world.put_with(3, Condition::default(), "a", key("a")).await.unwrap();
    assert_eq!((again.version, again.created), (first.version, true));
    assert_eq!(world.read(1).await.as_deref(), Some("b"));
    let other = world.put_with(2, Condition::default(), "c", key("c")).await.unwrap_err();
    assert_eq!((other.kind, other.outcome), (FailureKind::KeyReused, Some(Outcome::NotApplied)));
}

#[tokio::test(start_paused = true)]
async fn a_linearizable_write_is_stamped_above_what_a_majority_holds() {
    let world = world(3);
    let created = world.put(1, absent(), "a").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(1);
    let put = Put { key: world.key.clone(), content: value("b"), level: Level::Linearizable, deadline };
    world.set(3, Mode::Down);
    let receipt = world.nodes[1].0.put(put.clone()).await.unwrap();
    assert!(receipt.version > created.version && receipt.strict && !receipt.created);
    world.set(2, Mode::Down);
    let failure = world.nodes[0].0.put(Put { content: value("c"), ..put }).await.unwrap_err();
    assert_eq!((failure.kind, failure.outcome), (FailureKind::Unavailable, Some(Outcome::NotApplied)));
    assert_eq!(world.net.ring.epoch(), Epoch(1));
}

#[tokio::test(start_paused = true)]
async fn a_false_condition_is_counted_as_an_answer_and_not_as_a_failure() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let world = metrics::with_local_recorder(&recorder, || world(3));
    world.put(1, absent(), "a").await.unwrap();
    world.put(1, absent(), "b").await.unwrap_err();
    world.set(2, Mode::Down);
    world.set(3, Mode::Down);
    world.put(1, absent(), "c").await.unwrap_err();
    let text = recorder.handle().render();
    let counted = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    assert_eq!(counted("a3_conditional_verdicts_total{verdict=\"condition_failed\"} ").as_deref(), Some("1"));
    assert_eq!(counted("a3_write_failures_total{outcome=\"not_applied\"} ").as_deref(), Some("1"));
    let failures = "a3_operation_failures_total{operation=\"put\",consistency=\"linearizable\"} ";
    assert_eq!(counted(failures).as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn a_linearizable_read_has_an_end_accepted_before_it_tells_it() {
    let w = world(3);
    let (value, token) = (w.everywhere_until(NOW_MS - 1), w.net.ring.token(&w.key));
    let found = w.nodes[1].1.get(w.get()).await.unwrap();
    assert_eq!((found.live, &found.record), (false, &value.end(&w.key)));
    let promised = |disk: &FakeStore| {
        let ballot = Ballot { hlc: Hlc::from_ms(NOW_MS + 1_000), writer: Writer(9) };
        match disk.apply(token, ReplicaRequest::Prepare { key: w.key.clone(), ballot }) {
            ReplicaReply::Promised(promise) => (promise.accepted.and_then(|a| a.record), promise.record),
            other => panic!("{other:?}"),
        }
    };
    let settled = w.net.disks.values().filter(|disk| promised(disk) == (found.record.clone(), found.record.clone()));
    assert!(settled.count() >= 2);
}

/// Whoever it asks to settle the end goes by it, too.
#[tokio::test(start_paused = true)]
async fn an_end_that_was_told_has_come_for_a_proposer_whose_clock_is_behind() {
    let w = world_with(3, |node| if node == NodeNum(2) { NOW_MS + 1_000 } else { NOW_MS });
    let value = w.everywhere_until(NOW_MS + 500);
    let found = w.nodes[1].1.get(w.get()).await.unwrap();
    assert_eq!(*w.net.forwarded.lock(), [NodeNum(1)]);
    assert_eq!((found.live, &found.record), (false, &value.end(&w.key)));
    let found = w.nodes[0].1.get(w.get()).await.unwrap();
    assert!(!found.live, "it has told so itself by now");
}
