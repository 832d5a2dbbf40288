//! `a3 config`: every setting, its value, and where that came from.

use clap::Args;
use serde_json::json;

use super::Fault;
use super::output::{self, Output};
use super::settings::SettingFlags;
use crate::config::{Config as Checked, Stated, derived};

/// Print every setting and where its value came from; starts nothing.
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    settings: SettingFlags,
}

impl Config {
    pub(super) fn run(self) -> Result<(), Fault> {
        let (raw, config) = self.settings.load()?;
        for warning in &config.warnings {
            eprintln!("a3: warning: {warning}");
        }
        if self.output.is_json() {
            let rows = raw.stated.iter().map(|s| {
                json!({
                    "name": s.setting.name,
                    "value": value(s, &config),
                    "origin": s.origin.to_string(),
                    "default": s.setting.default_text(),
                    "meaning": s.setting.meaning,
                })
            });
            return output::json(&rows.collect::<Vec<_>>());
        }
        let mut table = output::table(&["SETTING", "VALUE", "FROM", "MEANING"]);
        for s in &raw.stated {
            table.add_row([s.setting.name, &value(s, &config), &s.origin.to_string(), s.setting.meaning]);
        }
        output::line(&output::rendered(&table))
    }
}

/// The text as stated, or what the derived default came to.
fn value(stated: &Stated, config: &Checked) -> String {
    stated.text.clone().or_else(|| derived(config, stated.setting)).unwrap_or_default()
}
