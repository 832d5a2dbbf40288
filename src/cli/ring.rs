//! `a3 ring`: which nodes keep which slots, what each keeps of all copies, and what of it is changing.

use std::collections::BTreeMap;

use clap::Args;

use super::Fault;
use super::client::{Asked, Client, block_on};
use super::output::{self, Output};
use super::views::{Moving, Ring as Table, Share, Slot, fetch};

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
        output::line(&shown(&ring))
    }
}

/// The ring for a person.
fn shown(ring: &Table) -> String {
    let mut parts = vec![format!("epoch {}, {} copies of each key", ring.epoch, ring.rf)];
    if let Some(moving) = &ring.moving {
        let Moving { since, text, slots } = moving;
        parts.push(format!("{text}, since epoch {since}: {slots} slots move, and count by what they had as well"));
    }
    parts.extend(ring.warnings.iter().map(|warning| format!("warning: {warning}")));
    let mut shares = output::table(&["NODE", "ZONE", "WEIGHT", "SLOTS", "BY WEIGHT", "SHARE"]);
    for member in &ring.members {
        let Share { node, zone, weight, slots, share, slots_by_weight } = member;
        let zone = zone.as_deref().unwrap_or("-").to_owned();
        let share = format!("{:.1}%", 100.0 * share);
        let numbers = [weight, slots, slots_by_weight].map(u64::to_string);
        shares.add_row([&[node.clone(), zone], &numbers[..], &[share]].concat());
    }
    let mut homes = output::table(&["HOME REPLICAS", "COUNT", "SLOTS"]);
    for ((replicas, before), slots) in by_homes(&ring.slots) {
        let was = before.map_or_else(String::new, |before| format!(" (before: {})", before.join(", ")));
        homes.add_row([replicas.join(", ") + &was, slots.len().to_string(), ranges(&slots)]);
    }
    let tables = [shares, homes].map(|table| output::rendered(&table));
    format!("{}\n\n{}", parts.join("\n"), tables.join("\n\n"))
}

/// A list of home replicas, and the one before where the slot moves.
type Homes<'a> = (&'a [String], Option<&'a [String]>);

/// The slots of each list of home replicas, in order.
fn by_homes(slots: &[Slot]) -> BTreeMap<Homes<'_>, Vec<usize>> {
    let mut lists: BTreeMap<Homes<'_>, Vec<usize>> = BTreeMap::new();
    for (number, slot) in slots.iter().enumerate() {
        lists.entry((slot.replicas.as_slice(), slot.before.as_deref())).or_default().push(number);
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
        let slot = |homes: [&str; 2]| Slot { replicas: homes.map(str::to_owned).into(), before: None };
        let slots = [["n1", "n2"], ["n1", "n2"], ["n2", "n3"], ["n1", "n2"]].map(slot);
        let lists: Vec<_> = by_homes(&slots).into_iter().map(|((h, _), s)| (h.join("+"), ranges(&s))).collect();
        assert_eq!(lists, [("n1+n2".to_owned(), "00-01 03".to_owned()), ("n2+n3".into(), "02".into())]);
    }

    #[test]
    fn what_moves_and_what_zones_cannot_carry_is_told_before_the_tables() {
        let ring: Table = serde_json::from_value(serde_json::json!({
            "epoch": 2, "rf": 2, "warnings": ["two zones"], "moving": {"since": 2, "text": "n3 joins", "slots": 1},
            "members": [{"node": "n1", "zone": "a", "weight": 1, "slots": 2, "share": 0.5, "slots_by_weight": 1}],
            "slots": [{"replicas": ["n1", "n3"], "before": ["n1", "n2"]}, {"replicas": ["n1", "n3"]}],
        }))
        .unwrap();
        let text = shown(&ring);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(text.starts_with("epoch 2, 2 copies of each key\nn3 joins, since epoch 2: 1 slots move"), "{text}");
        assert_eq!(lines[2], ["warning:", "two", "zones"]);
        assert_eq!(lines[5], ["n1", "a", "1", "2", "1", "50.0%"]);
        assert_eq!(lines[8], ["n1,", "n3", "1", "01"]);
        assert_eq!(lines[9], ["n1,", "n3", "(before:", "n1,", "n2)", "1", "00"]);
    }
}
