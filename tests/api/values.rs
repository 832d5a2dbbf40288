//! Keys and values of every kind go in at one node and come out identical at another.

use a3::ports::Entropy as _;
use a3::system::SystemEntropy;

use crate::client::encoded;
use crate::harness::Cluster;

const MIB: usize = 1024 * 1024;

fn random(bytes: usize) -> Vec<u8> {
    let entropy = SystemEntropy::default();
    std::iter::repeat_with(|| entropy.u64().to_le_bytes()).flatten().take(bytes).collect()
}

#[tokio::test]
async fn values_come_out_at_every_node_as_they_went_in_at_one() {
    let cluster = Cluster::of_three().await;
    let values: [(&str, Vec<u8>, Option<&str>); 5] = [
        ("random", random(4096), Some("image/png")),
        ("empty", Vec::new(), Some("text/plain; charset=utf-8")),
        ("large", random(MIB), None),
        ("text", "Grüße".into(), Some("text/plain;charset=UTF-8")),
        ("form", b"a=b".to_vec(), Some("application/x-www-form-urlencoded")),
    ];
    for (i, (name, value, content_type)) in values.iter().enumerate() {
        let path = format!("/kv/{name}");
        let headers: Vec<_> = content_type.iter().map(|kind| ("content-type", *kind)).collect();
        let writer = cluster.at(i as u16 % 3 + 1);
        let put = writer.ask("PUT", &path, &headers, value.clone()).await;
        put.receipt(201, "stored");
        let anonymous = content_type.is_none_or(|kind| kind == "application/x-www-form-urlencoded");
        let kept = if anonymous { Some("application/octet-stream") } else { *content_type };
        for reader in 1..=3 {
            let got = cluster.at(reader).get(&path).await;
            assert_eq!((got.status, got.header("content-type")), (200, kept), "{name} at n{reader}");
            assert!(got.body == *value, "{name} at n{reader}: {} bytes", got.body.len());
            assert_eq!(got.header("etag"), put.header("etag"), "{name} at n{reader}");
            assert_eq!(got.header("content-length"), Some(value.len().to_string().as_str()));
        }
    }
}

#[tokio::test]
async fn keys_are_any_bytes() {
    let cluster = Cluster::of_three().await;
    let keys: [&[u8]; 14] = [
        b"a/b/c",
        b"/",
        b"//a//",
        b"..",
        b"a/../b",
        b"100%",
        b"what?",
        b"part#1",
        b"a b+c",
        "🦀/é".as_bytes(),
        &[0, 0xff, 0x80, b'\n', 0x7f],
        b"name?x=1&y=2",
        b"\"quoted\"\\",
        &[b'k'; 1024],
    ];
    for (i, key) in keys.iter().enumerate() {
        let (path, value) = (format!("/kv/{}", encoded(key)), format!("value {i}"));
        let receipt = cluster.at(i as u16 % 3 + 1).put(&path, value.clone()).await.receipt(201, "stored");
        if let Ok(text) = std::str::from_utf8(key) {
            assert_eq!((&receipt["key"], receipt.get("key_base64")), (&text.into(), None));
        }
        let got = cluster.at((i as u16 + 1) % 3 + 1).get(&path).await;
        assert_eq!((got.status, &got.body[..]), (200, value.as_bytes()), "{key:?}");
    }
    // Had two of them been one key, the later value would stand under both.
    for (i, key) in keys.iter().enumerate() {
        let got = cluster.at(1).get(&format!("/kv/{}", encoded(key))).await;
        assert_eq!(got.body, format!("value {i}"), "{key:?}");
    }
    let raw = cluster.at(2).put("/kv/%00%FFx", "1").await.receipt(201, "stored");
    assert_eq!((&raw["key"], &raw["key_base64"]), (&"\u{0}\u{fffd}x".into(), &"AP94".into()));
}

#[tokio::test]
async fn a_key_is_decoded_once_and_never_folded() {
    let cluster = Cluster::single().await;
    let node = cluster.at(1);
    node.put("/kv/a/b", "1").await.receipt(201, "stored");
    for same in ["/kv/a%2Fb", "/kv/a%2fb", "/kv/%61%2F%62"] {
        assert_eq!(node.get(same).await.body, "1", "{same}");
    }
    for other in ["/kv/a//b", "/kv/a/b/", "/kv/a/./b", "/kv/c/../a/b", "/kv/a%252Fb", "/kv/A/b"] {
        node.get(other).await.problem(404, "no-such-key");
    }
    node.put("/kv/%2541", "percent").await.receipt(201, "stored");
    node.get("/kv/A").await.problem(404, "no-such-key");
    node.get("/kv/%41").await.problem(404, "no-such-key");
    node.put("/kv/a+b", "plus").await.receipt(201, "stored");
    node.get("/kv/a%20b").await.problem(404, "no-such-key");
    assert_eq!(node.get("/kv/a%2Bb").await.body, "plus");
}
