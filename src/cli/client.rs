//! The REST client of the commands: one request, one whole answer.

use std::ffi::OsStr;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, IF_MATCH};
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde_json::Value;

use super::Fault;
use crate::config::units::{parse_duration, show_duration};
use crate::types::Level;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a silent connection is not asked whether the other side is there still, and how often it is asked in vain: long answers
/// are waited for only as long as there is somebody who could give them.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;
/// How long an answer may take: more than the longest `?timeout=`, so that the node's own word is heard first.
pub(super) const ANSWER: Duration = Duration::from_secs(70);
/// Every byte but RFC 3986's unreserved ones is escaped: `/` too, so that nobody on the way folds a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A node's REST address, `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host(pub(super) String);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Host {
    type Err = String;

    /// `http://host:port`, with or without the scheme and a closing slash.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let uri: Uri = format!("http://{rest}").parse().map_err(|_| "no host:port".to_owned())?;
        match uri.authority() {
            _ if rest.contains("://") => Err("only http:// is spoken".into()),
            Some(a) if uri.path() == "/" && !a.as_str().contains('@') => match a.port_u16() {
                Some(_) => Ok(Self(a.as_str().to_owned())),
                None => Ok(Self(format!("{a}:80"))),
            },
            _ => Err("host:port wanted, without a path".into()),
        }
    }
}

/// Which node is asked.
#[derive(Clone, Debug, Args)]
pub(super) struct Asked {
    /// The node to ask.
    #[arg(long, global = true, env = "A3_HOST", default_value = "http://127.0.0.1:8001")]
    pub(super) host: Host,
}

/// What a request for one key may say.
#[derive(Clone, Debug, Args)]
pub(super) struct Wishes {
    /// How many replicas: one, quorum, all or linearizable [default: the node's, quorum].
    #[arg(long)]
    consistency: Option<Level>,
    /// How long the node may take, e.g. 500ms [default: the node's, 1s].
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Only where the value has this version (as receipts and `a3 get -o json` show it, or an ETag, several, or *); else
    /// exit code 4.
    #[arg(long, value_name = "ETAG", value_parser = etags)]
    if_match: Option<HeaderValue>,
}

/// What a request that writes may say beside.
#[derive(Clone, Debug, Args)]
pub(super) struct Once {
    /// A name for this request: sent again under it, it is done once, and answered as the first time.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<HeaderValue>,
}

impl Once {
    pub(super) fn header(self) -> Option<(HeaderName, HeaderValue)> {
        Some((HeaderName::from_static("idempotency-key"), self.idempotency_key?))
    }
}

impl Wishes {
    /// Where the key lives on a node, wishes included, and one more parameter.
    pub(super) fn path(&self, key: &OsStr, more: Option<String>) -> String {
        let consistency = self.consistency.map(|level| format!("consistency={level}"));
        let timeout = self.timeout.map(|timeout| format!("timeout={}ms", timeout.as_millis()));
        let query: Vec<String> = [consistency, timeout, more].into_iter().flatten().collect();
        let path = key_path(key.as_bytes());
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    }

    /// The headers that say the rest of the wishes.
    pub(super) fn headers(&self) -> HeaderMap {
        self.if_match.iter().map(|value| (IF_MATCH, value.clone())).collect()
    }
}

/// A header's value out of a version, or of what the header says itself.
fn etags(text: &str) -> Result<HeaderValue, String> {
    let is_bare = !text.contains('"') && text != "*";
    let value = if is_bare { format!("\"{text}\"") } else { text.to_owned() };
    value.parse().map_err(|_| "a version or an ETag wanted".into())
}

/// A duration on the command line.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "a time with its unit wanted, e.g. 500ms or 30s".into())
}

/// `/kv/` and the key's bytes, escaped.
pub(super) fn key_path(key: &[u8]) -> String {
    format!("/kv/{}", percent_encode(key, ESCAPED))
}

/// A whole answer, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// The answer itself when it is 2xx.
    pub(super) fn success(self) -> Result<Self, Fault> {
        if (200..300).contains(&self.status) { Ok(self) } else { Err(Fault::of_answer(self.status, &self.body)) }
    }

    pub(super) fn json(&self) -> Result<Value, Fault> {
        serde_json::from_slice(&self.body)
            .map_err(|_| Fault::Failed("the answer is not JSON: is this an a3 node?".into()))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Sends requests; keeps connections between them.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
}

impl Client {
    pub(super) fn new() -> Self {
        Self { http: HyperClient::builder(TokioExecutor::new()).build(connector()) }
    }

    pub(super) async fn get(&self, host: &Host, path: &str) -> Result<Answer, Fault> {
        self.send(Method::GET, host, path, HeaderMap::new(), Bytes::new()).await
    }

