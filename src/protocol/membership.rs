//! The adapter over the SWIM machine.
