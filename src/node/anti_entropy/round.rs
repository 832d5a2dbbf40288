//! One round with one peer: descend, list, move.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::fate::{Fate, Waits, fate, wrong_kind};
use super::{AntiEntropy, Stop};
use crate::node::answers::Answers;
use crate::node::operations::Progress;
use crate::node::pace::Pace;
use crate::node::reaper;
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest, ReplicaCall, ReplicaRequest, Store};
use crate::protocol::hashtree::{self, IN_FLIGHT_MS, Sums};
use crate::protocol::ring::Ring;
use crate::types::limits::{CHUNK_HASH_SPANS_MAX, EXCHANGE_ENTRIES_MAX, NAMES_BYTES_MAX, NAMES_MAX};
use crate::types::{
    Agreement, ChunkState, Convergence, Difference, Entry, Exchange, Hlc, Key, Leaf, Look, NodeNum, Record, Slot,
    SlotSet, Span, Sum, Token,
};

/// How long a peer may take for one question of a round. Listing a slot of ten million keys takes a tenth of a second.
const ASK_DEADLINE: Duration = Duration::from_secs(20);
/// How long the writes of one window may take.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Records that are written together: one message, and a transaction or a few.
const WINDOW: usize = 512;
/// After this long what the descent found is not believed any more: each slot is compared again before it is listed.
const STALE_AFTER: Duration = Duration::from_secs(2);
/// Leaves listed together at first, in a slot. What they hold is not known; see [`Round::width`].
const WIDTH_FIRST: usize = 32;

/// What a round is to do.
pub(super) struct Task<'a> {
    pub(super) peer: NodeNum,
    pub(super) look: Look,
    /// Move what differs; else only name it.
    pub(super) repair: bool,
    /// Only these; none: all.
    pub(super) chunks: &'a [u8],
    /// Up to a time, and these slots only: see `exchange`.
    pub(super) up_to: Option<(Hlc, SlotSet)>,
    /// Rows of this node were lost: what the peer has is taken whatever this node's floor says.
    pub(super) mends: bool,
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
    /// Slots in which something differed that was to be compared up to a time.
    due: SlotSet,
    /// Chunks in which something differs and stays so.
    unsettled: [bool; Span::PARTS],
    /// Chunks in which something differed and was moved.
    moved: [bool; Span::PARTS],
    /// Leaves of a slot that are listed together: as many as one answer had room for lately, and then ever more.
    width: usize,
    pace: Pace<'a>,
    names: Vec<Key>,
    names_bytes: usize,
    differing: u64,
}

impl AntiEntropy {
    pub(super) async fn round(&self, task: &Task<'_>) -> Result<Convergence, Stop> {
        self.begin(task)?.run().await
    }

    /// Moves what differs; says in which slots nothing did up to the task's time.
    pub(super) async fn exchange_round(&self, task: &Task<'_>) -> Result<SlotSet, Stop> {
        let mut round = self.begin(task)?;
        let leaves = round.descend().await?;
        round.settle_all(&hashtree::by_slot(&leaves)).await?;
        Ok(round.slots.iter().filter(|slot| !round.due.contains(*slot) && !round.unknown.contains(*slot)).collect())
    }

    /// Moves what differs in these leaves of a slot, whatever the sums say.
    pub(super) async fn exchange_these(&self, task: &Task<'_>, slot: Slot, leaves: &[Leaf]) -> Result<(), Stop> {
        self.begin(task)?.settle(slot, leaves).await
    }

