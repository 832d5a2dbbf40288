//! `a3 convergence`: whether the copies agree.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;

use super::Fault;
use super::client::{Asked, Client, block_on};
use super::output::{self, Output};
use super::views::{Convergence as Told, Key, Pair, fetch};

/// Show how the copies on each pair of nodes agree.
#[derive(Debug, Args)]
pub(super) struct Convergence {
    /// Name the keys that differ.
    #[arg(long)]
    keys: bool,
    /// Compare every record as it is on disk, which takes its time, and name the keys that differ.
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Convergence {
    pub(super) fn run(self) -> Result<(), Fault> {
        let client = Client::new();
        let path = match (self.keys, self.deep) {
            (_, true) => "/cluster/convergence?deep=true",
            (true, false) => "/cluster/convergence?keys=true",
            (false, false) => "/cluster/convergence",
        };
        if self.output.is_json() {
            let told: serde_json::Value = block_on(fetch(&client, &self.asked.host, path))?;
            return output::json(&told);
        }
        let told: Told = block_on(fetch(&client, &self.asked.host, path))?;
        output::line(&shown(&told))
    }
}

fn shown(told: &Told) -> String {
    let mut text = format!("{}; asked {}", told.status, told.node);
    if told.moving_slots > 0 {
        text.push_str(&format!("; {} of 256 slots move and are not compared", told.moving_slots));
    }
    if told.pairs.is_empty() {
        return text;
    }
    let mut table = output::table(&["NODES", "STATUS", "EQUAL CHUNKS", "DIFFERING KEYS", "EQUAL UP TO"]);
    for pair in &told.pairs {
        let equal = pair.chunks.iter().filter(|chunk| chunk.status == "equal").count();
        table.add_row([
            pair.nodes.join(", "),
            if pair.reason.is_empty() { pair.status.clone() } else { format!("{}: {}", pair.status, pair.reason) },
            format!("{equal} of {}", pair.chunks.len()),
            pair.differing.map_or_else(|| "-".into(), |count| count.to_string()),
            equal_up_to(pair),
        ]);
    }
    text.push_str(&format!("\n\n{}", output::rendered(&table)));
    for scrub in &told.scrubs {
        text.push_str(&format!("\n{} last read all its rows: {}", scrub.node, date(scrub.ended_ms)));
    }
    for pair in told.pairs.iter().filter(|pair| !pair.keys.is_empty()) {
        text.push_str(&format!("\n\n{} differ in", pair.nodes.join(" and ")));
        pair.keys.iter().for_each(|key| text.push_str(&format!("\n  {}", key_shown(key))));
    }
    text
}

/// The time up to which all chunks are known to be equal.
fn equal_up_to(pair: &Pair) -> String {
    date(pair.chunks.iter().map(|chunk| chunk.equal_up_to_ms.unwrap_or(0)).min().filter(|ms| *ms > 0))
}

fn date(ms: Option<u64>) -> String {
    let time = ms.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    // What lies beyond the year 9999 is no date.
    let time = time.filter(|_| ms.is_some_and(|ms| ms < 253_402_300_800_000));
    time.map_or_else(|| "-".into(), httpdate::fmt_http_date)
}

/// A key as a terminal may show it.
fn key_shown(key: &Key) -> String {
    match &key.key_base64 {
        Some(exact) => format!("(base64) {exact}"),
        None if key.key.chars().any(char::is_control) => key.key.escape_debug().to_string(),
        None => key.key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_the_keys_that_differ_are_shown() {
        let told: Told = serde_json::from_value(serde_json::json!({
            "node": "n1", "status": "differs", "moving_slots": 3, "pairs": [
                {"nodes": ["n1", "n2"], "status": "differs", "differing": 3,
                 "chunks": [{"chunk": 0, "status": "equal", "equal_up_to_ms": 1000}, {"chunk": 1, "status": "differs",
                 "equal_up_to_ms": 86_400_000}], "keys": [{"key": "k"}, {"key": "a\u{1b}b"},
                 {"key": "\u{fffd}", "key_base64": "/w=="}]},
                {"nodes": ["n1", "n3"], "status": "unknown", "reason": "unreachable", "chunks": []},
            ], "scrubs": [{"node": "n1", "ended_ms": 2000}, {"node": "n3", "ended_ms": null}]
        }))
        .unwrap();
        let shown = shown(&told);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "differs; asked n1; 3 of 256 slots move and are not compared");
        assert!(lines[3].starts_with("n1, n2") && lines[3].contains("1 of 2"), "{shown}");
        assert!(lines[3].ends_with("Thu, 01 Jan 1970 00:00:01 GMT"), "{shown}");
        assert!(lines[4].contains("unknown: unreachable") && lines[4].ends_with('-'), "{shown}");
        let scrubs = ["n1 last read all its rows: Thu, 01 Jan 1970 00:00:02 GMT", "n3 last read all its rows: -"];
        assert_eq!(lines[5..7], scrubs);
        assert_eq!(lines[8..], ["n1 and n2 differ in", "  k", "  a\\u{1b}b", "  (base64) /w=="]);
    }

    #[test]
    fn times_that_are_none_are_not_shown() {
        for (ms, shown) in [(None, "-"), (Some(0), "-"), (Some(u64::MAX), "-")] {
            let chunk = crate::cli::views::Chunk { status: "equal".into(), equal_up_to_ms: ms };
            assert_eq!(equal_up_to(&Pair { chunks: vec![chunk], ..Pair::default() }), shown);
        }
    }
}
