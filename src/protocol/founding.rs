//! First start: how nodes without a topology become one cluster, and never two.
//!
//! Every node announces itself to its seeds and to whoever it hears of, again and again. Once exactly `CLUSTER_SIZE`
//! instances have all heard each other, the lowest number among them proposes epoch 1 from exactly those. Each accepts
//! on disk; when all have, the proposer commits by storing the topology, and tells the others.
//!
//! Invariants, on which it rests that a set of nodes founds one cluster:
//! - Only the proposer commits, and only what every instance named in it has accepted.
//! - An instance that accepted a proposal accepts another only from the same proposer's instance: its first one may
//!   be committed without its knowing. The proposer knows whether it committed, so it may replace its own.
//! - An instance whose identity names a cluster accepts nothing.
//!
//! Whoever accepted and did not hear the end asks the others: a committed topology is taken from anyone.
//!
//! Caveat: a proposer that is lost for good between acceptance and commit leaves the others waiting, since nobody
//! can tell whether it committed. The text of [`Gathering::waiting`] says so; nothing was stored by then, so their data
//! directories may be removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::planner;
use crate::types::{Announcement, ClusterId, Epoch, InstanceId, Member, NodeNum, Topology, Writer};

/// Who was not heard from for this long does not take part. Everybody announces at least every second or two.
pub const HEARD_FOR: Duration = Duration::from_secs(5);

type Who = (NodeNum, InstanceId);

/// Why the start ends here. Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    #[error(
        "two nodes are started as {node}: instance {mine} at {here} (this one) and instance {other} at {there}; \
         stop one of them or give it another NODE_NUM"
    )]
    SameNumber { node: NodeNum, mine: InstanceId, here: String, other: InstanceId, there: String },
    #[error(
        "{setting} differs: {mine} here and {other} at {who} ({there}); nodes that found a cluster together need the \
         same"
    )]
    Mismatch { setting: &'static str, mine: u64, other: u64, who: NodeNum, there: String },
    #[error(
        "cluster {cluster} has {node} as instance {listed} at {there}, and this data directory is instance {mine}; \
         start {node} with the data directory of that instance"
    )]
    Replaced { cluster: ClusterId, node: NodeNum, listed: InstanceId, there: String, mine: InstanceId },
    #[error(
        "{node} comes from a backup as a new instance, and the old one goes on: {why}; only one of them may be started"
    )]
    Lives { node: NodeNum, why: String },
    #[error(
        "{node} (instance {mine}) is not a member of cluster {cluster} any more: it was removed; in epoch {epoch} the members are \
         {members}. It left, or the change by which it joined was taken back. Its data directory is no member's and may be deleted; with \
         an empty one it can join anew"
    )]
    Removed { cluster: ClusterId, node: NodeNum, mine: InstanceId, epoch: Epoch, members: String },
    /// It is to ask for a place.
    #[error("cluster {cluster} has the members {members}, and {node} is not one of them yet")]
    NotListed { cluster: ClusterId, node: NodeNum, members: String },
    #[error(
        "{node} is a member of cluster {cluster} already (instance {listed} at {there}), and a3 join adds one: give this node a number \
         that none of {members} has; or, to put it in the place of that member once that is down for good, a3 replace {node}"
    )]
    NumberTaken { cluster: ClusterId, node: NodeNum, listed: InstanceId, there: String, members: String },
    #[error(
        "cluster {cluster} has no member {node} whose place could be taken, it has {members}: give the number of one of them; or, to add \
         {node} as one member more, a3 join --node-num {}", node.0
    )]
    NumberFree { cluster: ClusterId, node: NodeNum, members: String },
    #[error("this data directory belongs to cluster {mine}, and {there} to cluster {theirs}; check SEEDS and DATA_DIR")]
    Foreign { mine: ClusterId, theirs: ClusterId, there: String },
    #[error(
        "this data directory belongs to cluster {cluster}, but its database is gone; a replica without its records must \
         not answer for them: put the database back"
    )]
    DatabaseLost { cluster: ClusterId },
    #[error(
        "CLUSTER_SIZE is {cluster_size} and there are no SEEDS to find the others; set SEEDS, or CLUSTER_SIZE=1 for a \
         cluster of its own"
    )]
    Alone { cluster_size: u16 },
    #[error(
        "this data directory has accepted to found a cluster with {members} and may belong to it; start with SEEDS \
         that lead to them, or remove the data directory, which holds no data yet"
    )]
    Promised { members: String },
}

