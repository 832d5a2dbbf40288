//! a3.store: a distributed key-value store in one binary. This page is the map.
//!
//! ```text
//!   main, cli            the command line
//!      |
//!   server               wiring: the only file that knows every room
//!      |
//!   +--+---------+-----------+
//!   storage     mesh        http        SQLite | gRPC between nodes | REST for clients
//!   |            |           |
//!   |            |          node        drivers: they send and wait
//!   +-----+------+-----------+
//!         ports                         what a node needs from the world, and the world from a node
//!           |
//!        protocol                       decisions: pure, synchronous, no clock, no chance
//!           |
//!         types                         the vocabulary
//! ```
//!
//! A layer may use any layer below it, and nothing else: `storage`, `mesh` and `node` never use each other and meet only in
//! `server`. `tests/architecture.rs` fails when that is broken.
//!
//! Beside the stairs: [`metrics`], one table of all that is measured, and [`system`], the real clock, chance and tasks.
//!
//! # In which order to read
//!
//! 1. [`types`]: a key, its token, a version, a record, a topology.
//! 2. [`ports`]: the handful of verbs that everything else is written against.
//! 3. [`protocol::replica`] and [`protocol::quorum`]: what a replica does with a write, and when a write is written.
//! 4. [`node::coordinator`]: the driver that carries a client's request to its replicas.
//! 5. [`protocol::register`] and [`node::conditional`]: how of many conditional writes exactly one wins.
//! 6. [`storage`] and [`mesh`]: how a batch becomes one transaction, how requests become one message.
//! 7. [`protocol::ring`], [`protocol::planner`], [`protocol::founding`], [`protocol::membership`]: who keeps what, and who is there.
//! 8. [`protocol::listing`] and [`node::listing`]: keys in order, from all nodes together.
//! 9. [`http`], [`config`], [`cli`], [`server`]: the doors.
//!
//! A client's PUT enters each file once on the way down and leaves it once on the way up: `http::kv`, `node::coordinator`,
//! (`types`, `protocol::ring`, `protocol::quorum`), `ports::Peers`, `mesh` on this side and on the other, `node::replica`,
//! `storage` (commit, engine); then the fold says it is met and `http::kv` answers.
//!
//! # Glossary
//!
//! *node* a process · *member* a node as the topology lists it · *peer* the other end of a mesh call · *token* 64-bit
//! hash of a key · *slot* one of 256 equal pieces of the keyspace · *home replica* a node that owns a slot · *fallback*
//! a node standing in for an unreachable home replica · *ring* the table from slots to home replicas · *preference list* the
//! home replicas of a slot, then the fallbacks in order · *coordinator* the node a client asked · *hint* a record a
//! fallback keeps for its home replica · *handoff* delivering hints · *read repair* writing the newest copy back where
//! a read found an older one · *topology* the member list and ring, numbered by *epoch* · *write sets* the replica sets
//! a write must satisfy · *version* clock, writer number and count of conditional writes of a record · *ballot* what a
//! proposer prepares with · *tombstone* a deleted key's record · *floor* what a slot has purged up to · *level* the consistency of a request.

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
