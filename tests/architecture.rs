//! The house rules that a compiler does not know, read from the sources: which layer may look at which, which crate is
//! used where, how long a file may be. When this fails, move the code, not the rule.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Each layer and what it may use beside itself. `types <- protocol <- ports <- { storage | mesh | node <- http } <-
/// server <- main, cli`; storage, mesh and node meet only in the server.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("protocol", &["types"]),
    ("ports", &["types", "protocol"]),
    ("metrics", &[]),
    ("system", &["types", "ports"]),
    ("storage", &["types", "protocol", "ports", "metrics"]),
    ("mesh", &["types", "protocol", "ports", "metrics"]),
    ("node", &["types", "protocol", "ports", "metrics"]),
    ("http", &["types", "protocol", "ports", "metrics", "node"]),
    ("config", &["types", "protocol", "ports", "metrics", "storage", "mesh", "node", "http"]),
    ("server", &["types", "protocol", "ports", "metrics", "system", "storage", "mesh", "node", "http", "config"]),
    (
        "cli",
        &["types", "protocol", "ports", "metrics", "system", "storage", "mesh", "node", "http", "config", "server"],
    ),
];

/// The layers that touch the real world.
const ADAPTERS: &[&str] = &["storage", "mesh", "http"];

/// Crates and paths that belong to some layers only.
const OWNED: &[(&str, &[&str])] = &[
    ("rusqlite", &["storage"]),
    ("tonic", &["mesh"]),
    ("tonic_prost", &["mesh"]),
    ("prost", &["mesh"]),
    ("axum", &["http"]),
    ("utoipa", &["http"]),
    ("utoipa_axum", &["http"]),
    ("utoipa_swagger_ui", &["http"]),
    ("foca", &["protocol"]),
    ("clap", &["config", "cli", "main"]),
    ("opentelemetry", &["node", "cli"]),
    ("opentelemetry_sdk", &["cli"]),
    ("opentelemetry_otlp", &["cli"]),
    ("tracing_opentelemetry", &["node", "cli"]),
];

/// What some layers do without, and why.
const BANNED: &[(&[&str], &[&str], &str)] = &[
    (&["types", "protocol"], &["tokio", "futures_util"], "it is pure and synchronous"),
    (&["types", "protocol", "ports", "node"], &["std::fs", "std::net", "std::thread"], "its world comes by the ports"),
    (&["types", "protocol"], &["SystemTime", "Instant"], "time is an argument"),
    (&["protocol", "node"], &["HashMap", "HashSet"], "a seed must replay: use an ordered collection"),
];

const FILE_LINES_MAX: usize = 500;

/// Files over the limit, each with the most lines it may have. The numbers may only go down.
const LONG_FILES: &[(&str, usize)] = &[];

/// Rust text without comments and without what is inside literals, so that only code is judged. Line ends stay.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let raw = rest.strip_prefix('r').map(|r| (r, r.len() - r.trim_start_matches('#').len()));
        let after_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some((_, hashes)) = raw.filter(|(r, hashes)| !after_word && r[*hashes..].starts_with('"')) {
            let open = hashes + 2;
            let end = format!("\"{}", "#".repeat(hashes));
            rest[open..].find(&end).map_or(rest.len(), |at| open + at + end.len())
        } else if c == '"' {
            1 + closing(&rest[1..], '"')
        } else if c == '\'' && is_char_literal(rest) {
            1 + closing(&rest[1..], '\'')
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        let (gone, left) = rest.split_at(skipped);
        code.extend(gone.chars().filter(|c| *c == '\n'));
        code.push(' ');
        rest = left;
    }
    code
}

/// Up to and with the closing quote.
fn closing(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Not a lifetime.
fn is_char_literal(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    chars.next() == Some('\\') || chars.next() == Some('\'')
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// Code cut into words and single signs; `::` stays one.
fn tokens(code: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut all = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ if rest.starts_with("::") => 2,
            c => c.len_utf8(),
        };
        all.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    all
}

/// The layer of `src/...`: the first name below src.
fn layer_of(path: &str) -> &str {
    let below = path.strip_prefix("src/").unwrap_or(path);
    below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
}

/// The heads of the paths that start at the crate's root: `crate::a::b`, `crate::{a::b, c}`, and as many `super` as
/// lead there.
fn looked_at<'a>(path: &str, tokens: &[&'a str]) -> BTreeSet<&'a str> {
    let below = path.trim_start_matches("src/").trim_end_matches("/mod.rs");
    let depth = below.split('/').count();
    let mut heads = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        let root_at = match *token {
            "crate" => Some(at),
            "super" => {
                let supers = tokens[at..].chunks(2).take_while(|pair| *pair == ["super", "::"]).count();
                (supers >= depth).then(|| at + 2 * supers - 2)
            }
            _ => None,
        };
        let Some(root_at) = root_at else { continue };
        match tokens.get(root_at + 1..root_at + 3) {
            Some(["::", "{"]) => heads.extend(group_heads(&tokens[root_at + 3..])),
            Some(["::", head]) => drop(heads.insert(*head)),
            _ => {}
        }
    }
    heads
}

