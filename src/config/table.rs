//! The table of settings. Flags and their help, environment variables, the file's names, their checks and `a3 config`
//! all come from here.

use crate::types::limits::{MEMBERS_MAX, REPLICATION_FACTOR_MAX, VALUE_BYTES_CEILING, WEIGHT_MAX, ZONE_BYTES_MAX};

/// What texts a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number, both ends included.
    Number {
        min: u64,
        max: u64,
    },
    /// `true` or `false`; the flag alone means `true`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A number with a unit, `500ms` to `7d`; ends included, in milliseconds.
    Duration {
        min_ms: u64,
        max_ms: u64,
    },
    /// A plain number of bytes, or one with a unit; ends included.
    Bytes {
        min: u64,
        max: u64,
    },
    /// An IP address to listen on.
    IpAddress,
    /// An IP address or a DNS name.
    Host,
    /// `host:port` addresses, separated by commas (in the file also a list). May be empty.
    Addresses,
    /// Web origins as a browser sends them (`https://app.example`), separated by commas (in the file also a list). May be
    /// empty.
    Origins,
    Path,
    /// Levels and `target=level` pairs, as `tracing_subscriber`'s `EnvFilter` reads them.
    LogFilter,
    /// Any text without control characters, at most so many bytes. May be empty.
    Text {
        bytes_max: usize,
    },
}

/// What stands when nobody says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    Text(&'static str),
    /// Follows from other settings, as this phrase says; `validate` works it out.
    Derived(&'static str),
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The environment variable; the flag and the file's key follow from it.
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    pub meaning: &'static str,
}

impl Setting {
    /// `--http-port`, without the dashes.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// `http_port`, as the file spells it.
    pub fn file_key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// The default as a person reads it.
    pub fn default_text(&self) -> &'static str {
        match self.default {
            Default::Text("") => "none",
            Default::Text(text) | Default::Derived(text) => text,
        }
    }
}

/// The setting of that name, as the environment spells it.
pub fn setting(name: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|s| s.name == name)
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const MIB: u64 = 1024 * 1024;
const PORT: Kind = Kind::Number { min: 1, max: 65_535 };

macro_rules! settings {
    ($($name:ident: $kind:expr, $default:expr, $meaning:literal;)*) => {
        $(pub const $name: Setting =
            Setting { name: stringify!($name), kind: $kind, default: $default, meaning: $meaning };)*
        /// Every setting, in the order in which `a3 config` shows them.
        pub const TABLE: &[Setting] = &[$($name),*];
    };
}

settings! {
    NODE_NUM: Kind::Number { min: 1, max: 65_535 }, Default::Derived("1 (none beside SEEDS)"),
        "This node's number in the cluster; its ports and directory follow it.";
    HTTP_PORT: PORT, Default::Derived("8000 + NODE_NUM"), "TCP port of the REST interface.";
    GRPC_PORT: PORT, Default::Derived("50050 + NODE_NUM"), "TCP port of the mesh between nodes; gossip runs on it.";
    GOSSIP_PORT: PORT, Default::Derived("none"), "Not used: gossip runs on GRPC_PORT. Setting it only warns.";
    BIND_ADDR: Kind::IpAddress, Default::Text("127.0.0.1"), "Address both ports listen on.";
    ADVERTISE_ADDR: Kind::Host, Default::Derived("BIND_ADDR"),
        "Address others reach this node at; needed where BIND_ADDR is 0.0.0.0 or ::.";
    MESH_INSECURE: Kind::Switch, Default::Text("false"), "Allows a mesh without TLS off loopback.";
    SEEDS: Kind::Addresses, Default::Text(""), "Mesh addresses of any members, host:port, separated by commas.";
    REPLICATION_FACTOR: Kind::Number { min: 1, max: REPLICATION_FACTOR_MAX as u64 }, Default::Text("2"),
        "Copies of each key when the cluster is founded (a3 replication-factor changes it).";
    CLUSTER_SIZE: Kind::Number { min: 1, max: MEMBERS_MAX as u64 }, Default::Text("1"),
        "How many nodes found the cluster together.";
    DATA_DIR: Kind::Path, Default::Derived("data/node{NODE_NUM}"), "Where the database and the identity are kept.";
    DEBUG_LOG: Kind::Switch, Default::Text("false"),
        "Logs writes, replicas, confirmations, discoveries and hints, one line each.";
    DURABILITY: Kind::Choice(&["full", "normal"]), Default::Text("full"),
        "full: what is acknowledged is on disk; normal: it survives a crash of the process, not a power cut.";
    ANTI_ENTROPY_INTERVAL: Kind::Duration { min_ms: SECOND, max_ms: DAY }, Default::Text("30s"),
        "Time between two comparisons of copies with a peer, give or take a fifth.";
    GOSSIP_INTERVAL: Kind::Duration { min_ms: 100, max_ms: MINUTE }, Default::Text("1s"),
        "Time between two gossip probes.";
    GC_GRACE: Kind::Duration { min_ms: SECOND, max_ms: 365 * DAY }, Default::Text("24h"),
        "How long a deleted key's tombstone is kept at least; no shorter than a write may be under way.";
    HINT_WINDOW: Kind::Duration { min_ms: SECOND, max_ms: 30 * DAY }, Default::Text("3h"),
        "How long a hint that no acknowledgement rests on is kept.";
    HINT_BYTES_MAX: Kind::Bytes { min: MIB, max: 16 * 1024 * 1024 * MIB }, Default::Text("1GiB"),
        "The most that the hints on this node may take.";
    VALUE_BYTES_MAX: Kind::Bytes { min: 1, max: VALUE_BYTES_CEILING as u64 }, Default::Text("1MiB"),
        "The longest value this node accepts.";
    CLOCK_SKEW_MAX: Kind::Duration { min_ms: SECOND, max_ms: DAY }, Default::Text("5min"),
        "How far a clock may be off before its node stops taking writes.";
    REQUEST_TIMEOUT: Kind::Duration { min_ms: 50, max_ms: MINUTE }, Default::Text("1s"),
        "How long a request may take unless it says ?timeout= itself.";
    CORS_ORIGINS: Kind::Origins, Default::Text(""),
        "Origins whose pages may use REST from a browser, https://app.example, separated by commas.";
    ZONE: Kind::Text { bytes_max: ZONE_BYTES_MAX }, Default::Text(""),
        "Where this node stands when it founds or joins a cluster (a3 zone changes it); copies are spread over zones.";
    WEIGHT: Kind::Number { min: 0, max: WEIGHT_MAX as u64 }, Default::Text("1"),
        "This node's share of the slots when it founds or joins a cluster (a3 weight changes it).";
    LOG_FILTER: Kind::LogFilter, Default::Text("info"),
        "What is logged, as level or target=level, separated by commas.";
    LOG_FORMAT: Kind::Choice(&["auto", "text", "json"]), Default::Text("auto"),
        "auto: text on a terminal, one JSON object a line elsewhere.";
}
