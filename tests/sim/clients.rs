//! The clients: each asks one thing after the other, of any node, and remembers what it was told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use a3::node::Node;
use a3::node::request::{ConditionalPut, Edit, Get, NewContent, Put};
use a3::ports::{Clock, Entropy, Spawn};
use a3::types::{Idempotency, Key, Level, Ttl, Version, limits::REMEMBERED_MAX};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::history::{Ask, Operation, Request, Terms, Told, Wish};
use crate::machine::Seeded;
use crate::world::World;

const TIMEOUT: Duration = Duration::from_secs(1);
/// A node that lives answers at its deadline; this is more than a step later.
const SLACK: Duration = Duration::from_millis(500);
/// A key's history is searched for a linear order; longer ones take too long.
const OPERATIONS_MAX: usize = 300;

/// What the clients of a world share.
#[derive(Default)]
pub(crate) struct Shared {
    /// Requests that were sent with an `Idempotency-Key`. A key's register remembers the last eight answers, so of each key
    /// no more names are used: a repeat must be told what the first was told.
    idempotent: Mutex<BTreeMap<Key, Vec<Request>>>,
    asked: Mutex<BTreeMap<Key, usize>>,
    touches: Mutex<u64>,
    quiet: AtomicBool,
}

impl Shared {
    /// Whether clients ask nothing now, but for the one who wants it so.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::SeqCst)
    }

    pub(crate) fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::SeqCst);
    }
}

/// Longer than a world is at work.
const LONG_MS: u64 = 600_000;

fn ttl(ms: u64) -> Ttl {
    Ttl::from_ms(ms).expect("some milliseconds")
}

pub(crate) struct Client {
    world: Arc<World>,
    number: usize,
    random: Arc<Seeded>,
    count: u64,
    /// The version seen last, of each key.
    last: BTreeMap<Key, Version>,
}

/// One client's work. It ends when the time is up.
pub(crate) async fn client(world: Arc<World>, number: usize, until: Instant) {
    let random = Seeded::new(world.seed, 10 + number as u64);
    let pause_ms = *random.pick(&[15, 50, 200, 600]);
    let mut client = Client::new(&world, number, random);
    while Instant::now() < until {
        if !world.shared.is_quiet() {
            client.act().await;
        }
        if client.world.grace.is_some() && client.random.per_mille(40) {
            // Deleted keys come of age.
            sleep(Duration::from_millis(client.random.between(1_000, 15_000))).await;
        }
        sleep(Duration::from_millis(client.random.between(1, pause_ms))).await;
    }
}

impl Client {
    pub(crate) fn new(world: &Arc<World>, number: usize, random: Arc<Seeded>) -> Self {
        Self { world: world.clone(), number, random, count: 0, last: BTreeMap::new() }
    }

    /// A plain write or a linearizable one, of the first key.
    pub(crate) async fn write(&mut self, at: usize) {
        let ask = self.put();
        self.ask_strictly(at, ask).await;
    }

    pub(crate) async fn read(&self, at: usize) {
        self.ask_strictly(at, Ask::Get).await;
    }

    async fn ask_strictly(&self, at: usize, ask: Ask) {
        let Some(key) = self.world.keys().first().cloned() else { return };
        let level = if self.random.per_mille(self.world.exact) { Level::Linearizable } else { Level::Quorum };
        operation(&self.world, self.number, at, Request::plain(key, level, ask)).await;
    }

    async fn act(&mut self) {
        let key = self.random.pick(self.world.keys()).clone();
        {
            let mut asked = self.world.shared.asked.lock();
            let asked = asked.entry(key.clone()).or_default();
            if *asked >= OPERATIONS_MAX {
                return;
            }
            *asked += 1;
        }
        let at = self.whom();
        let request = self.request(key.clone());
        let level = request.level;
        let mut told = operation(&self.world, self.number, at, request).await;
        if let Told::Found { version: Some(version), .. } = &told
            && version.is_end()
            && level == Level::One
            && self.random.below(3) == 0
        {
            // It was told by a clock that somebody sets back now.
            self.world.places[at].clock.step(-(self.random.between(1, 4_000) as i64));
            let again = Request::plain(key.clone(), Level::One, Ask::Get);
            told = operation(&self.world, self.number, at, again).await;
        }
        let seen = match told {
            Told::Wrote(receipt) => Some(receipt.version),
            Told::Found { version, .. } => version,
            Told::Failed(failure) => failure.met.and_then(|met| met.version),
            Told::Died | Told::Stuck => None,
        };
        if let Some(version) = seen {
            self.last.insert(key, version);
        }
    }

