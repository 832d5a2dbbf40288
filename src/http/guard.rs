//! A connection's stream under supervision: the deadlines that lie below HTTP.
//!
//! hyper's own header time-out cannot be used: it also runs while a kept-alive connection is idle, so five seconds for
//! a head would be five seconds of keep-alive, and it does not run at all before the HTTP version is known. So hyper has
//! none, and the stream fails a read that has waited too long:
//! - a new connection must lead to its first request, and a head that began must be complete, within the header
//!   time-out;
//! - between requests a connection may be idle for longer;
//! - while a request is under way the stream sets no deadline for reading (the body has its own, [`super::body`]), and
//!   on HTTP/2, after its first request, none at all: there pings find a dead peer;
//! - an answer that the client does not take makes no progress for at most the write time-out; while it is on its way,
//!   the connection is not idle.
//!
//! The stream also keeps the raw head, because hyper drops a Content-Length that stands beside a Transfer-Encoding before
//! anyone can see it, and such a request must be refused: two readers would see two bodies. Of requests that were
//! pipelined only the first is checked; hyper closes the connection after such a request in any case.
//!
//! After an answer that may have left a request unread, the stream is closed in two steps: without reading the rest, the
//! system would reset the connection and the client might lose the answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::{HEADERS_BYTES_MAX, URI_BYTES_MAX};

/// How long a closing connection is read on, and how much, so that a client gets to read its answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How much of a head is looked at, and how much of its buffer a connection keeps, in bytes.
const HEAD_BYTES_MAX: usize = URI_BYTES_MAX + HEADERS_BYTES_MAX;
const HEAD_BYTES_KEPT: usize = 1024;

/// How long a connection may keep a node waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) header: Duration,
    pub(super) idle: Duration,
    pub(super) write: Duration,
}

/// The requests of one connection: what the stream has to know of the layer above it.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    begun: AtomicU64,
    ended: AtomicU64,
    multiplexed: AtomicBool,
    /// The last answer may have left a body unread.
    unread: AtomicBool,
    /// What was read since no request was under way: a head, and maybe more.
    head: Mutex<Vec<u8>>,
}

impl Traffic {
    pub(super) fn begin(self: &Arc<Self>, multiplexed: bool) -> UnderWay {
        if multiplexed {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Whether a request is under way.
    fn is_busy(&self) -> bool {
        self.begun.load(Ordering::Relaxed) != self.ended.load(Ordering::Relaxed)
    }

    /// Whether the head that was read last has a Content-Length.
    pub(super) fn announced_length(&self) -> bool {
        let head = self.head.lock();
        let mut lines = head.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end).take_while(|line| !line.is_empty());
        lines.any(|line| {
            line.split(|b| *b == b':').next().is_some_and(|name| name.eq_ignore_ascii_case(b"content-length"))
        })
    }

    pub(super) fn answered(&self, success: bool) {
        self.unread.store(!success, Ordering::Relaxed);
    }
}

/// One request, until it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Traffic>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the stream waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// A head: its rest, or the first one.
    Head,
    /// The next request.
    Idle,
}

/// The stream. `S` is a TCP stream outside tests.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    traffic: Arc<Traffic>,
    patience: Patience,
    waiting: Waiting,
    /// When what is waited for must have come.
    read_by: Instant,
    /// Fires at `read_by` or earlier; set again only when it did, so that requests do not pay for timers.
    timer: Pin<Box<Sleep>>,
    seen: u64,
    stalled: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
}

#[derive(Debug)]
struct Closing {
    until: Pin<Box<Sleep>>,
    bytes: usize,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, traffic: Arc<Traffic>, patience: Patience) -> Self {
        let read_by = Instant::now() + patience.header;
        Self {
            stream,
            traffic,
            patience,
            waiting: Waiting::Head,
            read_by,
            timer: Box::pin(tokio::time::sleep_until(read_by)),
            seen: 0,
            stalled: None,
            closing: None,
        }
    }

    /// Bytes came: of a head, unless a request is under way.
    fn came(&mut self, bytes: &[u8]) {
        if self.traffic.is_busy() || self.traffic.multiplexed.load(Ordering::Relaxed) {
            return;
        }
        let begun = self.traffic.begun.load(Ordering::Relaxed);
        let first = self.waiting == Waiting::Idle || begun != self.seen;
        if first {
            self.seen = begun;
            self.wait_for(Waiting::Head, self.patience.header);
        }
        let mut head = self.traffic.head.lock();
        if first {
            head.clear();
            head.shrink_to(HEAD_BYTES_KEPT);
        }
        let room = HEAD_BYTES_MAX.saturating_sub(head.len());
        head.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    fn wait_for(&mut self, what: Waiting, at_most: Duration) {
        self.waiting = what;
        self.read_by = Instant::now() + at_most;
    }

    /// Nothing came. Fails when that has lasted too long.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.traffic.multiplexed.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Where an answer waits for its client, the write time-out alone counts.
        if self.traffic.is_busy() || self.stalled.is_some() {
            // hyper need not read again when the answer is written: without a look now and then an idle connection would
            // go unseen. It is cut after at most twice its time.
            while self.timer.as_mut().poll(cx).is_ready() {
                self.timer.as_mut().reset(Instant::now() + self.patience.idle);
            }
            return Ok(());
        }
        let begun = self.traffic.begun.load(Ordering::Relaxed);
        if begun != self.seen {
            self.seen = begun;
            self.wait_for(Waiting::Idle, self.patience.idle);
        }
        // The timer may be set for later (idle, then a head began) or for earlier (it is set lazily).
        if self.timer.deadline() > self.read_by {
            self.timer.as_mut().reset(self.read_by);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.read_by {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client kept the node waiting"));
            }
            self.timer.as_mut().reset(self.read_by);
        }
        Ok(())
    }

    /// The result of a write, unless the client has taken nothing for too long.
    fn poll_progress<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            if self.waiting == Waiting::Idle {
                // An answer is on its way, though its request may be done with: it is not idle yet.
                self.read_by = Instant::now() + self.patience.idle;
            }
            return result;
        }
        let write = self.patience.write;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take its answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                match buf.filled().get(before..) {
                    Some(bytes) if !bytes.is_empty() => this.came(bytes),
                    _ => {}
                }
                Poll::Ready(result)
            }
            Poll::Pending => match this.poll_patience(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.poll_progress(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.poll_progress(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // No progress: hyper flushes whenever it wakes, also at an idle connection's own timer, which would so put itself off
        // for ever. Nor does it wait for a client: what was written is with the system.
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !this.traffic.unread.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let until = || Closing { until: Box::pin(tokio::time::sleep(LINGER)), bytes: 0 };
        let closing = this.closing.get_or_insert_with(until);
        let mut scratch = [0u8; 16 * 1024];
        while closing.bytes < LINGER_BYTES_MAX {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => closing.bytes += buf.filled().len(),
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    ready!(closing.until.as_mut().poll(cx));
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
