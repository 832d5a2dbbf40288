//! Rows of CSV (RFC 4180) out of a body that comes in pieces: the first names the columns, in any order.
//!
//! The parser is the crate `csv`'s, which takes bytes as they come. A row that is too long is named and skipped, and never held.
//!
//! Caveat: nothing in CSV says that it ended. So a row with a version must end with its line: else its last cell may be cut, and
//! something else would be stored under that version. And no row ends within quotes: what follows the one that opens them would be its
//! value.

use bytes::{Buf, Bytes};
use csv_core::{ReadRecordResult, Reader};

use super::super::problem::{BadParameter, Problem};
use super::line::{Fault, Members, Numbered};
use super::ndjson::too_long;

/// The columns that there may be.
const COLUMNS: [&str; 10] = [
    "key",
    "key_base64",
    "version",
    "written",
    "value",
    "value_base64",
    "content_type",
    "expires_at_ms",
    "ttl",
    "deleted",
];
/// Cells of a row that are looked at: more than there are columns, so that too many are noticed.
const CELLS_MAX: usize = 32;
/// What a row's cells are first given room for, in bytes.
const ROW_BYTES: usize = 4096;

/// The rows of a body.
pub(super) struct Rows {
    reader: Reader,
    held: Bytes,
    line_bytes_max: usize,
    columns: Option<Vec<&'static str>>,
    cells: Vec<u8>,
    ends: [usize; CELLS_MAX],
    /// Of the row that is being read.
    row: Row,
    /// Line ends that were read, those in cells too.
    newlines: u64,
    quotes: Quotes,
    finished: bool,
}

/// Where the reader is, as far as quotes go; it does not tell itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Quotes {
    /// Before a cell.
    #[default]
    Begin,
    /// In one without quotes, or behind those that it had.
    Plain,
    Within,
    /// Behind a quote within: the last one, or the first of two.
    Perhaps,
}

impl Quotes {
    fn next(self, byte: u8) -> Self {
        match (self, byte) {
            (Quotes::Within, b'"') => Quotes::Perhaps,
            (Quotes::Within, _) | (Quotes::Begin | Quotes::Perhaps, b'"') => Quotes::Within,
            (_, b',' | b'\r' | b'\n') => Quotes::Begin,
            _ => Quotes::Plain,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    bytes: usize,
    cells: usize,
    newlines: u64,
    too_long: bool,
    too_many: bool,
    /// The body ended within quotes.
    unclosed: bool,
}

impl Rows {
    pub(super) fn new(line_bytes_max: usize) -> Self {
        Self {
            reader: Reader::new(),
            held: Bytes::new(),
            line_bytes_max,
            columns: None,
            cells: vec![0; ROW_BYTES.min(line_bytes_max)],
            ends: [0; CELLS_MAX],
            row: Row::default(),
            newlines: 0,
            quotes: Quotes::default(),
            finished: false,
        }
    }

    /// Everything before must have been read.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.held = bytes;
    }

    /// The next row that is there whole; the rest of the body, where nothing more comes.
    ///
    /// # Errors
    /// Where the first row does not name columns.
    pub(super) fn next(&mut self, ended: bool) -> Result<Option<Numbered>, Problem> {
        loop {
            let Some((number, row)) = self.read(ended) else { return Ok(None) };
            let Some(columns) = &self.columns else {
                self.columns = Some(self.header(row)?);
                continue;
            };
            return Ok(Some((number, self.members(columns, row, self.finished))));
        }
    }

    /// The next row's number and shape; its cells are in `cells` and `ends`.
    fn read(&mut self, ended: bool) -> Option<(u64, Row)> {
        while !self.finished && (ended || !self.held.is_empty()) {
            let last = self.held.is_empty();
            let row = &mut self.row;
            let (result, consumed, bytes, cells) =
                self.reader.read_record(&self.held, &mut self.cells[row.bytes..], &mut self.ends[row.cells..]);
            let newline = |byte: &&u8| **byte == b'\n';
            row.newlines += self.cells[row.bytes..row.bytes + bytes].iter().filter(newline).count() as u64;
            self.newlines += self.held[..consumed].iter().filter(newline).count() as u64;
            self.quotes = self.held[..consumed].iter().fold(self.quotes, |quotes, byte| quotes.next(*byte));
            let ends_line = consumed.checked_sub(1).and_then(|at| self.held.get(at)) == Some(&b'\n');
            row.bytes += bytes;
            row.cells += cells;
            self.held.advance(consumed);
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.cells.len() < self.line_bytes_max => {
                    let room = (self.cells.len() * 2).min(self.line_bytes_max);
                    self.cells.resize(room, 0);
                }
                ReadRecordResult::OutputFull => (row.too_long, row.bytes) = (true, 0),
                ReadRecordResult::OutputEndsFull => (row.too_many, row.cells) = (true, 0),
                ReadRecordResult::Record => {
                    self.finished = last;
                    let mut row = std::mem::take(&mut self.row);
                    row.unclosed = last && self.quotes == Quotes::Within;
                    return Some((1 + self.newlines - row.newlines - u64::from(ends_line), row));
                }
                ReadRecordResult::End => self.finished = true,
            }
        }
        None
    }

