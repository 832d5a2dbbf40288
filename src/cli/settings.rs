//! Settings on the command line: a flag for each row of the table, and `--config`.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::Fault;
use crate::config::table::{Kind, Setting, TABLE};
use crate::config::{Config, RawConfig, Sources, validate};

const FILE: &str = "config";

/// The settings stated by flags, and the file to read more from.
#[derive(Clone, Debug, Default)]
pub(super) struct SettingFlags {
    flags: Vec<(&'static str, String)>,
    file: Option<PathBuf>,
}

impl SettingFlags {
    /// Reads all sources and checks them.
    ///
    /// # Errors
    /// [`Fault::Configuration`] with every problem found. Nothing was started.
    pub(super) fn load(self) -> Result<(RawConfig, Config), Fault> {
        let file = match self.file {
            Some(path) => match std::fs::read_to_string(&path) {
                Ok(content) => Some((path, content)),
                Err(e) => return Err(Fault::Configuration(format!("{}: {e}", path.display()))),
            },
            None => None,
        };
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(name, text)| (lossy(name), lossy(text))).collect();
        let raw = RawConfig::gather(&Sources { flags: self.flags, environment, file })?;
        let config = validate(&raw)?;
        Ok((raw, config))
    }
}

impl SettingFlags {
    /// States a setting as if by its flag.
    ///
    /// # Errors
    /// [`Fault::Usage`] where the flag says something else.
    pub(super) fn set(&mut self, name: &'static str, text: String) -> Result<(), Fault> {
        match self.flags.iter().find(|(flag, _)| *flag == name) {
            Some((_, given)) if *given != text => {
                Err(Fault::Usage(format!("{name} is {text}, and its flag says {given}")))
            }
            Some(_) => Ok(()),
            None => {
                self.flags.push((name, text));
                Ok(())
            }
        }
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE).long(FILE).value_name("FILE").value_parser(value_parser!(PathBuf));
        command
            .arg(file.help("Reads settings from a TOML file too: same names, lower case"))
            .args(TABLE.iter().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let stated = |s: &Setting| matches.get_one::<String>(s.name).cloned();
        self.flags = TABLE.iter().filter_map(|s| Some((s.name, stated(s)?))).collect();
        self.file = matches.get_one::<PathBuf>(FILE).cloned();
        Ok(())
    }
}

/// The texts are checked by `config`, not by clap, so that all sources get the same complaints.
fn flag(setting: &'static Setting) -> Arg {
    let meaning = setting.meaning.trim_end_matches('.');
    let help = format!("{meaning} [default: {}] [env: {}]", setting.default_text(), setting.name);
    let arg = Arg::new(setting.name).long(setting.flag()).help(help).help_heading("Settings");
    match setting.kind {
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
        kind => arg.allow_hyphen_values(true).value_name(value_name(kind)),
    }
}

fn value_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Number { .. } => "N",
        Kind::Switch => "BOOL",
        Kind::Choice(_) => "WORD",
        Kind::Duration { .. } => "TIME",
        Kind::Bytes { .. } => "SIZE",
        Kind::IpAddress => "IP",
        Kind::Host => "HOST",
        Kind::Addresses => "HOST:PORT,...",
        Kind::Origins => "ORIGIN,...",
        Kind::Path => "DIR",
        Kind::LogFilter => "FILTER",
        Kind::Text { .. } => "TEXT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> SettingFlags {
        let command = SettingFlags::augment_args(Command::new("a3"));
        let matches = command.try_get_matches_from([&["a3"], arguments].concat()).unwrap();
        SettingFlags::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn every_setting_has_a_flag() {
        for setting in TABLE {
            let flags = parse(&[&format!("--{}=x", setting.flag())]);
            assert_eq!(flags.flags, [(setting.name, "x".to_owned())]);
        }
        assert!(parse(&[]).flags.is_empty());
    }

    #[test]
    fn a_switch_alone_is_on() {
        assert_eq!(
            parse(&["--debug-log", "--weight", "2"]).flags,
            [("DEBUG_LOG", "true".to_owned()), ("WEIGHT", "2".to_owned())]
        );
    }
}