    /// Any node, but rather one that serves. While two of one number live, one of those in every other case.
    fn whom(&self) -> usize {
        let two = self.world.rivals_for_a_place();
        if two.len() == 2 && self.random.below(2) == 0 {
            return *self.random.pick(&two);
        }
        let serves = |at: &usize| self.world.places[*at].node().is_some_and(|(node, _)| node.readiness().ready);
        let any = || self.random.below(self.world.places.len() as u64) as usize;
        (0..3).map(|_| any()).find(serves).unwrap_or_else(any)
    }

    fn request(&mut self, key: Key) -> Request {
        let random = self.random.clone();
        if !random.per_mille(self.world.exact) {
            let level = *random.pick(&[Level::One, Level::All, Level::Quorum, Level::Quorum, Level::Quorum]);
            let ask = match random.below(10) {
                0..5 if self.world.grace.is_some() && random.below(2) == 0 => Ask::Delete,
                0..5 => self.put(),
                5..9 => Ask::Get,
                _ => Ask::Delete,
            };
            return Request::plain(key, level, ask);
        }
        let (level, terms) = match random.below(20) {
            0..6 => return Request::plain(key, Level::Linearizable, Ask::Get),
            6..8 => return Request::plain(key, Level::Linearizable, self.put()),
            8 => return Request::plain(key, Level::Linearizable, Ask::Delete),
            9..12 => match self.again(&key) {
                Some(request) => return request,
                None => (Level::Linearizable, self.terms(&key)),
            },
            _ => (Level::Linearizable, self.terms(&key)),
        };
        let ask = match random.below(10) {
            0..2 => Ask::Delete,
            2..5 if self.world.grace.is_some() => Ask::Delete,
            2..5 if self.world.ending > 0 => self.touch(),
            5..6 if self.world.grace.is_some() && self.world.ending > 0 => self.touch(),
            _ => self.put(),
        };
        let request = Request { key: key.clone(), level, ask, terms: Some(terms) };
        if request.idempotency().is_some() {
            self.world.shared.idempotent.lock().entry(key).or_default().push(request.clone());
        }
        request
    }

    fn put(&mut self) -> Ask {
        self.count += 1;
        let text = format!("c{}-{}", self.number, self.count);
        if !self.random.per_mille(self.world.ending) {
            return Ask::Put(text);
        }
        let about_ms = *self.random.pick(&[100, 300, 800, 2_000, LONG_MS]);
        Ask::PutFor(text, ttl(about_ms + 2 * self.random.below(50)))
    }

    /// No two give the same time.
    fn touch(&self) -> Ask {
        let mut touches = self.world.shared.touches.lock();
        *touches += 1;
        let long_ms = if self.random.below(4) == 0 { LONG_MS } else { 0 };
        Ask::Touch(ttl(long_ms + 2 * (50 + *touches * 37 % 1_501) + 1))
    }

    /// A request that was sent before, by whomever, or another one under its `Idempotency-Key`.
    fn again(&mut self, key: &Key) -> Option<Request> {
        let before = {
            let idempotent = self.world.shared.idempotent.lock();
            let of_key = idempotent.get(key)?;
            // Mostly one of the latest: it may be under way still.
            let back = self.random.below(self.random.below(of_key.len() as u64) + 1) as usize;
            of_key[of_key.len() - 1 - back].clone()
        };
        let other = self.random.below(5) == 0;
        Some(if other { Request { ask: self.put(), ..before } } else { before })
    }

