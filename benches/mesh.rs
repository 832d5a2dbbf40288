//! How many requests a second the mesh carries between two nodes on loopback, one process, a handler that does nothing.
//!
//! `cargo bench --bench mesh [-- <seconds>]`: 1, 64 and 256 tasks that each write 100 bytes, wait for the answer and go
//! on; then as many that pass on a conditional write, a call of its own each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use a3::mesh::{MeshPeers, Options, serve};
use a3::ports::{
    Answer, Deliveries, Destination, Header, Inbox, PeerError, PeerHandler, PeerReply, PeerRequest, Peers, ReplicaCall,
    ReplicaReply, ReplicaRequest, ReplyTo,
};
use a3::system::{SystemEntropy, Tasks};
use a3::types::{
    Condition, Content, Edit, Epoch, Hlc, InstanceId, Key, NewContent, NodeNum, OpId, Proposal, Record, Tags, Verdict,
    Version, Writer,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Node {
    header: Header,
    messages: AtomicU64,
}

impl PeerHandler for Node {
    fn header(&self) -> Header {
        self.header
    }

    fn admit(&self, _: &Header, _: Option<InstanceId>) -> Result<(), PeerError> {
        Ok(())
    }

    fn deliver(&self, _: NodeNum, batch: Deliveries) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        for delivery in batch {
            delivery.reply_to.send(Ok(ReplicaReply::Stored { replaced: None }));
        }
    }

    fn answer(self: Arc<Self>, _: Header, _: PeerRequest) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        Box::pin(async { Ok(PeerReply::Proposed(Box::new(Verdict::Conflict))) })
    }
}

/// One client's place to wait.
#[derive(Default)]
struct Waiter {
    answer: Mutex<Option<Answer>>,
    came: Notify,
}

impl Inbox for Waiter {
    fn deliver(&self, _: u64, answer: Answer) {
        *self.answer.lock() = Some(answer);
        self.came.notify_one();
    }
}

fn node(number: u16) -> Arc<Node> {
    let header = Header {
        cluster: None,
        node: NodeNum(number),
        instance: InstanceId(uuid::Uuid::from_u128(number.into())),
        hlc: Hlc(1),
        wall_ms: 1,
    };
    Arc::new(Node { header, messages: AtomicU64::new(0) })
}

async fn client(peers: Arc<MeshPeers>, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let key = Key::new("key/of/sixteen/b").unwrap();
    let record = Record::seal(&key, Version::plain(Hlc(1), Writer(1)), Hlc(1), Content::value(vec![7u8; 100]));
    let waiter = Arc::new(Waiter::default());
    while !stop.load(Ordering::Relaxed) {
        let request = ReplicaRequest::Write { key: key.clone(), record: record.clone() };
        let call = ReplicaCall { epoch: Epoch(1), request, deadline: None, behind: false, trace: None };
        peers.send(NodeNum(2), call, ReplyTo::new(waiter.clone(), 0));
        waiter.came.notified().await;
        waiter.answer.lock().take().unwrap().unwrap();
        done.fetch_add(1, Ordering::Relaxed);
    }
}

async fn proposer(peers: Arc<MeshPeers>, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let proposal = Proposal {
        key: Key::new("key/of/sixteen/b").unwrap(),
        condition: Condition { if_match: Some(Tags::Any), ..Condition::default() },
        edit: Edit::Write(NewContent::value(vec![7u8; 100])),
        op: OpId(uuid::Uuid::from_u128(1)),
        idempotency: None,
        ended: None,
    };
    while !stop.load(Ordering::Relaxed) {
        let request = PeerRequest::Propose { proposal: Box::new(proposal.clone()), timeout_ms: 1000, trace: None };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        peers.ask(Destination::Member(NodeNum(2)), request, deadline).await.unwrap();
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// What that many tasks get done in that many seconds, and how long they really took.
async fn drive<F>(in_flight: u32, seconds: u64, task: impl Fn(Arc<AtomicBool>, Arc<AtomicU64>) -> F) -> (u64, f64)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let tasks: Vec<_> = (0..in_flight).map(|_| tokio::spawn(task(stop.clone(), done.clone()))).collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    (done.load(Ordering::Relaxed), begun.elapsed().as_secs_f64())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let seconds = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(3);
    let (one, two) = (node(1), node(2));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(serve(listener, two.clone(), Options::default(), std::future::pending()));
    let peers =
        MeshPeers::new(NodeNum(1), Arc::new(Tasks::default()), Arc::new(SystemEntropy::default()), Options::default());
    let handler: Arc<dyn PeerHandler> = one.clone();
    peers.bind(Arc::downgrade(&handler));
    peers.introduce(NodeNum(2), two.header.instance, &address);
    for in_flight in [1, 64, 256] {
        let messages_before = two.messages.load(Ordering::Relaxed);
        let (requests, took) = drive(in_flight, seconds, |stop, done| client(peers.clone(), stop, done)).await;
        let messages = two.messages.load(Ordering::Relaxed) - messages_before;
        println!(
            "{in_flight:>4} in flight: {:>9.0} requests/s, {:>5.1} in a message, {:>6.1} us round trip",
            requests as f64 / took,
            requests as f64 / messages as f64,
            took / requests as f64 * f64::from(in_flight) * 1e6,
        );
    }
    for in_flight in [1, 64, 256] {
        let (proposals, took) = drive(in_flight, seconds, |stop, done| proposer(peers.clone(), stop, done)).await;
        println!(
            "{in_flight:>4} in flight: {:>9.0} proposals/s, {:>6.1} us round trip",
            proposals as f64 / took,
            took / proposals as f64 * f64::from(in_flight) * 1e6,
        );
    }
}