/// The first names of each path in a `{...}` whose bracket was passed already.
fn group_heads<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    let mut heads = Vec::new();
    let (mut depth, mut fresh) = (1, true);
    for token in tokens {
        match *token {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => fresh = true,
            head if depth == 1 && fresh => {
                heads.push(head);
                fresh = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// How much of a file is no test: up to its `#[cfg(test)] mod ... {`, nothing in a file of tests.
fn product_length(path: &str, tokens: &[&str]) -> usize {
    if path.split('/').any(|part| part == "tests" || part == "tests.rs") {
        return 0;
    }
    let opening = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let opens = |at: &usize| tokens[*at..].starts_with(&opening) && tokens.get(at + opening.len() + 1) == Some(&"{");
    (0..tokens.len()).find(opens).unwrap_or(tokens.len())
}

/// Whether a path like `std::fs` or a single name occurs, not as the tail of a longer path of ours.
fn mentions(tokens: &[&str], path: &str) -> bool {
    let wanted = self::tokens(path);
    tokens.windows(wanted.len()).enumerate().any(|(at, window)| {
        let ours = at >= 2 && tokens[at - 1] == "::" && matches!(tokens[at - 2], "crate" | "super" | "self");
        window == wanted && !ours
    })
}

/// Everything one file does wrong.
fn violations(path: &str, text: &str) -> Vec<String> {
    let layer = layer_of(path);
    let code = code_of(text);
    let tokens = tokens(&code);
    let mut found = Vec::new();

    let allowed = LAYERS.iter().find(|(name, _)| *name == layer).map(|(_, allowed)| *allowed);
    if allowed.is_none() && !matches!(layer, "lib" | "main") {
        found.push(format!("{path}: `{layer}` is no layer of the house; give it its place in LAYERS"));
    }
    if let Some(allowed) = allowed {
        let (product, tests) = tokens.split_at(product_length(path, &tokens));
        let of_product = looked_at(path, product);
        // Tests of an adapter may run on the real machine.
        let of_tests =
            looked_at(path, tests).into_iter().filter(|head| *head != "system" || !ADAPTERS.contains(&layer));
        for head in of_product.into_iter().chain(of_tests).collect::<BTreeSet<_>>() {
            let is_layer = LAYERS.iter().any(|(name, _)| *name == head);
            if is_layer && head != layer && !allowed.contains(&head) {
                found.push(format!("{path}: {layer} must not look at {head}; it may use {}", allowed.join(", ")));
            }
        }
    }
    for (owned, owners) in OWNED {
        if !owners.contains(&layer) && tokens.windows(2).any(|w| w == [*owned, "::"]) && mentions(&tokens, owned) {
            found.push(format!("{path}: {owned} is used in {} only", owners.join(", ")));
        }
    }
    for (layers, banned, reason) in BANNED {
        for name in banned.iter().filter(|name| layers.contains(&layer) && mentions(&tokens, name)) {
            found.push(format!("{path}: {layer} does without {name}: {reason}"));
        }
    }
    if layer == "node" {
        let unbiased = |w: &&[&str]| w[0] == "select" && w[1] == "!" && w[3] != "biased";
        let count = tokens.windows(4).filter(unbiased).count();
        if count > 0 {
            found.push(format!("{path}: {count} select! without `biased;`: a seed must replay"));
        }
    }
    if !text.starts_with("//!") {
        found.push(format!("{path}: a module opens with //! and says what it is for"));
    }
    found.extend(too_long(path, text.lines().count(), LONG_FILES));
    found
}

fn too_long(path: &str, lines: usize, long_files: &[(&str, usize)]) -> Option<String> {
    let listed = long_files.iter().find(|(name, _)| *name == path).map(|(_, lines)| *lines);
    match listed {
        None if lines > FILE_LINES_MAX => Some(format!("{path}: {lines} lines, {FILE_LINES_MAX} allowed: split it")),
        Some(most) if lines > most => Some(format!("{path}: {lines} lines, it had {most}: it may only shrink")),
        Some(_) if lines <= FILE_LINES_MAX => Some(format!("{path}: short enough now: take it out of LONG_FILES")),
        _ => None,
    }
}

/// What is public at the top but missing in the map, which is the `//!` of lib.rs.
fn missing_in_map(lib: &str) -> Vec<String> {
    let map: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("//!")).flat_map(tokens).collect();
    let code = code_of(lib);
    let modules = tokens(&code).windows(2).filter(|w| w[0] == "mod").map(|w| w[1].to_owned()).collect::<Vec<_>>();
    modules
        .into_iter()
        .filter(|module| !map.contains(&module.as_str()))
        .map(|module| format!("src/lib.rs: the map does not say what `{module}` is for"))
        .collect()
}

/// Every `.rs` file below `dir`, as (path from the repository's root, text), in order.
fn sources(root: &Path, dir: &str) -> Vec<(String, String)> {
    let mut entries: Vec<_> = fs::read_dir(root.join(dir)).unwrap().map(|e| e.unwrap()).collect();
    entries.sort_by_key(|e| e.file_name());
    let mut all = Vec::new();
    for entry in entries {
        let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            all.extend(sources(root, &path));
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(root.join(&path)).unwrap();
            all.push((path, text));
        }
    }
    all
}

#[test]
fn the_house_is_in_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = sources(root, "src");
    assert!(all.len() > 20, "the sources were not found");
    let mut found: Vec<String> = all.iter().flat_map(|(path, text)| violations(path, text)).collect();
    let lib = all.iter().find(|(path, _)| path == "src/lib.rs").map(|(_, text)| text.as_str()).unwrap();
    found.extend(missing_in_map(lib));
    for (path, text) in sources(root, "tests") {
        found.extend(too_long(&path, text.lines().count(), LONG_FILES));
    }
    for (path, _) in LONG_FILES.iter().filter(|(path, _)| !root.join(path).exists()) {
        found.push(format!("{path}: is gone: take it out of LONG_FILES"));
    }
    assert!(found.is_empty(), "{} rules broken:\n{}", found.len(), found.join("\n"));
}

