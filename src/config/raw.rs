//! Every setting's text and where it came from, before anything is believed of it.

use std::fmt;
use std::path::PathBuf;

use super::ConfigError;
use super::file::{self, FileEntry};
use super::nearest::nearest;
use super::table::{Default, Setting, TABLE, setting};

/// Where settings are looked for; whoever fills this in has done the reading.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Names as in the table, with the texts given.
    pub flags: Vec<(&'static str, String)>,
    /// All environment variables; those that are no settings are passed over.
    pub environment: Vec<(String, String)>,
    /// The settings file, if one was named, and its content.
    pub file: Option<(PathBuf, String)>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Environment,
    /// Lines count from 1.
    File {
        path: PathBuf,
        line: usize,
    },
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Environment => f.write_str("environment"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// One setting's text. `None` only for a derived default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    pub setting: &'static Setting,
    pub text: Option<String>,
    pub origin: Origin,
}

/// One entry for each row of the table, in its order, and the warnings met on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawConfig {
    pub stated: Vec<Stated>,
    pub warnings: Vec<String>,
}

impl RawConfig {
    /// Picks each setting's text from the strongest source that has one.
    ///
    /// # Errors
    /// When the file cannot be read as settings: no TOML, an unknown name, a value of no use as text.
    pub fn gather(sources: &Sources) -> Result<Self, ConfigError> {
        let entries = match &sources.file {
            Some((path, content)) => file::parse(path, content)?,
            None => Vec::new(),
        };
        let stated = TABLE.iter().map(|setting| state(setting, sources, &entries)).collect();
        let warnings = sources.environment.iter().filter_map(|(name, _)| near_miss(name)).collect();
        Ok(Self { stated, warnings })
    }

    /// The entry of a setting of the table.
    pub fn get(&self, setting: &Setting) -> Option<&Stated> {
        self.stated.iter().find(|s| s.setting.name == setting.name)
    }
}

fn state(setting: &'static Setting, sources: &Sources, entries: &[FileEntry]) -> Stated {
    let flag = sources.flags.iter().find(|(name, _)| *name == setting.name).map(|(_, text)| text.clone());
    if let Some(text) = flag {
        return Stated { setting, text: Some(text), origin: Origin::Flag };
    }
    let variable = sources.environment.iter().find(|(name, text)| name == setting.name && !text.is_empty());
    if let Some((_, text)) = variable {
        return Stated { setting, text: Some(text.clone()), origin: Origin::Environment };
    }
    if let Some(entry) = entries.iter().find(|e| e.setting.name == setting.name) {
        let origin = Origin::File { path: entry.path.clone(), line: entry.line };
        return Stated { setting, text: Some(entry.text.clone()), origin };
    }
    let text = match setting.default {
        Default::Text(text) => Some(text.to_owned()),
        Default::Derived(_) => None,
    };
    Stated { setting, text, origin: Origin::Default }
}

/// A variable that is no setting but looks like a slip for one. Short names are too easily near another program's.
fn near_miss(name: &str) -> Option<String> {
    if name.len() < 6 || setting(name).is_some() {
        return None;
    }
    nearest(name).map(|meant| format!("the environment variable {name} is not a setting; {meant} is"))
}
