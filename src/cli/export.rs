//! `a3 export`: everything, as lines.
//!
//! A file gets its name only when everything is in it: until then it is `FILE.part`, beside what a link leads to. What is there and no
//! ordinary file (a pipe, `/dev/null`) is written into as it comes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::Value;

use super::Fault;
use super::client::{ANSWER, Asked, block_on, download, within};
use super::moving::{LineFormat, Progress};
use crate::config::units::about_bytes;
use crate::storage::{self, ExportError};

/// Longest last line that is looked at, in bytes.
const LAST_BYTES_MAX: usize = 64 * 1024;

/// Write every key with its value, version and end to a file or stdout, as lines that `a3 import` takes.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// Where to; - or nothing: stdout. It is FILE.part until it is whole.
    file: Option<PathBuf>,
    /// Only keys that begin so.
    #[arg(long, default_value = "")]
    prefix: OsString,
    /// How lines are spelled [default: as FILE ends: csv, else ndjson].
    #[arg(id = "lines", long = "format", value_enum, value_name = "FORMAT")]
    format: Option<LineFormat>,
    /// Read a backup's file in place of a cluster: what that node held, deletions and hints too.
    #[arg(long, value_name = "FILE", conflicts_with = "prefix")]
    backup: Option<PathBuf>,
    #[command(flatten)]
    asked: Asked,
}

/// Where lines are to go, before there are any: nothing is made yet.
enum Place {
    Stdout,
    /// It is no ordinary file.
    Straight(File, PathBuf),
    File(PathBuf),
}

/// Where lines go.
enum Target {
    Stdout,
    Straight { file: File, path: PathBuf },
    File { file: File, part: PathBuf, path: PathBuf },
}

impl Export {
    pub(super) fn run(self) -> Result<(), Fault> {
        match &self.backup {
            Some(backup) => self.read(backup),
            None => block_on(self.export()),
        }
    }

    /// A backup's records, as lines.
    fn read(&self, backup: &Path) -> Result<(), Fault> {
        if self.format.unwrap_or_else(|| LineFormat::of_name(self.file.as_deref())) == LineFormat::Csv {
            return Err(Fault::Usage("a backup has deletions, which CSV has no words for: write ndjson".into()));
        }
        let mut target = Place::of(self.file.as_deref())?.target()?;
        let read = storage::export(backup, &mut BufWriter::new(&mut target));
        let about = match read {
            Ok(about) => about,
            // Whoever reads it has enough.
            Err(ExportError::Out(e)) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(target.cut(&error.to_string())),
        };
        target.finish()?;
        if self.file.is_some() {
            eprintln!("{} records that {} held", about.rows.records, about.node);
        }
        Ok(())
    }

    async fn export(self) -> Result<(), Fault> {
        let host = &self.asked.host;
        let place = Place::of(self.file.as_deref())?;
        let format = self.format.unwrap_or_else(|| LineFormat::of_name(self.file.as_deref()));
        let prefix = percent_encode(self.prefix.as_bytes(), NON_ALPHANUMERIC);
        let path = format!("/export?format={}&prefix={prefix}", format.name());
        let mut body = download(host, &path, HeaderMap::new()).await?;
        let mut target = place.target()?;
        let (mut tail, mut bytes, mut progress) = (Tail::default(), 0, Progress::new("received"));
        loop {
            let part = match next(&mut body, &self.asked).await {
                Ok(part) => part,
                Err(fault) => {
                    progress.clear();
                    return Err(target.cut(&fault.to_string()));
                }
            };
            let Some(part) = part else { break };
            bytes += part.len() as u64;
            tail.push(&part);
            if !target.put(&part)? {
                return Ok(());
            }
            progress.show(bytes);
        }
        progress.clear();
        let end = if format == LineFormat::Csv { Value::Null } else { tail.end().map_err(|why| target.cut(&why))? };
        if end["damaged"].as_u64().unwrap_or(0) == 0 {
            target.finish()?;
        }
        told(&end, bytes, &target)
    }
}

