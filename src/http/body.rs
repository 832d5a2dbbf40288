//! Reading a request's body: up to the value's limit, before a deadline, and within what the node holds in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::Options;
use super::problem::{Code, Problem};

/// The bodies being held for all requests, and their limits.
#[derive(Debug)]
pub(super) struct Bodies {
    value_bytes_max: usize,
    batch_bytes_max: usize,
    timeout: Duration,
    held: Arc<AtomicUsize>,
    held_max: usize,
}

/// A body, which weighs on the node until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _weight: Weight,
}

#[derive(Debug)]
struct Weight {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Bodies {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            value_bytes_max: options.value_bytes_max,
            batch_bytes_max: options.batch_bytes_max,
            timeout: options.body_timeout,
            held: Arc::default(),
            held_max: options.body_bytes_held_max.max(options.value_bytes_max).max(options.batch_bytes_max),
        }
    }

    /// Reads all of a body that is a value, or no longer than one. A length that is announced and too large is refused
    /// before anything is read.
    ///
    /// # Errors
    /// A problem of the kinds `value-too-large`, `body-timeout`, `overloaded` and `bad-request`.
    pub(super) async fn read(&self, body: Body) -> Result<Held, Problem> {
        self.read_within(self.value_bytes_max, |_| self.value_too_large(), body).await
    }

    /// The same of a body that is a batch.
    ///
    /// # Errors
    /// As there, but `body-too-large`.
    pub(super) async fn read_batch(&self, body: Body) -> Result<Held, Problem> {
        let too_large = |max| Problem::new(Code::BodyTooLarge, format!("a batch is at most {max} bytes long"));
        self.read_within(self.batch_bytes_max, too_large, body).await
    }

    /// Counts so many bytes among those that are held, until what is returned is dropped. As one value or batch, they are let in
    /// where nothing else is held.
    ///
    /// # Errors
    /// A problem of the kind `overloaded`.
    pub(super) fn hold(&self, bytes: usize) -> Result<impl Drop + Send + use<>, Problem> {
        self.weigh(bytes.min(self.held_max))
    }

    /// The next piece of a body that as a whole has no limit: within the time in which another one must be there whole. `None`:
    /// it ended.
    ///
    /// # Errors
    /// A problem of the kinds `body-timeout` and `bad-request`.
    pub(super) async fn next(&self, body: &mut Body) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = tokio::time::timeout(self.timeout, body.frame()).await.map_err(|_| {
                let detail = format!("nothing of the body came for {} s", self.timeout.as_secs_f64());
                Problem::new(Code::BodyTimeout, detail)
            })?;
            let Some(frame) = frame.transpose().map_err(|_| broken())? else { return Ok(None) };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    pub(super) fn value_bytes_max(&self) -> usize {
        self.value_bytes_max
    }

    /// # Errors
    /// Where a value is longer than may be.
    pub(super) fn check_value(&self, value: &[u8]) -> Result<(), Problem> {
        if value.len() > self.value_bytes_max { Err(self.value_too_large()) } else { Ok(()) }
    }

    async fn read_within(&self, max: usize, too_large: impl Fn(usize) -> Problem, body: Body) -> Result<Held, Problem> {
        let announced = body.size_hint().exact();
        if announced.is_some_and(|length| length > max as u64) {
            return Err(too_large(max));
        }
        let weight = self.weigh(announced.map_or(max, |length| length as usize))?;
        match tokio::time::timeout(self.timeout, collect(max, too_large, body)).await {
            Ok(collected) => Ok(Held { bytes: collected?, _weight: weight }),
            Err(_) => Err(Problem::new(
                Code::BodyTimeout,
                format!("the body was not complete within {} s", self.timeout.as_secs_f64()),
            )),
        }
    }

    fn weigh(&self, bytes: usize) -> Result<Weight, Problem> {
        let weight = Weight { held: Arc::clone(&self.held), bytes };
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 && before + bytes > self.held_max {
            return Err(Problem::new(Code::Overloaded, "the node holds as many values in memory as it may"));
        }
        Ok(weight)
    }

    fn value_too_large(&self) -> Problem {
        Problem::new(
            Code::ValueTooLarge,
            format!("a value is at most {} bytes long on this node (VALUE_BYTES_MAX)", self.value_bytes_max),
        )
    }
}

