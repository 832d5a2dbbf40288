//! Connections for calls, by address: made when they are first used, each reconnects by itself when it is used again.
//!
//! Invariant: what is under way on one connection is bounded in calls and in bytes, and a call beyond that is refused
//! before any of it is sent. So no call waits unseen in HTTP/2, from where it might leave after its caller gave up.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::transport::Channel;

use super::client::Shared;
use super::endpoint::{self, STREAMS_MAX};
use crate::ports::PeerError;

/// At most [`channels_max`](super::Options::channels_max) connections; the one unused for longest gives way.
#[derive(Default)]
pub(super) struct Channels(Mutex<Open>);

#[derive(Default)]
struct Open {
    by_address: BTreeMap<String, (u64, Line)>,
    /// Counts uses, to tell which line went unused for longest.
    uses: u64,
}

/// One connection, and the room for calls on it.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) channel: Channel,
    room: Arc<Room>,
}

struct Room {
    calls: Semaphore,
    bytes: Semaphore,
    bytes_max: usize,
}

impl Channels {
    /// The connection to that address. Nothing is sent, and a call on it keeps it open even where it gave way.
    ///
    /// # Errors
    /// [`PeerError::Unreachable`] when that is no address.
    pub(super) fn to(&self, address: &str, shared: &Shared) -> Result<Line, PeerError> {
        let mut open = self.0.lock();
        open.uses += 1;
        let now = open.uses;
        if let Some((used, line)) = open.by_address.get_mut(address) {
            *used = now;
            return Ok(line.clone());
        }
        let options = &shared.options;
        let channel = endpoint::endpoint(address, options, &shared.spawn)?.connect_lazy();
        let bytes_max = options.bytes_in_flight_max.min(Semaphore::MAX_PERMITS);
        let room = Room { calls: Semaphore::new(STREAMS_MAX as usize), bytes: Semaphore::new(bytes_max), bytes_max };
        let line = Line { channel, room: Arc::new(room) };
        if open.by_address.len() >= options.channels_max {
            let oldest = open.by_address.iter().min_by_key(|(_, (used, _))| *used).map(|(address, _)| address.clone());
            oldest.map(|address| open.by_address.remove(&address));
        }
        open.by_address.insert(address.to_owned(), (now, line.clone()));
        Ok(line)
    }
}

impl Line {
    /// Takes the room for a call of that many bytes, for as long as the permits live. One call always fits.
    ///
    /// # Errors
    /// [`PeerError::Overloaded`] where there is none; nothing was sent.
    pub(super) fn enter(&self, bytes: usize) -> Result<[SemaphorePermit<'_>; 2], PeerError> {
        let room = &*self.room;
        // No message is longer than 4 GiB.
        let bytes = u32::try_from(bytes.min(room.bytes_max)).unwrap_or(u32::MAX);
        match (room.calls.try_acquire(), room.bytes.try_acquire_many(bytes)) {
            (Ok(call), Ok(bytes)) => Ok([call, bytes]),
            _ => Err(PeerError::Overloaded),
        }
    }
}
