//! Settings: one [table](table::TABLE) drives flags, environment and file; precedence is flags, environment, file,
//! defaults.
//!
//! They travel in two types, so that unchecked ones cannot: [`RawConfig`] holds every setting's text and where it came
//! from, [`validate`] turns it into [`Config`], typed and within its ranges, or into every complaint at once. Modules
//! never see [`Config`]; `server` fills their `Options` from it.
//!
//! Caveat: an environment variable that is set but empty counts as not set, which is what compose files produce.

mod file;
mod nearest;
mod raw;
pub mod table;
pub mod units;
mod validate;

#[cfg(test)]
mod doc;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use nearest::nearest;
pub use raw::{Origin, RawConfig, Sources, Stated};
use table::Setting;
pub use validate::validate;

use crate::protocol::founding::Place;
use crate::types::NodeNum;

/// What an acknowledgement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is on disk.
    Full,
    /// It survives a crash of the process, not a power cut.
    Normal,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

/// Every setting, checked. See the [table](table::TABLE) for what each is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub node: NodeNum,
    pub http_port: u16,
    pub grpc_port: u16,
    pub bind: IpAddr,
    /// IP address or DNS name, without a port.
    pub advertise: String,
    /// Whether a mesh without TLS is allowed off loopback.
    pub mesh_insecure: bool,
    /// `host:port` each; empty for a node that founds its own cluster.
    pub seeds: Vec<String>,
    /// What the members are asked for where this node is none: no setting, but which command was given.
    pub place: Place,
    /// 1 to [`REPLICATION_FACTOR_MAX`](crate::types::limits::REPLICATION_FACTOR_MAX).
    pub replication_factor: u8,
    /// 1 to [`MEMBERS_MAX`](crate::types::limits::MEMBERS_MAX).
    pub cluster_size: u16,
    pub data_dir: PathBuf,
    pub debug_log: bool,
    pub durability: Durability,
    pub gossip_interval: Duration,
    pub hint_window: Duration,
    pub gc_grace: Duration,
    /// How often copies are compared with each peer.
    pub anti_entropy_interval: Duration,
    pub hint_bytes_max: u64,
    /// At most [`VALUE_BYTES_CEILING`](crate::types::limits::VALUE_BYTES_CEILING).
    pub value_bytes_max: usize,
    pub clock_skew_max: Duration,
    pub request_timeout: Duration,
    /// Empty: CORS is off.
    pub cors_origins: Vec<String>,
    pub zone: Option<String>,
    /// 0 to [`WEIGHT_MAX`](crate::types::limits::WEIGHT_MAX).
    pub weight: u32,
    /// In the syntax of `tracing_subscriber`'s `EnvFilter`.
    pub log_filter: String,
    pub log_format: LogFormat,
    /// What is allowed but probably not meant, one sentence each, to be logged at the start.
    pub warnings: Vec<String>,
}

impl Config {
    /// Where REST listens.
    pub fn http_listen(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.http_port)
    }

    /// Where the mesh listens.
    pub fn mesh_listen(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.grpc_port)
    }

    /// `host:port` where clients reach this node.
    pub fn http_address(&self) -> String {
        join(&self.advertise, self.http_port)
    }

    /// `host:port` where peers reach this node.
    pub fn mesh_address(&self) -> String {
        join(&self.advertise, self.grpc_port)
    }
}

/// What a setting that nobody stated came to. `None` for one whose default does not depend on others.
pub fn derived(config: &Config, setting: &Setting) -> Option<String> {
    match setting.name {
        "NODE_NUM" => Some(config.node.0.to_string()),
        "HTTP_PORT" => Some(config.http_port.to_string()),
        "GRPC_PORT" => Some(config.grpc_port.to_string()),
        "ADVERTISE_ADDR" => Some(config.advertise.clone()),
        "DATA_DIR" => Some(config.data_dir.display().to_string()),
        _ => None,
    }
}

/// `host:port`, with an IPv6 address in brackets.
fn join(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

/// What is wrong with the settings, one sentence each. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct ConfigError {
    pub problems: Vec<String>,
}
