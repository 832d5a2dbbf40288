//! `docs/metrics.md`: rendered from the table, and compared with the file. `A3_WRITE_DOCS=1 cargo test --lib metrics::doc`
//! writes the file anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::{CONSTANTS, Kind, Metric, Series, TABLE};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");

const HEAD: &str = "# Metrics

Every node serves its own at `/metrics`, in Prometheus' text format. This page is made from `src/metrics.rs`; a test keeps the
two the same. Counters end in `_total` and start at 0 with the process. Histograms have buckets: `_bucket`, `_sum` and `_count`.
All series whose labels are known beforehand are there from the start, at 0.

`grafana/dashboards/` shows them, `grafana/rules/` watches them, and [runbooks](runbooks/) say what to do.

| name | type | unit | labels | meaning |
|---|---|---|---|---|
";

const TAIL: &str = "
The process itself, on Linux, under the names that Prometheus' client libraries share: `process_cpu_seconds_total`,
`process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_virtual_memory_max_bytes`, `process_open_fds`,
`process_max_fds`, `process_threads` and `process_start_time_seconds`.
";

fn kind(metric: &Metric) -> &'static str {
    match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    }
}

/// By the name, as Prometheus has it.
fn unit(metric: &Metric) -> &'static str {
    match metric.name.trim_end_matches("_total").rsplit('_').next() {
        Some("seconds") => "seconds",
        Some("bytes") => "bytes",
        _ => "count",
    }
}

/// `operation` (`get`, `put`) and so on; values only where there are several and they are known.
fn labels(metric: &Metric) -> String {
    let sets = match metric.series {
        Series::Known(sets) => sets,
        Series::Of(names) => return names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    };
    let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut order = Vec::new();
    for (name, value) in sets.iter().flat_map(|set| set.iter()) {
        let of_name = values.entry(name).or_insert_with(|| {
            order.push(*name);
            Vec::new()
        });
        if !of_name.contains(value) {
            of_name.push(value);
        }
    }
    let described = order.iter().map(|name| match &values[name][..] {
        [_] => format!("`{name}`"),
        several => format!("`{name}`: {}", several.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(" ")),
    });
    described.collect::<Vec<_>>().join(", ")
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    for metric in TABLE {
        let (name, kind, unit, labels) = (metric.name, kind(metric), unit(metric), labels(metric));
        let meaning = metric.help.replace('|', "\\|");
        writeln!(page, "| `{name}` | {kind} | {unit} | {labels} | {meaning} |").unwrap();
    }
    page + TAIL
}

#[test]
fn the_page_is_the_table() {
    let page = page();
    if std::env::var_os("A3_WRITE_DOCS").is_some() {
        fs::write(PATH, &page).unwrap();
    }
    let current = fs::read_to_string(PATH).unwrap_or_default() == page;
    assert!(current, "run `A3_WRITE_DOCS=1 cargo test --lib metrics::doc`");
}

#[test]
fn names_follow_the_conventions() {
    for metric in TABLE {
        let name = metric.name;
        assert!(name.starts_with("a3_") && name.bytes().all(|b| b"abcdefghijklmnopqrstuvwxyz0123456789_".contains(&b)));
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
        assert!(metric.help.ends_with('.'), "{name}");
        assert_eq!(TABLE.iter().filter(|m| m.name == name).count(), 1, "{name}");
    }
}

#[test]
fn every_row_is_measured_somewhere() {
    let mut sources = Vec::new();
    gather(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut sources);
    let text: String = sources.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for constant in CONSTANTS.iter().filter(|c| **c != "BUILD") {
        let used = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == *constant);
        assert!(used, "{constant} is described and never measured");
    }
}

/// The sources, but for the table's.
fn gather(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, into);
        } else if !path.ends_with("src/metrics.rs") {
            into.push(path);
        }
    }
}