    fn cell(&self, at: usize) -> &[u8] {
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.cells[begin..self.ends[at]]
    }

    fn header(&self, row: Row) -> Result<Vec<&'static str>, Problem> {
        let (mut columns, mut bad) = (Vec::new(), Vec::new());
        let mut fault = |name: &str, reason: &str| bad.push(BadParameter { name: name.into(), reason: reason.into() });
        let cells = if row.too_long || row.too_many || row.unclosed { 0 } else { row.cells };
        for at in 0..cells {
            let name = String::from_utf8_lossy(self.cell(at));
            let shown = name.get(..64).unwrap_or(&name);
            match COLUMNS.iter().find(|column| **column == name.trim()) {
                Some(column) if columns.contains(column) => fault(shown, "given more than once"),
                Some(column) => columns.push(*column),
                None => fault(shown, "no column of an import; the first row names the columns"),
            }
        }
        let has = |names: [&str; 2]| columns.iter().any(|column| names.contains(column));
        if !has(["key", "key_base64"]) {
            fault("key", "missing; the first row names the columns, and key or key_base64 is one of them");
        }
        if bad.is_empty() { Ok(columns) } else { Err(Problem::bad_members(bad)) }
    }

    fn members(&self, columns: &[&'static str], row: Row, cut: bool) -> Result<Members, Fault> {
        if row.unclosed {
            return Err(Fault::bad("a quote that is opened in this row is never closed, so it may be cut"));
        }
        if row.too_long {
            return Err(too_long(self.line_bytes_max));
        }
        if row.too_many || row.cells != columns.len() {
            let cells = if row.too_many { "too many".to_owned() } else { row.cells.to_string() };
            return Err(Fault::bad(format!("{cells} cells, and there are {} columns", columns.len())));
        }
        let mut members = Members::default();
        for (at, column) in columns.iter().enumerate() {
            let Ok(text) = std::str::from_utf8(self.cell(at)) else {
                return Err(Fault::bad(format!("{column}: not UTF-8; key_base64 and value_base64 take any bytes")));
            };
            if !text.is_empty() {
                set(&mut members, column, text)?;
            }
        }
        // An empty cell is no value only where there is another one, or none at all.
        if members.value.is_none() && members.value_base64.is_none() && !members.deleted {
            let column = |name| columns.contains(&name);
            members.value = (column("value") || column("value_base64")).then(String::new);
        }
        match members.version {
            Some(_) if cut => Err(Fault::bad("the last row has no line end, so it may be cut")),
            _ => Ok(members),
        }
    }
}

