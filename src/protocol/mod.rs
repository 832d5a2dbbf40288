//! The decisions: pure, synchronous, without a clock; randomness only as an argument; ordered collections only.
//!
//! Every protocol is a fold (`new`, `on_reply`, a verdict, side effects returned as data); `node` drives it.

pub mod founding;
pub mod hints;
pub mod membership;
pub mod planner;
pub mod quorum;
pub mod reach;
pub mod replica;
pub mod ring;
pub mod skew;