    fn begin<'a>(&'a self, task: &'a Task<'_>) -> Result<Round<'a>, Stop> {
        let ring = self.parts.routing.ring().ok_or(Stop::NoCluster)?;
        let shared = hashtree::shared(&ring, self.parts.me, task.peer);
        let asked = |slot: &Slot| task.chunks.is_empty() || task.chunks.contains(&(slot.0 >> 4));
        let wanted = |slot: &Slot| task.up_to.as_ref().is_none_or(|(_, slots)| slots.contains(*slot));
        let slots = shared.iter().filter(asked).filter(wanted).collect();
        Ok(Round {
            this: self,
            task,
            ring,
            slots,
            unknown: SlotSet::NONE,
            due: SlotSet::NONE,
            unsettled: [false; Span::PARTS],
            moved: [false; Span::PARTS],
            width: WIDTH_FIRST,
            pace: Pace::of(&self.parts.served),
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
        let scrubbed_ms = self.this.scrubbed_ms.load(Ordering::Relaxed);
        let chunks = self.chunk_states(up_to_ms);
        Ok(Convergence { chunks, keys: self.names, differing: self.differing, scrubbed_ms })
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

    /// Shared, but not asked for.
    fn is_elsewhere(&self, slot: Slot) -> bool {
        !self.slots.contains(slot) && (!self.task.chunks.is_empty() || self.task.up_to.is_some())
    }

    async fn settle_all(&mut self, slots: &[(Slot, Vec<Leaf>)]) -> Result<(), Stop> {
        self.task.progress.expect(slots.iter().map(|(_, leaves)| leaves.len() as u64).sum());
        let compared = Instant::now();
        for (slot, leaves) in self.in_own_order(slots) {
            if self.task.repair && compared.elapsed() > STALE_AFTER {
                let left = self.still_differing(*slot, leaves).await?;
                self.settle(*slot, &left).await?;
            } else {
                self.settle(*slot, leaves).await?;
            }
            self.task.progress.settled(leaves.len() as u64);
        }
        Ok(())
    }

    /// Not all begin with the same slots: two that repair a third one meet when each has done its half.
    fn in_own_order<'s>(
        &self,
        slots: &'s [(Slot, Vec<Leaf>)],
    ) -> impl Iterator<Item = &'s (Slot, Vec<Leaf>)> + use<'s> {
        let members = &self.ring.topology().members;
        let place = members.iter().position(|member| member.node == self.this.parts.me).unwrap_or_default();
        let (before, after) = slots.split_at(place * slots.len() / members.len().max(1));
        after.iter().chain(before)
    }

    /// Those of a slot's leaves that differ by now: clients, hints and other rounds may have settled some meanwhile.
    async fn still_differing(&mut self, slot: Slot, leaves: &[Leaf]) -> Result<Vec<Leaf>, Stop> {
        let spans = Span::of_slot(slot).parts().filter(|span| span.leaves().any(|l| leaves.binary_search(&l).is_ok()));
        let differing = self.differing_parts(spans.collect()).await?;
        if self.unknown.contains(slot) {
            // It is being summed anew: what was found before is all that is known.
            return Ok(leaves.to_vec());
        }
        Ok(differing.into_iter().flat_map(Span::leaves).filter(|leaf| leaves.binary_search(leaf).is_ok()).collect())
    }

    /// Exchanges some leaves of one slot until nothing is left to move.
    async fn settle(&mut self, slot: Slot, mut leaves: &[Leaf]) -> Result<(), Stop> {
        // What each comes to by itself is not worth sending; the peer does the same before it answers.
        reaper::reap(&*self.this.parts.store, &self.this.parts.clock).await?;
        while !leaves.is_empty() {
            self.pace.begin();
            let some = &leaves[..self.width.min(leaves.len())];
            let held = self.this.parts.store.holdings(slot, some.to_vec()).await?;
            // What is damaged here is no copy, on whichever side. Named with the first lot, beside what the peer names.
            let mut suspects: Vec<Key> = held.suspects().filter(|_| !self.task.repair).collect();
            let mut settled = 0;
            for (lot, held) in hashtree::lots(some, &held.intact, EXCHANGE_ENTRIES_MAX) {
                let of_lot = self.exchange(slot, lot, held, std::mem::take(&mut suspects)).await?;
                settled += of_lot;
                if of_lot < lot.len() {
                    break;
                }
            }
            leaves = &leaves[settled..];
        }
        Ok(())
    }

    /// Exchanges one lot; says how many of its leaves are settled, from the first. Where the peer had more than fitted, the
    /// others are to be listed anew.
    async fn exchange(
        &mut self,
        slot: Slot,
        leaves: &[Leaf],
        held: &[(Entry, Key)],
        suspects: Vec<Key>,
    ) -> Result<usize, Stop> {
        let request = PeerRequest::FetchRange(Exchange {
            epoch: self.ring.epoch(),
            slot,
            leaves: leaves.to_vec(),
            held: held.iter().map(|(entry, _)| *entry).collect(),
            names_only: !self.task.repair,
            up_to: self.task.up_to.as_ref().map(|(up_to, _)| *up_to),
        });
        let PeerReply::Differences(found) = self.ask(request).await? else { return Err(wrong_kind()) };
        let Difference { wanted, records, names, more, serving } = found;
        let listed = held.len() * Entry::BYTES + wanted.len() * size_of::<Token>();
        self.task.progress.carried((listed + names.iter().map(|key| key.as_bytes().len()).sum::<usize>()) as u64);
        let wanted = keys_of(held, &wanted);
        self.pace.peer_serves = serving;
        self.pace.rest().await;
        if !self.task.repair {
            self.name(slot, wanted.into_iter().chain(names).chain(suspects));
            return Ok(leaves.len());
        }
        let differing = (wanted.len() + records.len()) as u64;
        self.differing += differing;
        self.moved[usize::from(slot.0 >> 4)] |= differing > 0;
        self.task.progress.found(differing);
        // In order of tokens, and so of leaves: all before the last one's are there.
        let last = records.last().map(|(key, _)| Leaf::of(self.ring.token(key)));
        let taken = self.take(slot, leaves, records).await?;
        self.give(slot, wanted).await?;
        let settled = match last {
            Some(last) if more => match leaves.partition_point(|leaf| *leaf < last) {
                // Nothing of a whole answer could be stored: the same would only come again.
                0 if taken == 0 => leaves.len(),
                before => before,
            },
            _ => leaves.len(),
        };
        // As many as one answer has room for are listed together: a list is read for what is moved by it.
        self.width = if settled < leaves.len() { settled.max(1) } else { (self.width * 2).min(Leaf::IN_SLOT) };
        Ok(settled)
    }

    /// Names keys that differ, each once: two contents of one version are named by both sides.
    fn name(&mut self, slot: Slot, keys: impl Iterator<Item = Key>) {
        let totals = self.this.parts.store.totals();
        // What they hold is not looked at; a dry run tells about how much it would be.
        let mean = totals.bytes / (totals.keys + totals.tombstones).max(1);
        let mut keys: Vec<Key> = keys.collect();
        keys.sort();
        keys.dedup();
        self.unsettled[usize::from(slot.0 >> 4)] |= !keys.is_empty();
        self.differing += keys.len() as u64;
        self.task.progress.found(keys.len() as u64);
        self.task.progress.carried(keys.len() as u64 * mean);
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
        self.this.meters.received.increment(taken);
        Ok(taken)
    }

    /// Stores over there what this node holds newer.
    async fn give(&mut self, slot: Slot, keys: Vec<Key>) -> Result<(), Stop> {
        let mut keys: VecDeque<(Slot, Key)> = keys.into_iter().map(|key| (slot, key)).collect();
        while !keys.is_empty() {
            let window = keys.iter().take(WINDOW).cloned().collect();
            let (records, looked_up) = self.this.parts.store.records(window).await?;
            keys.drain(..looked_up.clamp(1, keys.len()));
            let given = self.write(self.task.peer, slot, records).await?;
            self.task.progress.sent(given);
            self.this.meters.sent.increment(given);
        }
        Ok(())
    }

    /// Writes records at one replica, window by window; says how many it stored.
    async fn write(&mut self, to: NodeNum, slot: Slot, records: Vec<(Key, Record)>) -> Result<u64, Stop> {
        let mut stored = 0;
        for window in records.chunks(WINDOW) {
            stored += self.write_window(to, slot, window).await?;
            self.pace.rest().await;
        }
        Ok(stored)
    }

    /// Writes them together. Those that are refused, each for a reason of its own, leave their chunk unsettled; those that
    /// find the replica overloaded are tried again a little later.
    async fn write_window(&mut self, to: NodeNum, slot: Slot, window: &[(Key, Record)]) -> Result<u64, Stop> {
        let mut stored = 0;
        let mut left: Vec<usize> = (0..window.len()).collect();
        let mut waits = Waits::default();
        loop {
            let answers = Answers::new();
            let deadline = Some(Instant::now() + WRITE_DEADLINE);
            for index in &left {
                let (key, record) = window[*index].clone();
                self.task.progress.carried((key.as_bytes().len() + record.content_bytes()) as u64);
                let (epoch, request) = (self.ring.epoch(), ReplicaRequest::Write { key, record });
                let call = ReplicaCall { epoch, request, deadline, behind: true, trace: None };
                self.this.parts.peers.send(to, call, answers.reply_to(*index as u64));
            }
            let (mut again, mut below) = (Vec::new(), Vec::new());
            for _ in 0..left.len() {
                let (index, answer) = answers.next().await;
                let fate = fate(answer)?;
                self.note_due(slot, window.get(index as usize), fate);
                match fate {
                    Fate::Stored => stored += 1,
                    Fate::There => {}
                    Fate::Below => below.extend(window.get(index as usize)),
                    Fate::Later => again.push(index as usize),
                    // The others go on: one that is refused must not keep those behind it from being repaired.
                    Fate::Refused => self.unsettled[usize::from(slot.0 >> 4)] = true,
                }
            }
            if self.task.mends && to == self.this.parts.me {
                stored += self.take_over(&below).await?;
            }
            if again.is_empty() {
                return Ok(stored);
            }
            waits.wait().await?;
            again.sort_unstable();
            left = again;
        }
    }

    /// Values that the floor refused, in place of rows that were lost here; a tombstone may have been purged here alone.
    async fn take_over(&self, below: &[&(Key, Record)]) -> Result<u64, Stop> {
        let values = below.iter().filter(|(_, record)| !record.is_tombstone());
        let entry = |(key, record): &(Key, Record)| (self.ring.token(key), (key.clone(), Some(record.clone()), None));
        let entries: Vec<_> = values.map(|value| entry(value)).collect();
        let count = entries.len() as u64;
        if count > 0 {
            self.this.parts.store.absorb(entries).await?;
        }
        Ok(count)
    }

    /// What was compared up to a time was not equal, if this one had to be moved.
    fn note_due(&mut self, slot: Slot, moved: Option<&(Key, Record)>, fate: Fate) {
        let up_to = self.task.up_to.as_ref().map(|(up_to, _)| *up_to);
        if matches!(fate, Fate::Stored | Fate::Refused) && moved.is_some_and(|(_, r)| Some(r.written) <= up_to) {
            self.due.insert(slot);
        }
    }

    async fn ask(&self, request: PeerRequest) -> Result<PeerReply, Stop> {
        let mut waits = Waits::default();
        loop {
            let deadline = Instant::now() + ASK_DEADLINE;
            let asked = self.this.parts.peers.ask(Destination::Member(self.task.peer), request.clone(), deadline);
            match asked.await {
                Ok(PeerReply::WrongEpoch { epoch: theirs }) => {
                    return Err(Stop::OtherEpoch { ours: self.ring.epoch(), theirs });
                }
                Err(PeerError::Overloaded) => waits.wait().await?,
                reply => return Ok(reply?),
            }
        }
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
            // What was just moved has made it equal anew.
            let renewed = self.moved[usize::from(chunk)];
            self.this.memory.note(self.ring.epoch(), (self.task.peer, chunk), agreement, renewed, [now_ms, up_to_ms])
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
