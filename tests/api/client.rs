//! A client of one node over HTTP/1.1, and what it is answered.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

type Http = hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>;
type Headers<'a> = &'a [(&'a str, &'a str)];

#[derive(Clone)]
pub(crate) struct Client {
    http: Http,
    address: String,
}

impl Client {
    pub(crate) fn new(address: &str) -> Self {
        Self {
            http: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http(),
            address: address.to_owned(),
        }
    }

    /// Sends a request as it is: the path is neither encoded nor folded.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: Headers<'_>, body: impl Into<Bytes>) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        let request = headers.iter().fold(request, |r, (name, value)| r.header(*name, *value));
        let answer = self.http.request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// The head of an answer, and its body as it comes.
    pub(crate) async fn open(&self, path: &str, headers: Headers<'_>) -> Response<Incoming> {
        let request = Request::builder().uri(format!("http://{}{path}", self.address));
        let request = headers.iter().fold(request, |r, (name, value)| r.header(*name, *value));
        self.http.request(request.body(Full::default()).unwrap()).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    pub(crate) async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.ask("PUT", path, &[], body).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.ask("POST", path, &[], body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &[], "").await
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body of an answer that must be JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The problem that this answer must be, whole and true to its status line.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!((self.status, self.header("content-type")), (status, Some("application/problem+json")), "{self:?}");
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["type"], format!("/problems/{code}"), "{problem}");
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"), "{problem}");
        for member in ["title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {problem}");
        }
        assert_eq!(self.header("retry-after").is_some(), status == 503, "{self:?}");
        problem
    }

    /// The receipt that this answer must be.
    #[track_caller]
    pub(crate) fn receipt(&self, status: u16, message: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let receipt = self.json();
        assert_eq!((&receipt["ok"], &receipt["message"]), (&true.into(), &message.into()), "{receipt}");
        let version = receipt["version"].as_str().unwrap();
        assert_eq!(self.header("a3-version"), Some(version), "{self:?}");
        assert_eq!(self.header("etag"), Some(format!("\"{version}\"").as_str()), "{self:?}");
        receipt
    }
}

/// Every byte that is no letter or digit in `%XX`.
pub(crate) fn encoded(key: &[u8]) -> String {
    percent_encoding::percent_encode(key, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The names in a JSON list.
#[track_caller]
pub(crate) fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}
