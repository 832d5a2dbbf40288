//! Real nodes' ends of the mesh on loopback sockets, around a handler that does as it is told.

mod exchange;
mod healing;
mod propose;
mod rare;
mod strangers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{MeshPeers, Options, serve};
use crate::ports::{
    Answer, Deliveries, Header, Inbox, PeerError, PeerHandler, PeerReply, PeerRequest, ReadPart, ReplicaCall,
    ReplicaReply, ReplicaRequest, ReplyTo, Seen, Spawn,
};
use crate::system::{SystemEntropy, Tasks};
use crate::types::{
    Accepted, Ballot, ClusterId, Content, Epoch, Floor, Hlc, InstanceId, Key, NodeNum, OpId, Promise, Recent, Record,
    Version, Writer,
};

/// The longest that anything here may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn cluster(number: u128) -> ClusterId {
    ClusterId(Uuid::from_u128(number))
}

pub(super) fn instance(n: u128) -> InstanceId {
    InstanceId(Uuid::from_u128(n))
}

pub(super) fn call(request: ReplicaRequest) -> ReplicaCall {
    ReplicaCall { epoch: Epoch(7), request, deadline: None, behind: false, trace: None }
}

pub(super) fn read(key: &'static str) -> ReplicaCall {
    call(ReplicaRequest::Read { key: Key::new(key).unwrap(), part: ReadPart::Record, hints: false })
}

pub(super) fn write(key: &'static str, value: Vec<u8>) -> ReplicaCall {
    call(ReplicaRequest::Write { key: Key::new(key).unwrap(), record: record(key, value) })
}

fn record(key: &'static str, value: Vec<u8>) -> Record {
    Record::seal(&Key::new(key).unwrap(), Version::plain(Hlc(5), Writer(1)), Hlc(5), Content::value(value))
}

fn state(record: Record) -> Accepted {
    let ballot = Ballot { hlc: Hlc(9), writer: Writer(2) };
    Accepted { ballot, op: OpId(Uuid::from_u128(7)), record: Some(record), recent: Recent::NONE }
}

pub(super) fn accept(key: &'static str, value: Vec<u8>) -> ReplicaCall {
    call(ReplicaRequest::Accept { key: Key::new(key).unwrap(), accepted: Box::new(state(record(key, value))) })
}

/// A promise that shows these values, accepted and stored.
pub(super) fn promised(accepted: Option<Vec<u8>>, stored: Option<Vec<u8>>) -> ReplicaReply {
    let accepted = accepted.map(|value| state(record("k", value)));
    ReplicaReply::Promised(Box::new(Promise {
        accepted,
        record: stored.map(|value| record("k", value)),
        floor: Floor::default(),
    }))
}

/// Waits until it is so.
pub(super) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// An inbox that keeps every answer; a second one to the same tag fails the test.
#[derive(Default)]
pub(super) struct Answers {
    came: Mutex<BTreeMap<u64, Answer>>,
    news: Notify,
}

impl Answers {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn reply_to(self: &Arc<Self>, tag: u64) -> ReplyTo {
        ReplyTo::new(self.clone(), tag)
    }

    pub(super) fn came(&self) -> usize {
        self.came.lock().len()
    }

    pub(super) async fn of(&self, tag: u64) -> Answer {
        let waiting = async {
            loop {
                let news = self.news.notified();
                if let Some(answer) = self.came.lock().get(&tag) {
                    return answer.clone();
                }
                news.await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("no answer to {tag}"))
    }
}

impl Inbox for Answers {
    fn deliver(&self, tag: u64, answer: Answer) {
        assert!(self.came.lock().insert(tag, answer).is_none(), "a second answer to {tag}");
        self.news.notify_waiters();
    }
}

/// A node that answers a write with what it saw of it, and a read with what it was given; or holds everything.
pub(super) struct Node {
    pub(super) header: Header,
    pub(super) records: Mutex<BTreeMap<Key, Record>>,
    /// Deliveries are kept here instead of answered while this is `Some`.
    pub(super) held: Mutex<Option<Vec<Deliveries>>>,
    pub(super) reply: Mutex<Option<Answer>>,
    pub(super) last: Mutex<Option<(NodeNum, ReplicaCall)>>,
    pub(super) asked: Mutex<Vec<PeerRequest>>,
    pub(super) answer: Mutex<Result<PeerReply, PeerError>>,
    /// Rare requests are taken in and never answered.
    pub(super) mute: AtomicBool,
    /// Admits everybody.
    pub(super) lax: AtomicBool,
    pub(super) messages: AtomicUsize,
    pub(super) requests: AtomicUsize,
    /// The highest clock heard.
    pub(super) heard: AtomicU64,
}

impl Node {
    pub(super) fn new(number: u16, cluster: u128) -> Arc<Self> {
        Self::with_instance(number, cluster, u128::from(number))
    }

    pub(super) fn with_instance(number: u16, cluster: u128, id: u128) -> Arc<Self> {
        let header = Header {
            cluster: Some(self::cluster(cluster)),
            node: NodeNum(number),
            instance: instance(id),
            hlc: Hlc(u64::from(number) * 1000),
            wall_ms: 1,
        };
        Arc::new(Self {
            header,
            records: Mutex::default(),
            held: Mutex::default(),
            reply: Mutex::default(),
            last: Mutex::default(),
            asked: Mutex::default(),
            answer: Mutex::new(Ok(PeerReply::Done)),
            mute: AtomicBool::new(false),
            lax: AtomicBool::new(false),
            messages: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            heard: AtomicU64::new(0),
        })
    }

