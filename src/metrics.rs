//! Every metric's name, kind, unit and help in one table.
//!
//! All are described and registered at zero when the recorder is installed, so that a dashboard never meets a metric
//! that is absent because nothing happened yet. Labels are of small sets only, never a key. A layer that measures
//! takes its handles once, when it is built, and not per request.

use ::metrics::Label;
pub use ::metrics::{Counter, Gauge, Histogram};

/// What a metric is; a histogram carries its buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

/// The labels that tell a metric's series apart.
#[derive(Clone, Copy, Debug)]
pub enum Series {
    /// All of them, each registered at zero.
    Known(&'static [&'static [(&'static str, &'static str)]]),
    /// Their labels. The values are known to whoever measures (methods, statuses) or to a running cluster alone (peers),
    /// and registered there.
    Of(&'static [&'static str]),
}

/// One row of the table. The unit is in the name: `_seconds`, `_bytes`, else a count.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub series: Series,
}

/// Seconds: from a tenth of a millisecond to ten seconds.
const LATENCY: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// How many requests travel or commit together.
const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
const PLAIN: Series = Series::Known(&[&[]]);

const VERSION: &[&[(&str, &str)]] = &[&[("version", env!("CARGO_PKG_VERSION"))]];

macro_rules! metrics_table {
    ($($konst:ident = $name:literal, $kind:expr, $help:literal, $series:expr;)*) => {
        $(pub const $konst: Metric = Metric { name: $name, kind: $kind, help: $help, series: $series };)*
        /// The table.
        pub const TABLE: &[Metric] = &[$($konst),*];
        /// What the sources call its rows.
        #[cfg(test)]
        const CONSTANTS: &[&str] = &[$(stringify!($konst)),*];
    };
}

/// Operations of a client, by level.
const OPERATIONS: Series = Series::Known(&[
    &[("operation", "get"), ("consistency", "one")],
    &[("operation", "get"), ("consistency", "quorum")],
    &[("operation", "get"), ("consistency", "all")],
    &[("operation", "get"), ("consistency", "linearizable")],
    &[("operation", "put"), ("consistency", "one")],
    &[("operation", "put"), ("consistency", "quorum")],
    &[("operation", "put"), ("consistency", "all")],
    &[("operation", "put"), ("consistency", "linearizable")],
    &[("operation", "delete"), ("consistency", "one")],
    &[("operation", "delete"), ("consistency", "quorum")],
    &[("operation", "delete"), ("consistency", "all")],
    &[("operation", "delete"), ("consistency", "linearizable")],
    &[("operation", "list"), ("consistency", "quorum")],
]);
const VERDICT_NAMES: Series = Series::Known(&[
    &[("verdict", "applied")],
    &[("verdict", "condition_failed")],
    &[("verdict", "key_reused")],
    &[("verdict", "conflict")],
    &[("verdict", "exhausted")],
    &[("verdict", "unavailable")],
    &[("verdict", "unknown")],
]);
const IMPORT_RESULTS: Series = Series::Known(&[
    &[("result", "stored")],
    &[("result", "unchanged")],
    &[("result", "older")],
    &[("result", "expired")],
    &[("result", "refused")],
]);
const MEMBER_STATES: Series = Series::Known(&[&[("state", "alive")], &[("state", "suspect")], &[("state", "down")]]);
const SLOT_HEALTH: Series =
    Series::Known(&[&[("health", "full")], &[("health", "quorum")], &[("health", "stood_in")], &[("health", "lost")]]);
const FAILURES: Series =
    Series::Known(&[&[("outcome", "applied")], &[("outcome", "not_applied")], &[("outcome", "unknown")]]);
const ROUND_RESULTS: Series =
    Series::Known(&[&[("result", "in_step")], &[("result", "repaired")], &[("result", "failed")]]);
const DIRECTIONS: Series = Series::Known(&[&[("direction", "sent")], &[("direction", "received")]]);
const WATCH_KINDS: Series = Series::Known(&[&[("kind", "watch")], &[("kind", "long_poll")]]);
const BACKUP_RESULTS: Series = Series::Known(&[&[("result", "done")], &[("result", "failed")]]);

