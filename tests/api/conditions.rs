//! Conditions, `Idempotency-Key` and the linearizable level: who writes under one, and what everybody else is told.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Answer, Client, names};
use crate::harness::{Cluster, Setup, eventually};

type Headers<'a> = &'a [(&'a str, &'a str)];

const ABSENT: (&str, &str) = ("if-none-match", "*");

/// The ETag of an answer.
#[track_caller]
fn etag(answer: &Answer) -> String {
    answer.header("etag").unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

/// The answer of a false condition, which met this version.
#[track_caller]
fn unmet(answer: &Answer, met: Option<&str>) -> Value {
    let problem = answer.problem(412, "precondition-failed");
    assert_eq!((answer.header("etag"), &problem["retryable"]), (met, &false.into()), "{answer:?}");
    assert_eq!(answer.header("a3-version"), met.map(|tag| tag.trim_matches('"')), "{answer:?}");
    problem
}

/// The answer of a write whose condition is false.
#[track_caller]
fn refused(answer: &Answer, met: Option<&str>) {
    assert_eq!(unmet(answer, met)["outcome"], "not_applied");
}

/// A write under headers, again while other proposers or a busy machine are in the way of an answer.
async fn decided(node: &Client, method: &str, path: &str, headers: Headers<'_>, body: &str) -> Answer {
    let path = format!("{path}?timeout=30s");
    eventually("it is decided", async || {
        let answer = node.ask(method, &path, headers, body.to_owned()).await;
        let is_undone = answer.status >= 500 || answer.status == 409;
        is_undone.then(|| assert_eq!(answer_outcome(&answer), "not_applied", "{answer:?}"));
        (!is_undone).then_some(answer)
    })
    .await
}

fn answer_outcome(answer: &Answer) -> Value {
    serde_json::from_slice::<Value>(&answer.body).unwrap()["outcome"].clone()
}

#[tokio::test]
async fn a_key_is_created_once() {
    let cluster = Cluster::of_three().await;
    let created = decided(&cluster.at(1), "PUT", "/kv/k", &[ABSENT], "first").await;
    let receipt = created.receipt(201, "stored");
    assert_eq!((&receipt["consistency"], &receipt["strict"]), (&"linearizable".into(), &true.into()), "{receipt}");
    assert_eq!((names(&receipt["acked"]).len(), &receipt["hinted"]), (2, &json!({})), "{receipt}");
    for node in 1..=3 {
        let again = decided(&cluster.at(node), "PUT", "/kv/k", &[ABSENT], "second").await;
        refused(&again, Some(&etag(&created)));
    }
    assert_eq!(cluster.at(2).get("/kv/k?consistency=linearizable").await.body, "first");
}

#[tokio::test]
async fn a_value_is_changed_only_by_who_knows_it() {
    let cluster = Cluster::of_three().await;
    let (one, other) = (cluster.at(1), cluster.at(3));
    let first = etag(&decided(&one, "PUT", "/kv/k", &[ABSENT], "1").await);
    let second = decided(&other, "PUT", "/kv/k", &[("if-match", &first)], "2").await;
    second.receipt(200, "stored");
    let second = etag(&second);
    assert!(second > first, "{second} after {first}");
    let weak = format!("W/{second}");
    for stale in [&first, &weak, "\"nonsense\"", "\"0-0-0\""] {
        refused(&decided(&one, "PUT", "/kv/k", &[("if-match", stale)], "3").await, Some(&second));
        refused(&decided(&one, "DELETE", "/kv/k", &[("if-match", stale)], "").await, Some(&second));
    }
    let list = format!("\"x\", {first}, {second}");
    let third = decided(&one, "PUT", "/kv/k", &[("if-match", &list)], "3").await;
    third.receipt(200, "stored");
    refused(&decided(&one, "PUT", "/kv/k", &[("if-none-match", &etag(&third))], "4").await, Some(&etag(&third)));
    let fourth = decided(&one, "PUT", "/kv/k", &[("if-match", "*"), ("if-none-match", &second)], "4").await;
    fourth.receipt(200, "stored");
    let broken = one.ask("PUT", "/kv/k", &[("if-match", first.trim_matches('"'))], "5").await;
    assert_eq!(broken.problem(400, "bad-request")["outcome"], "not_applied");
    assert_eq!(other.get("/kv/k?consistency=linearizable").await.body, "4");
}

#[tokio::test]
async fn a_time_is_asked_where_no_tag_is() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let now = etag(&node.put("/kv/k", "1").await);
    let (past, future) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
    let since = |date| [("if-unmodified-since", date)];
    refused(&decided(&node, "PUT", "/kv/k", &since(past), "2").await, Some(&now));
    refused(&decided(&node, "DELETE", "/kv/k", &since(past), "").await, Some(&now));
    decided(&node, "PUT", "/kv/k", &since(future), "2").await.receipt(200, "stored");
    let tagged = etag(&node.get("/kv/k").await);
    decided(&node, "PUT", "/kv/k", &[("if-match", &tagged), since(past)[0]], "3").await.receipt(200, "stored");
    let ignored = node.ask("PUT", "/kv/k", &since("yesterday"), "4").await.receipt(200, "stored");
    assert_eq!(ignored["consistency"], "quorum", "a date that is none asks nothing: {ignored}");
}

