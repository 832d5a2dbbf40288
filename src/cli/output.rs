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
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(super) format: Format,
}

impl Output {
    pub(super) fn is_json(self) -> bool {
        self.format == Format::Json
    }
}

/// Bytes to stdout, exactly. A reader that went away has seen what it wanted and is no fault.
pub(super) fn write(bytes: &[u8]) -> Result<(), Fault> {
    put(bytes).map(drop)
}

/// The same; false where the reader went away.
pub(super) fn put(bytes: &[u8]) -> Result<bool, Fault> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Fault::Failed(format!("cannot write to stdout: {e}"))),
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

/// The table as text where the terminal has the room for it, else each row as a paragraph. What is no terminal has room.
pub(super) fn rows(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = table(header);
    table.add_rows(rows);
    let room = table.width().map_or(usize::MAX, usize::from);
    table.set_content_arrangement(ContentArrangement::Disabled);
    let text = rendered(&table);
    if text.lines().all(|line| line.chars().count() <= room) { text } else { paragraphs(header, rows) }
}

/// Each row under its first cell, a line for each other cell.
fn paragraphs(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = header.iter().map(|name| name.len()).max().unwrap_or(0);
    let paragraph = |row: &Vec<String>| {
        let lines = header.iter().zip(row).skip(1).map(|(name, cell)| format!("\n  {name:<width$}  {cell}"));
        row.first().cloned().unwrap_or_default() + &lines.collect::<String>()
    };
    rows.iter().map(paragraph).collect::<Vec<_>>().join("\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_has_no_room_becomes_a_paragraph() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["n1", "alive", "-"]), row(["n2", "down", "b"])];
        let shown = paragraphs(&["NODE", "STATE", "ZONE"], &rows);
        assert_eq!(shown, "n1\n  STATE  alive\n  ZONE   -\nn2\n  STATE  down\n  ZONE   b");
    }
}
