//! Where log lines go and what they look like.
//!
//! Invariant: a line that cannot be written (the log's disk is full, its reader is gone) is lost, and nothing else is. The
//! library would tell so on stderr, which panics where stderr is what failed, and takes along whoever had something to say.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
#[cfg(feature = "otlp")]
use tracing_subscriber::{Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::Fault;
use crate::config::{Config, LogFormat};

/// The target of the events that `DEBUG_LOG` shows.
const EVENTS: &str = "a3::events=debug";

/// What has to live as long as lines are written.
#[derive(Debug)]
pub(super) struct Logging {
    #[cfg(feature = "otlp")]
    _traces: Option<super::traces::Traces>,
}

/// Sends log lines to stderr: text on a terminal, one JSON object a line elsewhere, unless the settings say otherwise.
/// Call it within the node's runtime.
///
/// # Errors
/// When logging was set up before in this process.
pub(super) fn init(config: &Config) -> Result<Logging, Fault> {
    let directives = match config.debug_log {
        true => format!("{},{EVENTS}", config.log_filter),
        false => config.log_filter.clone(),
    };
    let filter =
        EnvFilter::builder().parse(directives).map_err(|e| Fault::Configuration(format!("LOG_FILTER: {e}")))?;
    let terminal = std::io::stderr().is_terminal();
    let json = match config.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    #[cfg(feature = "otlp")]
    if let Some(traces) = super::traces::Traces::begin(config)? {
        let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(terminal).log_internal_errors(false);
        let lines = if json { lines.json().flatten_event(true).boxed() } else { lines.boxed() };
        let both = tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces.layer());
        both.try_init().map_err(|e| Fault::Failed(format!("logging: {e}")))?;
        return Ok(Logging { _traces: Some(traces) });
    }
    let lines =
        fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).log_internal_errors(false);
    let set = if json { lines.json().flatten_event(true).try_init() } else { lines.try_init() };
    set.map_err(|e| Fault::Failed(format!("logging: {e}")))?;
    #[cfg(not(feature = "otlp"))]
    if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some() {
        tracing::warn!("OTEL_EXPORTER_OTLP_ENDPOINT is set, and this program was built without the feature `otlp`");
    }
    Ok(Logging {
        #[cfg(feature = "otlp")]
        _traces: None,
    })
}
