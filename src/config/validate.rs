//! From texts to a [`Config`]: each setting on its own first, then the rules between settings.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::raw::{Origin, RawConfig, Stated};
use super::table::{self, Kind, Setting};
use super::units::{parse_bytes, parse_duration, show_bytes, show_duration};
use super::{Config, ConfigError, Durability, LogFormat};
use crate::protocol::founding::Place;
use crate::protocol::purge::seal_age_ms;
use crate::types::NodeNum;
use crate::types::limits::ADDRESS_BYTES_MAX;

/// Checks every setting and the rules between them.
///
/// # Errors
/// All problems found, one sentence each.
pub fn validate(raw: &RawConfig) -> Result<Config, ConfigError> {
    let mut reader = Reader { raw, problems: Vec::new() };
    let mut config = reader.config();
    reader.check_together(&config);
    if !reader.problems.is_empty() {
        return Err(ConfigError { problems: reader.problems });
    }
    config.warnings = warnings(raw, &config);
    Ok(config)
}

/// A setting's value after its own check.
enum Value {
    Number(u64),
    Switch(bool),
    Duration(Duration),
    Ip(IpAddr),
    Text(String),
    List(Vec<String>),
}

/// Reads settings and collects what is wrong. After a problem the value it answers is a stand-in that is never used,
/// because problems end the start.
struct Reader<'a> {
    raw: &'a RawConfig,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn config(&mut self) -> Config {
        let seeds = self.list(&table::SEEDS);
        let node = self.node(&seeds);
        let bind = self.ip(&table::BIND_ADDR);
        let advertise = self.text(&table::ADVERTISE_ADDR).unwrap_or_else(|| bind.to_string());
        // Nothing comes of it but a warning; a bad one is refused all the same.
        self.value(&table::GOSSIP_PORT);
        Config {
            node: NodeNum(node),
            http_port: self.port(&table::HTTP_PORT, 8000, node),
            grpc_port: self.port(&table::GRPC_PORT, 50_050, node),
            bind,
            advertise,
            mesh_insecure: self.switch(&table::MESH_INSECURE),
            seeds,
            place: Place::Any,
            replication_factor: narrow(self.number(&table::REPLICATION_FACTOR)),
            cluster_size: narrow(self.number(&table::CLUSTER_SIZE)),
            data_dir: self.text(&table::DATA_DIR).map_or_else(|| format!("data/node{node}").into(), PathBuf::from),
            debug_log: self.switch(&table::DEBUG_LOG),
            durability: match self.text(&table::DURABILITY).as_deref() {
                Some("normal") => Durability::Normal,
                _ => Durability::Full,
            },
            gossip_interval: self.duration(&table::GOSSIP_INTERVAL),
            hint_window: self.duration(&table::HINT_WINDOW),
            gc_grace: self.duration(&table::GC_GRACE),
            anti_entropy_interval: self.duration(&table::ANTI_ENTROPY_INTERVAL),
            hint_bytes_max: self.number(&table::HINT_BYTES_MAX),
            value_bytes_max: narrow(self.number(&table::VALUE_BYTES_MAX)),
            clock_skew_max: self.duration(&table::CLOCK_SKEW_MAX),
            request_timeout: self.duration(&table::REQUEST_TIMEOUT),
            cors_origins: self.list(&table::CORS_ORIGINS),
            zone: self.text(&table::ZONE).filter(|zone| !zone.is_empty()),
            weight: narrow(self.number(&table::WEIGHT)),
            log_filter: self.text(&table::LOG_FILTER).unwrap_or_default(),
            log_format: match self.text(&table::LOG_FORMAT).as_deref() {
                Some("json") => LogFormat::Json,
                Some("text") => LogFormat::Text,
                _ => LogFormat::Auto,
            },
            warnings: Vec::new(),
        }
    }

    /// Two nodes that both took the default would claim one number, so beside seeds it has none.
    fn node(&mut self, seeds: &[String]) -> u16 {
        match self.value(&table::NODE_NUM) {
            Some(Value::Number(number)) => narrow(number),
            _ if seeds.is_empty() => 1,
            _ => {
                if self.raw.get(&table::NODE_NUM).is_some_and(|s| s.text.is_none()) {
                    self.problems.push("NODE_NUM must be set where SEEDS is: each node needs its own number".into());
                }
                1
            }
        }
    }

    fn port(&mut self, setting: &'static Setting, base: u16, node: u16) -> u16 {
        if let Some(Value::Number(port)) = self.value(setting) {
            return narrow(port);
        }
        base.checked_add(node).unwrap_or_else(|| {
            let name = setting.name;
            self.problems.push(format!("{name} must be set: its default, {base} + NODE_NUM, is no port here"));
            base
        })
    }

    fn check_together(&mut self, config: &Config) {
        if config.http_port == config.grpc_port {
            self.problems.push(format!("HTTP_PORT and GRPC_PORT are both {}", config.http_port));
        }
        if config.mesh_address().len() > ADDRESS_BYTES_MAX {
            self.problems.push(format!("ADVERTISE_ADDR is over {ADDRESS_BYTES_MAX} bytes long"));
        }
        let advertised: Option<IpAddr> = config.advertise.parse().ok();
        if advertised.is_some_and(|ip| ip.is_unspecified()) {
            let advice = "set it to the address that others reach this node at";
            self.problems
                .push(format!("ADVERTISE_ADDR would be {}, which nobody can call: {advice}", config.advertise));
        }
        if config.bind.is_loopback() {
            if let Some(seed) = config.seeds.iter().find(|seed| is_elsewhere(seed))
                && is_loopback(&config.advertise)
            {
                let own = format!("ADVERTISE_ADDR is {}, which no other machine can call", config.advertise);
                let advice = "set BIND_ADDR=0.0.0.0 and ADVERTISE_ADDR to this machine's address";
                self.problems.push(format!("SEEDS leads to another machine ({seed}), but {own}: {advice}"));
            }
            return;
        }
        let bind = config.bind;
        if is_loopback(&config.advertise) {
            let what = format!("BIND_ADDR is {bind}, but ADVERTISE_ADDR is {}", config.advertise);
            self.problems.push(format!("{what}, which other machines take for themselves"));
        }
        if !config.mesh_insecure {
            let advice = "set MESH_INSECURE=true only where nobody else can reach that port";
            self.problems.push(format!("BIND_ADDR is {bind} and the mesh has no TLS: {advice}"));
        }
    }

    fn number(&mut self, setting: &'static Setting) -> u64 {
        match self.value(setting) {
            Some(Value::Number(number)) => number,
            _ => 0,
        }
    }

    fn switch(&mut self, setting: &'static Setting) -> bool {
        matches!(self.value(setting), Some(Value::Switch(true)))
    }

    fn duration(&mut self, setting: &'static Setting) -> Duration {
        match self.value(setting) {
            Some(Value::Duration(duration)) => duration,
            _ => Duration::ZERO,
        }
    }

    fn ip(&mut self, setting: &'static Setting) -> IpAddr {
        match self.value(setting) {
            Some(Value::Ip(ip)) => ip,
            _ => Ipv4Addr::LOCALHOST.into(),
        }
    }

    fn text(&mut self, setting: &'static Setting) -> Option<String> {
        match self.value(setting) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn list(&mut self, setting: &'static Setting) -> Vec<String> {
        match self.value(setting) {
            Some(Value::List(list)) => list,
            _ => Vec::new(),
        }
    }

    /// `None` where the default is derived, and after a problem.
    fn value(&mut self, setting: &'static Setting) -> Option<Value> {
        let Stated { text, origin, .. } = self.raw.get(setting)?;
        let text = text.as_deref()?;
        match check(setting.kind, text) {
            Ok(value) => Some(value),
            Err(wanted) => {
                let name = match origin {
                    Origin::Flag => format!("--{}", setting.flag()),
                    Origin::File { path, line } => format!("{}:{line}: {}", path.display(), setting.file_key()),
                    Origin::Environment | Origin::Default => setting.name.to_owned(),
                };
                self.problems.push(format!("{name} is {text:?}, but {wanted} is wanted"));
                None
            }
        }
    }
}

