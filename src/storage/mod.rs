//! The production `Store`: one SQLite database a node, in its data directory.
//!
//! ```text
//! submit ---> write queue ---> writer thread: engine, one transaction a batch ---> answers, after the commit
//!        \--> read queue ----> reader threads: one snapshot a drain -------------> answers
//!                              checkpointer thread: the log into the database, in steps
//!                              counter thread: slot by slot after an unclean stop, and where sums are in doubt
//!                              walker thread: once through all pages of a database too large for that at its start
//! ```
//!
//! Invariants:
//! - **Persist before you speak**: what an answer acknowledges is on disk (`DURABILITY` says what that means).
//! - A record is verified by its checksum whenever it leaves the disk; a row that fails is missing and suspect. A register
//!   is verified too, but one that fails is never missing: it refuses, as what it promised is not known.
//! - A failed write or sync ends writing for good; a full disk only refuses, until there is space.
//! - One process has the directory.
//!
//! - A database that is damaged outside of its rows is not served on where others have its records: it is moved aside, and
//!   the directory becomes a new instance's (`data_dir`, `examine`).
//!
//! Caveats: SQLite has no checksums of pages, so damage outside of rows shows as `SQLITE_CORRUPT`, as rows out of order or as
//! a row that is none (`walk`); copies on other nodes are what heals it. Mapped pages are read without a system call, and a disk
//! that fails under them kills the process instead of failing the read.

mod backup;
mod book;
mod checkpoint;
mod commit;
mod connection;
mod count;
mod data_dir;
mod dropping;
mod ends;
mod engine;
mod examine;
mod facts;
mod floors;
mod hints;
mod holdings;
mod identity;
mod inline;
mod meters;
mod migrations;
mod opening;
mod purge;
mod read;
mod register;
mod remains;
mod row;
mod saved;
mod scan;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod threads;
mod transfer;
mod tree;
mod walk;

pub use backup::{ExportError, RestoreError, RestoreOptions, Restored, export, restore};
pub use connection::Durability;
pub use data_dir::identity_of;
pub use engine::{BatchError, Change, Engine, Now, Outcome};
pub use opening::OpenError;
pub use store::{Options, SqliteStore};
