//! The edge: what every request passes, whatever its path.
//!
//! One layer does it all, so that a request pays for one boxed future and not for ten: request ids, limits of the
//! head, shedding, the refusal of cross-site writes, measuring, and rendering of problems. A panic behind it becomes a
//! 500 like any other.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;
use tracing::Instrument;

use super::meters::Meters;
use super::problem::{Code, Problem};
use super::{HEADERS_BYTES_MAX, Options, URI_BYTES_MAX};
use crate::node::request::Outcome;
use crate::node::trace;
use crate::ports::Entropy;
use crate::types::Trace;
use crate::types::trace::{is_request_id, is_traceparent};

pub(super) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Marks a request that had a Content-Length beside its Transfer-Encoding: two readers would see two bodies.
#[derive(Clone, Copy, Debug)]
pub(super) struct TwoLengths;

/// On an answer that was waited for because its client asked for that: how long it took says nothing of the node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waited;

/// Where a handler that goes on telling after its answer has begun finds what the request is called: it leaves this with the
/// answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Named(Arc<OnceLock<HeaderValue>>);

impl Named {
    pub(super) fn get(&self) -> &str {
        self.0.get().and_then(|id| id.to_str().ok()).unwrap_or_default()
    }
}

/// What the edge keeps between requests.
#[derive(Debug)]
pub(super) struct Edge {
    ids: RequestIds,
    meters: Meters,
    in_flight: AtomicUsize,
    in_flight_max: usize,
    origins: Vec<HeaderValue>,
}

impl Edge {
    pub(super) fn new(entropy: &dyn Entropy, options: &Options) -> Self {
        Self {
            ids: RequestIds { prefix: entropy.u64() >> 16, next: AtomicU64::new(1) },
            meters: Meters::default(),
            in_flight: AtomicUsize::new(0),
            in_flight_max: options.in_flight_max,
            origins: options.cors_origins.iter().filter_map(|o| HeaderValue::from_str(o).ok()).collect(),
        }
    }

    /// Whether a request may go on, by its head alone.
    fn admit(&self, request: &Request, others: usize) -> Result<(), Problem> {
        if others >= self.in_flight_max && !is_probe(request.uri().path()) {
            self.meters.shed();
            return Err(Problem::new(Code::Overloaded, Code::Overloaded.about().help));
        }
        let headers = request.headers();
        if request.uri().path_and_query().is_some_and(|p| p.as_str().len() > URI_BYTES_MAX) {
            return Err(Problem::new(Code::UriTooLong, Code::UriTooLong.about().help));
        }
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if bytes > HEADERS_BYTES_MAX {
            return Err(Problem::new(Code::HeadersTooLarge, Code::HeadersTooLarge.about().help));
        }
        if request.extensions().get::<TwoLengths>().is_some() {
            return Err(Problem::new(Code::BadRequest, "Content-Length and Transfer-Encoding exclude each other"));
        }
        check_host(request)?;
        if is_safe(request.method()) { Ok(()) } else { self.check_origin(headers) }
    }

    /// Refuses a write that a browser sends for a page of another origin. A client that is no browser sends neither
    /// header.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let origin = headers.get(ORIGIN);
        if origin.is_some_and(|origin| self.origins.contains(origin)) {
            return Ok(());
        }
        let own = match (headers.get(&SEC_FETCH_SITE).map(HeaderValue::as_bytes), origin) {
            (Some(site), _) => matches!(site, b"same-origin" | b"none"),
            (None, Some(origin)) => is_own_origin(origin, headers.get(HOST)),
            (None, None) => true,
        };
        if own { Ok(()) } else { Err(Problem::new(Code::CrossSite, Code::CrossSite.about().help)) }
    }
}

/// Liveness must not depend on load, and who watches a node needs to see it most when it is overloaded.
fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/metrics")
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

fn is_own_origin(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let origin = origin.as_bytes();
    let authority = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    matches!((authority, host), (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host.as_bytes()))
}

/// HTTP/1.1 asks for exactly one Host; HTTP/2 carries it as the authority.
fn check_host(request: &Request) -> Result<(), Problem> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let problem = |detail: &'static str| Err(Problem::new(Code::BadRequest, detail));
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => problem("the header Host is given more than once"),
        (Some(host), None) if !is_authority(host.as_bytes()) => problem("the header Host is not a host and port"),
        (None, None) if request.version() == Version::HTTP_11 => problem("the header Host is missing"),
        (None, None) if request.version() == Version::HTTP_2 && request.uri().authority().is_none() => {
            problem("the pseudo-header :authority is missing")
        }
        _ => Ok(()),
    }
}