#[tokio::test]
async fn a_deleted_key_never_has_an_old_etag_again() {
    let cluster = Cluster::of_three().await;
    let node = cluster.at(2);
    let nothing = decided(&node, "DELETE", "/kv/k", &[("if-match", "*")], "").await;
    refused(&nothing, None);
    let first = etag(&decided(&node, "PUT", "/kv/k", &[ABSENT], "1").await);
    let deleted = decided(&node, "DELETE", "/kv/k", &[("if-match", &first)], "").await;
    deleted.receipt(200, "deleted");
    let gone = cluster.at(1).get("/kv/k").await;
    gone.problem(404, "no-such-key");
    assert_eq!((gone.header("a3-deleted"), gone.header("a3-version")), (Some("true"), deleted.header("a3-version")));
    for old in [&first, &etag(&deleted), "*"] {
        refused(&decided(&node, "PUT", "/kv/k", &[("if-match", old)], "2").await, None);
    }
    let again = decided(&node, "PUT", "/kv/k", &[ABSENT], "1").await;
    again.receipt(201, "stored");
    assert!(etag(&again) > etag(&deleted), "{again:?}");
    refused(&decided(&node, "PUT", "/kv/k", &[("if-match", &first)], "2").await, Some(&etag(&again)));
}

#[tokio::test]
async fn who_comes_too_late_may_have_the_value_at_once() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let put = node.ask("PUT", "/kv/k", &[("content-type", "text/html")], "<b>now</b>").await;
    let asked = [ABSENT, ("prefer", "return=representation")];
    for method in ["PUT", "DELETE"] {
        let refused = decided(&node, method, "/kv/k", &asked, "").await;
        assert_eq!((refused.status, &refused.body[..]), (412, &b"<b>now</b>"[..]));
        let got = node.get("/kv/k").await;
        let same = ["content-type", "etag", "a3-version", "last-modified"];
        let same = same.into_iter().chain(["x-content-type-options", "content-security-policy"]);
        same.for_each(|name| assert_eq!(refused.header(name), got.header(name), "{name}"));
        assert_eq!((refused.header("etag"), refused.header("cache-control")), (put.header("etag"), Some("no-store")));
        assert_eq!(refused.header("preference-applied"), Some("return=representation"));
        assert!(refused.header("x-request-id").is_some());
    }
    let none = [("if-match", "*"), ("prefer", "return=representation")];
    refused(&decided(&node, "PUT", "/kv/none", &none, "1").await, None);
}