fn set(members: &mut Members, column: &str, text: &str) -> Result<(), Fault> {
    let owned = || Some(text.to_owned());
    match column {
        "key" => members.key = owned(),
        "key_base64" => members.key_base64 = owned(),
        "version" => members.version = owned(),
        "written" => members.written = owned(),
        "value" => members.value = owned(),
        "value_base64" => members.value_base64 = owned(),
        "content_type" => members.content_type = owned(),
        "ttl" => members.ttl = owned(),
        "expires_at_ms" => {
            let number = text.parse().map_err(|_| Fault::bad("expires_at_ms: milliseconds since 1970"))?;
            members.expires_at_ms = Some(number);
        }
        _ => {
            let flag = text.parse().map_err(|_| Fault::bad("deleted: true or false"))?;
            members.deleted = flag;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::Code;

    type Told = Vec<(u64, Result<[Option<String>; 3], String>)>;

    /// Key, value and version of each row of a body that comes in pieces of that size.
    fn told(body: &[u8], piece: usize, line_bytes_max: usize) -> Result<Told, Code> {
        let (mut rows, mut told) = (Rows::new(line_bytes_max), Vec::new());
        let mut take = |rows: &mut Rows, ended| {
            while let Some((number, row)) = rows.next(ended).map_err(|problem| problem.code())? {
                told.push((number, row.map(|m| [m.key, m.value, m.version]).map_err(|fault| fault.detail)));
            }
            Ok(())
        };
        for piece in body.chunks(piece) {
            rows.push(Bytes::copy_from_slice(piece));
            take(&mut rows, false)?;
            assert!(rows.cells.len() <= line_bytes_max, "no more than a row is held");
        }
        take(&mut rows, true)?;
        Ok(told)
    }

    fn cells(cells: [&str; 3]) -> Result<[Option<String>; 3], String> {
        Ok(cells.map(|cell| (cell != "-").then(|| cell.to_owned())))
    }

    #[test]
    fn rows_are_the_same_in_whatever_pieces_they_come() {
        let body = "version,key,value\r\n,a,1\r\n\r\n,\"b\n\"\"x\"\"\",\"2\r\n3\"\r\n,c,\n,d,4,5\n,e\n5,f,6\n7,g,8";
        let wanted = vec![
            (2, cells(["a", "1", "-"])),
            (4, cells(["b\n\"x\"", "2\r\n3", "-"])),
            (7, cells(["c", "", "-"])),
            (8, Err("4 cells, and there are 3 columns".to_owned())),
            (9, Err("2 cells, and there are 3 columns".to_owned())),
            (10, cells(["f", "6", "5"])),
            (11, Err("the last row has no line end, so it may be cut".to_owned())),
        ];
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(told(body.as_bytes(), piece, 1000), Ok(wanted.clone()), "pieces of {piece}");
        }
        assert_eq!(told(b"key,value\na,b", 3, 1000), Ok(vec![(2, cells(["a", "b", "-"]))]), "without a version it may");
        assert_eq!(told("\u{feff}key,value\na,b\n".as_bytes(), 100, 1000).unwrap().len(), 1);
        assert_eq!(told(b"", 1, 1000), Ok(vec![]));
        assert_eq!(told(b"key,value\n", 1, 1000), Ok(vec![]));
    }

    #[test]
    fn a_row_that_is_too_long_harms_no_other() {
        let long = "x".repeat(10_000);
        let body = format!("key,value\na,\"{long}\n{long}\"\nb,2\nc{}\nd,4\n", ",".repeat(100));
        for piece in [1, 100, 100_000] {
            let rows = told(body.as_bytes(), piece, 5000).unwrap();
            let wanted = [
                (2, Err("a line is at most 5000 bytes long on this node".to_owned())),
                (4, cells(["b", "2", "-"])),
                (5, Err("too many cells, and there are 2 columns".to_owned())),
                (6, cells(["d", "4", "-"])),
            ];
            assert_eq!(rows, wanted, "pieces of {piece}");
        }
        assert_eq!(told(body.as_bytes(), 50, 50_000).unwrap()[0], (2, cells(["a", &format!("{long}\n{long}"), "-"])));
    }

    #[test]
    fn a_row_that_ends_within_quotes_is_named_by_its_first_line() {
        let why = "a quote that is opened in this row is never closed, so it may be cut";
        let good = (2, cells(["a", "\"", "-"]));
        for rest in ["b,\"1\n2\n3", "b,\"1\n2\n", "b,\"", "\"b,1\nc,2\n", "b,\"x\"\"\n"] {
            let body = format!("key,value\na,\"\"\"\"\n{rest}");
            for piece in [1, 3, 1000] {
                assert_eq!(
                    told(body.as_bytes(), piece, 1000),
                    Ok(vec![good.clone(), (3, Err(why.into()))]),
                    "{body:?}"
                );
            }
            let body = format!("key,value\na,\"\"\"\"\n{rest}{}", "y\n".repeat(1000));
            assert_eq!(told(body.as_bytes(), 7, 100), Ok(vec![good.clone(), (3, Err(why.into()))]), "a long one");
        }
        let whole = told(b"key,value\na\"b,c\"\nd,\"e\"f\"\ng,\"h\"", 1, 1000).unwrap();
        assert!(whole.iter().all(|(_, row)| row.is_ok()) && whole.len() == 3, "{whole:?}");
    }

    #[test]
    fn columns_are_named_once_and_known() {
        for header in ["kez,value", "key,key", "value", "", "a\"b,key"] {
            assert_eq!(told(format!("{header}\n1,2\n").as_bytes(), 5, 1000), Err(Code::BadBody), "{header}");
        }
        let row = |body: &str| {
            let mut rows = Rows::new(1000);
            rows.push(Bytes::copy_from_slice(body.as_bytes()));
            rows.next(true).unwrap().unwrap().1
        };
        assert!(row("key,expires_at_ms,value\na,x,\n").unwrap_err().detail.starts_with("expires_at_ms"));
        assert!(row("key,deleted\na,yes\n").unwrap_err().detail.starts_with("deleted"));
        let deleted = row("key,deleted,value\na,true,\n").unwrap();
        assert!(deleted.deleted && deleted.value.is_none());
        let not = row("key,deleted\na,false\n").unwrap();
        assert!(!not.deleted && not.value.is_none());
        let mut rows = Rows::new(1000);
        rows.push(Bytes::from_static(b"key,value\na,\xff\n"));
        assert!(rows.next(true).unwrap().unwrap().1.unwrap_err().detail.starts_with("value: not UTF-8"));
    }
}
