//! The directory: where each member is now, whether it lives, and what it told about itself.
//!
//! Gossip fills it; views and drivers read it. Only members of the topology are in it. It is memory only: after a
//! restart it fills within seconds.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::views::Liveness;
use crate::ports::{InfoStamp, NodeInfo};
use crate::types::{InstanceId, NodeNum};

/// What is known of one member.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub instance: InstanceId,
    /// Where its mesh listens; `None` until gossip heard of it since this node's start.
    pub mesh_address: Option<Arc<str>>,
    /// `Down` until it was heard of.
    pub liveness: Liveness,
    /// The newest it told about itself.
    pub info: Option<Arc<NodeInfo>>,
}

impl Entry {
    fn unheard(instance: InstanceId) -> Self {
        Self { instance, mesh_address: None, liveness: Liveness::Down, info: None }
    }
}

#[derive(Debug, Default)]
pub struct Directory(RwLock<BTreeMap<NodeNum, Entry>>);

impl Directory {
    pub fn get(&self, node: NodeNum) -> Option<Entry> {
        self.0.read().get(&node).cloned()
    }

    /// All members heard of, in order; this node is among them once its gossip runs.
    pub fn all(&self) -> BTreeMap<NodeNum, Entry> {
        self.0.read().clone()
    }

    /// `Down` for a member not heard of.
    pub fn liveness(&self, node: NodeNum) -> Liveness {
        self.0.read().get(&node).map_or(Liveness::Down, |e| e.liveness)
    }

    /// How many members other than this one are held to be so.
    pub fn count(&self, but: NodeNum, liveness: Liveness) -> usize {
        self.0.read().iter().filter(|(node, e)| **node != but && e.liveness == liveness).count()
    }

    pub fn info(&self, node: NodeNum) -> Option<Arc<NodeInfo>> {
        self.0.read().get(&node).and_then(|e| e.info.clone())
    }

    /// Sets what gossip holds of a member, and answers what stood there. Another instance starts anew.
    pub(super) fn set(
        &self,
        node: NodeNum,
        instance: InstanceId,
        address: Arc<str>,
        liveness: Liveness,
    ) -> Option<Entry> {
        let mut entries = self.0.write();
        let before = entries.get(&node).filter(|e| e.instance == instance).cloned();
        let info = before.as_ref().and_then(|e| e.info.clone());
        entries.insert(node, Entry { instance, mesh_address: Some(address), liveness, info });
        before
    }

    /// Takes an info if it is the newest of its instance; says whether it was.
    pub(super) fn learn(&self, info: NodeInfo) -> bool {
        let InfoStamp { node, instance, .. } = info.stamp;
        let mut entries = self.0.write();
        let entry = entries.entry(node).or_insert_with(|| Entry::unheard(instance));
        if entry.instance != instance {
            *entry = Entry::unheard(instance);
        }
        let newer = entry.info.as_ref().is_none_or(|known| info.stamp.newer_than(&known.stamp));
        if newer {
            entry.info = Some(Arc::new(info));
        }
        newer
    }

    /// The stamp of every info held.
    pub(super) fn digest(&self) -> Vec<InfoStamp> {
        self.0.read().values().filter_map(|e| e.info.as_ref()).map(|info| info.stamp).collect()
    }

    /// The infos that whoever has this digest lacks.
    pub(super) fn lacking(&self, digest: &[InfoStamp]) -> Vec<NodeInfo> {
        let known: BTreeMap<InstanceId, &InfoStamp> = digest.iter().map(|s| (s.instance, s)).collect();
        let entries = self.0.read();
        let infos = entries.values().filter_map(|e| e.info.as_deref());
        infos
            .filter(|info| known.get(&info.stamp.instance).is_none_or(|theirs| info.stamp.newer_than(theirs)))
            .cloned()
            .collect()
    }
}
