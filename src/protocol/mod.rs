//! The decisions: pure, synchronous, without a clock; randomness only as an argument; ordered collections only.
//!
//! Every protocol is a fold (told what came, it says where it stands; side effects are returned as data); `node` drives it.

pub mod catch_up;
pub mod founding;
pub mod hashtree;
pub mod hints;
pub mod latency;
pub mod listing;
pub mod membership;
pub mod planner;
pub mod purge;
pub mod quorum;
pub mod reach;
pub mod register;
pub mod replica;
pub mod ring;
pub mod skew;
pub mod succession;
pub mod watch;
