//! The accept loop: connections, their limits and their end.
//!
//! A connection that is closed while its client sends a request loses that request. So a stop first says goodbye: for a
//! while everything is answered, with `Connection: close`, and a client that is busy goes elsewhere by itself. Then the
//! listener closes, and only then the connections on which nothing happens. HTTP/2 says which requests it took (GOAWAY).
//!
//! Caveats: what hyper refuses by itself (a request line or header it cannot parse, more than 100 header fields) it
//! answers with a bare 400, 414 or 431 before any of our code sees a request.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use axum::Router;
use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_TYPE, TRANSFER_ENCODING};
use axum::http::{HeaderValue, Request, Response, Version};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyStream, StreamBody};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::edge::TwoLengths;
use super::guard::{Guarded, Patience, Traffic};
use super::{HEADERS_BYTES_MAX, Options, URI_BYTES_MAX};
use crate::metrics;

/// hyper's buffer holds a whole head. Beyond our own limits, so that most heads that break them get a problem.
const HEAD_BUFFER_BYTES: usize = 4 * (HEADERS_BYTES_MAX + URI_BYTES_MAX);
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// Flow-control windows of HTTP/2, in bytes: a value of the usual size travels without waiting for window updates.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How often an HTTP/2 peer is pinged, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (usually: no file descriptor is left) the loop rests.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Where one after the other fails, it is told this often.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Connections that are taken when the listener closes, at most: what the system keeps for it, and some that come meanwhile.
const LAST_MAX: usize = 2_048;
/// How long a connection that was accepted last has for its first request before it counts as idle.
const LAST_REQUEST_WAIT: Duration = Duration::from_millis(100);

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
connection: close\r\ncontent-length: 157\r\n\r\n{\"type\":\"/problems/overloaded\",\"title\":\"Too many requests are under way\",\
\"status\":503,\"detail\":\"too many connections\",\"code\":\"overloaded\",\"retryable\":true}\n\n";

/// Serves until `shutdown` resolves. Then it says goodbye for [`Options::farewell`], takes no new connection or request,
/// and returns when those under way are done, or cut after [`Options::grace`]. Dropping the future cuts them at once.
pub async fn serve(listener: TcpListener, router: Router, options: &Options, shutdown: impl Future<Output = ()>) {
    let server = Arc::new(Server::new(router, options));
    let _cut = server.tasks.end.clone().drop_guard();
    server.accept(&listener, shutdown).await;
    server.leaving.store(true, Ordering::Relaxed);
    server.accept(&listener, tokio::time::sleep(options.farewell)).await;
    server.take_the_last(listener);
    tokio::time::sleep(LAST_REQUEST_WAIT).await;
    server.stop(options.grace).await;
}

#[derive(Debug)]
struct Server {
    router: Router,
    http: Builder<Tasks>,
    tasks: Tasks,
    /// Whether each answer is its connection's last.
    leaving: Arc<AtomicBool>,
    draining: CancellationToken,
    admission: Arc<Admission>,
    patience: Patience,
    cut: Counter,
}

impl Server {
    fn new(router: Router, options: &Options) -> Self {
        let tasks = Tasks::default();
        let patience =
            Patience { header: options.header_timeout, idle: options.idle_timeout, write: options.write_timeout };
        Self {
            router,
            http: builder(tasks.clone()),
            tasks,
            leaving: Arc::default(),
            draining: CancellationToken::new(),
            admission: Arc::new(Admission::new(options)),
            patience,
            cut: metrics::counter(metrics::HTTP_CUT, &[]),
        }
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener, until: impl Future<Output = ()>) {
        let mut until = pin!(until);
        let mut told: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = &mut until => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.take(stream, peer),
                    Err(error) => {
                        if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
                            tracing::warn!(%error, "a connection could not be accepted");
                            told = Some(Instant::now());
                        }
                        tokio::time::sleep(ACCEPT_REST).await;
                    }
                }
            }
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let Some(place) = self.admission.admit(peer.ip()) else {
            self.cut.increment(1);
            // A courtesy, as far as the fresh socket takes it at once.
            let _ = stream.try_write(REFUSAL);
            return;
        };
        let server = Arc::clone(self);
        self.tasks.execute(async move {
            server.connection(stream).await;
            drop(place);
        });
    }

    /// Takes those that the system accepted meanwhile, who believe that they are connected, and closes the listener. The system
    /// is asked itself: on a busy node the runtime hears of them late, and they would be reset.
    fn take_the_last(self: &Arc<Self>, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        for (stream, peer) in (0..LAST_MAX).map_while(|_| listener.accept().ok()) {
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                self.take(stream, peer);
            }
        }
    }

    async fn connection(&self, stream: TcpStream) {
        // Without it an answer may wait for the acknowledgement of the one before; where it cannot be set, it does.
        let _ = stream.set_nodelay(true);
        let traffic = Arc::new(Traffic::default());
        let io = TokioIo::new(Guarded::new(stream, Arc::clone(&traffic), self.patience));
        let leaving = &self.leaving;
        let service =
            service_fn(|request| answer(self.router.clone(), Arc::clone(&traffic), Arc::clone(leaving), request));
        let mut connection = pin!(self.http.serve_connection(io, service));
        let mut draining = pin!(self.draining.cancelled());
        let mut stopping = false;
        let served = loop {
            tokio::select! {
                biased;
                served = &mut connection => break served,
                () = &mut draining, if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        };
        if let Err(error) = served {
            if is_time_out(&*error) {
                self.cut.increment(1);
            }
            tracing::debug!(error, "a connection ended early");
        }
    }

    async fn stop(&self, grace: Duration) {
        self.draining.cancel();
        self.tasks.tracker.close();
        if tokio::time::timeout(grace, self.tasks.tracker.wait()).await.is_err() {
            tracing::warn!(connections = self.tasks.tracker.len(), "connections were cut while stopping");
            self.tasks.end.cancel();
            self.tasks.tracker.wait().await;
        }
    }
}