    /// One request and its whole answer.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] when there is no answer; a write may have been done all the same unless the text says
    /// that no connection came up.
    pub(super) async fn send(
        &self,
        method: Method,
        host: &Host,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, Fault> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() =
            format!("http://{host}{path}").parse().map_err(|e| Fault::Usage(format!("{host}{path}: {e}")))?;
        *request.headers_mut() = headers;
        let unavailable = |why: String| Fault::Unavailable(format!("{host}: {why}"));
        let exchange = async {
            let response = self.http.request(request).await.map_err(|e| unavailable(why(&e)))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| unavailable(format!("the answer broke off: {e}")))?;
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() })
        };
        let late = |_| unavailable(format!("no answer within {}", show_duration(ANSWER)));
        tokio::time::timeout(ANSWER, exchange).await.map_err(late)?
    }
}

/// What a node says at once or not at all: whoever asks how it is shall not wait as for a value.
pub(super) async fn within<T>(
    patience: Duration,
    host: &Host,
    asked: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let late = |_| Fault::Unavailable(format!("{host}: no answer within {}", show_duration(patience)));
    tokio::time::timeout(patience, asked).await.map_err(late)?
}

/// The body of a request that is streamed, of any length.
pub(super) type Sent = UnsyncBoxBody<Bytes, io::Error>;

/// Sends a request; its body goes on while the answer is waited for, which has no time-out: whoever reads the answer says how long
/// it may be silent.
pub(super) async fn open(
    method: Method,
    host: &Host,
    path: &str,
    headers: HeaderMap,
    body: Sent,
) -> Result<Response<Incoming>, Fault> {
    let client: HyperClient<_, Sent> = HyperClient::builder(TokioExecutor::new()).build(connector());
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() =
        format!("http://{host}{path}").parse().map_err(|e| Fault::Usage(format!("{host}{path}: {e}")))?;
    *request.headers_mut() = headers;
    client.request(request).await.map_err(|e| Fault::Unavailable(format!("{host}: {}", why(&e))))
}

/// The body of a successful answer, which goes on for as long as it likes. Its head is waited for like any answer.
///
/// # Errors
/// [`Fault::Unavailable`] when there is no answer, and where it is no success.
pub(super) async fn download(host: &Host, path: &str, headers: HeaderMap) -> Result<Incoming, Fault> {
    let nothing = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
    let answer = within(ANSWER, host, open(Method::GET, host, path, headers, nothing)).await?;
    let (head, body) = answer.into_parts();
    if head.status.is_success() {
        return Ok(body);
    }
    let broken = |e| Fault::Unavailable(format!("{host}: the answer broke off: {e}"));
    let problem = within(ANSWER, host, async { body.collect().await.map_err(broken) }).await?.to_bytes();
    Err(Fault::of_answer(head.status.as_u16(), &problem))
}

/// How connections come up.
fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    connector.set_nodelay(true);
    connector
}

/// The innermost reason: the layers above it only say that a request failed.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Why there is no answer.
pub(super) fn why(error: &hyper_util::client::legacy::Error) -> String {
    let inner = innermost(error);
    if error.is_connect() { format!("cannot connect: {inner}") } else { format!("no answer: {inner}") }
}

/// Runs a command's requests on this thread.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Fault::Failed(format!("cannot start: {e}")))?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_taken_with_and_without_its_scheme() {
        let host = |text: &str| text.parse::<Host>().map(|h| h.0);
        assert_eq!(host("http://127.0.0.1:8001/"), Ok("127.0.0.1:8001".into()));
        assert_eq!(host("n1:8001"), Ok("n1:8001".into()));
        assert_eq!(host("[::1]:8001"), Ok("[::1]:8001".into()));
        assert_eq!(host("n1"), Ok("n1:80".into()));
        for bad in ["", "https://n1:8001", "http://n1:8001/kv", "ftp://n1", "a b:1", "user@n1:8001"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_version_is_quoted_and_an_etag_is_not_quoted_again() {
        let of = |text: &str| etags(text).unwrap();
        assert_eq!(of("018f3c5a1b2c0000-1-0"), "\"018f3c5a1b2c0000-1-0\"");
        for whole in ["\"018f3c5a1b2c0000-1-0\"", "\"a\", W/\"b\"", "*"] {
            assert_eq!(of(whole), whole);
        }
        assert!(etags("a\nb").is_err());
    }

    #[test]
    fn every_byte_of_a_key_survives_the_path() {
        assert_eq!(key_path(b"a/b c%?#"), "/kv/a%2Fb%20c%25%3F%23");
        assert_eq!(key_path("\u{1f980}~".as_bytes()), "/kv/%F0%9F%A6%80~");
        let every: Vec<u8> = (0..=255).collect();
        let path = key_path(&every);
        let back: Vec<u8> = percent_encoding::percent_decode_str(&path["/kv/".len()..]).collect();
        assert_eq!(back, every);
        assert!(path.parse::<Uri>().is_ok_and(|uri| uri.path() == path));
    }
}
