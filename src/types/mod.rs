//! The vocabulary: plain values that every layer shares. No I/O, no async, no clock, no randomness.
//!
//! Invariants are kept by construction: a [`Key`] is never empty or over its limit, a [`Version`] orders like the
//! design says, a [`Record`] carries the checksum of all it is.

mod backup;
mod change;
mod condition;
mod edit;
mod id;
mod identity;
mod key;
mod level;
pub mod limits;
mod listing;
mod peer;
mod proposal;
mod purge;
mod record;
mod register;
mod replica;
pub mod text;
mod topology;
pub mod trace;
mod tree;
mod version;

pub use backup::{BackupAbout, BackupRows};
pub use change::{ChangeKind, ChangesAsk, ChangesPage, KeyChange, Position, Watched};
pub use condition::{Condition, Tags};
pub use edit::{Edit, NewContent, Ttl};
pub use id::{ClusterId, Epoch, InstanceId, NodeNum, OpId, Writer};
pub use identity::Identity;
pub use key::{Key, KeyError, Slot, Token, TokenSeed};
pub use level::{Level, LevelParseError, majority};
pub use listing::{Outline, Scan, ScanEntry, ScanPage};
pub use peer::{
    Agreement, Announcement, CatchUp, ChunkHashes, ChunkState, Convergence, Difference, Exchange, InfoStamp, Look,
    NodeInfo, NodeState, PeerReply, PeerRequest,
};
pub use proposal::{Proposal, Verdict};
pub use purge::{Dropped, PurgeReply, PurgeStatus, PurgeStep, Sealed, SlotDrop, SlotFloor, Survey};
pub use record::{Content, ContentType, ContentTypeError, Floor, Record};
pub use register::{Accepted, Ballot, Idempotency, Promise, Recent, Register, Remembered, RememberedAnswer};
pub use replica::{Answer, PeerError, ReadPart, Refusal, ReplicaReply, ReplicaRequest, Seen};
pub use topology::{Member, Moving, Topology, TopologyChange, TopologyError, Vote};
pub use trace::Trace;
pub use tree::{Digest, Entry, Leaf, LeafSet, SlotSet, Span, Sum};
pub use version::{Hlc, HybridClock, Version, VersionParseError};
