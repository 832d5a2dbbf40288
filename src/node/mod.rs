//! The drivers: asynchronous, over `protocol` and the ports. They send and wait; decisions are made by folds.

pub mod clock;
pub mod coordinator;
pub mod directory;
#[cfg(test)]
mod fakes;
pub mod founding;
pub mod gossip;
pub mod handoff;
pub mod reach;
pub mod replica;
pub mod request;
pub mod routing;
pub mod views;
