//! The register of a key: consensus on what a conditional write does, mixed with plain reads and writes.
//!
//! Plain writes are ordered by stamps alone and need no agreement (`quorum`). A conditional write must know what it
//! replaces, so proposers agree on it: [`replica`] says what a replica promises and accepts, [`proposer`] is the fold of
//! one operation, from prepare over accept to the write that makes it visible.
//!
//! What makes the two mix is the version: a conditional write takes the next even count *on top of the version it was
//! judged on*, so it never jumps over a plain write that it has not seen.
//!
//! A value whose time is up is a base like its tombstone. That the value has ended is told of a register only once a
//! majority has accepted that tombstone under one ballot: a conditional write upon the value may have been accepted by a
//! minority, and would otherwise come to be after its end was told.
//!
//! Sources: Rystsov, "CASPaxos" (2018); Burke et al., "Gryff: Unifying consensus and shared registers" (NSDI 2020).
//!
//! Invariants:
//! - What was accepted by a majority stays: whoever prepares later finds it, and builds on it or writes it.
//! - A row holds a conditional write only after a majority accepted it.
//! - Every verdict but `Unknown` is definite.

mod found;
mod proposer;
mod replica;

pub use proposer::{ProposerFold, Step};
pub use replica::{accept, prepare};

#[cfg(test)]
mod end_tests;
#[cfg(test)]
mod proposer_tests;
#[cfg(test)]
mod testing;