async fn answer(
    mut router: Router,
    traffic: Arc<Traffic>,
    leaving: Arc<AtomicBool>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let http2 = request.version() == Version::HTTP_2;
    let under_way = traffic.begin(http2);
    if request.headers().contains_key(TRANSFER_ENCODING) && traffic.announced_length() {
        request.extensions_mut().insert(TwoLengths);
    }
    let mut response = router.call(request).await?;
    if !http2 && leaving.load(Ordering::Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    traffic.answered(response.status().is_success());
    if response.headers().get(CONTENT_TYPE).is_none_or(|kind| kind != "text/event-stream") {
        return Ok(response);
    }
    // A request for events is under way for as long as they come: its connection is not idle.
    let mut under_way = Some(under_way);
    let end = stream::poll_fn(move |_| {
        under_way.take();
        Poll::Ready(None)
    });
    Ok(response.map(|body| Body::new(StreamBody::new(BodyStream::new(body).chain(end)))))
}

/// Whether a connection's end was a deadline of ours.
fn is_time_out(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn builder(tasks: Tasks) -> Builder<Tasks> {
    let mut builder = Builder::new(tasks);
    builder
        .http1()
        .timer(TokioTimer::new())
        // The guard has deadlines of its own for heads and idleness.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEAD_BUFFER_BYTES as u32)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// The tasks of all connections and of their HTTP/2 streams, so that stopping can wait for them or end them.
#[derive(Clone, Debug, Default)]
struct Tasks {
    tracker: TaskTracker,
    end: CancellationToken,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let end = self.end.clone();
        self.tracker.spawn(async move {
            end.run_until_cancelled(task).await;
        });
    }
}

/// How many connections there are, and from where.
#[derive(Debug)]
struct Admission {
    all: AtomicUsize,
    all_max: usize,
    by_address: Mutex<BTreeMap<IpAddr, usize>>,
    by_address_max: usize,
    open: OpenConnections,
}

struct OpenConnections(Gauge);

impl std::fmt::Debug for OpenConnections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenConnections")
    }
}

impl Admission {
    fn new(options: &Options) -> Self {
        Self {
            all: AtomicUsize::new(0),
            all_max: options.connections_max,
            by_address: Mutex::default(),
            by_address_max: options.connections_per_address_max,
            open: OpenConnections(metrics::gauge(metrics::HTTP_CONNECTIONS, &[])),
        }
    }

    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_default();
        if *count >= self.by_address_max || self.all.load(Ordering::Relaxed) >= self.all_max {
            if *count == 0 {
                by_address.remove(&address);
            }
            return None;
        }
        *count += 1;
        self.all.fetch_add(1, Ordering::Relaxed);
        self.open.0.increment(1.0);
        Some(Place { admission: Arc::clone(self), address })
    }
}

/// One connection's place, given back when it is dropped.
#[derive(Debug)]
struct Place {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.admission.by_address.lock();
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
        self.admission.all.fetch_sub(1, Ordering::Relaxed);
        self.admission.open.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests;