/// A text as a value of that kind, or what is wanted instead.
fn check(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Number { min, max } => within(text.trim().parse().ok(), min, max)
            .map(Value::Number)
            .ok_or_else(|| format!("a whole number from {min} to {max}")),
        Kind::Switch => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Value::Switch(true)),
            "false" | "0" | "no" | "off" => Ok(Value::Switch(false)),
            _ => Err("true or false".into()),
        },
        Kind::Choice(words) => match words.iter().find(|w| w.eq_ignore_ascii_case(text.trim())) {
            Some(word) => Ok(Value::Text((*word).to_owned())),
            None => Err(words.join(" or ")),
        },
        Kind::Duration { min_ms, max_ms } => {
            let (min, max) = (Duration::from_millis(min_ms), Duration::from_millis(max_ms));
            within(parse_duration(text), min, max)
                .map(Value::Duration)
                .ok_or_else(|| format!("a time with its unit, from {} to {},", show_duration(min), show_duration(max)))
        }
        Kind::Bytes { min, max } => within(parse_bytes(text), min, max)
            .map(Value::Number)
            .ok_or_else(|| format!("a size from {} to {}", show_bytes(min), show_bytes(max))),
        Kind::IpAddress => text.trim().parse().map(Value::Ip).map_err(|_| "an IP address".into()),
        Kind::Host => match text.trim() {
            host if is_host(host) => Ok(Value::Text(host.to_owned())),
            _ => Err("an IP address or a DNS name, without a port,".into()),
        },
        Kind::Addresses => list_of(text, is_address).ok_or("host:port, several separated by commas,".into()),
        Kind::Origins => {
            list_of(text, is_origin).ok_or("https://host or http://host:port, several separated by commas,".into())
        }
        Kind::LogFilter => match EnvFilter::builder().parse(text) {
            Ok(_) => Ok(Value::Text(text.to_owned())),
            Err(_) => Err("level or target=level, several separated by commas,".into()),
        },
        Kind::Path if text.is_empty() => Err("a path".into()),
        Kind::Path => Ok(Value::Text(text.to_owned())),
        Kind::Text { bytes_max } if text.len() > bytes_max || text.contains(char::is_control) => {
            Err(format!("a text of at most {bytes_max} bytes"))
        }
        Kind::Text { .. } => Ok(Value::Text(text.trim().to_owned())),
    }
}

