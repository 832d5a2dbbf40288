//! The replica: requests of peers, handed to the store.
