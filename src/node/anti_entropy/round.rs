//! One round with one peer: descend, list, move.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{AntiEntropy, Stop};
use crate::node::answers::Answers;
use crate::node::operations::Progress;
use crate::node::reaper;
use crate::ports::{
    Answer, Destination, PeerError, PeerReply, PeerRequest, Refusal, ReplicaCall, ReplicaReply, ReplicaRequest, Store,
};
use crate::protocol::hashtree::{self, IN_FLIGHT_MS, Sums};
use crate::protocol::ring::Ring;
use crate::types::limits::{CHUNK_HASH_SPANS_MAX, EXCHANGE_ENTRIES_MAX, NAMES_BYTES_MAX, NAMES_MAX};
use crate::types::{
    Agreement, ChunkState, Convergence, Difference, Entry, Exchange, Key, Leaf, Look, NodeNum, Record, Slot, SlotSet,
    Span, Sum, Token,
};

/// How long a peer may take for one question of a round. Listing a slot of ten million keys takes a tenth of a second.
const ASK_DEADLINE: Duration = Duration::from_secs(20);
/// How long the writes of one window may take.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Records that are written together. One window becomes one message and one transaction.
const WINDOW: usize = 256;
/// So many client operations in the time of one lot mean that the node is serving, and the round rests.
const SERVING: u64 = 1;
/// The longest rest between two lots.
const REST_MAX: Duration = Duration::from_millis(500);

/// What a round is to do.
pub(super) struct Task<'a> {
    pub(super) peer: NodeNum,
    pub(super) look: Look,
    /// Move what differs; else only name it.
    pub(super) repair: bool,
    /// Only these; none: all.
    pub(super) chunks: &'a [u8],
    pub(super) progress: &'a Progress,
}

/// A round under way.
struct Round<'a> {
    this: &'a AntiEntropy,
    task: &'a Task<'a>,
    ring: Arc<Ring>,
    /// Slots of the round: shared, and of the chunks asked for.
    slots: SlotSet,
    /// Of these, those that one of the two cannot sum up now.
    unknown: SlotSet,
    /// Chunks in which something differs and stays so.
    unsettled: [bool; Span::PARTS],
    names: Vec<Key>,
    names_bytes: usize,
    differing: u64,
}

impl AntiEntropy {
    pub(super) async fn round(&self, task: &Task<'_>) -> Result<Convergence, Stop> {
        self.begin(task)?.run().await
    }

    /// Moves what differs in these leaves of a slot, whatever the sums say.
    pub(super) async fn exchange_these(&self, task: &Task<'_>, slot: Slot, leaves: &[Leaf]) -> Result<(), Stop> {
        self.begin(task)?.settle(slot, leaves).await
    }

    fn begin<'a>(&'a self, task: &'a Task<'_>) -> Result<Round<'a>, Stop> {
        let ring = self.parts.routing.ring().ok_or(Stop::NoCluster)?;
        let shared = hashtree::shared(&ring, self.parts.me, task.peer);
        let asked = |slot: &Slot| task.chunks.is_empty() || task.chunks.contains(&(slot.0 >> 4));
        let slots = shared.iter().filter(asked).collect();
        Ok(Round {
            this: self,
            task,
            ring,
            slots,
            unknown: SlotSet::NONE,
            unsettled: [false; Span::PARTS],
            names: Vec::new(),
            names_bytes: 0,
            differing: 0,
        })
    }
}

