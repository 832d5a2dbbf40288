//! The wiring: the only file that knows every module. It starts them in order, waits for a reason to stop, and stops
//! them in the opposite order.
//!
//! Up: metrics, the data directory and its store, both listeners (a port that is taken is told before anything else
//! happens), the mesh, the node, REST (which answers `/readyz` with 503 until the node has its cluster), then the cluster.
//! Down: readiness ends, the other members are told, REST says goodbye to its clients and finishes what it has, the mesh
//! too, tasks end, the store drains, saves its sums and closes. All of it takes less than 10 s, whatever clients do: at
//! most 1 s for the members, 5.6 s for REST, 2 s for the mesh. Who asks a second time gets all but the store cut at once. A
//! store that stopped writing ends the process with a failure: what it acknowledged is on disk.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use rustix::fs::statvfs;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Durability};
use crate::metrics::{self, Kind};
use crate::node::founding::FoundingError;
use crate::node::{self, Node, Ports};
use crate::ports::{Entropy, PeerHandler, Spawn, Store, StoreError};
use crate::storage::{self, OpenError, SqliteStore};
use crate::system::{StopSignals, SystemClock, SystemEntropy, Tasks, open_files_max, tell_manager};
use crate::{http, mesh};

/// A write-ahead log that reached this many bytes is checkpointed to its end between two commits.
const WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long a stop that was asked for a second time waits for the store.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
/// Gauges are taken, and the metrics' own books kept, this often.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);

/// Why a node did not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data directory cannot be used as it is set up.
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot listen on {address} ({what}): {source}")]
    Listen { what: &'static str, address: SocketAddr, source: io::Error },
    /// The cluster was not found, and waiting would not help.
    #[error(transparent)]
    Founding(#[from] FoundingError),
    /// The store stopped writing. What was acknowledged is on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot serve the mesh: {0}")]
    Mesh(io::Error),
    #[error("cannot install {0}")]
    Install(String),
}

impl ServeError {
    /// Whether a person has to change a setting before another start makes sense.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            ServeError::Open(
                OpenError::Locked { .. }
                    | OpenError::OtherNode { .. }
                    | OpenError::NewerSchema { .. }
                    | OpenError::Identity { .. }
                    | OpenError::DatabaseLost { .. }
                    | OpenError::Damaged { .. }
            ) | ServeError::Founding(FoundingError::Stop(_))
        ) || matches!(self, ServeError::Listen { source, .. } if source.kind() != io::ErrorKind::AddrInUse)
    }
}

/// Runs one node until it is told to stop by SIGTERM, Ctrl-C or the end of its terminal.
///
/// # Errors
/// When it could not start, or had to stop by itself.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let recorder = install_metrics()?;
    // Before the store is opened, which may take its time: to process 1 of a container nothing happens by default.
    let asked = Asked::follow()?;
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy::default());
    let clock = Arc::new(SystemClock);
    let store = SqliteStore::open(storage_options(&config), clock.clone(), &*entropy)?;
    let http_listener = listen("REST", config.http_listen()).await?;
    let mesh_listener = listen("mesh", config.mesh_listen()).await?;

    let tasks = Tasks::default();
    let spawn: Arc<dyn Spawn> = Arc::new(tasks.clone());
    let me = config.node;
    let peers = mesh::MeshPeers::new(me, Arc::clone(&spawn), Arc::clone(&entropy), mesh::Options::default());
    let ports = Ports {
        peers: peers.clone(),
        store: store.clone(),
        clock,
        entropy: Arc::clone(&entropy),
        spawn: Arc::clone(&spawn),
    };
    let node = Node::start(node_options(&config), ports).await?;
    let handler: Arc<dyn PeerHandler> = node.clone();
    peers.bind(Arc::downgrade(&handler));

    let stop_http = CancellationToken::new();
    let stop_mesh = CancellationToken::new();
    let http_options = http_options(&config, open_files_max());
    let render = recorder.clone();
    let router = http::router(node.clone(), entropy, &http_options, Arc::new(move || render.render()));
    let rest = http::serve(http_listener, router, &http_options, stop_http.clone().cancelled_owned());
    let mesh = mesh::serve(mesh_listener, handler, mesh::Options::default(), stop_mesh.clone().cancelled_owned());
    spawn.spawn(Box::pin(upkeep(recorder, node.clone(), store.clone(), config.data_dir.clone())));

    // REST ends only after its requests have; they may need the mesh, which ends last.
    let mut ended = Ok(());
    let life = async {
        let life = async {
            ended = live(&config, &node, &store, &asked).await;
            tell("STOPPING=1\nSTATUS=finishes the requests under way");
            node.leave().await;
            stop_http.cancel();
        };
        tokio::join!(rest, life);
        stop_mesh.cancel();
        Ok(())
    };
    let served = tokio::select! {
        biased;
        served = async { tokio::try_join!(async { mesh.await.map_err(ServeError::Mesh) }, life) } => served.map(drop),
        () = asked.again.cancelled() => Ok(()),
    };
    tasks.stop().await;
    if let Err(error) = node.close().await {
        tracing::warn!(%error, "the clock's last reading was not noted down");
    }
    store.close();
    tracing::info!(node = %me, "stopped");
    served.and(ended)
}