metrics_table! {
    HTTP_REQUESTS = "a3_http_requests_total", Kind::Counter, "HTTP requests answered, by method and status class.", Series::Of(&["method", "status"]);
    HTTP_SECONDS = "a3_http_request_duration_seconds", Kind::Histogram(LATENCY), "Time from the end of the request's headers to the answer, in seconds.", PLAIN;
    HTTP_IN_FLIGHT = "a3_http_requests_in_flight", Kind::Gauge, "HTTP requests being answered.", PLAIN;
    HTTP_CONNECTIONS = "a3_http_connections", Kind::Gauge, "Open HTTP connections.", PLAIN;
    HTTP_SHED = "a3_http_requests_shed_total", Kind::Counter, "Requests answered 503 because the node had too many under way.", PLAIN;
    HTTP_CUT = "a3_http_connections_cut_total", Kind::Counter, "Connections cut at a deadline or refused at a limit.", PLAIN;
    OPERATION_SECONDS = "a3_operation_duration_seconds", Kind::Histogram(LATENCY), "Time the coordinator took for an operation, by operation and consistency, in seconds.", OPERATIONS;
    OPERATION_FAILURES = "a3_operation_failures_total", Kind::Counter, "Operations that failed at this coordinator, by operation and consistency.", OPERATIONS;
    WRITE_FAILURES = "a3_write_failures_total", Kind::Counter, "Failed writes by what became of them.", FAILURES;
    RESTAMPS = "a3_write_restamps_total", Kind::Counter, "Writes stamped a second time because this clock lagged.", PLAIN;
    WEAK_WRITES = "a3_write_not_strict_total", Kind::Counter, "Acknowledged writes that fewer than a majority of home replicas held at that time.", PLAIN;
    VERDICTS = "a3_conditional_verdicts_total", Kind::Counter, "Conditional writes that clients asked of this node, by what became of them.", VERDICT_NAMES;
    PROPOSALS_FORWARDED = "a3_conditional_forwarded_total", Kind::Counter, "Conditional writes passed on to the key's proposer.", PLAIN;
    BALLOTS = "a3_register_ballots_total", Kind::Counter, "Ballots begun by this node; more than conditional writes proposed here, where proposers met.", PLAIN;
    IMPORT_LINES = "a3_import_lines_total", Kind::Counter, "Lines of imports that this node has done, by what became of them; malformed ones are not among them.", IMPORT_RESULTS;
    READ_REPAIRS = "a3_read_repair_total", Kind::Counter, "Reads that found disagreeing copies and wrote the newest back.", PLAIN;
    ROUNDS = "a3_anti_entropy_rounds_total", Kind::Counter, "Rounds of anti-entropy held by this node, by result.", ROUND_RESULTS;
    ROUND_KEYS = "a3_anti_entropy_keys_total", Kind::Counter, "Records moved by rounds of anti-entropy that this node held, by direction.", DIRECTIONS;
    ROUND_LAST = "a3_anti_entropy_last_success_timestamp_seconds", Kind::Gauge, "When a round of anti-entropy last came to its end, in seconds since 1970; 0 before the first.", PLAIN;
    SCRUB_LAST = "a3_scrub_last_success_timestamp_seconds", Kind::Gauge, "When every row was last read and verified, in seconds since 1970; 0 before the first time since the start.", PLAIN;
    STAND_INS = "a3_stand_ins_total", Kind::Counter, "Requests sent to a fallback in place of a home replica.", PLAIN;
    HINTS_PENDING = "a3_hints_pending", Kind::Gauge, "Hints kept on this node, by target.", Series::Of(&["target"]);
    HINTS_BYTES = "a3_hints_bytes", Kind::Gauge, "Bytes of the hints kept on this node, by target.", Series::Of(&["target"]);
    HINTS_OLDEST = "a3_hints_oldest_age_seconds", Kind::Gauge, "Age of the oldest hint kept on this node, in seconds.", PLAIN;
    HINTS_STORED = "a3_hints_stored_total", Kind::Counter, "Hints stored on this node.", PLAIN;
    HINTS_DELIVERED = "a3_hints_delivered_total", Kind::Counter, "Hints delivered to their home replica.", PLAIN;
    HINTS_DROPPED = "a3_hints_dropped_total", Kind::Counter, "Hints dropped undelivered.", PLAIN;
    MESH_MESSAGES = "a3_mesh_messages_total", Kind::Counter, "Messages of the hot path, by direction.", DIRECTIONS;
    MESH_BATCH = "a3_mesh_batch_requests", Kind::Histogram(BATCH), "Requests in one sent message of the hot path.", PLAIN;
    MESH_BYTES = "a3_mesh_bytes_total", Kind::Counter, "Bytes of messages of the hot path before framing, by direction.", DIRECTIONS;
    MESH_ERRORS = "a3_mesh_errors_total", Kind::Counter, "Requests to peers without an answer, by reason.", Series::Known(&[
        &[("reason", "unreachable")], &[("reason", "timed_out")], &[("reason", "lost")], &[("reason", "overloaded")],
        &[("reason", "wrong_recipient")], &[("reason", "foreign_cluster")], &[("reason", "protocol")], &[("reason", "refused")],
    ]);
    ANTI_ENTROPY_BYTES = "a3_anti_entropy_bytes_total", Kind::Counter, "Bytes of the messages by which replicas compare and repair their copies, gRPC's prefix of 5 bytes included, by direction.", DIRECTIONS;
    MESH_CONNECTED = "a3_mesh_peer_connected", Kind::Gauge, "Whether the stream to a peer is open (1) or not (0), by peer.", Series::Of(&["peer"]);
    PEER_SECONDS = "a3_mesh_request_duration_seconds", Kind::Histogram(LATENCY), "Time from queueing a request to a peer to its answer, in seconds.", PLAIN;
    GOSSIP_MEMBERS = "a3_gossip_members", Kind::Gauge, "Members by what gossip holds of them.", MEMBER_STATES;
    GOSSIP_PACKETS = "a3_gossip_packets_total", Kind::Counter, "Gossip packets, by direction.", DIRECTIONS;
    GOSSIP_REJECTED = "a3_gossip_packets_rejected_total", Kind::Counter, "Gossip packets that were not understood or not meant for this node.", PLAIN;
    GOSSIP_RENEWALS = "a3_gossip_renewals_total", Kind::Counter, "Times this node found itself held down by others while it lived.", PLAIN;
    EPOCH = "a3_topology_epoch", Kind::Gauge, "Epoch of the topology this node holds; 0 before it has one.", PLAIN;
    SLOTS = "a3_ring_slots", Kind::Gauge, "Slots by their home replicas that are reachable: all (`full`), a majority (`quorum`), fewer but enough nodes to stand in (`stood_in`), not enough for a quorum of any kind, or none (`lost`).", SLOT_HEALTH;
    SLOTS_OWNED = "a3_ring_slots_owned", Kind::Gauge, "Slots this node is a home replica of.", PLAIN;
    TRANSFER_SLOTS = "a3_transfer_slots_pending", Kind::Gauge, "Slots that this node has yet to fetch: come back as a new instance, before it answers for any, or as its part of a change of the topology; else 0.", PLAIN;
    TRANSFER_KEYS = "a3_transfer_keys_total", Kind::Counter, "Keys in the pages of slots that were handed to another member, or fetched by this node, to rebuild one or in a change of the topology, by direction.", DIRECTIONS;
    WATCHES = "a3_watches", Kind::Gauge, "Watches and long polls of clients at this node.", WATCH_KINDS;
    WATCH_CHANGES = "a3_watch_changes_total", Kind::Counter, "Changes that this node's watches told, long polls too.", PLAIN;
    WATCH_GONE = "a3_watch_gone_total", Kind::Counter, "Watches that could not go on, or not begin from their cursor: what had changed was remembered no more, or the topology changed.", PLAIN;
    TRANSFER_DROPPED = "a3_transfer_keys_dropped_total", Kind::Counter, "Keys of a restored backup that were dropped while this node was rebuilt, as a floor of its sources covered them and they hold something else or nothing: replaced or deleted since.", PLAIN;
    STORE_KEYS = "a3_store_keys", Kind::Gauge, "Live keys on this node.", PLAIN;
    STORE_TOMBSTONES = "a3_store_tombstones", Kind::Gauge, "Tombstones on this node.", PLAIN;
    TOMBSTONES_OLDEST = "a3_tombstones_oldest_age_seconds", Kind::Gauge, "Age of the oldest tombstone in the slots whose floors this node raises, as of its last look, in seconds; 0 where there is none.", PLAIN;
    TOMBSTONES_WAITING = "a3_tombstones_waiting_members", Kind::Gauge, "Members that keep this node from purging tombstones: they are down, hold hints, are being rebuilt, or something else that `GET /tombstones` says.", PLAIN;
    PURGED = "a3_tombstones_purged_total", Kind::Counter, "Tombstones dropped from this node's disk.", PLAIN;
    PURGED_REGISTERS = "a3_registers_purged_total", Kind::Counter, "Registers dropped from this node's disk, with their tombstone or without one.", PLAIN;
    FLOOR_LAST = "a3_floor_last_raised_timestamp_seconds", Kind::Gauge, "When this node last raised the floor of a slot, in seconds since 1970; 0 before the first time since the start.", PLAIN;
    EXPIRED = "a3_expired_total", Kind::Counter, "Values on this node whose time was up and whose tombstone it wrote by itself.", PLAIN;
    STORE_BYTES = "a3_store_bytes", Kind::Gauge, "Bytes of keys and values on this node.", PLAIN;
    STORE_FILE = "a3_store_file_bytes", Kind::Gauge, "Size of the database file, in bytes.", PLAIN;
    STORE_WAL = "a3_store_wal_bytes", Kind::Gauge, "Size of the write-ahead log, in bytes.", PLAIN;
    STORE_COMMIT_SECONDS = "a3_store_commit_duration_seconds", Kind::Histogram(LATENCY), "Time of one group commit, in seconds.", PLAIN;
    STORE_COMMIT_BATCH = "a3_store_commit_batch_requests", Kind::Histogram(BATCH), "Requests in one group commit.", PLAIN;
    STORE_DISK_FREE = "a3_store_disk_free_bytes", Kind::Gauge, "Bytes that the disk of the data directory still has for this node.", PLAIN;
    STORE_CHECKPOINTS = "a3_store_checkpoints_total", Kind::Counter, "Checkpoints of the write-ahead log.", PLAIN;
    STORE_DAMAGED = "a3_store_damaged_rows_total", Kind::Counter, "Rows that failed their checksum.", PLAIN;
    STORE_SET_ASIDE = "a3_store_set_aside_total", Kind::Counter, "Databases that were lost or damaged and moved aside at this start: the node came back as a new instance.", PLAIN;
    BACKUPS = "a3_backups_total", Kind::Counter, "Backups of this node that were taken and verified, or failed, by result.", BACKUP_RESULTS;
    BACKUP_LAST = "a3_backup_last_success_timestamp_seconds", Kind::Gauge, "When the last backup that was verified was begun, in seconds since 1970; 0 before the first since the start.", PLAIN;
    BACKUP_SECONDS = "a3_backup_duration_seconds", Kind::Gauge, "How long the last verified backup took until its first byte was sent, in seconds; 0 before the first since the start.", PLAIN;
    BACKUP_BYTES = "a3_backup_bytes", Kind::Gauge, "Size of the last verified backup, in bytes; 0 before the first since the start.", PLAIN;
    STORE_CONFLICTS = "a3_store_version_conflicts_total", Kind::Counter, "Records of one version with different contents; must stay zero.", PLAIN;
    STORE_WRITABLE = "a3_store_writable", Kind::Gauge, "Whether the store takes writes (1) or not (0): its disk is full, or it has stopped.", PLAIN;
    CLOCK_SKEW = "a3_clock_skew_seconds", Kind::Gauge, "This node's wall clock minus the median of the clocks heard in the last 30 s.", PLAIN;
    CLOCK_REFUSED = "a3_clock_stamps_refused_total", Kind::Counter, "Records refused because their stamp was too far ahead.", PLAIN;
    READY = "a3_node_ready", Kind::Gauge, "Whether the node answers clients (1) or not (0).", PLAIN;
    BUILD = "a3_build_info", Kind::Gauge, "Always 1; the label names the version.", Series::Known(VERSION);
}

