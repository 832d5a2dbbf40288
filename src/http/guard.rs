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
//! - an answer that the client does not take makes no progress for at most the write time-out.
//!
//! After an answer that may have left a request unread, the stream is closed in two steps: without reading the rest, the
//! system would reset the connection and the client might lose the answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a closing connection is read on, and how much, so that a client gets to read its answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

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
}

impl Traffic {
    pub(super) fn begin(self: &Arc<Self>, multiplexed: bool) -> UnderWay {
        if multiplexed {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
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

    /// Bytes came: the beginning of a head, unless a request is under way or one was begun already.
    fn came(&mut self) {
        let served = self.traffic.begun.load(Ordering::Relaxed) != self.seen;
        if self.waiting == Waiting::Idle || served {
            self.seen = self.traffic.begun.load(Ordering::Relaxed);
            self.wait_for(Waiting::Head, self.patience.header);
        }
    }

    fn wait_for(&mut self, what: Waiting, at_most: Duration) {
        self.waiting = what;
        self.read_by = Instant::now() + at_most;
    }

    /// Nothing came. Fails when that has lasted too long.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let begun = self.traffic.begun.load(Ordering::Relaxed);
        let under_way = begun != self.traffic.ended.load(Ordering::Relaxed);
        if under_way || self.traffic.multiplexed.load(Ordering::Relaxed) {
            return Ok(());
        }
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
            return result;
        }
        let write = self.patience.write;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take its answer")))
    }
}

use std::future::Future;

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if buf.filled().len() > before {
                    this.came();
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
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        this.poll_progress(cx, result)
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
