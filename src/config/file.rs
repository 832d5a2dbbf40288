//! The settings file: TOML, the table's names in lower case, no sections.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::nearest::nearest;
use super::table::{Kind, Setting, TABLE};

/// One line of the file, as text that the table's checks understand.
#[derive(Debug)]
pub(super) struct FileEntry {
    pub(super) setting: &'static Setting,
    pub(super) text: String,
    pub(super) path: PathBuf,
    /// Counts from 1.
    pub(super) line: usize,
}

/// Reads the content of a settings file.
///
/// # Errors
/// Every problem at once, each with file and line: no TOML, a name not in the table (with the nearest one), a value that
/// is no text, number, truth value or list of texts.
pub(super) fn parse(path: &Path, content: &str) -> Result<Vec<FileEntry>, ConfigError> {
    let at = |line: usize| format!("{}:{line}", path.display());
    let table = DeTable::parse(content).map_err(|e| {
        let line = line_of(content, e.span().map_or(0, |s| s.start));
        ConfigError { problems: vec![format!("{}: {}", at(line), e.message())] }
    })?;
    let mut entries = Vec::new();
    let mut problems = Vec::new();
    for (key, value) in table.get_ref() {
        let line = line_of(content, key.span().start);
        let name = key.get_ref().as_ref();
        let Some(setting) = TABLE.iter().find(|s| s.file_key() == name) else {
            let meant = nearest(name).map(|n| format!("; did you mean {}?", n.to_ascii_lowercase()));
            problems.push(format!("{}: {name} is not a setting{}", at(line), meant.unwrap_or_default()));
            continue;
        };
        match text_of(value.get_ref(), setting.kind) {
            Some(text) => entries.push(FileEntry { setting, text, path: path.to_owned(), line }),
            None => problems.push(format!("{}: {name} takes no {}", at(line), type_name(value.get_ref()))),
        }
    }
    if problems.is_empty() { Ok(entries) } else { Err(ConfigError { problems }) }
}

fn text_of(value: &DeValue<'_>, kind: Kind) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Boolean(on) => Some(on.to_string()),
        DeValue::Array(items) if matches!(kind, Kind::Addresses | Kind::Origins) => {
            let texts: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
            texts.map(|texts| texts.join(","))
        }
        _ => None,
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::Table(_) => "section",
        DeValue::Array(_) => "list like this",
        DeValue::Float(_) => "fraction",
        DeValue::Datetime(_) => "date",
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Boolean(_) => "value like this",
    }
}

fn line_of(content: &str, offset: usize) -> usize {
    1 + content.bytes().take(offset).filter(|b| *b == b'\n').count()
}