/// The next piece; `None` at the body's proper end.
async fn next(body: &mut Incoming, asked: &Asked) -> Result<Option<Bytes>, Fault> {
    loop {
        let frame = within(ANSWER, &asked.host, async { Ok(body.frame().await) }).await?;
        match frame {
            None => return Ok(None),
            Some(Err(e)) => return Err(Fault::Failed(format!("the answer broke off: {e}"))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// What an export's last line says of it.
fn told(end: &Value, bytes: u64, target: &Target) -> Result<(), Fault> {
    let number = |name: &str| end[name].as_u64();
    if let Some(keys) = number("keys").filter(|_| !matches!(target, Target::Stdout)) {
        eprintln!("{keys} keys, {}", about_bytes(bytes));
    }
    if end["strict"] == false {
        eprintln!("a home replica was stood in for: strict writes may be missing");
    }
    match number("damaged").unwrap_or(0) {
        0 => Ok(()),
        damaged => {
            let left = target.left();
            Err(Fault::Failed(format!(
                "the values of {damaged} keys could not be read: only their keys are told{left}"
            )))
        }
    }
}

impl io::Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Stdout => io::stdout().lock().write(bytes),
            Target::Straight { file, .. } | Target::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Target::Stdout => io::stdout().lock().flush(),
            Target::Straight { file, .. } | Target::File { file, .. } => file.flush(),
        }
    }
}

impl Place {
    /// # Errors
    /// Where nothing can be written there.
    fn of(path: Option<&Path>) -> Result<Self, Fault> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else { return Ok(Place::Stdout) };
        let failed = |e| Fault::Failed(format!("{}: {e}", path.display()));
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => Err(Fault::Failed(format!("{}: is a directory", path.display()))),
            Ok(there) if !there.is_file() => {
                let file = File::options().write(true).open(path).map_err(failed)?;
                Ok(Place::Straight(file, path.to_owned()))
            }
            // A link stays one.
            Ok(_) => Ok(Place::File(fs::canonicalize(path).map_err(failed)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::read_link(path) {
                Ok(to) => Ok(Place::File(path.parent().unwrap_or(Path::new("")).join(to))),
                Err(_) => Ok(Place::File(path.to_owned())),
            },
            Err(e) => Err(failed(e)),
        }
    }

    fn target(self) -> Result<Target, Fault> {
        let path = match self {
            Place::Stdout => return Ok(Target::Stdout),
            Place::Straight(file, path) => return Ok(Target::Straight { file, path }),
            Place::File(path) => path,
        };
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).map_err(|e| Fault::Failed(format!("{}: {e}", part.display())))?;
        Ok(Target::File { file, part, path })
    }
}

impl Target {
    /// False where nobody reads on.
    fn put(&mut self, bytes: &[u8]) -> Result<bool, Fault> {
        match (self.write_all(bytes), self) {
            (Ok(()), _) => Ok(true),
            (Err(e), Target::Stdout | Target::Straight { .. }) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            (Err(e), Target::Stdout) => Err(Fault::Failed(format!("cannot write to stdout: {e}"))),
            (Err(e), Target::Straight { path, .. }) => Err(Fault::Failed(format!("{}: {e}", path.display()))),
            (Err(e), Target::File { part, .. }) => Err(Fault::Failed(format!("{}: {e}", part.display()))),
        }
    }

    /// Everything is there: the file gets its name when that is on disk.
    fn finish(&mut self) -> Result<(), Fault> {
        match self {
            Target::Stdout => match io::stdout().flush() {
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                    Err(Fault::Failed(format!("cannot write to stdout: {e}")))
                }
                _ => Ok(()),
            },
            Target::Straight { .. } => Ok(()),
            Target::File { file, part, path } => {
                let named = file.sync_all().and_then(|()| fs::rename(&*part, &*path));
                named.map_err(|e| Fault::Failed(format!("{}: {e}", path.display())))
            }
        }
    }

    fn cut(&self, why: &str) -> Fault {
        Fault::Failed(format!("the export was cut: {why}{}", self.left()))
    }

    /// Where to find what did not get its name.
    fn left(&self) -> String {
        match self {
            Target::Stdout | Target::Straight { .. } => String::new(),
            Target::File { part, .. } => format!("; what came is in {}", part.display()),
        }
    }
}

/// The last line, as far as it is short.
#[derive(Debug, Default)]
struct Tail {
    line: Vec<u8>,
    /// The line is whole, and the next byte begins another.
    whole: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if std::mem::take(&mut self.whole) {
                self.line.clear();
            }
            let room = (LAST_BYTES_MAX + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(piece.get(..room).unwrap_or(piece));
            self.whole = piece.ends_with(b"\n");
        }
    }

    /// What the `end` says.
    ///
    /// # Errors
    /// Why there is none.
    fn end(&self) -> Result<Value, String> {
        let line: Value = serde_json::from_slice(&self.line).unwrap_or_default();
        if self.whole && line["end"].is_object() {
            return Ok(line["end"].clone());
        }
        let problem = &line["error"];
        let text = |name: &str| problem[name].as_str().unwrap_or_default();
        Err(if problem.is_object() { format!("{}: {}", text("title"), text("detail")) } else { "it has no end".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_line_says_whether_it_came_to_its_end() {
        let told = |text: &str, piece: usize| {
            let mut tail = Tail::default();
            text.as_bytes().chunks(piece).for_each(|piece| tail.push(piece));
            tail.end().map(|end| end["keys"].as_u64().unwrap())
        };
        let long = format!("{{\"key\":\"{}\"}}\n", "x".repeat(2 * LAST_BYTES_MAX));
        for piece in [1, 7, 10_000, 1_000_000] {
            assert_eq!(told(&format!("{long}{{\"end\":{{\"keys\":3}}}}\n"), piece), Ok(3));
            assert_eq!(told(&format!("{{\"end\":{{\"keys\":3}}}}\n{long}"), piece), Err("it has no end".into()));
            assert_eq!(told("{\"end\":{\"keys\":3}}", piece), Err("it has no end".into()), "cut in its last line");
            let error = "{\"key\":\"a\"}\n{\"error\":{\"title\":\"Gone\",\"detail\":\"n2\"}}\n";
            assert_eq!(told(error, piece), Err("Gone: n2".into()));
        }
        assert_eq!(told("", 1), Err("it has no end".into()));
    }
}
