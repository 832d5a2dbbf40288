//! `a3 join` and `a3 replace`: `a3 serve`, of a node that a cluster is to take in.
//!
//! Both take the settings of `a3 serve` and go on as it does: the process is the node. What they add is what they refuse:
//! neither founds a cluster, whatever `CLUSTER_SIZE` says; the number of one that joins is nobody's, and that of a replacement a member's,
//! which begins with an empty data directory.

use std::process::ExitCode;

use clap::Args;

use super::Fault;
use super::membership::NodeName;
use super::serve::Serve;
use crate::config::Config;
use crate::config::table;
use crate::protocol::founding::Place;
use crate::storage;

/// Run a node that becomes a member of a cluster that there is already.
///
/// As `a3 serve`, but it never founds a cluster: SEEDS must lead to one, of which NODE_NUM is no member yet. Once the members have
/// taken it in it serves, and fetches its slots from them meanwhile; `a3 change` says how far it is. Started again, by `a3 serve` too, it
/// is the member that it is.
#[derive(Debug, Args)]
pub(super) struct Join {
    #[command(flatten)]
    serve: Serve,
}

/// Run a node in the place of a member that is gone for good.
///
/// As `a3 serve` under that member's number, with an empty data directory beside SEEDS. Once the old instance has been down for
/// 60 s a majority of all members votes the new one in; it fetches the slots from the others, and serves. The old instance is
/// fenced out. /readyz?verbose says what it waits for.
#[derive(Debug, Args)]
pub(super) struct Replace {
    /// The number of the member, e.g. n3; takes the place of NODE_NUM.
    node: NodeName,
    #[command(flatten)]
    serve: Serve,
}

impl Join {
    pub(super) fn run(self) -> Result<ExitCode, Fault> {
        let config = into_cluster(self.serve.config()?, "a3 join", Place::OfItsOwn)?;
        let node = config.node;
        let what = format!("{node} asks {} to become a member of their cluster", config.seeds.join(", "));
        self.serve.serve(config, Some(what))
    }
}

impl Replace {
    pub(super) fn run(mut self) -> Result<ExitCode, Fault> {
        self.serve.settings.set(table::NODE_NUM.name, self.node.0.to_string())?;
        let config = into_cluster(self.serve.config()?, "a3 replace", Place::OfAMember)?;
        check_empty(&config)?;
        let (node, seeds) = (config.node, config.seeds.join(", "));
        let what = format!(
            "{node} asks {seeds} for the place of the member {node}: when that one has been down for 60 s a majority of the \
             members votes this one in, and it serves once it has fetched its slots; /readyz?verbose says what it waits for"
        );
        self.serve.serve(config, Some(what))
    }
}

/// The settings of a node that founds no cluster.
fn into_cluster(config: Config, command: &str, place: Place) -> Result<Config, Fault> {
    if config.seeds.is_empty() {
        let needs = "SEEDS must be set to the mesh addresses of members";
        return Err(Fault::Configuration(format!("{command}: {needs}, e.g. --seeds 10.0.0.1:50051,10.0.0.2:50052")));
    }
    // Beside seeds one instance is not enough to found a cluster.
    Ok(Config { cluster_size: 1, place, ..config })
}

/// A directory that holds a member is that member, and needs no replacement; one that was to become it goes on.
fn check_empty(config: &Config) -> Result<(), Fault> {
    let failed = |e: storage::OpenError| Fault::Configuration(e.to_string());
    let identity = storage::identity_of(&config.data_dir).map_err(failed)?;
    match identity.filter(|identity| identity.cluster.is_some() && !identity.rebuilding) {
        None => Ok(()),
        Some(identity) => Err(Fault::Configuration(format!(
            "{} is not empty: it is {} as instance {} already, so start it with a3 serve; a replacement needs a \
             DATA_DIR of its own",
            config.data_dir.display(),
            identity.node,
            identity.instance
        ))),
    }
}
