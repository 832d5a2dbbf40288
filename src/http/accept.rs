//! The accept loop: connections, their limits and their end.
//!
//! Caveats: what hyper refuses by itself (a request line or header it cannot parse, more than 100 header fields) it
//! answers with a bare 400, 414 or 431 before any of our code sees a request. A Content-Length beside a
//! Transfer-Encoding it drops, reads the body as chunked, and closes the connection after the answer, so that nothing
//! can hide behind it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

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

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
connection: close\r\ncontent-length: 157\r\n\r\n{\"type\":\"/problems/overloaded\",\"title\":\"Too many requests are under way\",\
\"status\":503,\"detail\":\"too many connections\",\"code\":\"overloaded\",\"retryable\":true}\n\n";

/// Serves until `shutdown` resolves; then takes no new connection or request, and returns when those under way are
/// done, or cut after [`Options::grace`].
pub async fn serve(listener: TcpListener, router: Router, options: &Options, shutdown: impl Future<Output = ()>) {
    let server = Arc::new(Server::new(router, options));
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => server.take(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }
    drop(listener);
    server.stop(options.grace).await;
}

#[derive(Debug)]
struct Server {
    router: Router,
    http: Builder<Tasks>,
    tasks: Tasks,
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
            draining: CancellationToken::new(),
            admission: Arc::new(Admission::new(options)),
            patience,
            cut: metrics::counter(metrics::HTTP_CUT, &[]),
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

    async fn connection(&self, stream: TcpStream) {
        // Without it an answer may wait for the acknowledgement of the one before; where it cannot be set, it does.
        let _ = stream.set_nodelay(true);
        let traffic = Arc::new(Traffic::default());
        let io = TokioIo::new(Guarded::new(stream, Arc::clone(&traffic), self.patience));
        let service = service_fn(|request| answer(self.router.clone(), Arc::clone(&traffic), request));
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
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let under_way = traffic.begin(request.version() == Version::HTTP_2);
    let response = router.call(request).await?;
    traffic.answered(response.status().is_success());
    drop(under_way);
    Ok(response)
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
