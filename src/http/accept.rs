//! The accept loop: connections, their limits and their end.
//!
//! Caveats: what hyper refuses by itself (a request line or header it cannot parse, more than 100 header fields) it
//! answers with a bare 400, 414 or 431 before any of our code sees a request.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, TRANSFER_ENCODING};
use axum::http::{Request, Response, Version};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyStream, StreamBody};
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
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let under_way = traffic.begin(request.version() == Version::HTTP_2);
    if request.headers().contains_key(TRANSFER_ENCODING) && traffic.announced_length() {
        request.extensions_mut().insert(TwoLengths);
    }
    let response = router.call(request).await?;
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
mod tests {
    use super::*;
    use axum::response::Sse;
    use axum::response::sse::Event;
    use axum::routing;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinSet;

    struct Served {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        server: JoinSet<()>,
    }

    /// Serves these over real sockets: `/` answers at once, `/slow` after 300 ms, `/big` with 64 MiB, and `/events` with
    /// ten events in a second.
    async fn served(options: Options) -> Served {
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "slow"
        };
        let events = || async {
            let ticks = tokio::time::interval(Duration::from_millis(100));
            let told = stream::unfold((ticks, 0), |(mut ticks, told)| async move {
                ticks.tick().await;
                (told < 10).then(|| (Ok::<_, Infallible>(Event::default().data(told.to_string())), (ticks, told + 1)))
            });
            Sse::new(told)
        };
        let router = Router::new()
            .route("/", routing::get(|| async { "hi" }))
            .route("/events", routing::get(events))
            .route("/refuse", routing::put(|| async { axum::http::StatusCode::PAYLOAD_TOO_LARGE }))
            .route("/slow", routing::get(slow))
            .route("/big", routing::get(|| async { vec![0u8; 64 * 1024 * 1024] }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(listener, router, &options, stopped).await;
        });
        Served { address, stop, server }
    }

    fn short() -> Options {
        Options {
            header_timeout: Duration::from_millis(200),
            idle_timeout: Duration::from_secs(20),
            write_timeout: Duration::from_millis(200),
            grace: Duration::from_secs(10),
            ..Options::default()
        }
    }

    async fn open(served: &Served, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// What comes until the server closes, or until it answered and keeps the connection.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut got = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut got)).await.expect("it closes");
        String::from_utf8_lossy(&got).into_owned()
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const GET_AND_CLOSE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn connections_that_never_finish_a_head_are_cut_and_others_served() {
        let served = served(short()).await;
        let mut slow = Vec::new();
        for i in 0..100 {
            let beginnings: [&[u8]; 4] = [b"", b"P", b"PRI * HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: "];
            slow.push(open(&served, beginnings[i % 4]).await);
        }
        assert!(rest(&mut open(&served, GET_AND_CLOSE).await).await.ends_with("hi"));
        for stream in &mut slow {
            assert_eq!(rest(stream).await, "");
        }
    }

    #[tokio::test]
    async fn an_idle_connection_outlives_the_header_deadline() {
        let served = served(short()).await;
        let mut stream = open(&served, GET).await;
        let mut answer = [0; 512];
        assert!(stream.read(&mut answer).await.unwrap() > 0);
        tokio::time::sleep(Duration::from_millis(500)).await;
        stream.write_all(GET_AND_CLOSE).await.unwrap();
        assert!(rest(&mut stream).await.ends_with("hi"));
    }

    #[tokio::test]
    async fn a_connection_is_not_idle_while_events_come() {
        let idle_timeout = Duration::from_millis(200);
        let served = served(Options { idle_timeout, ..short() }).await;
        let mut stream = open(&served, b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let came = rest(&mut stream).await;
        assert!(came.contains("data: 9\n") && came.ends_with("\r\n0\r\n\r\n"), "whole, and then it is idle: {came}");
    }

    #[tokio::test]
    async fn an_idle_connection_is_cut_also_after_a_slow_answer() {
        let served = served(Options { idle_timeout: Duration::from_millis(200), ..short() }).await;
        let mut stream = open(&served, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(rest(&mut stream).await.ends_with("slow"));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut() {
        let served = served(short()).await;
        let mut stream = open(&served, b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(rest(&mut stream).await.len() < 64 * 1024 * 1024);
    }

    #[tokio::test]
    async fn a_refused_body_does_not_lose_the_answer() {
        let served = served(short()).await;
        let head = b"PUT /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n";
        let mut stream = open(&served, head).await;
        stream.write_all(&vec![0; 2_000_000]).await.unwrap();
        assert!(rest(&mut stream).await.starts_with("HTTP/1.1 413"));
    }

    #[tokio::test]
    async fn connections_are_limited_together_and_by_address() {
        let limits = [(2, 100), (100, 2)];
        for (connections_max, connections_per_address_max) in limits {
            let served = served(Options { connections_max, connections_per_address_max, ..short() }).await;
            let first = open(&served, GET).await;
            let mut second = open(&served, GET).await;
            assert!(second.read(&mut [0; 512]).await.unwrap() > 0);
            let refused = rest(&mut open(&served, b"").await).await;
            assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
            drop((first, second));
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            while !rest(&mut open(&served, GET_AND_CLOSE).await).await.ends_with("hi") {
                assert!(tokio::time::Instant::now() < deadline, "the places are given back");
            }
        }
    }

    #[test]
    fn the_refusal_is_a_whole_answer() {
        let text = std::str::from_utf8(REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }

    #[tokio::test]
    async fn stopping_finishes_requests_closes_idle_connections_and_takes_no_more() {
        let mut served = served(short()).await;
        let mut idle = open(&served, GET).await;
        assert!(idle.read(&mut [0; 512]).await.unwrap() > 0);
        let mut busy = open(&served, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        served.stop.send(()).unwrap();
        assert_eq!(rest(&mut idle).await, "");
        assert!(rest(&mut busy).await.ends_with("slow"));
        served.server.join_next().await.unwrap().unwrap();
        assert!(TcpStream::connect(served.address).await.is_err());
    }

    #[tokio::test]
    async fn stopping_cuts_what_outlasts_the_grace() {
        let mut served = served(Options { grace: Duration::from_millis(50), ..short() }).await;
        let mut busy = open(&served, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        served.stop.send(()).unwrap();
        served.server.join_next().await.unwrap().unwrap();
        assert_eq!(rest(&mut busy).await, "");
    }
}