fn within<T: PartialOrd>(value: Option<T>, min: T, max: T) -> Option<T> {
    value.filter(|v| (min..=max).contains(v))
}

/// The table's range of a number fits its field; what does not fit was refused before it came here.
fn narrow<T: TryFrom<u64> + Default>(number: u64) -> T {
    T::try_from(number).unwrap_or_default()
}

/// An IP address, or a DNS name by its letters.
fn is_host(text: &str) -> bool {
    let name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    text.parse::<IpAddr>().is_ok() || (!text.is_empty() && name(text))
}

/// The parts between commas, when each is as it must be.
fn list_of(text: &str, fine: impl Fn(&str) -> bool) -> Option<Value> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| fine(part).then(|| part.to_owned())).collect::<Option<_>>().map(Value::List)
}

/// A scheme and an authority, and nothing behind: what a browser sends as `Origin`.
fn is_origin(text: &str) -> bool {
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    authority.is_some_and(|a| !a.is_empty() && a.bytes().all(plain))
}

/// `host:port`, an IPv6 address in brackets.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .map_or_else(|| is_host(host) && !host.contains(':'), |inside| inside.parse::<std::net::Ipv6Addr>().is_ok());
    host && port.parse::<u16>().is_ok_and(|p| p > 0) && text.len() <= ADDRESS_BYTES_MAX
}

/// Whether a seed is an IP address of the network, not of this machine alone. Where a name leads, nobody knows yet.
fn is_elsewhere(seed: &str) -> bool {
    seed.parse::<SocketAddr>().is_ok_and(|address| !address.ip().is_loopback())
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn warnings(raw: &RawConfig, config: &Config) -> Vec<String> {
    let mut warnings = raw.warnings.clone();
    let is_stated = |setting| raw.get(setting).is_some_and(|s| s.origin != Origin::Default);
    if is_stated(&table::GOSSIP_PORT) {
        warnings.push(format!("GOSSIP_PORT is not used: gossip runs on GRPC_PORT, {}", config.grpc_port));
    }
    if config.bind.is_loopback() && !is_loopback(&config.advertise) {
        let what = format!("BIND_ADDR is {}, so nobody reaches this node", config.bind);
        warnings.push(format!("{what} at its ADVERTISE_ADDR {}", config.advertise));
    }
    if config.mesh_insecure && !config.bind.is_loopback() {
        let who = "whoever reaches it can read and write everything";
        warnings.push(format!("the mesh on {} has no TLS: {who}", config.mesh_listen()));
    }
    let safe = Duration::from_millis(seal_age_ms(u64::MAX, config.clock_skew_max.as_millis() as u64));
    if config.gc_grace < safe {
        let what = "a deleted value may come back where a write is under way for longer, or clocks differ by more";
        let (is, safe) = (show_duration(config.gc_grace), show_duration(safe));
        warnings.push(format!("GC_GRACE is {is}, less than {safe}: {what}"));
    }
    warnings
}
