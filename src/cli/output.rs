//! What commands print: tables for people, JSON for programs, and bytes as they are.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::Fault;

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON value.
    Json,
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Output {
    /// How to print the answer.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub(super) format: Format,
}

impl Output {
    pub(super) fn is_json(self) -> bool {
        self.format == Format::Json
    }
}

/// Bytes to stdout, exactly. A reader that went away has seen what it wanted and is no fault.
pub(super) fn write(bytes: &[u8]) -> Result<(), Fault> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Fault::Failed(format!("cannot write to stdout: {e}"))),
        _ => Ok(()),
    }
}

/// A line to stdout.
pub(super) fn line(text: &str) -> Result<(), Fault> {
    write(format!("{text}\n").as_bytes())
}

/// One JSON value, indented, to stdout.
pub(super) fn json(value: &impl Serialize) -> Result<(), Fault> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Fault::Failed(format!("no JSON: {e}")))?;
    line(&text)
}

/// An empty table with this header; it fits itself to the terminal.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    table
}

/// The table as text, without the blanks that end its lines.
pub(super) fn rendered(table: &Table) -> String {
    table
        .to_string()
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end())
        .collect::<Vec<_>>()
        .join("\n")
}
