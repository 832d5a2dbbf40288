//! Where log lines go and what they look like.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use super::Fault;
use crate::config::{Config, LogFormat};

/// The target of the events that `DEBUG_LOG` shows.
const EVENTS: &str = "a3::events=debug";

/// Sends log lines to stderr: text on a terminal, one JSON object a line elsewhere, unless the settings say otherwise.
///
/// # Errors
/// When logging was set up before in this process.
pub(super) fn init(config: &Config) -> Result<(), Fault> {
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
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    let set = if json { lines.json().flatten_event(true).try_init() } else { lines.try_init() };
    set.map_err(|e| Fault::Failed(format!("logging: {e}")))
}
