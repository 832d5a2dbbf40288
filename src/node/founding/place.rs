//! A new instance asks the members for a place: one of its own, where its number is nobody's, or that of the member of its number.
//!
//! Who asks for a member's place comes from a directory whose database was moved aside, and then it can show whose directory it was; or from an empty
//! one, and then the old instance must have been down for a while. Either way it is marked as to be rebuilt, on disk, before
//! a topology that lists it is: nothing it holds may be taken for what the old instance knew.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::{Founding, FoundingError, WITHIN};
use crate::node::succession::LIVES;
use crate::ports::{PeerReply, PeerRequest};
use crate::protocol::founding::{Place, Stop, may_serve};
use crate::types::{ClusterId, Topology, majority};

/// How long a member has to decide with the others: several rounds of votes.
const DECIDES_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// Who was a member gives up when for so long a majority has no such member: those may not have heard yet how it became one.
const GONE_FOR: std::time::Duration = std::time::Duration::from_secs(10);

/// What the members said.
enum Said {
    /// This is the topology that lists it.
    Yes(Arc<Topology>),
    /// The member of that number lives.
    Lives(String),
    /// Ask again.
    NotYet(String),
    /// None of those that answer has a member of that number, and they are a majority.
    Gone(Arc<Topology>),
}

impl Founding {
    /// The directory was a member's. It asks until it has its place: nobody else can have it. (One that comes from a backup
    /// cannot show that, and gives up where the old instance lives.) It does not become a member once more that was removed.
    pub(super) async fn come_back(&self, cluster: ClusterId) -> Result<(), FoundingError> {
        let (mut told, mut gone) = (String::new(), None);
        loop {
            let said = self.ask_for_place(cluster, Place::Any).await?;
            if !matches!(said, Said::Gone(_)) {
                gone = None;
            }
            let why = match said {
                Said::Yes(topology) => return self.commit(topology).await,
                // Restored from a backup: it would take the place as soon as the other one is stopped for a minute.
                Said::Lives(why) if self.store.identity().succeeds.is_empty() => {
                    return Err(Stop::Lives { node: self.me.node, why }.into());
                }
                Said::Lives(why) | Said::NotYet(why) => why,
                Said::Gone(topology) => {
                    if gone.get_or_insert_with(Instant::now).elapsed() >= GONE_FOR {
                        self.check_listed(&topology)?;
                    }
                    format!("it is no member in epoch {}", topology.epoch)
                }
            };
            if why != told {
                tracing::info!("{} asks for its place: {why}", self.me.node);
                told.clone_from(&why);
            }
            self.state.lock().unaccepted = Some(why);
            self.pause().await;
            if self.routing.ring().is_some() {
                return Ok(());
            }
        }
    }

    /// The directory was empty, and the cluster lists another instance: waits until that may be taken for dead.
    pub(super) async fn wait_for_place(
        &self,
        topology: &Topology,
        stop: Stop,
        place: Place,
    ) -> Result<(), FoundingError> {
        let cluster = topology.cluster_id;
        place.is_in(topology, &self.me)?;
        tracing::warn!("{stop}; it waits for the members to hold that instance down for long enough to replace it");
        loop {
            match self.ask_for_place(cluster, place).await? {
                Said::Lives(why) => {
                    tracing::error!("{why}");
                    return Err(stop.into());
                }
                Said::NotYet(why) => {
                    let node = self.me.node;
                    let waits = format!(
                        "waits for the place of another instance of {node}: once that one was down for 60 s the members let this \
                         one in, and it fetches its slots from them; {why}"
                    );
                    self.state.lock().asks = Some(waits);
                }
                Said::Gone(_) => {}
                Said::Yes(topology) => return self.enter(topology).await,
            }
            self.pause().await;
        }
    }

    /// The directory was empty, and its number is nobody's: asks until it is a member. What keeps it from becoming one passes (another
    /// change that is under way), or a person mends it.
    pub(super) async fn join_members(&self, cluster: ClusterId, place: Place) -> Result<(), FoundingError> {
        let mut told = String::new();
        loop {
            let why = match self.ask_for_place(cluster, place).await? {
                Said::Yes(topology) => return self.enter(topology).await,
                Said::Lives(why) | Said::NotYet(why) => why,
                Said::Gone(topology) => format!("it is no member in epoch {}", topology.epoch),
            };
            let waits = format!(
                "asks to become a member of cluster {cluster}: it serves then, and fetches its slots meanwhile; {why}"
            );
            if waits != told {
                tracing::info!("{} {waits}", self.me.node);
                told.clone_from(&waits);
            }
            self.state.lock().asks = Some(waits);
            self.pause().await;
            if self.routing.ring().is_some() {
                return Ok(());
            }
        }
    }

