//! Nodes in this process: each put together as the server does it, with its own store in a temporary directory, its own
//! mesh and REST on ephemeral ports of loopback. Only the metrics recorder is left out: a process has one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use a3::node::{self, Node, Ports};
use a3::ports::{Entropy, PeerHandler, Spawn};
use a3::storage::{self, Durability, SqliteStore};
use a3::system::{SystemClock, SystemEntropy, Tasks};
use a3::types::NodeNum;
use a3::{http, mesh};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::client::{Answer, Client};

/// Longer than any state needs to be reached, also on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(20);
/// What `/metrics` shows here.
pub(crate) const METRICS: &str = "# TYPE a3_test counter\na3_test 1\n";

/// Polls until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = attempt().await {
            return answer;
        }
        assert!(Instant::now() < until, "{what}: not in time");
        sleep(Duration::from_millis(20)).await;
    }
}

/// How the nodes of a test are set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) rf: u8,
    pub(crate) http: http::Options,
}

impl Default for Setup {
    fn default() -> Self {
        // A busy machine must not turn an answer into a time-out.
        let http = http::Options { request_timeout: Duration::from_secs(10), ..http::Options::default() };
        Self { rf: 2, http }
    }
}

/// Where one node is reached, and whom it looks for.
#[derive(Clone, Debug)]
struct Place {
    number: u16,
    http: String,
    mesh: String,
    seeds: Vec<String>,
    size: u16,
}

/// A cluster of one or more nodes, and a client for each. Its files go when it is dropped.
pub(crate) struct Cluster {
    setup: Setup,
    places: Vec<Place>,
    lives: Vec<Option<Life>>,
    dir: TempDir,
}

impl Cluster {
    pub(crate) async fn single() -> Self {
        Self::start(1, Setup::default()).await
    }

    pub(crate) async fn of_three() -> Self {
        let cluster = Self::start(3, Setup::default()).await;
        cluster.all_reachable().await;
        cluster
    }

    /// Founds a cluster, and returns when every node is ready.
    pub(crate) async fn start(size: u16, setup: Setup) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..size {
            listeners.push((listen("127.0.0.1:0").await, listen("127.0.0.1:0").await));
        }
        let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
        let meshes: Vec<String> = listeners.iter().map(|(_, mesh)| address(mesh)).collect();
        let place = |(i, (http, mesh)): (usize, &(TcpListener, TcpListener))| Place {
            number: i as u16 + 1,
            http: address(http),
            mesh: address(mesh),
            seeds: if size > 1 { meshes.clone() } else { Vec::new() },
            size,
        };
        let places: Vec<Place> = listeners.iter().enumerate().map(place).collect();
        let mut cluster = Self { setup, places, lives: Vec::new(), dir: TempDir::new().unwrap() };
        for (place, (http, mesh)) in cluster.places.iter().zip(listeners) {
            cluster.lives.push(Some(Life::begin(place, &cluster.setup, cluster.dir.path(), http, mesh).await));
        }
        for number in 1..=size {
            cluster.ready(number).await;
        }
        cluster
    }

    /// The client of that node.
    pub(crate) fn at(&self, number: u16) -> Client {
        Client::new(&self.places[usize::from(number) - 1].http)
    }

    pub(crate) fn client_address(&self, number: u16) -> &str {
        &self.places[usize::from(number) - 1].http
    }

    /// Ends a node without a word to the others, as a crash does.
    pub(crate) async fn stop(&mut self, number: u16) {
        self.lives[usize::from(number) - 1].take().unwrap().end().await;
    }

    /// A node takes leave, as it does before it stops.
    pub(crate) async fn drain(&self, number: u16) {
        self.lives[usize::from(number) - 1].as_ref().unwrap().node.leave().await;
    }

    /// Starts a stopped node again, on the same ports and the same files.
    pub(crate) async fn restart(&mut self, number: u16) {
        let place = &self.places[usize::from(number) - 1];
        let (http, mesh) = (listen(&place.http).await, listen(&place.mesh).await);
        let life = Life::begin(place, &self.setup, self.dir.path(), http, mesh).await;
        self.lives[usize::from(number) - 1] = Some(life);
        self.ready(number).await;
    }

    async fn ready(&self, number: u16) {
        let client = self.at(number);
        eventually("a node is ready", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    }

    /// Waits until every node would ask every other one.
    pub(crate) async fn all_reachable(&self) {
        for place in &self.places {
            let client = self.at(place.number);
            let healthy = |answer: Answer| (answer.json()["status"] == "healthy").then_some(());
            eventually("the cluster is healthy", async || healthy(client.get("/cluster/health").await)).await;
        }
    }
}

async fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address).await.unwrap()
}

/// One node while it runs.
struct Life {
    node: Arc<Node>,
    store: Arc<SqliteStore>,
    tasks: Tasks,
    stop: CancellationToken,
    rest_ended: CancellationToken,
}

impl Life {
    async fn begin(place: &Place, setup: &Setup, dir: &Path, rest: TcpListener, meshed: TcpListener) -> Self {
        let me = NodeNum(place.number);
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy::default());
        let clock = Arc::new(SystemClock);
        let store_options = storage::Options {
            data_dir: dir.join(format!("node{}", place.number)),
            node: me,
            durability: Durability::Full,
            hint_bytes_max: 64 * 1024 * 1024,
            wal_bytes_max: 64 * 1024 * 1024,
        };
        let store = SqliteStore::open(store_options, clock.clone(), &*entropy).unwrap();
        let tasks = Tasks::default();
        let spawn: Arc<dyn Spawn> = Arc::new(tasks.clone());
        let peers = mesh::MeshPeers::new(me, Arc::clone(&spawn), Arc::clone(&entropy), mesh::Options::default());
        let ports = Ports {
            peers: peers.clone(),
            store: store.clone(),
            clock,
            entropy: Arc::clone(&entropy),
            spawn: Arc::clone(&spawn),
        };
        let node = Node::start(node_options(place, setup), ports).await.unwrap();
        let handler: Arc<dyn PeerHandler> = node.clone();
        peers.bind(Arc::downgrade(&handler));

        let (stop, rest_ended) = (CancellationToken::new(), CancellationToken::new());
        let router = http::router(node.clone(), entropy, &setup.http, Arc::new(|| METRICS.to_owned()));
        let (options, stopped, ended) = (setup.http.clone(), stop.clone().cancelled_owned(), rest_ended.clone());
        spawn.spawn(Box::pin(async move {
            http::serve(rest, router, &options, stopped).await;
            ended.cancel();
        }));
        let never = std::future::pending();
        spawn.spawn(Box::pin(
            async move { mesh::serve(meshed, handler, mesh::Options::default(), never).await.unwrap() },
        ));
        let joining = node.clone();
        spawn.spawn(Box::pin(async move { joining.join().await.unwrap() }));
        Self { node, store, tasks, stop, rest_ended }
    }

    async fn end(self) {
        // Connections of clients live outside the node's tasks, so REST has to end by itself.
        self.stop.cancel();
        self.rest_ended.cancelled().await;
        self.tasks.stop().await;
        drop(self.node);
        self.store.close();
    }
}

fn node_options(place: &Place, setup: &Setup) -> node::Options {
    node::Options {
        seeds: place.seeds.clone(),
        cluster_size: place.size,
        rf: setup.rf,
        zone: None,
        weight: 1,
        mesh_address: place.mesh.clone(),
        http_address: place.http.clone(),
        gossip_interval: Duration::from_millis(200),
        clock_skew_max: Duration::from_secs(300),
        value_bytes_max: setup.http.value_bytes_max,
        hint_window: Duration::from_secs(3600),
        anti_entropy_interval: Duration::from_secs(30),
        gc_grace: Duration::from_secs(86_400),
    }
}
