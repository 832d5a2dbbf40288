//! The table, the sources and the rules, through the two steps that every start takes.

use std::path::PathBuf;

use super::table::{Default, Kind, Setting, TABLE};
use super::*;

fn flags(flags: &[(&'static str, &str)]) -> Sources {
    Sources { flags: flags.iter().map(|(n, t)| (*n, (*t).to_owned())).collect(), ..Sources::default() }
}

fn environment(variables: &[(&str, &str)]) -> Sources {
    let environment = variables.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect();
    Sources { environment, ..Sources::default() }
}

fn file(content: &str) -> Sources {
    Sources { file: Some((PathBuf::from("a3.toml"), content.to_owned())), ..Sources::default() }
}

fn load(sources: &Sources) -> Result<Config, ConfigError> {
    RawConfig::gather(sources).and_then(|raw| validate(&raw))
}

fn refusal(sources: &Sources) -> String {
    load(sources).expect_err("these settings are bad").to_string()
}

/// A text the setting takes, other than its default.
fn other_than_default(setting: &Setting) -> &'static str {
    match setting.kind {
        Kind::Number { .. } => "7",
        Kind::Switch => "true",
        Kind::Choice(words) => words.last().expect("a choice has words"),
        Kind::Duration { .. } => "7s",
        Kind::Bytes { .. } => "2MiB",
        Kind::IpAddress => "127.0.0.2",
        Kind::Host => "127.0.0.3",
        Kind::Addresses => "a.example:1,[::1]:2",
        Kind::Origins => "https://a.example,http://[::1]:8080",
        Kind::Path => "elsewhere",
        Kind::Text { .. } | Kind::LogFilter => "warn",
    }
}

#[test]
fn every_setting_can_be_set_from_all_three_sources_and_changes_the_configuration() {
    let plain = load(&Sources::default()).unwrap();
    for setting in TABLE {
        let text = other_than_default(setting);
        // Beside seeds a number is needed; it is the default, so that only the seeds differ.
        let beside = if setting.name == "SEEDS" { vec![("NODE_NUM", "1")] } else { vec![] };
        let line =
            format!("{} = {text:?}\n{}", setting.file_key(), if beside.is_empty() { "" } else { "node_num = 1" });
        let with = |name: &'static str| [&[(name, text)], beside.as_slice()].concat();
        let ways = [
            ("flag", flags(&with(setting.name))),
            ("environment", environment(&with(setting.name))),
            ("a3.toml:1", file(&line)),
        ];
        let mut seen = Vec::new();
        for (origin, sources) in ways {
            let raw = RawConfig::gather(&sources).unwrap();
            let stated = raw.get(setting).unwrap();
            assert_eq!((stated.text.as_deref(), stated.origin.to_string().as_str()), (Some(text), origin));
            seen.push(validate(&raw).unwrap_or_else(|e| panic!("{} from {origin}: {e}", setting.name)));
        }
        assert!(seen.iter().all(|c| *c == seen[0]), "{} differs by source", setting.name);
        assert_ne!(seen[0], plain, "{} changes nothing", setting.name);
    }
}

#[test]
fn an_origin_is_a_scheme_and_a_host() {
    for bad in
        ["a.example", "https://", "https://a.example/", "ftp://a.example", "https://a.example/x", "*", "https://u@a"]
    {
        let error = load(&environment(&[("CORS_ORIGINS", bad)])).unwrap_err().to_string();
        assert!(error.contains("CORS_ORIGINS"), "{bad}: {error}");
    }
}

#[test]
fn every_default_passes_its_own_check() {
    for setting in TABLE {
        if let Default::Text(text) = setting.default {
            load(&flags(&[(setting.name, text)])).unwrap_or_else(|e| panic!("{}: {e}", setting.name));
        }
    }
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let mut sources = file("weight = 3\nzone = \"file\"\nrequest_timeout = \"3s\"\n");
    sources.environment = environment(&[("WEIGHT", "2"), ("ZONE", "environment")]).environment;
    sources.flags = flags(&[("WEIGHT", "9")]).flags;
    let config = load(&sources).unwrap();
    assert_eq!((config.weight, config.zone.as_deref()), (9, Some("environment")));
    assert_eq!(config.request_timeout, Duration::from_secs(3));
    assert_eq!(config.hint_window, Duration::from_secs(3 * 3600));
    assert_eq!(config.gc_grace, Duration::from_secs(24 * 3600));
}

#[test]
fn ports_and_directory_follow_the_number() {
    let config = load(&environment(&[("NODE_NUM", "3"), ("HTTP_PORT", "")])).unwrap();
    assert_eq!((config.http_port, config.grpc_port), (8003, 50_053));
    assert_eq!(config.data_dir, PathBuf::from("data/node3"));
    assert_eq!(config.mesh_address(), "127.0.0.1:50053");
    assert!(refusal(&environment(&[("NODE_NUM", "20000")])).contains("GRPC_PORT must be set"));
    assert!(refusal(&flags(&[("HTTP_PORT", "9000"), ("GRPC_PORT", "9000")])).contains("both 9000"));
}

#[test]
fn a_number_has_no_default_beside_seeds() {
    let seeds = ("SEEDS", " 127.0.0.1:50051, [::1]:50052 ,");
    assert!(refusal(&environment(&[seeds])).contains("NODE_NUM must be set"));
    let config = load(&environment(&[seeds, ("NODE_NUM", "2")])).unwrap();
    assert_eq!(config.seeds, ["127.0.0.1:50051", "[::1]:50052"]);
    for bad in ["127.0.0.1", "host:0", "host:70000", ":50051", "::1:50051", "[::1]", "a b:1"] {
        assert!(refusal(&environment(&[("SEEDS", bad), ("NODE_NUM", "2")])).contains("host:port"), "{bad}");
    }
}

#[test]
fn off_loopback_a_node_needs_an_address_and_leave() {
    let anywhere = ("BIND_ADDR", "0.0.0.0");
    let allowed = ("MESH_INSECURE", "true");
    assert!(refusal(&environment(&[anywhere, allowed])).contains("nobody can call"));
    assert!(
        refusal(&environment(&[anywhere, allowed, ("ADVERTISE_ADDR", "127.0.0.1")])).contains("take for themselves")
    );
    assert!(
        refusal(&environment(&[anywhere, allowed, ("ADVERTISE_ADDR", "localhost")])).contains("take for themselves")
    );
    assert!(refusal(&environment(&[anywhere, ("ADVERTISE_ADDR", "n1")])).contains("no TLS"));
    let config = load(&environment(&[anywhere, allowed, ("ADVERTISE_ADDR", "n1")])).unwrap();
    assert_eq!((config.mesh_listen().to_string(), config.mesh_address()), ("0.0.0.0:50051".into(), "n1:50051".into()));
    assert!(config.warnings[0].contains("has no TLS"));
    let config = load(&environment(&[("BIND_ADDR", "::1")])).unwrap();
    assert_eq!(config.http_address(), "[::1]:8001");
}

#[test]
fn who_asks_another_machine_for_its_cluster_can_be_called_from_there() {
    let (number, elsewhere) = (("NODE_NUM", "4"), ("SEEDS", "127.0.0.1:50051,10.0.0.1:50051"));
    let refused = refusal(&environment(&[number, elsewhere]));
    assert!(refused.contains("another machine (10.0.0.1:50051), but ADVERTISE_ADDR is 127.0.0.1"), "{refused}");
    assert!(refusal(&environment(&[number, ("SEEDS", "[fd00::1]:1")])).contains("([fd00::1]:1)"));
    let advertised = ("ADVERTISE_ADDR", "10.0.0.4");
    let open = [number, elsewhere, ("BIND_ADDR", "0.0.0.0"), ("MESH_INSECURE", "true"), advertised];
    load(&environment(&open)).unwrap();
    load(&environment(&[number, ("SEEDS", "[::1]:50051,localhost:50052")])).unwrap();
    load(&environment(&[number, ("SEEDS", "n1:50051")])).unwrap();
}

#[test]
fn bad_values_are_named_with_their_source_all_at_once() {
    let mut sources = file("\n\nweight = 5000\ndurability = \"soon\"\n");
    sources.environment =
        environment(&[("GC_GRACE", "24"), ("DEBUG_LOG", "perhaps"), ("LOG_FILTER", "a=b=c")]).environment;
    sources.flags = flags(&[("VALUE_BYTES_MAX", "65MiB")]).flags;
    let problems = load(&sources).expect_err("bad").problems;
    for part in [
        "a3.toml:3: weight is \"5000\", but a whole number from 0 to 1000",
        "a3.toml:4: durability is \"soon\", but full or normal",
        "GC_GRACE is \"24\", but a time with its unit, from 1s to 365d",
        "DEBUG_LOG is \"perhaps\", but true or false",
        "LOG_FILTER is \"a=b=c\", but level or target=level",
        "--value-bytes-max is \"65MiB\", but a size from 1B to 64MiB",
    ] {
        assert!(problems.iter().any(|p| p.starts_with(part)), "{part} is not in {problems:#?}");
    }
    assert_eq!(problems.len(), 6);
}

#[test]
fn the_file_is_refused_with_line_and_nearest_name() {
    assert_eq!(
        refusal(&file("zone = \"a\"\nreplicaton_factor = 3\n")),
        "a3.toml:2: replicaton_factor is not a setting; did you mean replication_factor?"
    );
    assert_eq!(refusal(&file("colour = 1")), "a3.toml:1: colour is not a setting");
    assert_eq!(refusal(&file("weight = 1.5")), "a3.toml:1: weight takes no fraction");
    assert_eq!(refusal(&file("zone = [\"a\"]")), "a3.toml:1: zone takes no list like this");
    assert!(refusal(&file("[weight]\nx = 1")).starts_with("a3.toml:1: weight takes no section"));
    assert!(refusal(&file("weight = 1\nweight = 2")).starts_with("a3.toml:2: "));
    assert!(refusal(&file("zone = \"a\nweight = 1")).starts_with("a3.toml:1: "));
    let config = load(&file("seeds = [\"a:1\", \"b:2\"]\nnode_num = 4\nmesh_insecure = true")).unwrap();
    assert_eq!((config.seeds, config.mesh_insecure), (vec!["a:1".to_owned(), "b:2".to_owned()], true));
}

#[test]
fn slips_in_the_environment_and_settings_without_effect_only_warn() {
    let variables = [("REPLICATON_FACTOR", "3"), ("GOSSIP_PORT", "7946"), ("PATH", "/bin")];
    let config = load(&environment(&variables)).unwrap();
    assert_eq!(config.replication_factor, 2);
    assert_eq!(config.warnings.len(), 2);
    assert!(config.warnings[0].contains("REPLICATON_FACTOR is not a setting; REPLICATION_FACTOR is"));
    assert!(config.warnings[1].contains("GOSSIP_PORT is not used"));
}

#[test]
fn a_grace_that_is_shorter_than_a_write_may_take_only_warns() {
    assert_eq!(load(&environment(&[("GC_GRACE", "12min")])).unwrap().warnings, Vec::<String>::new());
    let warned = load(&environment(&[("GC_GRACE", "11min")])).unwrap().warnings;
    assert!(warned[0].contains("GC_GRACE is 11min, less than 12min"), "{warned:?}");
}