    /// The topology lists this instance, which did not found its cluster and has no topology of it on disk: it may have been let in
    /// while it was down. Whatever the member of its number kept, it has to fetch; what a node that joins gets, the change itself
    /// has it catch up on.
    pub(super) async fn enter(&self, topology: Arc<Topology>) -> Result<(), FoundingError> {
        if topology.joiner() != Some(self.me.node) {
            let mut identity = self.store.identity();
            identity.cluster = Some(topology.cluster_id);
            identity.rebuilding = true;
            let others = topology.members.iter().filter(|m| m.node != self.me.node);
            identity.known_addresses = others.map(|m| m.mesh_address.clone()).collect();
            self.store.save_identity(identity).await?;
            self.routing.set_rebuilding(true);
        }
        self.commit(topology).await
    }

    /// Asks one member after the other, until one has decided.
    ///
    /// # Errors
    /// There is no such place any more, or yet, by the newest topology that any of them has.
    async fn ask_for_place(&self, cluster: ClusterId, place: Place) -> Result<Said, Stop> {
        let identity = self.store.identity();
        let targets = self.state.lock().gathering.addresses(self.options.seeds.iter().chain(&identity.known_addresses));
        let topology =
            |address: String| async move { (self.ask(&address, PeerRequest::Topology, WITHIN).await, address) };
        let mut asks: FuturesUnordered<_> = targets.into_iter().map(topology).collect();
        let (mut lives, mut not_yet, mut gone) = (None, None, Vec::new());
        let (mut fits, mut unfit) = (None, None);
        while let Some((answer, address)) = asks.next().await {
            let Ok(PeerReply::Topology { topology: Some(topology) }) = answer else { continue };
            if topology.cluster_id != cluster {
                continue;
            }
            let (asked, epoch) = (topology.epoch, Some(topology.epoch));
            if let Err(stop) = place.is_in(&topology, &self.me) {
                unfit = unfit.filter(|(newest, _)| *newest > epoch).or(Some((epoch, stop)));
                continue;
            }
            fits = fits.max(epoch);
            // It was a member: asked now, they would take it in as a new one.
            if identity.cluster.is_some() && topology.member(self.me.node).is_none() {
                gone.push(topology);
                continue;
            }
            let (newcomer, succeeds) = (self.me.clone(), identity.succeeds.clone());
            let request = PeerRequest::Replace { epoch: asked, newcomer, succeeds };
            match self.ask(&address, request, DECIDES_WITHIN).await {
                Ok(PeerReply::Replaced { topology: Some(topology) })
                    if may_serve(&self.me, Some(cluster), &topology, &address).is_ok() =>
                {
                    return Ok(Said::Yes(topology));
                }
                Ok(_) => not_yet = Some(format!("{address} has not decided yet, or the topology changed")),
                // Any other refusal passes: it is not ready yet, or another change is under way.
                Err(error) if error.to_string().contains(LIVES) => lives = Some(format!("{address}: {error}")),
                Err(error) => not_yet = Some(format!("{address}: {error}")),
            }
        }
        if let Some((_, stop)) = unfit.filter(|(epoch, _)| *epoch > fits) {
            return Err(stop);
        }
        let (without, newest) = (gone.len(), gone.into_iter().max_by_key(|topology| topology.epoch));
        Ok(match (lives, not_yet, newest) {
            (Some(why), ..) => Said::Lives(why),
            (None, Some(why), _) => Said::NotYet(why),
            // A few may have been down when it became a member.
            (None, None, Some(topology)) if without < majority(topology.members.len()) => {
                let (epoch, all) = (topology.epoch, topology.members.len());
                Said::NotYet(format!("it is no member in epoch {epoch}, say {without} of {all} members"))
            }
            (None, None, Some(topology)) => Said::Gone(topology),
            (None, None, None) => Said::NotYet("no member answers".into()),
        })
    }
}