#[tokio::test]
async fn a_request_under_one_name_is_done_once_and_answered_alike_everywhere() {
    let cluster = Cluster::of_three().await;
    let once = ("idempotency-key", "order-17");
    let first = decided(&cluster.at(1), "PUT", "/kv/k", &[once], "1").await;
    first.receipt(201, "stored");
    let later = decided(&cluster.at(2), "PUT", "/kv/k", &[("if-match", &etag(&first))], "2").await;
    later.receipt(200, "stored");
    for node in 1..=3 {
        let again = decided(&cluster.at(node), "PUT", "/kv/k", &[once], "1").await;
        again.receipt(201, "stored");
        assert_eq!(etag(&again), etag(&first), "the first answer, though another value stands there");
    }
    assert_eq!(cluster.at(3).get("/kv/k?consistency=linearizable").await.body, "2");

    let others: [(&str, Headers<'_>, &str); 4] = [
        ("PUT", &[], "9"),
        ("PUT", &[ABSENT], "1"),
        ("PUT", &[("content-type", "text/plain")], "1"),
        ("DELETE", &[], ""),
    ];
    for (method, headers, body) in others {
        let other = decided(&cluster.at(1), method, "/kv/k", &[&[once], headers].concat(), body).await;
        let problem = other.problem(422, "idempotency-key-reused");
        assert_eq!((&problem["outcome"], &problem["retryable"]), (&"not_applied".into(), &false.into()));
    }
    decided(&cluster.at(1), "PUT", "/kv/other", &[once], "9").await.receipt(201, "stored");
}

#[tokio::test]
async fn a_refusal_is_remembered_too() {
    let cluster = Cluster::of_three().await;
    let named = [ABSENT, ("idempotency-key", "try-1"), ("prefer", "return=representation")];
    let first = etag(&decided(&cluster.at(1), "PUT", "/kv/k", &[ABSENT], "1").await);
    let refusal = decided(&cluster.at(1), "PUT", "/kv/k", &named, "2").await;
    assert_eq!((refusal.status, etag(&refusal), &refusal.body[..]), (412, first.clone(), &b"1"[..]));
    decided(&cluster.at(2), "DELETE", "/kv/k", &[("if-match", &first)], "").await.receipt(200, "deleted");
    let again = decided(&cluster.at(3), "PUT", "/kv/k", &named, "2").await;
    refused(&again, Some(&first));
    cluster.at(3).get("/kv/k?consistency=linearizable").await.problem(404, "no-such-key");
}

#[tokio::test]
async fn a_name_must_be_one() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let long = "k".repeat(256);
    for key in ["", "a b", &long] {
        let problem = node.ask("PUT", "/kv/k", &[("idempotency-key", key)], "1").await.problem(400, "bad-request");
        assert_eq!(problem["outcome"], "not_applied", "{key}");
    }
    let twice = [("idempotency-key", "a"), ("idempotency-key", "a")];
    node.ask("PUT", "/kv/k", &twice, "1").await.problem(400, "bad-request");
    let read = node.ask("GET", "/kv/k", &twice, "").await;
    read.problem(404, "no-such-key");
}

#[tokio::test]
async fn a_condition_is_linearizable_or_refused() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    for named in [ABSENT, ("if-match", "*"), ("idempotency-key", "a")] {
        for level in ["one", "all"] {
            let answer = node.ask("PUT", &format!("/kv/k?consistency={level}"), &[named], "1").await;
            let problem = answer.problem(400, "bad-parameters");
            assert_eq!(
                (&problem["parameters"][0]["name"], &problem["outcome"]),
                (&"consistency".into(), &"not_applied".into())
            );
            assert!(problem["detail"].as_str().unwrap().contains("linearizable"), "{problem}");
        }
    }
    node.get("/kv/k").await.problem(404, "no-such-key");
    for level in ["quorum", "linearizable"] {
        let path = format!("/kv/{level}?consistency={level}");
        let receipt = node.ask("PUT", &path, &[ABSENT], "1").await.receipt(201, "stored");
        assert_eq!(receipt["consistency"], "linearizable");
    }
}

