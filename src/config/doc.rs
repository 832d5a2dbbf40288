//! `docs/settings.md`: rendered from the table, and compared with the file. `A3_WRITE_DOCS=1 cargo test --lib config::doc` writes
//! the file anew.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use super::table::{Kind, TABLE};
use super::units::{show_bytes, show_duration};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md");

const HEAD: &str = "# Settings

This page is made from `src/config/table.rs`; a test keeps the two the same. Each setting is an environment variable, a flag of
`a3 serve`, `a3 join` and `a3 replace` (`HTTP_PORT` is `--http-port`), and a line of the TOML file that `--config` names, without sections:

```toml
node_num = 1
seeds = [\"10.0.0.2:50052\", \"10.0.0.3:50053\"]
request_timeout = \"2s\"
```

Flags win over the environment, the environment over the file, the file over defaults. An environment variable that is empty counts as not
set. `a3 config` prints every setting, its value and where it came from, and starts nothing. A value out of its range, a name that is
none, and settings that contradict each other are all told at once, and the node does not start (exit code 78).

| name | default | takes | what it is for |
|---|---|---|---|
";

const TAIL: &str = "
`a3` as a client takes the node to ask from `--host`, or else from `A3_HOST` (`http://127.0.0.1:8001`).
";

/// The texts a setting of that kind takes.
fn takes(kind: Kind) -> String {
    let words = |words: &[&str]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    match kind {
        Kind::Number { min, max } => format!("{min} to {max}"),
        Kind::Switch => words(&["true", "false"]),
        Kind::Choice(choice) => words(choice),
        Kind::Duration { min_ms, max_ms } => {
            let [min, max] = [min_ms, max_ms].map(|ms| show_duration(Duration::from_millis(ms)));
            format!("a time, {min} to {max}")
        }
        Kind::Bytes { min, max } => format!("a size, {} to {}", show_bytes(min), show_bytes(max)),
        Kind::IpAddress => "an IP address".to_owned(),
        Kind::Host => "an IP address or a DNS name".to_owned(),
        Kind::Addresses => "`host:port`, several".to_owned(),
        Kind::Origins => "`https://host`, several".to_owned(),
        Kind::Path => "a path".to_owned(),
        Kind::LogFilter => "`level`, `target=level`, several".to_owned(),
        Kind::Text { bytes_max } => format!("a text, up to {bytes_max} bytes"),
    }
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    for setting in TABLE {
        let (name, default, takes, meaning) =
            (setting.name, setting.default_text(), takes(setting.kind), setting.meaning);
        writeln!(page, "| `{name}` | {default} | {takes} | {meaning} |").unwrap();
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
    assert!(current, "run `A3_WRITE_DOCS=1 cargo test --lib config::doc`");
}