impl Round<'_> {
    async fn run(mut self) -> Result<Convergence, Stop> {
        let up_to_ms = self.this.parts.clock.wall_ms().saturating_sub(IN_FLIGHT_MS);
        let leaves = match self.task.look {
            Look::Deep => self.slots.iter().map(Span::of_slot).collect(),
            Look::Chunks => self.differing_parts(vec![Span::ALL]).await?,
            Look::Keys => self.descend().await?,
        };
        if self.task.look == Look::Chunks {
            leaves.iter().for_each(|chunk| self.unsettled[usize::from(chunk.bits())] = true);
        } else {
            self.settle_all(&hashtree::by_slot(&leaves)).await?;
        }
        self.names.sort();
        Ok(Convergence { chunks: self.chunk_states(up_to_ms), keys: self.names, differing: self.differing })
    }

    /// The leaves that differ.
    async fn descend(&mut self) -> Result<Vec<Span>, Stop> {
        let mut spans = vec![Span::ALL];
        while spans.first().is_some_and(|span| span.digits() < Span::DIGITS_MAX) {
            spans = self.differing_parts(spans).await?;
        }
        Ok(spans)
    }

    /// The parts of these spans that differ.
    async fn differing_parts(&mut self, spans: Vec<Span>) -> Result<Vec<Span>, Stop> {
        let mut differing = Vec::new();
        for spans in spans.chunks(CHUNK_HASH_SPANS_MAX) {
            self.check_aborted()?;
            let store = &*self.this.parts.store;
            let tree = Tree::of(store);
            let unsummed = self.slots.iter().filter(|slot| tree.slot(*slot).is_none());
            unsummed.for_each(|slot| self.unknown.insert(slot));
            let left_out = Slot::all().filter(|s| self.unknown.contains(*s) || self.is_elsewhere(*s)).collect();
            let request = PeerRequest::GetChunkHash { epoch: self.ring.epoch(), left_out, spans: spans.to_vec() };
            let PeerReply::ChunkHashes(theirs) = self.ask(request).await? else { return Err(wrong_kind()) };
            self.slots.iter().filter(|s| theirs.left_out.contains(*s)).for_each(|slot| self.unknown.insert(slot));
            let known = self.slots.iter().filter(|slot| !self.unknown.contains(*slot)).collect();
            let ours = hashtree::digests(&Tree::of(store), &known, spans);
            differing.extend(hashtree::differing(spans, &ours, &theirs.digests));
        }
        Ok(differing)
    }

    /// Shared, but in a chunk that was not asked for.
    fn is_elsewhere(&self, slot: Slot) -> bool {
        !self.slots.contains(slot) && !self.task.chunks.is_empty()
    }

    async fn settle_all(&mut self, slots: &[(Slot, Vec<Leaf>)]) -> Result<(), Stop> {
        self.task.progress.expect(slots.iter().map(|(_, leaves)| leaves.len() as u64).sum());
        let mut requests = self.this.parts.coordinator.requests();
        for (slot, leaves) in slots {
            let began = Instant::now();
            self.settle(*slot, leaves).await?;
            self.task.progress.settled(leaves.len() as u64);
            let now = self.this.parts.coordinator.requests();
            if now - requests >= SERVING {
                // Half of the time is the clients', as far as they come to this node.
                sleep(began.elapsed().min(REST_MAX)).await;
            }
            requests = now;
        }
        Ok(())
    }

    /// Exchanges some leaves of one slot until nothing is left to move.
    async fn settle(&mut self, slot: Slot, leaves: &[Leaf]) -> Result<(), Stop> {
        // What each comes to by itself is not worth sending; the peer does the same before it answers.
        reaper::reap(&*self.this.parts.store, &self.this.parts.clock).await?;
        let mut queue = VecDeque::from([leaves.to_vec()]);
        while let Some(leaves) = queue.pop_front() {
            let held = self.this.parts.store.holdings(slot, leaves.clone()).await?.intact;
            for (leaves, held) in hashtree::lots(&leaves, &held, EXCHANGE_ENTRIES_MAX) {
                self.check_aborted()?;
                if self.exchange(slot, leaves, held).await? {
                    queue.push_back(leaves.to_vec());
                }
            }
        }
        Ok(())
    }

    /// Exchanges one lot; says whether the peer has more than fitted.
    async fn exchange(&mut self, slot: Slot, leaves: &[Leaf], held: &[(Entry, Key)]) -> Result<bool, Stop> {
        let request = PeerRequest::FetchRange(Exchange {
            epoch: self.ring.epoch(),
            slot,
            leaves: leaves.to_vec(),
            held: held.iter().map(|(entry, _)| *entry).collect(),
            names_only: !self.task.repair,
        });
        let PeerReply::Differences(found) = self.ask(request).await? else { return Err(wrong_kind()) };
        let Difference { wanted, records, names, more } = found;
        let wanted = keys_of(held, &wanted);
        self.task.progress.carried((held.len() * size_of::<Entry>()) as u64);
        if !self.task.repair {
            self.name(slot, wanted.into_iter().chain(names));
            return Ok(false);
        }
        let differing = (wanted.len() + records.len()) as u64;
        self.differing += differing;
        self.task.progress.found(differing);
        let taken = self.take(slot, leaves, records).await?;
        self.give(slot, wanted).await?;
        // Where nothing could be stored the same would only come again.
        Ok(more && taken > 0)
    }

    /// Names keys that differ, each once: two contents of one version are named by both sides.
    fn name(&mut self, slot: Slot, keys: impl Iterator<Item = Key>) {
        let mut keys: Vec<Key> = keys.collect();
        keys.sort();
        keys.dedup();
        self.unsettled[usize::from(slot.0 >> 4)] |= !keys.is_empty();
        self.differing += keys.len() as u64;
        self.task.progress.found(keys.len() as u64);
        for key in keys {
            self.names_bytes += key.as_bytes().len();
            if self.names.len() < NAMES_MAX && self.names_bytes <= NAMES_BYTES_MAX {
                self.names.push(key);
            }
        }
    }

    /// Stores here what the peer holds newer. A replica believes its own node, so it is verified before.
    async fn take(&mut self, slot: Slot, leaves: &[Leaf], records: Vec<(Key, Record)>) -> Result<u64, Stop> {
        let asked_for = |key: &Key| leaves.binary_search(&Leaf::of(self.ring.token(key))).is_ok();
        if !records.iter().all(|(key, record)| asked_for(key) && record.is_intact(key)) {
            return Err(PeerError::Protocol("a record that is damaged, or was not asked for".into()).into());
        }
        let taken = self.write(self.this.parts.me, slot, records).await?;
        self.task.progress.received(taken);
        Ok(taken)
    }

    /// Stores over there what this node holds newer.
    async fn give(&mut self, slot: Slot, keys: Vec<Key>) -> Result<(), Stop> {
        let mut keys: VecDeque<(Slot, Key)> = keys.into_iter().map(|key| (slot, key)).collect();
        while !keys.is_empty() {
            self.check_aborted()?;
            let window = keys.iter().take(WINDOW).cloned().collect();
            let (records, looked_up) = self.this.parts.store.records(window).await?;
            keys.drain(..looked_up.clamp(1, keys.len()));
            let given = self.write(self.task.peer, slot, records).await?;
            self.task.progress.sent(given);
        }
        Ok(())
    }

    /// Writes records at one replica, window by window; says how many it stored. Those that were refused, each for a reason of
    /// its own, leave their chunk unsettled.
    async fn write(&mut self, to: NodeNum, slot: Slot, records: Vec<(Key, Record)>) -> Result<u64, Stop> {
        let mut stored = 0;
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let answers = Answers::new();
            let deadline = Some(Instant::now() + WRITE_DEADLINE);
            let mut sent = 0;
            for (key, record) in records.by_ref().take(WINDOW) {
                self.task.progress.carried((key.as_bytes().len() + record.content_bytes()) as u64);
                let call =
                    ReplicaCall { epoch: self.ring.epoch(), request: ReplicaRequest::Write { key, record }, deadline };
                self.this.parts.peers.send(to, call, answers.reply_to(sent));
                sent += 1;
            }
            for _ in 0..sent {
                match fate(answers.next().await.1)? {
                    Fate::Stored => stored += 1,
                    Fate::There => {}
                    // The others go on: one that is refused must not keep those behind it from being repaired.
                    Fate::Refused => self.unsettled[usize::from(slot.0 >> 4)] = true,
                }
            }
        }
        Ok(stored)
    }

    async fn ask(&self, request: PeerRequest) -> Result<PeerReply, Stop> {
        let deadline = Instant::now() + ASK_DEADLINE;
        match self.this.parts.peers.ask(Destination::Member(self.task.peer), request, deadline).await? {
            PeerReply::WrongEpoch { epoch: theirs } => Err(Stop::OtherEpoch { ours: self.ring.epoch(), theirs }),
            reply => Ok(reply),
        }
    }

    fn check_aborted(&self) -> Result<(), Stop> {
        if self.task.progress.is_aborted() { Err(Stop::Aborted) } else { Ok(()) }
    }

    /// What was found of each chunk that has slots in the round.
    fn chunk_states(&self, up_to_ms: u64) -> Vec<ChunkState> {
        let now_ms = self.this.parts.clock.wall_ms();
        let of = |set: &SlotSet, chunk: u8| set.iter().any(|slot| slot.0 >> 4 == chunk);
        let chunks = (0..Span::PARTS as u8).filter(|chunk| of(&self.slots, *chunk));
        let states = chunks.map(|chunk| {
            let agreement = if self.unsettled[usize::from(chunk)] {
                Agreement::Differs
            } else if self.task.look != Look::Deep && of(&self.unknown, chunk) {
                Agreement::Unknown
            } else {
                Agreement::Equal
            };
            self.this.memory.note(self.task.peer, chunk, agreement, now_ms, up_to_ms)
        });
        states.collect()
    }
}

