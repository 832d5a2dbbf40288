//! The schedule of handoff.