#[test]
fn each_rule_can_fail() {
    let bad = [
        ("src/node/a.rs", "use crate::storage::Engine;", "node must not look at storage"),
        ("src/protocol/a.rs", "use crate::{types::Key, node::{clock, reach}};", "protocol must not look at node"),
        ("src/mesh/a.rs", "fn f() { crate :: node::run() }", "mesh must not look at node"),
        ("src/types/a.rs", "use super::super::ports::Clock;", "types must not look at ports"),
        ("src/metrics.rs", "use super::mesh::Client;", "metrics must not look at mesh"),
        ("src/mesh/a.rs", "use crate::system::Tasks;\n#[cfg(test)]\nmod tests {}", "mesh must not look at system"),
        ("src/node/tests.rs", "use crate::system::Tasks;", "node must not look at system"),
        ("src/cellar/a.rs", "fn f() {}", "`cellar` is no layer"),
        ("src/node/a.rs", "use rusqlite::Connection;", "rusqlite is used in storage only"),
        ("src/http/a.rs", "fn f(s: tonic::Status) {}", "tonic is used in mesh only"),
        ("src/server.rs", "use axum::Router;", "axum is used in http only"),
        ("src/protocol/a.rs", "use tokio::time::sleep;", "protocol does without tokio"),
        ("src/node/a.rs", "use std::collections::HashMap;", "node does without HashMap"),
        ("src/node/a.rs", "fn f() { std::fs::read(p); }", "node does without std::fs"),
        ("src/node/a.rs", "async fn f() { tokio::select! { _ = a => {} } }", "without `biased;`"),
    ];
    for (path, code, complaint) in bad {
        let found = violations(path, &format!("//! A sample.\n{code}\n"));
        assert!(found.iter().any(|f| f.contains(complaint)), "{path}: {code}\ngave {found:?}");
        assert_eq!(found.len(), 1, "{found:?}");
    }
    assert_eq!(violations("src/node/a.rs", "fn f() {}\n").len(), 1, "no //!");
    assert_eq!(violations("src/node/a.rs", &"//! long\n".repeat(501)).len(), 1);
    let long_files = [("src/ports.rs", 600)];
    assert!(too_long("src/ports.rs", 601, &long_files).is_some_and(|f| f.contains("only shrink")));
    assert!(too_long("src/ports.rs", 100, &long_files).is_some_and(|f| f.contains("take it out")));
    assert!(too_long("src/ports.rs", 600, &long_files).is_none());
    assert_eq!(missing_in_map("//! `types` only.\npub mod types;\npub mod attic;\n").len(), 1);
}

#[test]
fn only_code_is_judged() {
    let fine = r##"//! Unlike rusqlite::Connection and crate::storage, this is fine.
use crate::types::Key;
use super::storage_of_words;
/* crate::mesh::X /* nested */ tonic::Y */
const A: &str = "crate::storage::\" tokio::select! {";
const B: &str = r#"HashMap "quoted" axum::Router"#;
fn f<'a>(c: char, s: &'a str) -> bool { c == '"' || c == '\'' || s == "HashSet" }
async fn g() { tokio::select! { biased; _ = a => {} } }
use crate::metrics;
"##;
    assert_eq!(violations("src/node/a.rs", fine), Vec::<String>::new());
    for (path, code) in [
        ("src/storage/a.rs", "use rusqlite::Connection;"),
        ("src/mesh/a.rs", "#[cfg(test)]\nmod tests { use crate::system::Tasks; }"),
        ("src/mesh/tests/mod.rs", "use crate::system::Tasks;"),
    ] {
        assert_eq!(violations(path, &format!("//! A sample.\n{code}\n")), Vec::<String>::new());
    }
}
