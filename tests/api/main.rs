//! The REST API from end to end: real nodes in this process, asked over HTTP.
//!
//! Reading order: `values` (what goes in comes out), `answers` (statuses, versions, receipts), `conditions` (who writes
//! under one), `ends` (values that live for a while), `refusals` (what is refused, and that nothing was written), `outage` (a home replica is gone, and
//! returns), `batch` (several operations in one request), `change` (what a change of the topology would do, and asking for one), `moving` (all of it out, and in), `healing` (whether the copies agree, and repairing them), `views` (what a node tells of itself), `browser`
//! (what pages of other origins may do),
//! `console` (the page for people, and the stream that it follows).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod answers;
mod batch;
mod browser;
mod change;
mod client;
mod conditions;
mod console;
mod ends;
mod harness;
mod healing;
mod listing;
mod moving;
mod outage;
mod refusals;
mod tombstones;
mod values;
mod views;
mod watch;
