//! How a running `a3 dev` is told what to do: a socket in its directory, a line of JSON for a request, a line for the answer.
//!
//! Invariants:
//! - Only the user who started the cluster can connect: the socket has mode 0600 before anybody could.
//! - A request is done at once or refused; whoever wants to see a node ready or gone asks again.
//! - One request at a time, none longer than [`REQUEST_BYTES_MAX`], and who does not send it within [`PATIENCE`] is left.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::timeout;

use super::super::Fault;

/// The socket's name in the cluster's directory.
const SOCKET: &str = "dev.sock";
/// What the names of directories begin with that nobody chose.
pub(super) const PREFIX: &str = "a3-dev-";
/// Bytes of a request.
const REQUEST_BYTES_MAX: u64 = 4 << 10;
/// Bytes of an answer: a row for each of as many nodes as there can be.
const REPLY_BYTES_MAX: u64 = 1 << 20;
/// How long the other side may take for a line.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections that wait for their turn.
const BACKLOG: u32 = 16;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Request {
    /// The nodes, and whether they run.
    Ls,
    /// Starts one more.
    Add { zone: Option<String>, weight: Option<u32> },
    /// Starts one again.
    Start { node: u16 },
    /// Asks one to stop, or kills it.
    Stop { node: u16, kill: bool },
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reply {
    /// Done; the nodes it was about.
    Nodes(Vec<Row>),
    /// Nothing was done, and why.
    Refused(String),
}

/// A node, as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) node: u16,
    /// While it runs.
    pub(super) pid: Option<u32>,
    pub(super) state: String,
    pub(super) http: String,
    pub(super) mesh: String,
    pub(super) data_dir: PathBuf,
    pub(super) log: PathBuf,
}

/// The socket of a cluster's directory. A socket's path has an end (108 bytes), a directory's has not: it is named by the
/// open directory.
#[derive(Debug)]
struct Socket {
    _dir: File,
    path: PathBuf,
}

impl Socket {
    fn of(dir: &Path) -> io::Result<Self> {
        let dir = File::open(dir)?;
        Ok(Self { path: format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()).into(), _dir: dir })
    }

    /// Whether somebody listens there.
    async fn answers(&self) -> bool {
        let is_socket = self.path.symlink_metadata().is_ok_and(|facts| facts.file_type().is_socket());
        is_socket && UnixStream::connect(&self.path).await.is_ok()
    }

    /// Takes the place of one that nobody listens at any more.
    fn bind(&self) -> io::Result<UnixListener> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let socket = UnixSocket::new_stream()?;
        socket.bind(&self.path)?;
        std::fs::set_permissions(&self.path, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)
    }
}

/// Where requests come in.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    socket: Socket,
}

impl Control {
    /// Listens in the cluster's directory.
    ///
    /// # Errors
    /// When it cannot, or another `a3 dev` does.
    pub(super) async fn listen(dir: &Path) -> Result<Self, Fault> {
        let cannot = |e| Fault::Failed(format!("{}: {e}", dir.join(SOCKET).display()));
        let socket = Socket::of(dir).map_err(cannot)?;
        if socket.answers().await {
            return Err(Fault::Failed(format!("another a3 dev runs in {}", dir.display())));
        }
        let listener = socket.bind().map_err(cannot)?;
        Ok(Self { listener, socket })
    }