/// What a person or a service manager asks of the node by signals.
#[derive(Clone, Debug, Default)]
struct Asked {
    /// To stop in order.
    to_stop: CancellationToken,
    /// Once more: without waiting for clients and members.
    again: CancellationToken,
}

impl Asked {
    /// Follows the signals from now on, also while the store keeps everything else waiting.
    fn follow() -> Result<Self, ServeError> {
        let mut signals = StopSignals::install().map_err(|e| ServeError::Install(format!("a signal handler: {e}")))?;
        let asked = Self::default();
        let told = asked.clone();
        Tasks::default().spawn(Box::pin(async move {
            signals.next().await;
            told.to_stop.cancel();
            signals.next().await;
            tracing::warn!("told to stop once more: requests under way are cut");
            told.again.cancel();
            tokio::select! {
                biased;
                () = signals.next() => {}
                () = tokio::time::sleep(CLOSED_WITHIN) => {}
            }
            tracing::error!("the store was not closed; the next start goes on as after a crash");
            std::process::exit(1);
        }));
        Ok(asked)
    }
}

/// From the search for the cluster to a reason to stop.
async fn live(config: &Config, node: &Arc<Node>, store: &Arc<SqliteStore>, asked: &Asked) -> Result<(), ServeError> {
    let mut failed = store.failed();
    let mut replaced = Box::pin(node.replaced());
    let mut joining = Box::pin(node.join_at(config.place));
    let mut joined = false;
    tell("STATUS=looks for its cluster; GET /readyz?verbose says what it waits for");
    loop {
        tokio::select! {
            biased;
            error = &mut failed => {
                tracing::error!(%error, "the store has stopped writing; the node stops");
                return Err(error.into());
            }
            error = &mut replaced => {
                tracing::warn!(%error, "the node has no place in the topology any more, and stops");
                return Err(error.into());
            }
            () = asked.to_stop.cancelled() => break,
            result = &mut joining, if !joined => {
                result?;
                joined = true;
                banner(config, node);
                tell("READY=1\nSTATUS=serves");
            }
        }
    }
    tracing::info!(node = %config.node, "stopping");
    Ok(())
}

/// Tells the service manager, if there is one.
fn tell(lines: &str) {
    if let Err(error) = tell_manager(lines) {
        tracing::warn!(%error, "the service manager that NOTIFY_SOCKET names cannot be told");
    }
}

fn banner(config: &Config, node: &Node) {
    let Some(cluster) = node.cluster() else { return };
    let alone = if config.seeds.is_empty() && cluster.members.len() == 1 {
        "; a cluster of its own, as it has no SEEDS"
    } else {
        ""
    };
    tracing::info!(
        node = %config.node,
        cluster = %cluster.cluster_id,
        epoch = %cluster.epoch,
        members = cluster.members.len(),
        copies = cluster.rf,
        "ready at http://{}{alone}",
        config.http_address(),
    );
}

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { what, address, source })
}

fn storage_options(config: &Config) -> storage::Options {
    storage::Options {
        data_dir: config.data_dir.clone(),
        node: config.node,
        durability: match config.durability {
            Durability::Full => storage::Durability::Full,
            Durability::Normal => storage::Durability::Normal,
        },
        hint_bytes_max: config.hint_bytes_max,
        wal_bytes_max: WAL_BYTES_MAX,
    }
}

fn node_options(config: &Config) -> node::Options {
    node::Options {
        seeds: config.seeds.clone(),
        cluster_size: config.cluster_size,
        rf: config.replication_factor,
        zone: config.zone.clone(),
        weight: config.weight,
        mesh_address: config.mesh_address(),
        http_address: config.http_address(),
        gossip_interval: config.gossip_interval,
        clock_skew_max: config.clock_skew_max,
        value_bytes_max: config.value_bytes_max,
        hint_window: config.hint_window,
        anti_entropy_interval: config.anti_entropy_interval,
        gc_grace: config.gc_grace,
    }
}

/// Clients get three quarters of the files that may be open; peers and the database need the rest.
fn http_options(config: &Config, files_max: u64) -> http::Options {
    let usual = http::Options::default();
    let connections_max = usize::try_from(files_max / 4 * 3).unwrap_or(usize::MAX).min(usual.connections_max);
    http::Options {
        connections_max,
        value_bytes_max: config.value_bytes_max,
        request_timeout: config.request_timeout,
        cors_origins: config.cors_origins.clone(),
        ..usual
    }
}

