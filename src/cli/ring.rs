//! `a3 ring`: which nodes keep which slots.

use std::collections::BTreeMap;

use clap::Args;

use super::Fault;
use super::client::{Asked, Client, block_on};
use super::output::{self, Output};
use super::views::{Ring as Table, Slot, fetch};

/// Show which nodes are the home replicas of which slots.
#[derive(Debug, Args)]
pub(super) struct Ring {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Ring {
    pub(super) fn run(self) -> Result<(), Fault> {
        let client = Client::new();
        if self.output.is_json() {
            let ring: serde_json::Value = block_on(fetch(&client, &self.asked.host, "/cluster/ring"))?;
            return output::json(&ring);
        }
        let ring: Table = block_on(fetch(&client, &self.asked.host, "/cluster/ring"))?;
        let mut table = output::table(&["HOME REPLICAS", "COUNT", "SLOTS"]);
        for (homes, slots) in by_homes(&ring.slots) {
            table.add_row([homes.join(", "), slots.len().to_string(), ranges(&slots)]);
        }
        let about = format!("epoch {}, {} copies of each key", ring.epoch, ring.rf);
        output::line(&format!("{about}\n\n{}", output::rendered(&table)))
    }
}

/// The slots of each list of home replicas, in order.
fn by_homes(slots: &[Slot]) -> BTreeMap<&[String], Vec<usize>> {
    let mut lists: BTreeMap<&[String], Vec<usize>> = BTreeMap::new();
    for (number, slot) in slots.iter().enumerate() {
        lists.entry(slot.replicas.as_slice()).or_default().push(number);
    }
    lists
}

/// `00-03 05`: slots in hexadecimal, neighbours drawn together.
fn ranges(slots: &[usize]) -> String {
    let runs = slots.chunk_by(|a, b| a + 1 == *b).filter_map(|run| Some((run.first()?, run.last()?)));
    let texts = runs.map(|(a, b)| if a == b { format!("{a:02x}") } else { format!("{a:02x}-{b:02x}") });
    texts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_gathered_by_their_home_replicas() {
        let slot = |homes: [&str; 2]| Slot { replicas: homes.map(str::to_owned).into() };
        let slots = [["n1", "n2"], ["n1", "n2"], ["n2", "n3"], ["n1", "n2"]].map(slot);
        let lists: Vec<_> = by_homes(&slots).into_iter().map(|(h, s)| (h.join("+"), ranges(&s))).collect();
        assert_eq!(lists, [("n1+n2".to_owned(), "00-01 03".to_owned()), ("n2+n3".into(), "02".into())]);
    }
}
