//! a3.store: a distributed key-value store in one binary.
//!
//! # The map
//!
//! ```text
//!    types  <-  protocol  <-  ports  <-  { storage | mesh | node <- http }  <-  server  <-  main, cli
//! ```
//!
//! A layer may use any layer to its left. `storage`, `mesh` and `node` never use each other and meet only in `server`.
//! `tests/architecture.rs` fails the build when this is broken.
//!
//! | module | what it is |
//! |---|---|
//! | `types` | the vocabulary: key, version, record, level, topology; no I/O, no clock |
//! | `protocol` | the decisions, as pure folds and rules: placement, quorums, what a replica does with a message |
//! | `ports` | what a node needs from the world: a clock, a store, peers |
//! | `storage` | the store over SQLite: one writer that commits what queued up, readers beside it |
//! | `mesh` | the peers over gRPC: requests that queued up travel together |
//! | `node` | the drivers: they send and wait, and let `protocol` decide |
//! | `http` | REST, its documentation, and what people look at |
//! | `server` | the wiring: the only file that knows every module |
//! | `config` | settings, checked once and handed down in pieces |
//! | `cli` | the commands |
//! | `metrics` | every metric's name, unit and help in one table |
//! | `system` | the machine behind the ports: wall clock, randomness, tasks |
//!
//! # Reading order
//!
//! `types::key` and `types::version`, then `ports`, then `protocol::replica` and `protocol::quorum`: with these four the
//! rest is plumbing. Then follow one write down: `http`, `node::coordinator`, `mesh`, `node::replica`, `storage`.
//!
//! # Words
//!
//! A *node* is a process, a *member* a node as the *topology* lists it, numbered by *epoch*. A key's *token* is its
//! hash, a *slot* one of 256 equal pieces of the keyspace, and the *ring* says which *home replicas* keep a slot. The
//! *coordinator* is the node a client asked. A *fallback* stands in for a home replica that cannot be reached and keeps
//! a *hint* for it, which *handoff* delivers. A *version* says which write a record came from; the greater wins.

pub mod cli;
pub mod config;
pub mod http;
pub mod mesh;
pub mod metrics;
pub mod node;
pub mod ports;
pub mod protocol;
pub mod server;
pub mod storage;
pub mod system;
pub mod types;
