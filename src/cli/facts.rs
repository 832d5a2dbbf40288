//! What a node says of itself: whether it is ready and why not, and those of its metrics that a person looks for in every
//! node. Each node is asked by itself, since none can tell them of another.
//!
//! Caveats: a member's REST address may be good inside its network only. A member that cannot be asked is not called down
//! for that; what it would have said is unknown.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use super::client::{Answer, Client, Host, within};

/// How long a node may take to answer all of it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Nothing where the node did not say.
#[derive(Debug, Default, Serialize)]
pub(super) struct Facts {
    /// Why it could not be asked.
    pub(super) not_asked: Option<String>,
    pub(super) ready: Option<bool>,
    /// What it is not ready for.
    pub(super) waits_for: Vec<String>,
    pub(super) up_seconds: Option<f64>,
    /// Its clock minus the median of the clocks it hears.
    pub(super) clock_skew_seconds: Option<f64>,
    pub(super) keys: Option<f64>,
    /// Of keys and values.
    pub(super) bytes: Option<f64>,
    /// The database and its log.
    pub(super) disk_used_bytes: Option<f64>,
    pub(super) disk_free_bytes: Option<f64>,
    pub(super) damaged_rows: Option<f64>,
}

/// Asks the node at this address.
pub(super) async fn of(client: &Client, address: &str) -> Facts {
    let not_asked = |why: String| Facts { not_asked: Some(why), ..Facts::default() };
    let Ok(host) = address.parse::<Host>() else { return not_asked(format!("{address:?} is no address")) };
    let asked = async {
        let ready = client.get(&host, "/readyz?verbose").await?;
        Ok::<_, super::Fault>((ready, client.get(&host, "/metrics").await?))
    };
    match within(PATIENCE, &host, asked).await {
        Ok((ready, metrics)) => facts(&ready, &metrics),
        Err(fault) => not_asked(fault.to_string()),
    }
}

fn facts(ready: &Answer, metrics: &Answer) -> Facts {
    let text = String::from_utf8_lossy(&metrics.body);
    let samples = samples(&text);
    let of = |name: &str| samples.get(name).copied().filter(|value| value.is_finite());
    // Its own clock says how old it is, whatever ours shows.
    let now = metrics.header("date").and_then(|date| httpdate::parse_http_date(date).ok());
    let now = now.and_then(|date| date.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs_f64());
    Facts {
        not_asked: None,
        ready: Some((200..300).contains(&ready.status)),
        waits_for: failed_checks(&ready.json().unwrap_or_default()),
        up_seconds: now.zip(of("process_start_time_seconds")).map(|(now, began)| (now - began).max(0.0)),
        clock_skew_seconds: of("a3_clock_skew_seconds"),
        keys: of("a3_store_keys"),
        bytes: of("a3_store_bytes"),
        disk_used_bytes: of("a3_store_file_bytes").map(|file| file + of("a3_store_wal_bytes").unwrap_or(0.0)),
        disk_free_bytes: of("a3_store_disk_free_bytes"),
        damaged_rows: of("a3_store_damaged_rows_total"),
    }
}

/// The samples without labels.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains('{'));
    lines
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
        .collect()
}

fn failed_checks(ready: &Value) -> Vec<String> {
    let checks = ready.get("checks").and_then(Value::as_array).into_iter().flatten();
    let failed = checks.filter(|check| check.get("ok") == Some(&Value::Bool(false)));
    let text = |check: &Value, name: &str| check.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
    failed.map(|check| format!("{}: {}", text(check, "name"), text(check, "detail"))).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::header::{DATE, HeaderMap, HeaderValue};

    use super::*;

    fn answer(status: u16, body: &'static str) -> Answer {
        let headers = [(DATE, HeaderValue::from_static("Thu, 01 Jan 1970 01:00:00 GMT"))];
        Answer { status, headers: HeaderMap::from_iter(headers), body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn what_a_node_says_is_taken_from_its_readiness_and_its_metrics() {
        let ready = answer(
            503,
            r#"{"checks":[{"name":"storage","ok":true},{"name":"draining","ok":false,"detail":"finishing"}]}"#,
        );
        let metrics = "# HELP a3_clock_skew_seconds 9\na3_clock_skew_seconds -0.25\nprocess_start_time_seconds 3480.5\n\
                       a3_store_file_bytes 4096\na3_store_wal_bytes 1000\na3_store_damaged_rows_total{a=\"b\"} 7\n";
        let facts = facts(&ready, &answer(200, metrics));
        assert_eq!((facts.ready, facts.waits_for), (Some(false), vec!["draining: finishing".to_owned()]));
        assert_eq!((facts.up_seconds, facts.clock_skew_seconds), (Some(119.5), Some(-0.25)));
        assert_eq!((facts.disk_used_bytes, facts.disk_free_bytes, facts.damaged_rows), (Some(5096.0), None, None));
    }
}