/// The place that a new instance asks a cluster for. One that has it is that member, whatever it asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Whichever its number stands for.
    #[default]
    Any,
    /// One more: its number must be nobody's.
    OfItsOwn,
    /// That of the member of its number.
    OfAMember,
}

impl Place {
    /// Whether there is such a place for that instance.
    ///
    /// # Errors
    /// Why there is none, and what a person can do.
    pub fn is_in(self, topology: &Topology, me: &Announcement) -> Result<(), Stop> {
        let (cluster, node) = (topology.cluster_id, me.node);
        let members = || list(topology.members.iter().map(|m| &m.node));
        match (self, topology.member(node)) {
            (Place::OfItsOwn, Some(m)) if m.instance != me.instance => {
                let (listed, there) = (m.instance, m.mesh_address.clone());
                Err(Stop::NumberTaken { cluster, node, listed, there, members: members() })
            }
            (Place::OfAMember, None) => Err(Stop::NumberFree { cluster, node, members: members() }),
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Heard {
    announcement: Announcement,
    at: Duration,
    /// Whom it listed when it last answered, and when that was.
    lists: Option<(Duration, BTreeSet<Who>)>,
}

/// Who is there: the fold over announcements and answers to ours. `now` is the time since the node's start.
#[derive(Debug)]
pub struct Gathering {
    me: Announcement,
    heard: BTreeMap<Who, Heard>,
    /// Addresses that others told of, and when they last did.
    told: BTreeMap<String, Duration>,
    /// Addresses that gave no answer at the last try, and why.
    failing: BTreeMap<String, String>,
    /// Addresses at which this node met itself.
    own: BTreeSet<String>,
}

impl Gathering {
    pub fn new(me: Announcement) -> Self {
        let own = BTreeSet::from([me.mesh_address.clone()]);
        Self { me, heard: BTreeMap::new(), told: BTreeMap::new(), failing: BTreeMap::new(), own }
    }

    /// Somebody announced itself to this node. What it must stop for is left to the answers: they prove that the
    /// other is alive now, where an announcement may have been long on its way.
    pub fn announced(&mut self, other: Announcement, now: Duration) {
        self.told.insert(other.mesh_address.clone(), now);
        if other.node != self.me.node && self.mismatch(&other).is_none() {
            self.hear(other, now);
        }
    }

    /// An address answered: `heard` starts with the answerer.
    ///
    /// # Errors
    /// When the answerer and this node cannot be of one cluster.
    pub fn answered(&mut self, address: &str, heard: Vec<Announcement>, now: Duration) -> Result<(), Stop> {
        self.failing.remove(address);
        let Some(answerer) = heard.first().cloned() else { return Ok(()) };
        if answerer.instance == self.me.instance {
            self.own.insert(address.to_owned());
            return Ok(());
        }
        if answerer.node == self.me.node {
            return Err(Stop::SameNumber {
                node: self.me.node,
                mine: self.me.instance,
                here: self.me.mesh_address.clone(),
                other: answerer.instance,
                there: answerer.mesh_address,
            });
        }
        if let Some(stop) = self.mismatch(&answerer) {
            return Err(stop);
        }
        for other in &heard[1..] {
            self.told.insert(other.mesh_address.clone(), now);
        }
        let lists = heard.iter().map(Announcement::who).collect();
        self.hear(answerer, now).lists = Some((now, lists));
        Ok(())
    }

    /// An address gave no answer, or refused.
    pub fn failed(&mut self, address: &str, why: String) {
        self.failing.insert(address.to_owned(), why);
    }

    fn hear(&mut self, other: Announcement, now: Duration) -> &mut Heard {
        let heard = self.heard.entry(other.who()).or_insert_with(|| Heard {
            announcement: other.clone(),
            at: now,
            lists: None,
        });
        heard.announcement = other;
        heard.at = now;
        heard
    }

    fn mismatch(&self, other: &Announcement) -> Option<Stop> {
        let (setting, mine, theirs) = if self.me.cluster_size != other.cluster_size {
            ("CLUSTER_SIZE", self.me.cluster_size.into(), other.cluster_size.into())
        } else if self.me.rf != other.rf {
            ("REPLICATION_FACTOR", self.me.rf.into(), other.rf.into())
        } else {
            return None;
        };
        Some(Stop::Mismatch { setting, mine, other: theirs, who: other.node, there: other.mesh_address.clone() })
    }

    /// Forgets who has been silent for too long.
    pub fn expire(&mut self, now: Duration) {
        self.heard.retain(|_, h| now.saturating_sub(h.at) < HEARD_FOR);
        self.told.retain(|_, at| now.saturating_sub(*at) < HEARD_FOR);
    }

    /// This node, then everyone who takes part: what an announcement is answered with.
    pub fn heard(&self) -> Vec<Announcement> {
        std::iter::once(&self.me).chain(self.heard.values().map(|h| &h.announcement)).cloned().collect()
    }

    /// Whom to announce to: these addresses and all that were heard of, without this node's own.
    pub fn addresses<'a>(&'a self, known: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
        let met = self.heard.values().map(|h| &h.announcement.mesh_address);
        known.chain(met).chain(self.told.keys()).filter(|a| !self.own.contains(*a)).cloned().collect()
    }

    /// Whom to found a cluster from, if this node is the one to propose it: the lowest number, when exactly as many
    /// instances as asked for have heard each other. A node never founds alone this way.
    pub fn ready(&self, now: Duration) -> Option<Vec<Announcement>> {
        let all: BTreeSet<Who> = self.heard.keys().copied().chain([self.me.who()]).collect();
        let numbers: BTreeSet<NodeNum> = all.iter().map(|(node, _)| *node).collect();
        let complete = all.len() == usize::from(self.me.cluster_size) && numbers.len() == all.len() && all.len() > 1;
        let mutual = self
            .heard
            .values()
            .all(|h| h.lists.as_ref().is_some_and(|(at, lists)| now.saturating_sub(*at) < HEARD_FOR && *lists == all));
        (complete && mutual && numbers.first() == Some(&self.me.node)).then(|| {
            let mut members = self.heard();
            members.sort_by_key(|a| a.node);
            members
        })
    }

    /// What this node waits for, for a person to read.
    pub fn waiting(&self) -> String {
        let mut numbers: BTreeMap<NodeNum, Vec<&Announcement>> = BTreeMap::from([(self.me.node, vec![&self.me])]);
        self.heard.values().for_each(|h| numbers.entry(h.announcement.node).or_default().push(&h.announcement));
        let wanted = usize::from(self.me.cluster_size);
        let names = list(numbers.keys());
        let mut text = if let Some((node, twice)) = numbers.iter().find(|(_, a)| a.len() > 1) {
            let each: Vec<String> = twice.iter().map(|a| format!("{} at {}", a.instance, a.mesh_address)).collect();
            format!("waits for one of two nodes started as {node} to stop: {}", each.join(" and "))
        } else if wanted < 2 {
            "waits for a seed that knows a cluster (a node with SEEDS never founds one alone)".to_owned()
        } else if numbers.len() > wanted {
            format!("waits for too many nodes to become fewer: CLUSTER_SIZE is {wanted}, and there are {names}")
        } else if numbers.len() < wanted {
            format!("waits for {} more of {wanted} nodes, heard {names}", wanted - numbers.len())
        } else {
            format!("waits for {names} to hear each other and agree")
        };
        for (address, why) in &self.failing {
            text.push_str(&format!("; {address} {why}"));
        }
        text
    }
}

/// Node names in a row, for people.
pub fn list<'a>(nodes: impl IntoIterator<Item = &'a NodeNum>) -> String {
    nodes.into_iter().map(NodeNum::to_string).collect::<Vec<_>>().join(", ")
}

/// Epoch 1 of a new cluster: these members in order, with writer numbers from 1.
pub fn first_topology(founders: &[Announcement], cluster_id: ClusterId) -> Topology {
    let mut members: Vec<Member> = founders
        .iter()
        .map(|a| Member {
            node: a.node,
            instance: a.instance,
            writer: Writer::default(),
            zone: a.zone.clone(),
            weight: a.weight,
            mesh_address: a.mesh_address.clone(),
            http_address: a.http_address.clone(),
        })
        .collect();
    members.sort_by_key(|m| m.node);
    let mut next_writer = Writer(1);
    for member in &mut members {
        member.writer = next_writer;
        next_writer.0 += 1;
    }
    let rf = founders.first().map_or(1, |a| a.rf);
    let ring = planner::plan(&members, rf, None);
    Topology { epoch: Epoch::FIRST, cluster_id, rf, ring, members, next_writer, moving: None }
}

/// Who proposed a founding: its lowest number.
fn proposer(topology: &Topology) -> Option<Who> {
    topology.members.first().map(|m| (m.node, m.instance))
}

/// Whether this instance may accept a proposal of epoch 1; `accepted` is the one it holds.
///
/// # Errors
/// Why not, for the proposer's user to read.
pub fn may_accept(
    me: &Announcement,
    from: (NodeNum, InstanceId),
    proposal: &Topology,
    accepted: Option<&Topology>,
) -> Result<(), String> {
    proposal.check().map_err(|e| e.to_string())?;
    if proposer(proposal) != Some(from) || proposal.epoch != Epoch::FIRST {
        return Err("only the lowest number among the founders proposes, and epoch 1".into());
    }
    if !lists(proposal, me) {
        return Err(format!("{} is not this instance ({}) in the proposal", me.node, me.instance));
    }
    if proposal.members.len() != usize::from(me.cluster_size) || proposal.rf != me.rf {
        return Err(format!(
            "{} was started with CLUSTER_SIZE={} and REPLICATION_FACTOR={}",
            me.node, me.cluster_size, me.rf
        ));
    }
    match accepted.and_then(proposer) {
        Some(holder) if holder != from => {
            Err(format!("{} has accepted a proposal of {} (instance {}) already", me.node, holder.0, holder.1))
        }
        _ => Ok(()),
    }
}

/// Whether a commit of epoch 1 is to be believed: it comes from the proposer, and this instance accepted one of its
/// proposals before.
pub fn may_commit(
    me: &Announcement,
    from: (NodeNum, InstanceId),
    topology: &Topology,
    accepted: Option<&Topology>,
) -> bool {
    topology.check().is_ok()
        && lists(topology, me)
        && proposer(topology) == Some(from)
        && accepted.and_then(proposer) == Some(from)
}

fn lists(topology: &Topology, me: &Announcement) -> bool {
    topology.member(me.node).is_some_and(|m| m.instance == me.instance)
}

/// Whether a committed topology is one that this instance may serve; `there` is where it came from.
///
/// # Errors
/// Why it is not, and what a person can do.
pub fn may_serve(me: &Announcement, cluster: Option<ClusterId>, topology: &Topology, there: &str) -> Result<(), Stop> {
    let theirs = topology.cluster_id;
    if let Some(mine) = cluster.filter(|mine| *mine != theirs) {
        return Err(Stop::Foreign { mine, theirs, there: there.to_owned() });
    }
    match topology.member(me.node) {
        Some(member) if member.instance == me.instance => Ok(()),
        Some(member) => Err(Stop::Replaced {
            cluster: theirs,
            node: me.node,
            listed: member.instance,
            there: member.mesh_address.clone(),
            mine: me.instance,
        }),
        None => {
            let (node, members) = (me.node, list(topology.members.iter().map(|m| &m.node)));
            Err(match cluster {
                Some(cluster) => Stop::Removed { cluster, node, mine: me.instance, epoch: topology.epoch, members },
                None => Stop::NotListed { cluster: theirs, node, members },
            })
        }
    }
}
