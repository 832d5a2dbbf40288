//! `a3 plan`: what a change of the topology would move, before anything is begun.

use clap::{Args, Subcommand};

use super::planned;
use super::wanted::{NodeName, Wanted};
use crate::cli::Fault;
use crate::cli::client::{Asked, Client, block_on};
use crate::cli::output::{self, Output};
use crate::cli::views::{Plan as Planned, PlanMember, read};
use crate::config::units::about_bytes;
use crate::types::limits::{REPLICATION_FACTOR_MAX, WEIGHT_MAX};

/// Show what a change of the topology would move. Nothing is changed.
#[derive(Debug, Args)]
pub(in crate::cli) struct Plan {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A node that is no member becomes one.
    Join {
        /// Its number, e.g. n4.
        node: NodeName,
        /// Its share of the slots, relative to the others'.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=i64::from(WEIGHT_MAX)))]
        weight: u32,
        /// Where it stands.
        #[arg(long)]
        zone: Option<String>,
    },
    /// A member leaves.
    Leave {
        /// Who leaves, e.g. n2.
        node: NodeName,
    },
    /// A member gets another share of the slots.
    Weight {
        /// Which member, e.g. n1.
        node: NodeName,
        /// Its share, relative to the others', 0 to 1000.
        #[arg(value_parser = clap::value_parser!(u32).range(..=i64::from(WEIGHT_MAX)))]
        weight: u32,
    },
    /// A member stands in another zone.
    Zone {
        /// Which member, e.g. n1.
        node: NodeName,
        /// The zone's name, 1 to 64 bytes.
        #[arg(required_unless_present = "none")]
        zone: Option<String>,
        /// In no zone.
        #[arg(long, conflicts_with = "zone")]
        none: bool,
    },
    /// Another number of copies of each key.
    #[command(visible_alias = "replication-factor")]
    Rf {
        /// How many, 1 to 16.
        #[arg(value_parser = clap::value_parser!(u8).range(1..=REPLICATION_FACTOR_MAX as i64))]
        copies: u8,
    },
}

impl Plan {
    pub(in crate::cli) fn run(self) -> Result<(), Fault> {
        let wanted = match self.what {
            What::Join { node, weight, zone } => Wanted::Join { node, weight, zone },
            What::Leave { node } => Wanted::Leave { node },
            What::Weight { node, weight } => Wanted::Weight { node, weight },
            What::Zone { node, zone, .. } => Wanted::Zone { node, zone },
            What::Rf { copies } => Wanted::ReplicationFactor { rf: copies },
        };
        let told = block_on(planned(&Client::new(), &self.asked.host, &wanted))?;
        if self.output.is_json() { output::json(&told) } else { output::line(&shown(&read(&told)?)) }
    }
}

/// A plan for a person.
pub(super) fn shown(plan: &Planned) -> String {
    let Planned { text, epoch, rf_before, rf, slots, copies, copies_ideal, bytes_estimate, .. } = plan;
    let mut lines = vec![format!("plan: {text} (from epoch {epoch})")];
    if rf != rf_before {
        lines.push(format!("{rf} copies of each key instead of {rf_before}"));
    }
    let bytes = about_bytes(*bytes_estimate);
    lines.push(format!("{slots} of 256 slots get other replicas"));
    lines.push(format!("{copies} copies of slots move, about {bytes}; the fewest that could: {copies_ideal}"));
    lines.extend(plan.warnings.iter().map(|warning| format!("warning: {warning}")));
    let mut table =
        output::table(&["NODE", "ZONE", "WEIGHT", "SLOTS", "THEN", "BY WEIGHT", "GETS", "GIVES UP", "FETCHES"]);
    for member in &plan.members {
        let PlanMember { node, zone, weight, slots_before, slots, slots_by_weight, gained, given_up, .. } = member;
        let numbers = [weight, slots_before, slots, slots_by_weight, gained, given_up].map(u64::to_string);
        let zone = zone.as_deref().unwrap_or("-").to_owned();
        table.add_row([&[node.clone(), zone], &numbers[..], &[about_bytes(member.bytes_estimate)]].concat());
    }
    format!("{}\n\n{}", lines.join("\n"), output::rendered(&table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plan_says_what_moves_and_warns() {
        let plan: Planned = serde_json::from_value(json!({
            "text": "n2 leaves", "epoch": 3, "rf": 2, "rf_before": 2, "slots": 170, "copies": 171, "copies_ideal": 170,
            "bytes_estimate": 2048, "warnings": ["two zones"],
            "members": [{"node": "n1", "zone": "a", "weight": 1, "slots_before": 170, "slots": 256, "slots_by_weight": 256,
                         "gained": 86, "given_up": 0, "bytes_estimate": 1024}],
        }))
        .unwrap();
        let text = shown(&plan);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "plan: n2 leaves (from epoch 3)");
        assert!(
            lines[2].starts_with("171 copies of slots move, about 2") && lines[2].ends_with("could: 170"),
            "{text}"
        );
        assert_eq!(lines[3], "warning: two zones");
        let cells: Vec<&str> = lines[6].split_whitespace().collect();
        assert_eq!(cells[..8], ["n1", "a", "1", "170", "256", "256", "86", "0"], "{text}");
    }
}