#[tokio::test]
async fn a_read_may_ask_conditions_too() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    let now = etag(&node.put("/kv/k", "1").await);
    let (weak, past, future) = (format!("W/{now}"), "Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
    let cases: [(Headers<'_>, u16); 11] = [
        (&[("if-match", &now)], 200),
        (&[("if-match", "*")], 200),
        (&[("if-match", &weak)], 412),
        (&[("if-match", "\"other\"")], 412),
        (&[("if-unmodified-since", past)], 412),
        (&[("if-unmodified-since", future)], 200),
        (&[("if-match", &now), ("if-unmodified-since", past)], 200),
        (&[("if-match", &now), ("if-none-match", &weak)], 304),
        (&[("if-modified-since", future)], 304),
        (&[("if-modified-since", past)], 200),
        (&[("if-none-match", "\"other\""), ("if-modified-since", future)], 200),
    ];
    for (headers, status) in cases {
        for method in ["GET", "HEAD"] {
            let answer = node.ask(method, "/kv/k", headers, "").await;
            assert_eq!((answer.status, etag(&answer)), (status, now.clone()), "{method} {headers:?}");
            if (method, status) == ("GET", 412) {
                assert_eq!(unmet(&answer, Some(&now)).get("outcome"), None);
            }
        }
    }
    for broken in ["other", "\"a", "", "*, \"a\""] {
        node.ask("GET", "/kv/k", &[("if-none-match", broken)], "").await.problem(400, "bad-request");
    }
    // What is not there is not there, whatever is asked of it.
    node.ask("GET", "/kv/none", &[("if-match", "*")], "").await.problem(404, "no-such-key");
}

#[tokio::test]
async fn of_many_who_create_a_key_one_does() {
    let cluster = Cluster::start(3, Setup { rf: 3, ..Setup::default() }).await;
    cluster.all_reachable().await;
    let mut tries = JoinSet::new();
    for i in 0..60u16 {
        let node = cluster.at(i % 3 + 1);
        tries.spawn(async move {
            let answer = node.ask("PUT", "/kv/lock?timeout=30s", &[ABSENT], format!("{i}")).await;
            (answer.status, i)
        });
    }
    let ended = tries.join_all().await;
    let winners: Vec<u16> = ended.iter().filter(|(status, _)| *status == 201).map(|(_, i)| *i).collect();
    assert_eq!(winners.len(), 1, "{ended:?}");
    assert!(ended.iter().all(|(status, _)| [201, 409, 412].contains(status)), "{ended:?}");
    assert_eq!(cluster.at(1).get("/kv/lock?consistency=linearizable").await.body, winners[0].to_string());
}

/// Adds one to the counter, unless somebody else did in between.
async fn increment(node: &Client) -> bool {
    let read = node.get("/kv/counter?consistency=linearizable&timeout=30s").await;
    assert_eq!(read.status, 200, "{read:?}");
    let next = str::from_utf8(&read.body).unwrap().parse::<u32>().unwrap() + 1;
    let headers = [("if-match", read.header("etag").unwrap())];
    let answer = node.ask("PUT", "/kv/counter?timeout=30s", &headers, next.to_string()).await;
    assert!([200, 409, 412].contains(&answer.status), "{answer:?}");
    answer.status == 200
}

#[tokio::test]
async fn a_counter_counts_everyone() {
    let cluster = Cluster::start(3, Setup { rf: 3, ..Setup::default() }).await;
    cluster.all_reachable().await;
    decided(&cluster.at(1), "PUT", "/kv/counter", &[ABSENT], "0").await.receipt(201, "stored");
    let mut clients = JoinSet::new();
    for i in 0..12u16 {
        let node = cluster.at(i % 3 + 1);
        clients.spawn(async move {
            let mut done = 0;
            while done < 5 {
                done += u16::from(increment(&node).await);
            }
        });
    }
    clients.join_all().await;
    assert_eq!(cluster.at(2).get("/kv/counter?consistency=linearizable").await.body, "60");
}

#[tokio::test]
async fn without_a_majority_of_home_replicas_nothing_is_decided() {
    let mut cluster = Cluster::start(3, Setup { rf: 2, ..Setup::default() }).await;
    cluster.all_reachable().await;
    let placement = cluster.at(1).get("/cluster/placement?key=k").await.json();
    let gone: u16 = names(&placement["home_replicas"])[1].trim_start_matches('n').parse().unwrap();
    let asked = if gone == 1 { 2 } else { 1 };
    let first = etag(&decided(&cluster.at(asked), "PUT", "/kv/k", &[ABSENT], "1").await);
    cluster.stop(gone).await;
    let node = cluster.at(asked);
    eventually("it is known to be gone", async || {
        let health = node.get("/cluster/health").await.json();
        (health["members_down"] == json!([format!("n{gone}")])).then_some(())
    })
    .await;
    for (method, path, headers) in [
        ("PUT", "/kv/k", &[("if-match", &*first)][..]),
        ("DELETE", "/kv/k", &[("if-match", "*")]),
        ("PUT", "/kv/k", &[("idempotency-key", "a")]),
        ("PUT", "/kv/k?consistency=linearizable", &[]),
    ] {
        let problem = node.ask(method, path, headers, "2").await.problem(503, "unavailable");
        assert_eq!((&problem["outcome"], &problem["required"]), (&"not_applied".into(), &2.into()), "{problem}");
        let failed = problem["failed"].as_array().unwrap();
        assert!(failed.iter().any(|f| f["node"] == format!("n{gone}")), "{problem}");
    }
    node.get("/kv/k?consistency=linearizable").await.problem(503, "unavailable");
    cluster.restart(gone).await;
    cluster.all_reachable().await;
    let path = "/kv/k";
    decided(&cluster.at(asked), "PUT", path, &[("if-match", &first)], "2").await.receipt(200, "stored");
}