fn broken() -> Problem {
    Problem::new(Code::BadRequest, "the body broke off or is malformed")
}

async fn collect(max: usize, too_large: impl Fn(usize) -> Problem, mut body: Body) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| broken())?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + rest.len() + data.len() > max {
            return Err(too_large(max));
        }
        // A body that came in one piece, as small ones do, is not copied.
        if first.is_empty() && rest.is_empty() {
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.reserve(body.size_hint().exact().map_or(0, |left| left as usize) + first.len() + data.len());
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Error;
    use futures_util::{StreamExt, stream};

    fn bodies(max: usize) -> Bodies {
        let options = Options {
            value_bytes_max: max,
            batch_bytes_max: 2 * max,
            body_bytes_held_max: 2 * max,
            body_timeout: Duration::from_secs(30),
            ..Options::default()
        };
        Bodies::new(&options)
    }

    fn pieces(pieces: &[&'static str]) -> Body {
        let pieces: Vec<_> = pieces.iter().map(|p| Ok::<_, Error>(Bytes::from_static(p.as_bytes()))).collect();
        Body::from_stream(stream::iter(pieces))
    }

    #[tokio::test]
    async fn a_body_is_read_whole_up_to_its_limit() {
        let bodies = bodies(6);
        assert_eq!(bodies.read(Body::empty()).await.unwrap().bytes, "");
        assert_eq!(bodies.read(Body::from("123456")).await.unwrap().bytes, "123456");
        assert_eq!(bodies.read(pieces(&["12", "", "34", "56"])).await.unwrap().bytes, "123456");
        assert_eq!(bodies.read(Body::from("1234567")).await.unwrap_err().code(), Code::ValueTooLarge);
        assert_eq!(bodies.read(pieces(&["12", "34567"])).await.unwrap_err().code(), Code::ValueTooLarge);
        let broken = stream::iter([Ok(Bytes::from_static(b"1")), Err(Error::new("gone"))]);
        assert_eq!(bodies.read(Body::from_stream(broken)).await.unwrap_err().code(), Code::BadRequest);
        assert_eq!(bodies.read_batch(Body::from("123456789012")).await.unwrap().bytes.len(), 12);
        assert_eq!(bodies.read_batch(Body::from("1234567890123")).await.unwrap_err().code(), Code::BodyTooLarge);
        assert_eq!(bodies.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up_at_its_deadline() {
        let endless = stream::iter([Ok::<_, Error>(Bytes::from_static(b"1"))]).chain(stream::pending());
        let started = tokio::time::Instant::now();
        assert_eq!(bodies(6).read(Body::from_stream(endless)).await.unwrap_err().code(), Code::BodyTimeout);
        assert_eq!(started.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_a_limit_may_take_as_long_as_something_comes() {
        let (bodies, started) = (bodies(6), tokio::time::Instant::now());
        let slow = stream::iter(0..10).then(async |_| {
            tokio::time::sleep(Duration::from_secs(29)).await;
            Ok::<_, Error>(Bytes::from_static(b"1234567"))
        });
        let mut body = Body::from_stream(slow.chain(stream::pending()));
        for _ in 0..10 {
            assert_eq!(bodies.next(&mut body).await.unwrap().unwrap(), "1234567");
        }
        assert_eq!(bodies.next(&mut body).await.unwrap_err().code(), Code::BodyTimeout);
        assert_eq!(started.elapsed().as_secs(), 320);
        let broken = stream::iter([Ok(Bytes::from_static(b"1")), Err(Error::new("gone"))]);
        let mut body = Body::from_stream(broken);
        assert!(bodies.next(&mut body).await.is_ok());
        assert_eq!(bodies.next(&mut body).await.unwrap_err().code(), Code::BadRequest);
        assert!(bodies.next(&mut Body::empty()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn held_bodies_are_bounded_together_and_let_go() {
        let bodies = bodies(6);
        let first = bodies.read(Body::from("123456")).await.unwrap();
        let second = bodies.read(Body::from("12345")).await.unwrap();
        assert_eq!(bodies.read(Body::from("12")).await.unwrap_err().code(), Code::Overloaded);
        assert!(bodies.read(Body::empty()).await.is_ok());
        drop((first, second));
        assert!(bodies.read(Body::from("123456")).await.is_ok());
    }
}
