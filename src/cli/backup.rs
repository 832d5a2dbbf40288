//! `a3 backup`: one node's database in a file.
//!
//! Invariants:
//! - Under the file's name there is a whole backup or none. It grows as `FILE.part`, is held against the length and the
//!   checksum that the node told, synced, and renamed; a file that had the name before goes then.
//! - One process writes a `FILE.part`, and holds it locked meanwhile. One that was killed lets go of it, and the next begins it anew.
//! - Nobody but its owner may read it: it holds every value.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::Fault;
use super::client::{Asked, block_on, innermost, why};
use super::moving::Progress;
use super::output::{self, Output};

/// How long a node may copy and verify before its answer begins.
const BEGINS_WITHIN: Duration = Duration::from_secs(3600);
/// How long the next piece of it may take.
const PIECE_WITHIN: Duration = Duration::from_secs(60);
/// A problem, in bytes at most.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;

/// Copy one node's database into a file, verified, while the node serves. Back up every node for all keys: each holds its share.
/// It is FILE.part until it is whole; a FILE that exists is replaced then, and stays where there is no new one. Only its owner may
/// read it.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The file to write [default: named by the node, after itself, its cluster and the time]
    file: Option<PathBuf>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

/// What was written.
struct Written {
    file: PathBuf,
    bytes: u64,
    sha256: String,
}

impl Backup {
    pub(super) fn run(self) -> Result<(), Fault> {
        let Written { file, bytes, sha256 } = block_on(self.fetch())?;
        if self.output.is_json() {
            return output::json(&json!({ "file": file.display().to_string(), "bytes": bytes, "sha256": sha256 }));
        }
        output::line(&format!("{}\n{bytes} bytes, SHA-256 {sha256}", file.display()))
    }

    async fn fetch(&self) -> Result<Written, Fault> {
        let host = &self.asked.host;
        // Before the node is asked, which copies and verifies for minutes.
        let named = self.file.as_deref().map(Part::begin).transpose()?;
        let unavailable = |why: String| Fault::Unavailable(format!("{host}: {why}"));
        let request = Request::post(format!("http://{host}/backup")).body(Full::<Bytes>::default());
        let request = request.map_err(|e| Fault::Usage(format!("{host}: {e}")))?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let answer = timeout(BEGINS_WITHIN, client.request(request)).await;
        let answer = answer.map_err(|_| unavailable("no answer within an hour".into()))?;
        let answer = answer.map_err(|error| unavailable(why(&error)))?;
        let status = answer.status();
        if !status.is_success() {
            let body = Limited::new(answer.into_body(), PROBLEM_BYTES_MAX).collect().await;
            return Err(Fault::of_answer(status.as_u16(), &body.map(|b| b.to_bytes()).unwrap_or_default()));
        }
        let told = Told::of(&answer)?;
        let mut part = named.map_or_else(|| Part::begin(Path::new(&told.name)), Ok)?;
        receive(answer.into_body(), &told, &mut part, &unavailable).await?;
        let file = part.finish()?;
        let sha256 = told.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Written { file, bytes: told.bytes, sha256 })
    }
}

/// What the answer's head says of the file.
struct Told {
    name: String,
    bytes: u64,
    sha256: Vec<u8>,
}

impl Told {
    fn of<T>(answer: &Response<T>) -> Result<Self, Fault> {
        let told = || {
            let header = |name: &str| answer.headers().get(name)?.to_str().ok();
            let name = header("content-disposition")?.split_once("filename=\"")?.1.strip_suffix('"')?;
            let digest = header("repr-digest")?.split_once("sha-256=:")?.1.split_once(':')?.0;
            let bytes = header("content-length")?.parse().ok()?;
            Some(Self { name: plain(name)?, bytes, sha256: BASE64_STANDARD.decode(digest).ok()? })
        };
        told().ok_or_else(|| Fault::Failed("the answer is no backup: is this an a3 node?".into()))
    }
}

/// A file's name and nothing else: it comes from elsewhere.
fn plain(name: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!name.is_empty() && !name.starts_with('.') && name.chars().all(allowed)).then(|| name.to_owned())
}