    pub(super) fn hold(&self) {
        *self.held.lock() = Some(Vec::new());
    }

    fn perform(&self, call: ReplicaCall) -> Answer {
        if let Some(answer) = self.reply.lock().clone() {
            return answer;
        }
        Ok(match call.request {
            ReplicaRequest::Read { key, .. } => {
                ReplicaReply::Record { record: self.records.lock().get(&key).cloned(), floor: Floor::default() }
            }
            ReplicaRequest::Write { key, record } => {
                let seen = Seen::of(&record, Hlc::ZERO);
                self.records.lock().insert(key, record);
                ReplicaReply::Stored { replaced: Some(seen) }
            }
            ReplicaRequest::Hint { .. } => ReplicaReply::Hinted,
            ReplicaRequest::Prepare { ballot, .. } => ReplicaReply::Outbid { promised: ballot },
            ReplicaRequest::Accept { .. } => ReplicaReply::Accepted,
        })
    }
}

impl PeerHandler for Node {
    fn header(&self) -> Header {
        self.header
    }

    fn admit(&self, from: &Header, to: Option<InstanceId>) -> Result<(), PeerError> {
        if self.lax.load(Ordering::SeqCst) {
            return Ok(());
        }
        if let (Some(ours), Some(theirs)) = (self.header.cluster, from.cluster)
            && ours != theirs
        {
            return Err(PeerError::ForeignCluster(theirs));
        }
        if to.is_some_and(|to| to != self.header.instance) {
            return Err(PeerError::WrongRecipient);
        }
        self.heard.fetch_max(from.hlc.0, Ordering::SeqCst);
        Ok(())
    }

    fn deliver(&self, from: NodeNum, batch: Deliveries) {
        self.messages.fetch_add(1, Ordering::SeqCst);
        self.requests.fetch_add(batch.len(), Ordering::SeqCst);
        if let Some(held) = &mut *self.held.lock() {
            return held.push(batch);
        }
        for delivery in batch {
            *self.last.lock() = Some((from, delivery.call.clone()));
            delivery.reply_to.send(self.perform(delivery.call));
        }
    }

    fn answer(self: Arc<Self>, _: Header, request: PeerRequest) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        self.asked.lock().push(request);
        let answer = self.answer.lock().clone();
        if self.mute.load(Ordering::SeqCst) {
            return Box::pin(std::future::pending());
        }
        Box::pin(async move { answer })
    }
}

/// A node's server in a runtime of its own, so that it can be killed with all its connections.
pub(super) struct Listening {
    runtime: Option<Runtime>,
    pub(super) address: SocketAddr,
}

impl Listening {
    pub(super) fn start(node: &Arc<Node>, address: Option<SocketAddr>) -> Self {
        Self::with(node, address, Options::default())
    }

    pub(super) fn with(node: &Arc<Node>, address: Option<SocketAddr>, options: Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let std = std::net::TcpListener::bind(address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap())).unwrap();
        std.set_nonblocking(true).unwrap();
        let address = std.local_addr().unwrap();
        let handler: Arc<dyn PeerHandler> = node.clone();
        runtime.handle().spawn(async move {
            let listener = TcpListener::from_std(std).unwrap();
            serve(listener, handler, options, std::future::pending()).await.unwrap();
        });
        Self { runtime: Some(runtime), address }
    }

    pub(super) fn text(&self) -> String {
        self.address.to_string()
    }

    /// Ends the server and all its connections at once; its port is free when it returns.
    #[expect(clippy::disallowed_methods, reason = "a runtime may only be waited for outside of one")]
    pub(super) fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE)).join().unwrap();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A way to a server that can stop carrying anything, in either direction, without closing.
pub(super) struct Silence {
    pub(super) address: String,
    begun: tokio::sync::watch::Sender<bool>,
}

impl Silence {
    pub(super) async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (begun, silent) = tokio::sync::watch::channel(false);
        Tasks::default().spawn(Box::pin(async move {
            let mut kept = Vec::new();
            while let Ok((mut from, _)) = listener.accept().await {
                let (mut to, mut silent) = (tokio::net::TcpStream::connect(server).await.unwrap(), silent.clone());
                let _ = tokio::select! {
                    biased;
                    _ = silent.wait_for(|silent| *silent) => Ok((0, 0)),
                    done = tokio::io::copy_bidirectional(&mut from, &mut to) => done,
                };
                kept.push((from, to));
            }
        }));
        Self { address, begun }
    }

    pub(super) fn begin(&self) {
        self.begun.send_replace(true);
    }
}

/// A node's view of the others.
pub(super) fn peers(node: &Arc<Node>, options: Options) -> Arc<MeshPeers> {
    let peers =
        MeshPeers::new(node.header.node, Arc::new(Tasks::default()), Arc::new(SystemEntropy::default()), options);
    let handler: Arc<dyn PeerHandler> = node.clone();
    peers.bind(Arc::downgrade(&handler));
    peers
}
