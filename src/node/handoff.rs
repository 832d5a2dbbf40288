//! Delivering hints.