fn labels(pairs: &[(&'static str, &str)]) -> Vec<Label> {
    pairs.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect()
}

/// A handle of a counter in the table.
pub fn counter(metric: Metric, pairs: &[(&'static str, &str)]) -> Counter {
    ::metrics::counter!(metric.name, labels(pairs))
}

/// A handle of a gauge in the table.
pub fn gauge(metric: Metric, pairs: &[(&'static str, &str)]) -> Gauge {
    ::metrics::gauge!(metric.name, labels(pairs))
}

/// A handle of a histogram in the table.
pub fn histogram(metric: Metric, pairs: &[(&'static str, &str)]) -> Histogram {
    ::metrics::histogram!(metric.name, labels(pairs))
}

/// Describes every metric of the table and registers it at zero. Call it once, after the recorder was installed and
/// before any handle is taken.
pub fn register() {
    for metric in TABLE {
        match metric.kind {
            Kind::Counter => ::metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram(_) => ::metrics::describe_histogram!(metric.name, metric.help),
        }
        let Series::Known(sets) = metric.series else { continue };
        for set in sets {
            match metric.kind {
                Kind::Counter => counter(*metric, set).absolute(0),
                Kind::Gauge => gauge(*metric, set).set(0.0),
                Kind::Histogram(_) => drop(histogram(*metric, set)),
            }
        }
    }
    gauge(BUILD, VERSION[0]).set(1.0);
}

#[cfg(test)]
mod doc;
