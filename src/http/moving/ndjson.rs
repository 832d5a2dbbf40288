//! Lines of JSON out of a body that comes in pieces. A line that is too long is named and skipped, and never held.

use bytes::{Buf, Bytes, BytesMut};

use super::super::problem::Code;
use super::line::{Fault, Members, Numbered};

/// A byte order mark, which some editors begin a file with.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// The lines of a body.
#[derive(Debug)]
pub(super) struct Lines {
    held: BytesMut,
    /// So much of it has no line end.
    searched: usize,
    line_bytes_max: usize,
    number: u64,
    /// The rest of a line that is too long is still to come.
    skips: bool,
}

impl Lines {
    pub(super) fn new(line_bytes_max: usize) -> Self {
        Self { held: BytesMut::new(), searched: 0, line_bytes_max, number: 0, skips: false }
    }

    pub(super) fn push(&mut self, bytes: &Bytes) {
        self.held.extend_from_slice(bytes);
    }

    /// The next line that is there whole, but for blank ones; the rest of the body, where nothing more comes.
    pub(super) fn next(&mut self, ended: bool) -> Option<Numbered> {
        loop {
            let end = self.held[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
            let (line, whole) = match end {
                Some(end) => {
                    let line = self.held.split_to(end);
                    self.held.advance(1);
                    (line, true)
                }
                None if ended && !self.held.is_empty() => (self.held.split(), true),
                None if self.held.len() > self.line_bytes_max => (self.held.split(), false),
                None => {
                    self.searched = self.held.len();
                    return None;
                }
            };
            self.searched = 0;
            if std::mem::replace(&mut self.skips, !whole) {
                continue;
            }
            self.number += 1;
            let text = if self.number == 1 { line.strip_prefix(MARK).unwrap_or(&line) } else { &line };
            if line.len() > self.line_bytes_max {
                return Some((self.number, Err(too_long(self.line_bytes_max))));
            }
            if !text.trim_ascii().is_empty() {
                return Some((self.number, parsed(text)));
            }
        }
    }
}

pub(super) fn too_long(line_bytes_max: usize) -> Fault {
    let detail = format!("a line is at most {line_bytes_max} bytes long on this node");
    Fault { code: Code::LineTooLong, detail, key: None }
}

fn parsed(text: &[u8]) -> Result<Members, Fault> {
    // A list would be read as members by their places.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Fault::bad("no object of an import"));
    }
    serde_json::from_slice(text).map_err(|error| {
        // Its own count of lines begins anew with each.
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        Fault::bad(format!("no object of an import: {what} (column {})", error.column()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of the lines of a body that comes in pieces of that size, with their numbers.
    fn told(body: &[u8], piece: usize, line_bytes_max: usize) -> Vec<(u64, Result<Option<String>, Code>)> {
        let (mut lines, mut told) = (Lines::new(line_bytes_max), Vec::new());
        let mut take = |lines: &mut Lines, ended| {
            while let Some((number, line)) = lines.next(ended) {
                told.push((number, line.map(|members| members.key).map_err(|fault| fault.code)));
            }
        };
        for piece in body.chunks(piece) {
            lines.push(&Bytes::copy_from_slice(piece));
            take(&mut lines, false);
            assert!(lines.held.len() <= line_bytes_max, "no more than a line is held");
        }
        take(&mut lines, true);
        told
    }

    #[test]
    fn lines_are_the_same_in_whatever_pieces_they_come() {
        let long = format!("{{\"key\":\"{}\"}}", "x".repeat(100));
        let body = format!("\u{feff}{{\"key\":\"a\"}}\n\n  \r\n{long}\n{{\"key\":\"b\"}}\r\nnot\n{{\"key\":\"c\"}}");
        let key = |key: &str| Ok(Some(key.to_owned()));
        let wanted =
            [(1, key("a")), (4, Err(Code::LineTooLong)), (5, key("b")), (6, Err(Code::BadLine)), (7, key("c"))];
        for piece in [1, 2, 3, 7, 50, 1000] {
            assert_eq!(told(body.as_bytes(), piece, 40), wanted, "pieces of {piece}");
        }
        assert_eq!(told(body.as_bytes(), 9, 200)[1], (4, key(&"x".repeat(100))));
        assert_eq!(told(b"", 1, 40), []);
        assert_eq!(told(b"\n\n", 1, 40), []);
        assert_eq!(told(long.as_bytes(), 5, 40), [(1, Err(Code::LineTooLong))], "the last one, too");
    }

    #[test]
    fn what_is_no_object_of_an_import_says_where() {
        let why = |line: &str| parsed(line.as_bytes()).unwrap_err().detail;
        assert_eq!(why("{\"kez\":1}").split(',').next(), Some("no object of an import: unknown field `kez`"));
        assert_eq!(why("{"), "no object of an import: EOF while parsing an object (column 1)");
        assert!(why("{\"key\":\"a\",\"key\":\"b\"}").contains("duplicate field"));
        for bad in [
            "[\"a\",\"b\"]",
            "1",
            "\"a\"",
            "{\"key\":1}",
            "{\"deleted\":\"yes\"}",
            "{\"expires_at_ms\":-1}",
            "{\"key\":\"\\ud800\"}",
        ] {
            assert!(parsed(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