async fn receive(
    mut body: Incoming,
    told: &Told,
    part: &mut Part,
    unavailable: &impl Fn(String) -> Fault,
) -> Result<(), Fault> {
    let Part { file, part, .. } = part;
    let (mut sha256, mut bytes, mut progress) = (Sha256::new(), 0, Progress::new("received"));
    loop {
        let piece = timeout(PIECE_WITHIN, body.frame()).await;
        let Some(piece) = piece.map_err(|_| unavailable("the backup came to a halt".into()))? else { break };
        let piece = piece.map_err(|e| unavailable(format!("the backup broke off: {}", innermost(&e))))?;
        let Ok(piece) = piece.into_data() else { continue };
        file.write_all(&piece).map_err(|e| cannot(part, &e))?;
        sha256.update(&piece);
        bytes += piece.len() as u64;
        progress.show(bytes);
    }
    progress.clear();
    if bytes != told.bytes {
        return Err(unavailable(format!("the backup broke off: {bytes} of {} bytes", told.bytes)));
    }
    if sha256.finalize()[..] != told.sha256[..] {
        return Err(Fault::Failed("what arrived is not what was sent: its SHA-256 is another one".into()));
    }
    file.sync_all().map_err(|e| cannot(part, &e))
}

/// A file that grows. Dropped before it has its name it is removed: half of one helps nobody.
struct Part {
    file: File,
    part: PathBuf,
    path: PathBuf,
    named: bool,
}

impl Part {
    fn begin(path: &Path) -> Result<Self, Fault> {
        if path.is_dir() {
            return Err(Fault::Usage(format!("{} is a directory; name a file in it", path.display())));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let failed = |e: io::Error| cannot(&part, &e);
        let taken = || Fault::Failed(format!("{}: another a3 backup writes it", part.display()));
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&part);
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken()),
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        // Whoever held it before may have given it its name since: then it is no part any more.
        let is_part = file.metadata().and_then(|ours| Ok(ours.ino() == fs::metadata(&part)?.ino()));
        if !is_part.unwrap_or(false) {
            return Err(taken());
        }
        // Of one that was killed.
        file.set_len(0).and_then(|()| file.set_permissions(Permissions::from_mode(0o600))).map_err(failed)?;
        Ok(Self { file, part, path: path.to_owned(), named: false })
    }

    /// Gives it its name, for good.
    fn finish(mut self) -> Result<PathBuf, Fault> {
        let failed = |e: io::Error| cannot(&self.path, &e);
        fs::rename(&self.part, &self.path).map_err(failed)?;
        self.named = true;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| cannot(&self.path, &e))?;
        Ok(std::mem::take(&mut self.path))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.named {
            let _ = fs::remove_file(&self.part);
        }
    }
}

fn cannot(path: &Path, error: &io::Error) -> Fault {
    Fault::Failed(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_elsewhere_leads_nowhere_else() {
        assert_eq!(plain("a3-n1-x.db").as_deref(), Some("a3-n1-x.db"));
        for bad in ["", "../a", "a/b", ".hidden", "a b", "a\0"] {
            assert_eq!(plain(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn one_writes_a_part_and_it_is_gone_or_has_its_name_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (path, part) = (dir.path().join("n.db"), dir.path().join("n.db.part"));
        let begin = || Part::begin(&path);
        let why = |begun: Result<Part, Fault>| begun.err().unwrap().to_string();
        // One that was killed left it.
        fs::write(&part, "half of one").unwrap();
        fs::write(&path, "the one before").unwrap();
        let mut first = begin().unwrap();
        let refused = why(begin());
        assert!(refused.contains("n.db.part: another a3 backup writes it"), "{refused}");
        assert!(part.exists());
        drop(first);
        assert!(!part.exists() && fs::read(&path).unwrap() == b"the one before");
        first = begin().unwrap();
        first.file.write_all(b"new").unwrap();
        assert_eq!(first.finish().unwrap(), path);
        assert!(!part.exists() && fs::read(&path).unwrap() == b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let refused = why(Part::begin(dir.path()));
        assert!(refused.contains("is a directory"), "{refused}");
    }

    #[test]
    fn an_answer_without_length_and_checksum_is_no_backup() {
        let answer = |digest: &str| {
            Response::builder()
                .header("content-disposition", "attachment; filename=\"n.db\"")
                .header("content-length", "7")
                .header("repr-digest", digest)
                .body(())
                .unwrap()
        };
        let told = Told::of(&answer("sha-256=:AAEC:")).unwrap();
        assert_eq!((told.bytes, told.sha256, told.name), (7, vec![0, 1, 2], "n.db".into()));
        assert!(Told::of(&answer("md5=:AAEC:")).is_err() && Told::of(&Response::new(())).is_err());
    }
}
