//! The system behind the ports: the wall clock, the operating system's randomness, tokio's tasks; the signals that ask a
//! process to stop and how many files it may open; and the service manager, if one has started this process.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ports::{Clock, Entropy, Spawn};

/// The machine's wall clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this file owns the wall clock")]
    fn wall_ms(&self) -> u64 {
        // A clock before 1970 reads as 1970, and the skew rule then keeps the node from coordinating.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

/// A generator seeded by the operating system.
#[derive(Debug)]
pub struct SystemEntropy(Mutex<StdRng>);

impl Default for SystemEntropy {
    fn default() -> Self {
        Self(Mutex::new(StdRng::from_os_rng()))
    }
}

impl Entropy for SystemEntropy {
    fn u64(&self) -> u64 {
        self.0.lock().next_u64()
    }
}

/// Tasks on tokio's runtime, which end when the node is stopped.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Cancels every task at its next await, and waits for all to be gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Spawn for Tasks {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }
}

/// Signals that come sooner than this after the one before are the same request: who signals a process and then its group
/// (`timeout`, a terminal that closes) sends two.
const SAME_REQUEST: Duration = Duration::from_millis(300);

/// SIGTERM, Ctrl-C, and the end of the terminal, unless `nohup` or the like had that ignored.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
    last: Option<Instant>,
}

impl StopSignals {
    /// From now on the process no longer ends by them.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn install() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hang_up = SignalKind::hangup();
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: if is_ignored(&status, hang_up) { None } else { Some(signal(hang_up)?) },
            last: None,
        })
    }

    /// Resolves at the next request to stop.
    pub async fn next(&mut self) {
        loop {
            let hang_up = async {
                match &mut self.hang_up {
                    Some(signal) => drop(signal.recv().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                () = hang_up => {}
            }
            let now = Instant::now();
            if self.last.replace(now).is_none_or(|last| now - last >= SAME_REQUEST) {
                return;
            }
        }
    }
}

/// Whether a process ignores a signal, by its `/proc/self/status`. What cannot be read says no.
fn is_ignored(status: &str, signal: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}

/// How many files, connections among them, the process may have open: as many as the system allows when it is asked. A shell
/// starts programs with 1024 for those that were written when that was much.
pub fn open_files_max() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let is_raised = limit.current != limit.maximum && setrlimit(Resource::Nofile, all).is_ok();
    let max = if is_raised { limit.maximum } else { limit.current };
    max.unwrap_or(u64::MAX)
}

/// Tells systemd how the process does (`sd_notify(3)`): lines such as `READY=1`. Nothing where nobody has asked, which
/// a manager does by `NOTIFY_SOCKET`.
///
/// # Errors
/// When a manager that has asked cannot be told.
pub fn tell_manager(lines: &str) -> io::Result<()> {
    std::env::var_os("NOTIFY_SOCKET").map_or(Ok(()), |socket| tell(&socket, lines))
}

/// Sends the lines to a socket: a path, or a name of the abstract kind, which begins with `@`.
fn tell(socket: &OsStr, lines: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(lines.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_nohup_had_ignored_stays_ignored() {
        let of =
            |status: &str| [SignalKind::hangup(), SignalKind::interrupt()].map(|signal| is_ignored(status, signal));
        assert_eq!(of("SigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"), [true, false]);
        assert_eq!(of("SigIgn:\t0000000000001002\n"), [false, true]);
        assert_eq!((of(""), of("SigIgn:\tx\n")), ([false; 2], [false; 2]));
    }

    #[test]
    fn a_service_manager_is_told_at_either_kind_of_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("@a3-test-{}", std::process::id());
        let abstract_socket = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        for (socket, at) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str()),
            (UnixDatagram::bind_addr(&abstract_socket).unwrap(), OsStr::new(&name)),
        ] {
            tell(at, "READY=1\nSTATUS=serves").unwrap();
            let mut got = [0; 64];
            let length = socket.recv(&mut got).unwrap();
            assert_eq!(&got[..length], b"READY=1\nSTATUS=serves");
        }
        assert!(tell(OsStr::new("/nowhere/at/all"), "READY=1").is_err());
    }
}
