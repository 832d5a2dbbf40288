//! The connections of a run: each sends one request after the other and waits for its answer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::report::Tally;
use super::requests::{Shape, Template};
use super::wire::{self, Etag, Response};

/// A server that refuses connections is tried again that often.
const RECONNECT: Duration = Duration::from_millis(50);
/// Requests under way at the end may take that long; then they count as unanswered.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// Room for an answer's head and a small value; grows for larger ones.
const BUFFER_BYTES: usize = 16 * 1024;
/// The most keys that a connection has for itself. Few, so that it has soon met each once and knows its ETag.
const OWN_KEYS_MAX: u64 = 16;

/// What the requests of a phase do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Puts every key once, in order; a connection whose put fails gives up.
    Load,
    Put,
    Get,
    /// Half of each, by chance.
    Mix,
    /// Changes keys that no other connection changes, under the ETag of the last answer about them.
    Cas,
    /// Changes one key under the ETag that it has just read, as every other connection does.
    CasHot,
}

/// One request.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Get,
    Put,
    /// `None`: where there is no value.
    PutIf(Option<Etag>),
}

/// One phase of a run.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) work: Work,
    pub(super) shape: Shape,
    /// `host:port`; connection i talks to host i modulo their number.
    pub(super) hosts: Vec<String>,
    pub(super) connections: usize,
    /// Requests choose among this many.
    pub(super) keys: u64,
    /// Between two requests of one connection, for a fixed rate; latencies then count from when a request was due, so
    /// that a server that stalls is not spared the requests it kept from being sent.
    pub(super) pace: Option<Duration>,
    /// Answers are counted from here on.
    pub(super) measure_from: Instant,
    /// No request begins later. Loading has no end but its last key.
    pub(super) until: Option<Instant>,
}

/// Runs a phase to its end on the current runtime. Answers what was counted.
pub(super) async fn run(phase: Phase, tally: Tally) -> Arc<Mutex<Tally>> {
    let tally = Arc::new(Mutex::new(tally));
    let phase = Arc::new(phase);
    let next_key = Arc::new(AtomicU64::new(0));
    let mut connections = JoinSet::new();
    for number in 0..phase.connections {
        let mut connection = Connection::new(Arc::clone(&phase), Arc::clone(&tally), Arc::clone(&next_key), number);
        connections.spawn(async move { connection.run().await });
    }
    while connections.join_next().await.is_some() {}
    tally
}

struct Connection {
    phase: Arc<Phase>,
    tally: Arc<Mutex<Tally>>,
    next_key: Arc<AtomicU64>,
    host: String,
    stream: Option<TcpStream>,
    buffer: BytesMut,
    get: Template,
    put: Template,
    put_if: Template,
    number: u64,
    /// The ETags of the connection's own keys, as far as they are known.
    own: Vec<Option<Etag>>,
    rng: SmallRng,
    /// When the next request is due, at a fixed rate.
    due: Instant,
}

impl Connection {
    fn new(phase: Arc<Phase>, tally: Arc<Mutex<Tally>>, next_key: Arc<AtomicU64>, number: usize) -> Self {
        let host = phase.hosts.get(number % phase.hosts.len().max(1)).cloned().unwrap_or_default();
        // The same run sends the same keys in the same order on each connection.
        let mut rng = SmallRng::seed_from_u64(number as u64);
        let stagger = phase.pace.map(|pace| pace.mul_f64(number as f64 / phase.connections as f64));
        Self {
            get: Template::get(&phase.shape, &host),
            put: Template::put(&phase.shape, &host, &mut rng),
            put_if: Template::put_if(&phase.shape, &host, &mut rng),
            number: number as u64,
            own: vec![None; (phase.keys / phase.connections as u64).clamp(1, OWN_KEYS_MAX) as usize],
            due: Instant::now() + stagger.unwrap_or_default(),
            phase,
            tally,
            next_key,
            host,
            stream: None,
            buffer: BytesMut::with_capacity(BUFFER_BYTES),
            rng,
        }
    }

