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
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const PATIENCE: Patience =
        Patience { header: Duration::from_secs(5), idle: Duration::from_secs(60), write: Duration::from_secs(30) };

    fn guarded() -> (DuplexStream, Guarded<DuplexStream>, Arc<Traffic>) {
        guarded_with(PATIENCE)
    }

    fn guarded_with(patience: Patience) -> (DuplexStream, Guarded<DuplexStream>, Arc<Traffic>) {
        let (client, server) = duplex(64);
        let traffic = Arc::new(Traffic::default());
        (client, Guarded::new(server, Arc::clone(&traffic), patience), traffic)
    }

    fn look(stream: &mut Guarded<DuplexStream>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0; 64];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf))?;
            assert!(!buf.filled().is_empty(), "the client is still there");
        }
    }

    /// Reads until an error, and says after how many seconds it came. As hyper reads: it flushes whenever it wakes.
    async fn cut_after(stream: &mut Guarded<DuplexStream>) -> u64 {
        let started = Instant::now();
        let cut = poll_fn(|cx| {
            let looked = look(stream, cx);
            assert!(Pin::new(&mut *stream).poll_flush(cx).is_ready());
            looked
        });
        let error = tokio::time::timeout(Duration::from_secs(1000), cut).await.expect("it is cut").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        started.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_asks_nothing_is_cut() {
        let (_client, mut stream, _) = guarded();
        assert_eq!(cut_after(&mut stream).await, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_is_cut_at_its_deadline_and_not_later() {
        let (mut client, mut stream, _) = guarded();
        let trickle = async {
            loop {
                client.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            biased;
            seconds = cut_after(&mut stream) => assert_eq!(seconds, 5),
            () = trickle => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_there_is_more_time_and_a_new_head_has_its_own_deadline() {
        let (mut client, mut stream, traffic) = guarded();
        client.write_all(b"first").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        drop(traffic.begin(false));
        let second = async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            client.write_all(b"begun").await.unwrap();
            std::future::pending::<()>().await
        };
        tokio::select! {
            biased;
            seconds = cut_after(&mut stream) => assert_eq!(seconds, 55),
            () = second => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_cut_in_the_end() {
        let (mut client, mut stream, traffic) = guarded();
        client.write_all(b"first").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        drop(traffic.begin(false));
        assert_eq!(cut_after(&mut stream).await, 60);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_in_parts_is_not_idle() {
        let (mut client, mut stream, traffic) = guarded();
        drop(traffic.begin(false));
        for _ in 0..5 {
            stream.write_all(&[0; 8]).await.unwrap();
            let cut = tokio::time::timeout(Duration::from_secs(50), cut_after(&mut stream)).await;
            assert!(cut.is_err(), "{cut:?}");
            client.read_exact(&mut [0; 8]).await.unwrap();
        }
        assert_eq!(cut_after(&mut stream).await, 10, "60 after the last part");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_waits_for_its_client_is_not_idle() {
        let (mut client, mut stream, traffic) = guarded_with(Patience { write: Duration::from_secs(300), ..PATIENCE });
        drop(traffic.begin(false));
        stream.write_all(&[0; 64]).await.unwrap();
        let late = async {
            tokio::time::sleep(Duration::from_secs(200)).await;
            client.read_exact(&mut [0; 64]).await.unwrap();
            std::future::pending::<()>().await
        };
        let sent = poll_fn(|cx| {
            if let Poll::Ready(cut) = look(&mut stream, cx) {
                return Poll::Ready(cut.map(|()| 0));
            }
            Pin::new(&mut stream).poll_write(cx, &[0; 8])
        });
        tokio::select! {
            biased;
            sent = sent => assert_eq!(sent.unwrap(), 8),
            () = late => unreachable!(),
        }
        assert_eq!(cut_after(&mut stream).await, 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_under_way_and_http2_have_no_deadline_here() {
        let (_client, mut stream, traffic) = guarded();
        let under_way = traffic.begin(false);
        let read = tokio::time::timeout(Duration::from_secs(1000), stream.read(&mut [0; 8])).await;
        assert!(read.is_err(), "{read:?}");
        drop(under_way);
        assert_eq!(cut_after(&mut stream).await, 60);

        let (_client, mut stream, traffic) = guarded();
        drop(traffic.begin(true));
        assert!(tokio::time::timeout(Duration::from_secs(1000), stream.read(&mut [0; 8])).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_ends_the_connection() {
        let (mut client, mut stream, _) = guarded();
        stream.write_all(&[0; 64]).await.unwrap();
        let started = Instant::now();
        let slow = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            client.read_exact(&mut [0; 32]).await.unwrap();
            std::future::pending::<()>().await
        };
        tokio::select! {
            biased;
            result = stream.write_all(&[0; 100]) => assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut),
            () = slow => unreachable!(),
            () = tokio::time::sleep(Duration::from_secs(1000)) => panic!("it is cut"),
        }
        assert_eq!(started.elapsed().as_secs(), 50, "progress starts the time anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_closing_stream_is_read_on_after_a_failure_only() {
        let (mut client, mut stream, traffic) = guarded();
        traffic.answered(true);
        let started = Instant::now();
        stream.shutdown().await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);

        let (mut refused, mut stream, traffic) = guarded();
        traffic.answered(false);
        let sent = async {
            refused.write_all(&[0; 1000]).await.unwrap();
            drop(refused);
        };
        let both = async { tokio::join!(sent, stream.shutdown()) };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("the rest is read").1.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
        let (_stays, mut stream, traffic) = guarded();
        traffic.answered(false);
        stream.shutdown().await.unwrap();
        assert_eq!(started.elapsed(), LINGER);
        client.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn the_length_is_looked_for_in_the_newest_head_alone() {
        let (mut client, mut stream, traffic) = guarded();
        for (head, has) in [
            (&b"PUT / HTTP/1.1\r\ncontent-LENGTH: 3\r\n\r\nabc"[..], true),
            (b"PUT / HTTP/1.1\r\nHost: a\r\n\r\nContent-Length: 3\r\n", false),
            (b"PUT / HTTP/1.1\nContent-Length:3\n\n", true),
            (b"PUT /content-length: HTTP/1.1\r\nX: Content-Length: 3\r\n\r\n", false),
        ] {
            client.write_all(head).await.unwrap();
            stream.read_exact(&mut vec![0; head.len()]).await.unwrap();
            assert_eq!(traffic.announced_length(), has, "{}", head.escape_ascii());
            drop(traffic.begin(false));
        }
    }
}