/// The keys of these tokens, among what is held.
fn keys_of(held: &[(Entry, Key)], wanted: &[Token]) -> Vec<Key> {
    let mut keys = Vec::with_capacity(wanted.len());
    for token in wanted {
        let from = held.partition_point(|(entry, _)| entry.token < *token);
        // More than one where two keys share a token.
        let of_token = held[from..].iter().take_while(|(entry, _)| entry.token == *token);
        keys.extend(of_token.map(|(_, key)| key.clone()));
    }
    keys
}

/// What an answer means for the record that was written.
enum Fate {
    Stored,
    /// Something at least as new stood there, or it was purged.
    There,
    /// This one, for a reason of its own.
    Refused,
}

/// # Errors
/// When the replica takes nothing at the moment.
fn fate(answer: Answer) -> Result<Fate, Stop> {
    match answer {
        Ok(ReplicaReply::Stored { .. }) => Ok(Fate::Stored),
        Ok(ReplicaReply::Dominated { .. } | ReplicaReply::BelowFloor { .. }) => Ok(Fate::There),
        Ok(ReplicaReply::WrongEpoch { .. }) => Err(Stop::Refused("its topology is newer".into())),
        Ok(ReplicaReply::Refused(
            Refusal::ClockSkew { .. } | Refusal::Damaged | Refusal::TooLarge { .. } | Refusal::Corrupt,
        )) => Ok(Fate::Refused),
        Ok(ReplicaReply::Refused(refusal)) => Err(Stop::Refused(refusal.to_string())),
        Ok(_) => Err(wrong_kind()),
        Err(error) => Err(error.into()),
    }
}

fn wrong_kind() -> Stop {
    Stop::Refused("an answer of the wrong kind".into())
}

/// The store's sums, as the fold reads them: those of the slots as they were when this was made.
pub(super) struct Tree<'a> {
    store: &'a dyn Store,
    slots: Vec<Option<Sum>>,
}

impl<'a> Tree<'a> {
    pub(super) fn of(store: &'a dyn Store) -> Self {
        Self { store, slots: store.slot_sums() }
    }
}

impl Sums for Tree<'_> {
    fn slot(&self, slot: Slot) -> Option<Sum> {
        self.slots.get(slot.index()).copied().flatten()
    }

    fn leaves(&self, slot: Slot) -> Option<Vec<Sum>> {
        self.store.leaf_sums(slot)
    }
}