    async fn run(&mut self) {
        let end = self.phase.until;
        let last_answer = end.map(|end| end + LAST_ANSWERS);
        let mut now = Instant::now();
        while end.is_none_or(|end| now < end) {
            let Some((key, work)) = self.choose() else { return };
            let mut began = now;
            if let Some(pace) = self.phase.pace {
                began = self.due;
                if end.is_some_and(|end| began >= end) {
                    return;
                }
                sleep_until(began).await;
                self.due += pace;
            }
            let result = match last_answer {
                Some(last) => timeout_at(last, self.exchange(key, work)).await,
                None => Ok(self.exchange(key, work).await),
            };
            now = Instant::now();
            let done = self.count(result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())), began, now).await;
            if !done && self.phase.work == Work::Load {
                return;
            }
        }
    }

    /// What to do next, and with which key; `None` when there is no more to load.
    fn choose(&mut self) -> Option<(u64, Work)> {
        let keys = self.phase.keys.max(1);
        if self.phase.work == Work::Load {
            let key = self.next_key.fetch_add(1, Ordering::Relaxed);
            return (key < keys).then_some((key, Work::Put));
        }
        let draw = self.rng.next_u64();
        // The high bits choose the key, the lowest the kind.
        let one_of = |many: u64| ((u128::from(draw) * u128::from(many)) >> 64) as u64;
        Some(match self.phase.work {
            Work::Mix => (one_of(keys), if draw & 1 == 0 { Work::Put } else { Work::Get }),
            Work::Cas => (one_of(self.own.len() as u64), Work::Cas),
            Work::CasHot => (0, Work::CasHot),
            work => (one_of(keys), work),
        })
    }

    /// The status of what was done; `None` where a request only found out what to do.
    async fn exchange(&mut self, key: u64, work: Work) -> io::Result<Option<u16>> {
        match work {
            Work::Get => Ok(Some(self.ask(Ask::Get, key).await?.status)),
            Work::Cas => self.change_own(key as usize).await,
            Work::CasHot => self.contend(key).await.map(Some),
            Work::Load | Work::Put | Work::Mix => Ok(Some(self.ask(Ask::Put, key).await?.status)),
        }
    }

    /// Changes the `at`th of the connection's own keys.
    async fn change_own(&mut self, at: usize) -> io::Result<Option<u16>> {
        let known = self.own[at];
        let key = self.number + at as u64 * self.phase.connections as u64;
        let answer = self.ask(Ask::PutIf(known), key).await?;
        let is_told = matches!(answer.status, 200 | 201 | 412);
        if is_told {
            self.own[at] = answer.etag;
        }
        // A key that was there before the run tells its ETag by refusing to be created.
        let is_met_first = known.is_none() && answer.status == 412;
        Ok((!is_met_first).then_some(answer.status))
    }

    /// Reads a key and changes it, if nobody did in between.
    async fn contend(&mut self, key: u64) -> io::Result<u16> {
        let read = self.ask(Ask::Get, key).await?;
        match read.status {
            200 | 404 => Ok(self.ask(Ask::PutIf(read.etag), key).await?.status),
            status => Ok(status),
        }
    }

    async fn ask(&mut self, ask: Ask, key: u64) -> io::Result<Response> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                self.buffer.clear();
                let stream = TcpStream::connect(&self.host).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        let salt = self.rng.next_u64();
        let request = match &ask {
            Ask::Get => self.get.fill(key, salt),
            Ask::Put => self.put.fill(key, salt),
            Ask::PutIf(etag) => self.put_if.fill_if(key, salt, etag.as_ref()),
        };
        stream.write_all(request).await?;
        let response = answer(&mut stream, &mut self.buffer).await?;
        if !response.close {
            self.stream = Some(stream);
        }
        Ok(response)
    }

    /// Counts what became of a request; answers whether it was a success.
    async fn count(&mut self, result: io::Result<Option<u16>>, began: Instant, now: Instant) -> bool {
        let measured = now >= self.phase.measure_from;
        let what = match result {
            Ok(None) => return true,
            Ok(Some(200..300)) => {
                if measured {
                    self.tally.lock().success(now - began);
                }
                return true;
            }
            Ok(Some(status)) => status.to_string(),
            Err(error) => {
                self.stream = None;
                sleep(RECONNECT).await;
                error.kind().to_string()
            }
        };
        if measured {
            self.tally.lock().error(what);
        }
        false
    }
}

/// Reads until the buffer holds a whole answer, and takes it out.
async fn answer(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Response> {
    loop {
        if let Some(response) = wire::parse(buffer).map_err(|_| io::ErrorKind::InvalidData)? {
            buffer.advance(response.length);
            return Ok(response);
        }
        buffer.reserve(BUFFER_BYTES);
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