fn is_authority(host: &[u8]) -> bool {
    !host.is_empty() && host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]%".contains(b))
}

/// A name for each request: the client's, or one of this process.
#[derive(Debug)]
struct RequestIds {
    /// 48 random bits, so that two lives of a node do not share ids.
    prefix: u64,
    next: AtomicU64,
}

impl RequestIds {
    fn of(&self, headers: &HeaderMap) -> HeaderValue {
        let given = headers.get(&X_REQUEST_ID);
        given.filter(|id| is_request_id(id.as_bytes())).cloned().unwrap_or_else(|| self.draw())
    }

    fn draw(&self) -> HeaderValue {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let mut id = [0u8; 24];
        hex(self.prefix, &mut id[..12]);
        hex(n, &mut id[12..]);
        // Hexadecimal digits are always a header value.
        HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&id)).unwrap_or(HeaderValue::from_static(""))
    }
}

/// The last digits of a number, in hexadecimal.
fn hex(mut number: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

/// Counts a request as under way until it is dropped.
struct InFlight<'a>(&'a Edge);

impl<'a> InFlight<'a> {
    /// Also how many others are.
    fn enter(edge: &'a Edge) -> (Self, usize) {
        edge.meters.enter();
        (Self(edge), edge.in_flight.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.meters.leave();
    }
}

/// What a request is called at the other nodes. One that its client did not name gets a name only where lines about it are
/// logged here: two names of 24 bytes in each write would be felt.
fn name_of(request: &Request, id: &HeaderValue, trace: Option<&HeaderValue>) -> Option<Arc<Trace>> {
    if trace.is_none() && !request.headers().contains_key(&X_REQUEST_ID) && !trace::wanted() {
        return None;
    }
    let trace = trace.and_then(|t| t.to_str().ok());
    Trace::new(id.to_str().ok()?, trace).map(Arc::new)
}

/// The layer.
pub(super) async fn edge(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (_in_flight, others) = InFlight::enter(&edge);
    let id = edge.ids.of(request.headers());
    let trace = request.headers().get(&TRACEPARENT).filter(|t| is_traceparent(t.as_bytes())).cloned();
    let method = request.method().clone();
    let name = name_of(&request, &id, trace.as_ref());
    // The lines of a write carry its name through this span; when they are off it costs one atomic load.
    let span = trace::span(name.as_deref());
    let name = trace::within(&span, name);
    let mut response = match edge.admit(&request, others) {
        Ok(()) => match AssertUnwindSafe(trace::carried(name, next.run(request))).catch_unwind().instrument(span).await
        {
            Ok(response) => response,
            Err(_) => panicked(&method),
        },
        Err(problem) => problem.into_response(),
    };
    finish(&mut response, &method, &id);
    if let Some(Named(name)) = response.extensions_mut().remove() {
        name.get_or_init(|| id.clone());
    }
    response.headers_mut().insert(X_REQUEST_ID.clone(), id);
    if let Some(trace) = trace {
        response.headers_mut().insert(TRACEPARENT.clone(), trace);
    }
    let took = response.extensions().get::<Waited>().is_none().then(|| started.elapsed());
    edge.meters.answered(&method, response.status(), took);
    response
}

/// What a panic did to a write is not known.
fn panicked(method: &Method) -> Response {
    let problem = Problem::new(Code::Internal, Code::Internal.about().help);
    if is_safe(method) { problem } else { problem.with_outcome(Outcome::Unknown) }.into_response()
}

fn finish(response: &mut Response, method: &Method, id: &HeaderValue) {
    let status = response.status();
    if status == StatusCode::METHOD_NOT_ALLOWED && *method == Method::OPTIONS {
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().remove(CONTENT_LENGTH);
        return;
    }
    if !status.is_client_error() && !status.is_server_error() {
        return;
    }
    let id = id.to_str().unwrap_or_default();
    let mut problem = Problem::of_response(response);
    if !is_safe(method) {
        // Whatever was known of a write that reached the replicas is said already: this one did not.
        problem = problem.or_outcome(Outcome::NotApplied);
    }
    problem.render(id, response);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match problem.code() {
        Code::Internal => tracing::error!(request_id = id, %method, "the node failed to answer a request"),
        code => tracing::debug!(request_id = id, %method, code = code.about().name, "{}", problem.detail()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn edge(origins: &[&str]) -> Edge {
        struct Zero;
        impl Entropy for Zero {
            fn u64(&self) -> u64 {
                0xabc << 16
            }
        }
        let cors_origins = origins.iter().map(|o| (*o).to_owned()).collect();
        Edge::new(&Zero, &Options { cors_origins, in_flight_max: 2, ..Options::default() })
    }

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request {
        let request = axum::http::Request::builder().method(method).uri(path);
        headers.iter().fold(request, |r, (n, v)| r.header(*n, *v)).body(Body::empty()).unwrap()
    }

    fn refusal(edge: &Edge, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<Code> {
        edge.admit(&request(method, path, headers), 0).err().map(|p| p.code())
    }

    #[test]
    fn a_request_has_exactly_one_host() {
        let edge = edge(&[]);
        assert_eq!(refusal(&edge, "GET", "/", &[("host", "a:1")]), None);
        assert_eq!(refusal(&edge, "GET", "/", &[("host", "[::1]:80")]), None);
        assert_eq!(refusal(&edge, "GET", "http://other/", &[("host", "a")]), None);
        for hosts in [&[][..], &[("host", "a"), ("host", "a")], &[("host", "")], &[("host", "a/b")], &[("host", "u@a")]]
        {
            assert_eq!(refusal(&edge, "GET", "/", hosts), Some(Code::BadRequest), "{hosts:?}");
        }
    }

    #[test]
    fn the_head_has_limits() {
        let edge = edge(&[]);
        let host = ("host", "a");
        let path = format!("/{}", "p".repeat(URI_BYTES_MAX - 1));
        assert_eq!(refusal(&edge, "GET", &path, &[host]), None);
        assert_eq!(refusal(&edge, "GET", &format!("{path}p"), &[host]), Some(Code::UriTooLong));
        let long = "v".repeat(HEADERS_BYTES_MAX);
        assert_eq!(refusal(&edge, "GET", "/", &[host, ("x", &long)]), Some(Code::HeadersTooLarge));
    }

    #[test]
    fn writes_from_another_site_are_refused_and_reads_are_not() {
        let edge = edge(&["https://ok.example"]);
        let host = ("host", "a:8001");
        let cases: [(&[(&str, &str)], bool); 9] = [
            (&[], true),
            (&[("sec-fetch-site", "same-origin"), ("origin", "http://a:8001")], true),
            (&[("sec-fetch-site", "none")], true),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")], false),
            (&[("sec-fetch-site", "same-site"), ("origin", "http://a:3000")], false),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://ok.example")], true),
            (&[("origin", "http://A:8001")], true),
            (&[("origin", "null")], false),
            (&[("origin", "http://a:8002")], false),
        ];
        for (headers, allowed) in cases {
            let headers = [&[host][..], headers].concat();
            for method in ["PUT", "DELETE", "POST", "PATCH"] {
                assert_eq!(refusal(&edge, method, "/kv/a", &headers).is_none(), allowed, "{headers:?}");
            }
            assert_eq!(refusal(&edge, "GET", "/kv/a", &headers), None);
        }
    }

    #[test]
    fn too_many_requests_are_shed_but_probes_are_not() {
        let edge = edge(&[]);
        let host = [("host", "a")];
        assert!(edge.admit(&request("GET", "/kv/a", &host), 1).is_ok());
        assert_eq!(edge.admit(&request("GET", "/kv/a", &host), 2).unwrap_err().code(), Code::Overloaded);
        assert!(edge.admit(&request("GET", "/livez", &host), 2).is_ok());
    }

    #[test]
    fn request_ids_are_taken_or_drawn() {
        let edge = edge(&[]);
        let of = |id: &str| edge.ids.of(request("GET", "/", &[("x-request-id", id)]).headers());
        assert_eq!(of("abc-1"), "abc-1");
        assert_eq!(of("a b"), "000000000abc000000000001");
        assert_eq!(of(&"x".repeat(129)), "000000000abc000000000002");
        assert_eq!(edge.ids.of(&HeaderMap::new()), "000000000abc000000000003");
    }

    #[test]
    fn a_request_that_its_client_named_keeps_that_name_at_the_other_nodes() {
        let id = HeaderValue::from_static("abc-1");
        let parent = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let none = request("GET", "/", &[]);
        assert_eq!(name_of(&none, &id, None), None, "drawn, and nobody looks");
        let named = name_of(&request("GET", "/", &[("x-request-id", "abc-1")]), &id, None).unwrap();
        assert_eq!((named.request_id(), named.traceparent()), ("abc-1", None));
        let traced = name_of(&none, &id, Some(&parent)).unwrap();
        assert_eq!(traced.traceparent(), parent.to_str().ok());
    }
}
