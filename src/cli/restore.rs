//! `a3 restore`: a data directory out of a backup, for a node that is not running.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Fault;
use super::output::{self, Output};
use super::settings::SettingFlags;
use crate::storage::{self, RestoreError, RestoreOptions, Restored};
use crate::system::SystemEntropy;

/// Make a data directory out of a backup, for `a3 serve` to start from: a new instance of that node, which its cluster takes in
/// for the old one. Takes the settings that `a3 serve` takes; the directory must be empty. Run as root it gives the files to the
/// owner of the directory.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// What `a3 backup` wrote
    file: PathBuf,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    settings: SettingFlags,
}

impl Restore {
    pub(super) fn run(self) -> Result<(), Fault> {
        let (_, config) = self.settings.load()?;
        let options = RestoreOptions {
            file: self.file,
            data_dir: config.data_dir.clone(),
            node: config.node,
            mesh_address: config.mesh_address(),
            http_address: config.http_address(),
        };
        let restored = storage::restore(&options, &SystemEntropy::default())?;
        if self.output.is_json() {
            return output::json(&json!({
                "data_dir": options.data_dir.display().to_string(),
                "node": restored.about.node.to_string(),
                "instance": restored.instance.to_string(),
                "cluster_id": restored.about.cluster.to_string(),
                "taken_ms": restored.about.taken_ms,
                "records": restored.about.rows.records,
                "rebuilding": restored.rebuilding,
            }));
        }
        output::line(&told(&options, &restored))
    }
}

fn told(options: &RestoreOptions, restored: &Restored) -> String {
    let Restored { about, instance, members, rebuilding } = restored;
    let (node, dir) = (about.node, options.data_dir.display());
    let was = about.instance;
    let next = if *rebuilding && *members == 2 {
        // A majority of two is both.
        format!(
            "It is one of 2 members, and the other cannot take a new instance in alone: it will not serve. See docs/operations.md,\n\
             \"More disks lost than the others make up for\". Never start both this and instance {was}."
        )
    } else if *rebuilding {
        format!(
            "It is one of {members} members: once instance {was} was down for 60 s the others take the new one in, it fetches\n\
             what differs from them, and serves. Never start both."
        )
    } else {
        format!(
            "It is its cluster's only member and serves at once. Never start instance {was} again, nor what was restored of\n\
             this file before: each would be the same cluster once more."
        )
    };
    format!(
        "{dir}: {node} of cluster {}, {} records, as a new instance {instance}\n{next}\n\nNext, with the settings of before:\n  \
         NODE_NUM={} DATA_DIR={dir} a3 serve",
        about.cluster, about.rows.records, node.0
    )
}

impl From<RestoreError> for Fault {
    fn from(error: RestoreError) -> Self {
        let text = error.to_string();
        match error {
            RestoreError::Open(_)
            | RestoreError::OtherNode { .. }
            | RestoreError::NotEmpty { .. }
            | RestoreError::Inside { .. }
            | RestoreError::NotAFile { .. } => Fault::Configuration(text),
            _ => Fault::Failed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BackupAbout, BackupRows, ClusterId, Epoch, InstanceId, NodeNum};
    use uuid::Uuid;

    #[test]
    fn nothing_is_promised_that_the_other_members_cannot_keep() {
        let said = |members, rebuilding| {
            let options = RestoreOptions {
                file: "n1.db".into(),
                data_dir: "data".into(),
                node: NodeNum(1),
                mesh_address: String::new(),
                http_address: String::new(),
            };
            let about = BackupAbout {
                node: NodeNum(1),
                instance: InstanceId(Uuid::from_u128(1)),
                cluster: ClusterId(Uuid::from_u128(2)),
                epoch: Epoch(1),
                taken_ms: 0,
                program: String::new(),
                schema: 6,
                rows: BackupRows { records: 1, registers: 0, hints: 0 },
            };
            let instance = InstanceId(Uuid::from_u128(3));
            told(&options, &Restored { about, instance, members, rebuilding })
        };
        assert!(said(3, true).contains("the others take the new one in"));
        let two = said(2, true);
        assert!(two.contains("will not serve") && two.contains("docs/operations.md"), "{two}");
        assert!(said(1, false).contains("nor what was restored of\nthis file before"));
    }
}
