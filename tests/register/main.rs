//! The register's folds and the replica's rules, as they are in production, in a world that holds nothing else.
//!
//! [`world`] is that world: three replicas, a few clients, and every message that may still arrive. [`spec`] is what the
//! clients believe they talk to. [`exhaustive`] searches all that can happen in small cases; [`chance`] walks at random
//! through larger ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod chance;
mod client;
mod exhaustive;
mod spec;
mod world;