    fn terms(&self, key: &Key) -> Terms {
        let random = &self.random;
        let names = self.world.shared.idempotent.lock().get(key).map_or(0, Vec::len);
        let named = names < REMEMBERED_MAX && random.below(3) == 0;
        let idempotency = named.then(|| format!("i{names}"));
        let wish = match random.below(12) {
            0..7 => self.last.get(key).map_or(Wish::None, |version| Wish::Match(*version)),
            7 => {
                // A version of another key, if one is known.
                let other = self.last.iter().find(|(k, _)| *k != key);
                other.map_or(Wish::Match(Version::default()), |(_, version)| Wish::Match(*version))
            }
            8 => Wish::Some,
            9 if idempotency.is_some() => Wish::Nothing,
            _ => Wish::None,
        };
        Terms { wish, idempotency }
    }
}

/// One request, from asking to being told.
pub(crate) async fn operation(world: &World, client: usize, at: usize, request: Request) -> Told {
    let place = &world.places[at];
    let Some((node, life)) = place.node() else { return Told::Died };
    let began = world.tick();
    let (wall_ms, served) = (place.clock.wall_ms(), node.readiness().ready);
    let number_of_life = place.lives();
    world.trace.note(format_args!("client {client} asks {}: {request}", place.socket));
    let (tell, told) = oneshot::channel();
    let work = perform(node, request.clone());
    life.spawn(async move { drop(tell.send(work.await)) }.boxed());
    let told = match timeout(TIMEOUT + SLACK, told).await {
        Ok(Ok(told)) => told,
        Ok(Err(_)) => Told::Died,
        Err(_) => Told::Stuck,
    };
    // An answer that a dying node sent is not seen.
    let told = if life.is_alive() { told } else { Told::Died };
    let ended = world.tick();
    let settled = world.settled(&request.key);
    let mut disks = 0;
    if let Told::Wrote(receipt) = &told {
        disks = world.disks_with(&request.key, receipt.version);
        world.promise(&receipt.acked, &request.key, receipt.version);
    }
    if let Told::Found { version: Some(version), .. } = &told
        && version.is_end()
    {
        disks = world.disks_with(&request.key, *version);
    }
    let (life, wall_ms) = (number_of_life, [wall_ms, place.clock.wall_ms()]);
    let operation = Operation {
        client,
        at: place.socket,
        life,
        wall_ms,
        served,
        buried: world.witness.buried(&request.key).map(|(version, _)| version),
        floor: world.floor(&request.key),
        request,
        began,
        ended,
        told: told.clone(),
        settled,
        disks,
    };
    world.trace.note(&operation);
    world.history.ended(operation);
    told
}

async fn perform(node: Arc<Node>, request: Request) -> Told {
    let deadline = Instant::now() + TIMEOUT;
    let Request { key, level, ask, terms } = request.clone();
    let edit = match ask {
        Ask::Get => {
            let found = node.get(Get { key, level, deadline, every_copy: false }).await;
            return found.map_or_else(Told::Failed, |found| Told::found(&found));
        }
        Ask::Put(text) => Edit::Write(NewContent::value(text)),
        Ask::PutFor(text, ttl) => {
            Edit::Write(NewContent::Value { bytes: text.into(), content_type: None, ttl: Some(ttl) })
        }
        Ask::Touch(ttl) => Edit::Touch { ttl: Some(ttl) },
        Ask::Delete => Edit::Write(NewContent::Tombstone),
    };
    let written = match (terms, edit) {
        (None, Edit::Touch { .. }) => unreachable!("a touch has terms"),
        (None, Edit::Write(content)) => node.put(Put { key, content, level, deadline }).await,
        (Some(Terms { wish, idempotency }), edit) => {
            let parts = request.to_string();
            let idempotency = idempotency.map(|name| Idempotency::of(name.as_bytes(), &[parts.as_bytes()]));
            let condition = wish.condition();
            node.put_if(ConditionalPut { key, condition, edit, idempotency, deadline }).await
        }
    };
    written.map_or_else(Told::Failed, Told::Wrote)
}
