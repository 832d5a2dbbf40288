//! Writes whose client was answered, or went away, before every replica was heard.
//!
//! They are left to finish, never cancelled. One task looks after all of them, a few times a second, so that a write
//! costs no task and no wake-up of its own: by then the answers are usually all there. Where a home replica has not
//! got the record by the write's deadline, a hint is left that counts for nothing and may be dropped.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::node::reach::Reach;
use crate::ports::Peers;
use crate::protocol::quorum::Ask;

use super::flight::Tag;
use super::write::Writing;

/// How often the writes are looked at.
const EVERY: Duration = Duration::from_millis(50);
/// So many writes are looked after at once; beyond that the oldest is finished as if its time were up.
const WRITES_MAX: usize = 20_000;
/// So many bytes of records are kept for them.
const BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(Default)]
struct Queue {
    writes: VecDeque<Writing>,
    bytes: usize,
}

/// A write that goes on when whoever drives it is done, whether it was answered, failed, or its client went away:
/// what was begun is left to finish. One of which nothing can be stored ends there.
pub(super) struct Attended<'a> {
    writing: Option<Writing>,
    stragglers: &'a Stragglers,
}

impl Deref for Attended<'_> {
    type Target = Writing;

    #[expect(clippy::expect_used, reason = "taken only by drop")]
    fn deref(&self) -> &Writing {
        self.writing.as_ref().expect("a write is attended until it is dropped")
    }
}

impl DerefMut for Attended<'_> {
    #[expect(clippy::expect_used, reason = "taken only by drop")]
    fn deref_mut(&mut self) -> &mut Writing {
        self.writing.as_mut().expect("a write is attended until it is dropped")
    }
}

impl Drop for Attended<'_> {
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take().filter(|w| w.fold.maybe_stored()) {
            self.stragglers.take(writing);
        }
    }
}

/// The writes that go on behind their answers.
pub(super) struct Stragglers {
    peers: Arc<dyn Peers>,
    reach: Arc<Reach>,
    queue: Mutex<Queue>,
}

impl Stragglers {
    pub(super) fn new(peers: Arc<dyn Peers>, reach: Arc<Reach>) -> Self {
        Self { peers, reach, queue: Mutex::default() }
    }

    /// Sees to it that a write is looked after whatever becomes of its driver.
    pub(super) fn attend(&self, writing: Writing) -> Attended<'_> {
        Attended { writing: Some(writing), stragglers: self }
    }

    /// Looks after a write from here on. One that has heard of everybody is finished at once.
    fn take(&self, mut writing: Writing) {
        self.drain(&mut writing);
        if !writing.fold.is_open() {
            return self.finish(&writing);
        }
        let mut dropped: SmallVec<[Writing; 1]> = SmallVec::new();
        {
            let mut queue = self.queue.lock();
            queue.bytes += writing.record.content_bytes();
            queue.writes.push_back(writing);
            while queue.writes.len() > WRITES_MAX || queue.bytes > BYTES_MAX {
                let Some(oldest) = queue.writes.pop_front() else { break };
                queue.bytes -= oldest.record.content_bytes();
                dropped.push(oldest);
            }
        }
        dropped.iter().for_each(|writing| self.finish(writing));
    }

    pub(super) async fn run(self: Arc<Self>) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.look();
        }
    }

    fn look(&self) {
        let writes = {
            let mut queue = self.queue.lock();
            queue.bytes = 0;
            std::mem::take(&mut queue.writes)
        };
        let now = Instant::now();
        let mut open = VecDeque::new();
        for mut writing in writes {
            self.drain(&mut writing);
            if writing.fold.is_open() && now < writing.deadline {
                open.push_back(writing);
            } else {
                self.finish(&writing);
            }
        }
        let mut queue = self.queue.lock();
        queue.bytes += open.iter().map(|w| w.record.content_bytes()).sum::<usize>();
        // Those taken meanwhile are younger.
        open.append(&mut queue.writes);
        queue.writes = open;
    }

    /// Tells the fold what has come. Nobody is asked for anything more: the client was answered, or is about to be.
    pub(super) fn drain(&self, writing: &mut Writing) {
        while let Some((tag, answer)) = writing.answers.try_next() {
            let tag = Tag::unpack(tag);
            if answer.is_ok() {
                self.reach.heard(tag.from());
            }
            writing.on_answer(tag, &answer, &|_| Ask::No);
        }
    }

    fn finish(&self, writing: &Writing) {
        for ask in writing.fold.leftovers(&|n| self.reach.ask_unprobed(n)) {
            // The client's time is usually over by now; the mesh's own deadline counts.
            writing.send(&*self.peers, ask, None);
        }
    }
}
