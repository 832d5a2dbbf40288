//! a3.store.

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
