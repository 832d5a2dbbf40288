//! `a3 tombstones`: what deleted keys leave behind, and for whom it waits.

use clap::Args;

use super::Fault;
use super::client::{Asked, Client, block_on};
use super::output::{self, Output};
use super::views::{Tombstones as Told, fetch};

/// Show how many deleted keys are remembered, and which nodes keep them from being forgotten.
#[derive(Debug, Args)]
pub(super) struct Tombstones {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Tombstones {
    pub(super) fn run(self) -> Result<(), Fault> {
        let client = Client::new();
        if self.output.is_json() {
            let told: serde_json::Value = block_on(fetch(&client, &self.asked.host, "/tombstones"))?;
            return output::json(&told);
        }
        let told: Told = block_on(fetch(&client, &self.asked.host, "/tombstones"))?;
        output::line(&shown(&told))
    }
}

fn shown(told: &Told) -> String {
    let waiting: Vec<String> = told.waiting_for.iter().map(|w| format!("{} ({})", w.node, w.reason)).collect();
    let about = match (told.tombstones, waiting.is_empty()) {
        (0, true) => "none".to_owned(),
        (_, true) => "waiting for nobody: they are purged once they are old enough".to_owned(),
        (_, false) => format!("waiting for {}", waiting.join(", ")),
    };
    let mut table = output::table(&["NODE", "TOMBSTONES", "PURGED"]);
    for member in &told.members {
        let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        table.add_row([member.node.clone(), count(member.tombstones), count(member.purged)]);
    }
    format!("{about}\n\n{}", output::rendered(&table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_is_said_first() {
        let told = |waiting| -> Told {
            serde_json::from_value(serde_json::json!({
                "tombstones": 3, "waiting_for": waiting,
                "members": [{"node": "n1", "tombstones": 3, "purged": 2}, {"node": "n2", "tombstones": null}]
            }))
            .unwrap()
        };
        let waiting = shown(&told(serde_json::json!([{"node": "n2", "reason": "unreachable"}])));
        let lines: Vec<&str> = waiting.lines().collect();
        assert_eq!(lines[0], "waiting for n2 (unreachable)");
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["n1", "3", "2"]);
        assert_eq!(lines[4].split_whitespace().collect::<Vec<_>>(), ["n2", "-", "-"]);
        assert!(shown(&told(serde_json::json!([]))).starts_with("waiting for nobody"));
    }
}