    /// The next request that can be read, and whom to answer. Others are told what is wrong with theirs.
    pub(super) async fn next(&self) -> io::Result<(Request, UnixStream)> {
        loop {
            let (mut stream, _) = self.listener.accept().await?;
            match timeout(PATIENCE, line(&mut stream, REQUEST_BYTES_MAX)).await {
                Ok(Ok(line)) => match serde_json::from_slice(&line) {
                    Ok(request) => return Ok((request, stream)),
                    Err(e) => answer(stream, &Reply::Refused(format!("not a request: {e}"))).await,
                },
                Ok(Err(e)) => answer(stream, &Reply::Refused(format!("not a request: {e}"))).await,
                Err(_) => {}
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // One that stays is found to be stale.
        let _ = std::fs::remove_file(&self.socket.path);
    }
}

/// Whoever does not listen to the answer does without.
pub(super) async fn answer(mut stream: UnixStream, reply: &Reply) {
    let mut text = serde_json::to_vec(reply).unwrap_or_default();
    text.push(b'\n');
    let _ = timeout(PATIENCE, stream.write_all(&text)).await;
}

/// What the cluster in that directory says to a request.
///
/// # Errors
/// [`Fault::Unavailable`] when none runs there or it does not answer, [`Fault::Failed`] with its refusal.
pub(super) async fn ask(dir: &Path, request: &Request) -> Result<Vec<Row>, Fault> {
    let none = |e| Fault::Unavailable(format!("no a3 dev runs in {}: {e}", dir.display()));
    let socket = Socket::of(dir).map_err(none)?;
    let mut stream = UnixStream::connect(&socket.path).await.map_err(none)?;
    let exchange = async {
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        line(&mut stream, REPLY_BYTES_MAX).await
    };
    let unheard = |why: String| Fault::Unavailable(format!("the a3 dev in {}: {why}", dir.display()));
    let answered = timeout(PATIENCE * 2, exchange).await;
    let line = answered.map_err(|_| unheard("no answer; its nodes may be starting still".into()))?;
    let line = line.map_err(|e| unheard(e.to_string()))?;
    match serde_json::from_slice(&line).map_err(|e| unheard(e.to_string()))? {
        Reply::Nodes(rows) => Ok(rows),
        Reply::Refused(why) => Err(Fault::Failed(why)),
    }
}

/// The directory of the one cluster that runs for this user without a `--dir`.
///
/// # Errors
/// When there is none, or more than one.
pub(super) async fn find() -> Result<PathBuf, Fault> {
    let temporary = std::env::temp_dir();
    let listed = std::fs::read_dir(&temporary).map_err(|e| Fault::Failed(format!("{}: {e}", temporary.display())))?;
    let named = listed.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let mut running = Vec::new();
    for dir in named.map(|entry| entry.path()) {
        // Another user's would answer another user only.
        let own = dir.metadata().is_ok_and(|facts| facts.uid() == rustix::process::geteuid().as_raw());
        let Some(socket) = Socket::of(&dir).ok().filter(|_| own) else { continue };
        if socket.answers().await {
            running.push(dir);
        }
    }
    match &running[..] {
        [one] => Ok(one.clone()),
        [] => Err(Fault::Unavailable(format!(
            "no a3 dev runs in {}/{PREFIX}*; start one in another terminal, or name its --dir",
            temporary.display()
        ))),
        many => {
            let all: Vec<String> = many.iter().map(|dir| format!("\n  --dir {}", dir.display())).collect();
            Err(Fault::Usage(format!("more than one a3 dev runs; say which is meant:{}", all.concat())))
        }
    }
}

/// Whether [`find`] looks there.
pub(super) fn is_found(dir: &Path) -> bool {
    let name = dir.file_name().map(|name| name.to_string_lossy().starts_with(PREFIX));
    dir.parent() == Some(&std::env::temp_dir()) && name == Some(true)
}

/// A line, without its end.
async fn line(stream: &mut UnixStream, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(bytes_max)).read_until(b'\n', &mut line).await?;
    if line.pop() == Some(b'\n') {
        Ok(line)
    } else {
        Err(io::Error::other(format!("it is longer than {bytes_max} bytes, or broke off")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers one request with what was asked, and says what that was.
    async fn serve(control: &Control) -> Request {
        let (request, stream) = control.next().await.unwrap();
        answer(stream, &Reply::Refused(format!("{request:?}"))).await;
        request
    }

    async fn raw(dir: &Path, text: &str) -> String {
        let mut stream = UnixStream::connect(dir.join(SOCKET)).await.unwrap();
        // It may be told what is wrong, and be left, before it has sent all.
        let _ = stream.write_all(text.as_bytes()).await;
        let mut told = String::new();
        let _ = stream.read_to_string(&mut told).await;
        told
    }

    #[tokio::test]
    async fn a_request_is_heard_and_its_answer_too() {
        // Longer than a socket's path may be.
        let dir = tempfile::Builder::new().prefix(&"long".repeat(40)).tempdir().unwrap();
        let control = Control::listen(dir.path()).await.unwrap();
        let mode = dir.path().join(SOCKET).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for request in [
            Request::Ls,
            Request::Add { zone: Some("b\n".into()), weight: None },
            Request::Start { node: 2 },
            Request::Stop { node: 2, kill: true },
        ] {
            let (heard, told) = tokio::join!(serve(&control), ask(dir.path(), &request));
            assert_eq!((&heard, told), (&request, Err(Fault::Failed(format!("{request:?}")))));
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_told_so_and_the_next_one_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::listen(dir.path()).await.unwrap();
        let long = "x".repeat(REQUEST_BYTES_MAX as usize);
        let strangers = async {
            let more = "{\"do\":\"start\",\"node\":2,\"a\":1}\n";
            let wrong = ["hello\n", "{\"do\":\"stop\"}\n", "{\"do\":\"fly\"}\n", more, &long];
            for text in wrong {
                assert!(raw(dir.path(), text).await.contains("not a request"), "{text}");
            }
            ask(dir.path(), &Request::Ls).await
        };
        let (heard, told) = tokio::join!(serve(&control), strangers);
        assert_eq!((heard, told), (Request::Ls, Err(Fault::Failed("Ls".into()))));
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_at_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let nobody = ask(dir.path(), &Request::Ls).await;
        assert!(matches!(nobody, Err(Fault::Unavailable(_))), "{nobody:?}");
        // As `kill -9` leaves it.
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        assert!(matches!(ask(dir.path(), &Request::Ls).await, Err(Fault::Unavailable(_))));
        let control = Control::listen(dir.path()).await.unwrap();
        let second = Control::listen(dir.path()).await;
        assert!(matches!(&second, Err(Fault::Failed(why)) if why.contains("another a3 dev runs")), "{second:?}");
        drop(control);
        assert!(!dir.path().join(SOCKET).exists());
    }
}