// ------------------------------------------------------------------------------------------------------------ metrics

fn install_metrics() -> Result<PrometheusHandle, ServeError> {
    let install = |e: &dyn std::fmt::Display| ServeError::Install(format!("the metrics recorder: {e}"));
    let mut builder = PrometheusBuilder::new();
    for metric in metrics::TABLE {
        if let Kind::Histogram(buckets) = metric.kind {
            let name = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(name, buckets).map_err(|e| install(&e))?;
        }
    }
    let handle = builder.install_recorder().map_err(|e| install(&e))?;
    metrics::register();
    Ok(handle)
}

/// Takes the gauges that nobody sets as they change, and keeps the recorder's books: without it histograms would grow
/// for ever while nobody scrapes.
async fn upkeep(recorder: PrometheusHandle, node: Arc<Node>, store: Arc<SqliteStore>, data_dir: PathBuf) {
    let gauges = Gauges::new();
    let process = metrics_process::Collector::default();
    process.describe();
    let mut tick = tokio::time::interval(UPKEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        gauges.take(&node, &store);
        if let Ok(disk) = statvfs(&data_dir) {
            gauges.disk_free.set(disk.f_bavail as f64 * disk.f_frsize as f64);
        }
        process.collect();
        recorder.run_upkeep();
    }
}

/// The gauges of the store and the ring.
struct Gauges {
    keys: metrics::Gauge,
    tombstones: metrics::Gauge,
    bytes: metrics::Gauge,
    file: metrics::Gauge,
    wal: metrics::Gauge,
    disk_free: metrics::Gauge,
    epoch: metrics::Gauge,
    slots: [metrics::Gauge; 4],
    owned: metrics::Gauge,
    ready: metrics::Gauge,
}

impl Gauges {
    fn new() -> Self {
        let plain = |metric| metrics::gauge(metric, &[]);
        Self {
            keys: plain(metrics::STORE_KEYS),
            tombstones: plain(metrics::STORE_TOMBSTONES),
            bytes: plain(metrics::STORE_BYTES),
            file: plain(metrics::STORE_FILE),
            wal: plain(metrics::STORE_WAL),
            disk_free: plain(metrics::STORE_DISK_FREE),
            epoch: plain(metrics::EPOCH),
            slots: ["full", "quorum", "stood_in", "lost"]
                .map(|health| metrics::gauge(metrics::SLOTS, &[("health", health)])),
            owned: plain(metrics::SLOTS_OWNED),
            ready: plain(metrics::READY),
        }
    }

    fn take(&self, node: &Node, store: &SqliteStore) {
        let totals = store.totals();
        self.keys.set(totals.keys as f64);
        self.tombstones.set(totals.tombstones as f64);
        self.bytes.set(totals.bytes as f64);
        self.file.set(totals.file_bytes as f64);
        self.wal.set(totals.wal_bytes as f64);
        self.ready.set(f64::from(u8::from(node.readiness().ready)));
        let Some((cluster, health)) = node.cluster().zip(node.health()) else { return };
        self.epoch.set(cluster.epoch.0 as f64);
        let quorum = health.slots_at_quorum - health.slots_full;
        let stood_in = health.slots_total - health.slots_at_quorum - health.slots_unavailable;
        for (gauge, slots) in self.slots.iter().zip([health.slots_full, quorum, stood_in, health.slots_unavailable]) {
            gauge.set(slots as f64);
        }
        let me = cluster.members.iter().find(|m| m.node == cluster.asked);
        self.owned.set(me.map_or(0, |m| m.slots) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RawConfig, Sources, validate};

    #[test]
    fn a_port_that_is_taken_may_be_free_at_the_next_start_and_a_foreign_address_is_a_setting() {
        let cannot = |kind: io::ErrorKind| ServeError::Listen {
            what: "mesh",
            address: SocketAddr::from(([127, 0, 0, 1], 50051)),
            source: kind.into(),
        };
        assert!(!cannot(io::ErrorKind::AddrInUse).is_configuration());
        assert!(cannot(io::ErrorKind::AddrNotAvailable).is_configuration());
        assert!(cannot(io::ErrorKind::PermissionDenied).is_configuration());
    }

    #[test]
    fn clients_leave_files_for_peers_and_the_database() {
        let config = validate(&RawConfig::gather(&Sources::default()).unwrap()).unwrap();
        let connections = |files| http_options(&config, files).connections_max;
        assert_eq!([1024, 4096, 65_536, u64::MAX].map(connections), [768, 3072, 8192, 8192]);
    }
}
