//! Addresses that gossip goes to and where another cluster answers. Each is told of once, not with every packet, and
//! again after somebody else answered there.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::ports::{PeerError, PeerReply};

#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<BTreeSet<String>>);

impl Strangers {
    pub(super) fn note(&self, address: &str, answer: &Result<PeerReply, PeerError>) {
        match answer {
            Err(PeerError::ForeignCluster(cluster)) => {
                if self.0.lock().insert(address.to_owned()) {
                    tracing::warn!(address, %cluster, "another cluster answers there; check SEEDS");
                }
            }
            Ok(_) => drop(self.0.lock().remove(address)),
            Err(_) => {}
        }
    }
}
