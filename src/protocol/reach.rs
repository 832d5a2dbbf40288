//! Which peers are worth asking, and for how long to wait: what is known of one peer, from its answers.
//!
//! - A peer that gossip holds for down is asked only where nobody else is left.
//! - A **hang** is a request without an answer within the patience. Three in a row make a peer unreachable; then one
//!   probe a second tries it (and whoever has nobody else to ask), and any answer makes it reachable again. One stall
//!   of a peer lets every request under way hang together, so hangs within one patience of a counted one are the same
//!   hang.
//! - The patience follows the peer's usual p99. That is estimated by a value which each slower answer raises by a
//!   16th and each faster one lowers by a 1600th: it rests where one answer in about a hundred is slower.

use std::time::Duration;

/// Whether a request may go to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Yes,
    /// It hung lately and is being tried: ask it, but a stand-in beside it at once.
    Probe,
    /// It hung lately, or gossip holds it for down, though it is connected: ask it where nobody else is left to ask.
    /// Slow is not dead, and a request that waits for it is better off than one that is refused.
    Last,
    /// It is not connected: nothing would leave.
    No,
}

/// The shortest patience, in microseconds: a local disk that syncs must not look like a hang.
const PATIENCE_MIN_US: u64 = 50_000;
/// The longest: beyond it, waiting costs clients more than a stand-in does.
const PATIENCE_MAX_US: u64 = 1_000_000;
/// The patience in units of the usual p99.
const PATIENCE_P99S: u64 = 4;
/// So many hangs in a row make a peer unreachable.
const HANGS_MAX: u32 = 3;
/// Between two probes of an unreachable peer, in microseconds.
const PROBE_EVERY_US: u64 = 1_000_000;

/// One peer. Times named `now_us` are microseconds of one monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct PeerReach {
    down: bool,
    hangs: u32,
    /// Hangs before this time belong to the one counted last.
    same_hang_until_us: u64,
    next_probe_us: u64,
    /// The estimate of its p99, kept within what the limits of the patience leave of use.
    p99_us: u64,
}

impl Default for PeerReach {
    fn default() -> Self {
        Self { down: false, hangs: 0, same_hang_until_us: 0, next_probe_us: 0, p99_us: PATIENCE_MIN_US / PATIENCE_P99S }
    }
}

impl PeerReach {
    /// Whether to ask it now. A `Probe` is given once a second: whoever gets it should send.
    pub fn ask(&mut self, now_us: u64) -> Ask {
        if self.down {
            Ask::Last
        } else if self.hangs < HANGS_MAX {
            Ask::Yes
        } else if now_us >= self.next_probe_us {
            self.next_probe_us = now_us + PROBE_EVERY_US;
            Ask::Probe
        } else {
            Ask::Last
        }
    }

    /// Whether it would be asked without hesitation. Takes no probe.
    pub fn is_reachable(&self) -> bool {
        !self.down && self.hangs < HANGS_MAX
    }

    /// It answered, however late. True where that made it reachable again.
    pub fn answered(&mut self, took_us: u64) -> bool {
        let back = self.heard();
        let moved =
            if took_us > self.p99_us { self.p99_us + self.p99_us / 16 } else { self.p99_us - self.p99_us / 1600 };
        self.p99_us = moved.clamp(PATIENCE_MIN_US / PATIENCE_P99S, PATIENCE_MAX_US / PATIENCE_P99S);
        back
    }

    /// It answered, nobody knows after how long. True where that made it reachable again.
    pub fn heard(&mut self) -> bool {
        let was_hanging = self.hangs >= HANGS_MAX;
        self.hangs = 0;
        self.same_hang_until_us = 0;
        was_hanging && !self.down
    }

    /// It did not answer within the patience. True where that made it unreachable.
    pub fn hung(&mut self, now_us: u64) -> bool {
        if now_us < self.same_hang_until_us {
            return false;
        }
        self.hangs += 1;
        self.same_hang_until_us = now_us + self.patience_us();
        if self.hangs == HANGS_MAX {
            self.next_probe_us = now_us + PROBE_EVERY_US;
        }
        self.hangs == HANGS_MAX
    }

    /// What gossip holds of it. One that comes back starts afresh; true then.
    pub fn gossip(&mut self, down: bool) -> bool {
        let back = self.down && !down;
        self.down = down;
        if back {
            self.hangs = 0;
            self.same_hang_until_us = 0;
        }
        back
    }

    /// How long to wait for it before a stand-in is asked beside it.
    pub fn patience(&self) -> Duration {
        Duration::from_micros(self.patience_us())
    }

    fn patience_us(&self) -> u64 {
        self.p99_us * PATIENCE_P99S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    #[test]
    fn three_hangs_in_a_row_end_it_and_one_answer_mends_it() {
        let mut peer = PeerReach::default();
        for now in [0, 60 * MS] {
            assert!(!peer.hung(now));
            assert_eq!(peer.ask(now), Ask::Yes);
        }
        assert!(peer.hung(120 * MS));
        assert_eq!(peer.ask(121 * MS), Ask::Last);
        assert_eq!(peer.ask(1_120 * MS), Ask::Probe);
        assert_eq!(peer.ask(1_121 * MS), Ask::Last, "one probe a second");
        assert_eq!(peer.ask(2_120 * MS), Ask::Probe);
        assert!(!peer.hung(2_170 * MS));
        assert_eq!(peer.ask(2_180 * MS), Ask::Last);
        assert!(peer.answered(90 * MS));
        assert_eq!(peer.ask(2_181 * MS), Ask::Yes);
    }

    #[test]
    fn an_answer_between_breaks_the_row() {
        let mut peer = PeerReach::default();
        for round in 0..10 {
            peer.hung(round * 200 * MS);
            peer.hung(round * 200 * MS + 100 * MS);
            peer.answered(MS);
        }
        assert!(peer.is_reachable());
    }

    #[test]
    fn one_stall_is_one_hang_however_many_requests_wait() {
        let mut peer = PeerReach::default();
        for request in 0..64 {
            assert!(!peer.hung(request * 700));
        }
        assert!(peer.is_reachable());
    }

    #[test]
    fn gossip_rules_a_peer_out_and_in() {
        let mut peer = PeerReach::default();
        assert!(!peer.gossip(true));
        assert_eq!(peer.ask(0), Ask::Last);
        assert!(!peer.answered(MS), "an answer does not overrule gossip");
        assert!(peer.gossip(false));
        assert_eq!(peer.ask(0), Ask::Yes);
    }

    #[test]
    fn the_patience_follows_the_p99_within_its_limits() {
        let mut peer = PeerReach::default();
        // 97 of 100 take 10 ms, 3 take 60 ms: the p99 is 60 ms.
        for n in 0..20_000u64 {
            peer.answered(if n % 100 < 97 { 10 * MS } else { 60 * MS });
        }
        let patience = peer.patience().as_millis();
        assert!((200..=270).contains(&patience), "{patience} ms");
        for _ in 0..20_000 {
            peer.answered(MS);
        }
        assert_eq!(peer.patience(), Duration::from_millis(50));
        for _ in 0..1_000 {
            peer.answered(u64::MAX);
        }
        assert_eq!(peer.patience(), Duration::from_secs(1));
    }
}
