//! A change that somebody wants: how a node is asked to plan it and to begin it, and whether a cluster is as it would make it.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::body;
use crate::cli::Fault;
use crate::cli::client::{Answer, Client, Host};
use crate::cli::views::Cluster;

/// A node on the command line: `n2`, or `2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct NodeName(pub(in crate::cli) u16);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix('n').unwrap_or(text);
        let wanted = || "a node by its number wanted, such as n2".to_owned();
        number.parse().ok().filter(|number| *number > 0).map(Self).ok_or_else(wanted)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Join { node: NodeName, weight: u32, zone: Option<String> },
    Leave { node: NodeName },
    Weight { node: NodeName, weight: u32 },
    Zone { node: NodeName, zone: Option<String> },
    ReplicationFactor { rf: u8 },
}

impl Wanted {
    /// What `POST /cluster/plan` is asked.
    fn plan_body(&self) -> Value {
        let name = |node: &NodeName| ("node", json!(node.to_string()));
        match self {
            Wanted::Join { node, weight, zone } => {
                body(&[("change", json!("join")), name(node), ("weight", json!(weight)), ("zone", json!(zone))])
            }
            Wanted::Leave { node } => body(&[("change", json!("leave")), name(node)]),
            Wanted::Weight { node, weight } => {
                body(&[("change", json!("weight")), name(node), ("weight", json!(weight))])
            }
            Wanted::Zone { node, zone } => body(&[("change", json!("zone")), name(node), ("zone", json!(zone))]),
            Wanted::ReplicationFactor { rf } => body(&[("change", json!("replication-factor")), ("rf", json!(rf))]),
        }
    }

    /// What begins it. `None` of a join: a node joins by being started.
    fn request(&self) -> Option<(Method, String, Option<Value>)> {
        let member = |node: &NodeName| format!("/cluster/members/{node}");
        Some(match self {
            Wanted::Join { .. } => return None,
            Wanted::Leave { node } => (Method::POST, format!("{}/leave", member(node)), None),
            Wanted::Weight { node, weight } => (Method::PUT, member(node), Some(json!({ "weight": weight }))),
            Wanted::Zone { node, zone } => (Method::PUT, member(node), Some(json!({ "zone": zone }))),
            Wanted::ReplicationFactor { rf } => {
                (Method::PUT, "/cluster/replication-factor".to_owned(), Some(json!({ "rf": rf })))
            }
        })
    }

    pub(super) async fn plan(&self, client: &Client, host: &Host) -> Result<Answer, Fault> {
        let asked = self.plan_body().to_string();
        client.send(Method::POST, host, "/cluster/plan", headers(), asked.into()).await?.success()
    }

    /// Begins it, and tells the change as it stands then.
    pub(super) async fn begin(&self, client: &Client, host: &Host) -> Result<Value, Fault> {
        let Some((method, path, body)) = self.request() else {
            return Err(Fault::Usage("a node joins by being started: a3 join".into()));
        };
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        client.send(method, host, &path, headers(), body).await?.success()?.json()
    }

    /// What a change is for that somebody else began, from what is told of it and the cluster as it is while it is under way.
    pub(super) fn under_way(told: &Value, cluster: &Cluster) -> Option<Self> {
        let node = || told["text"].as_str()?.split(' ').next()?.parse::<NodeName>().ok();
        let member = |node: &NodeName| cluster.members.iter().find(|m| m.id == node.to_string());
        Some(match told["change"].as_str()? {
            "join" => Wanted::Join { node: node()?, weight: 1, zone: None },
            "leave" => Wanted::Leave { node: node()? },
            "weight" => {
                let node = node()?;
                let weight = u32::try_from(member(&node)?.weight?).ok()?;
                Wanted::Weight { node, weight }
            }
            "zone" => {
                let node = node()?;
                let zone = member(&node)?.zone.clone();
                Wanted::Zone { node, zone }
            }
            _ => Wanted::ReplicationFactor { rf: u8::try_from(cluster.rf).ok()? },
        })
    }

    /// Whether the cluster is as this would make it.
    pub(super) fn holds(&self, cluster: &Cluster) -> bool {
        let member = |node: &NodeName| cluster.members.iter().find(|m| m.id == node.to_string());
        match self {
            Wanted::Join { node, .. } => member(node).is_some(),
            Wanted::Leave { node } => member(node).is_none(),
            Wanted::Weight { node, weight } => member(node).is_some_and(|m| m.weight == Some(u64::from(*weight))),
            Wanted::Zone { node, zone } => member(node).is_some_and(|m| m.zone == *zone),
            Wanted::ReplicationFactor { rf } => cluster.rf == u64::from(*rf),
        }
    }
}

fn headers() -> HeaderMap {
    [(CONTENT_TYPE, HeaderValue::from_static("application/json"))].into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::views::Member;

    #[test]
    fn a_node_is_named_by_its_number() {
        assert_eq!(("n2".parse(), "2".parse()), (Ok(NodeName(2)), Ok(NodeName(2))));
        for wrong in ["", "n", "n0", "0", "nn2", "65536", "-1", "node2"] {
            assert!(wrong.parse::<NodeName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_change_is_planned_and_begun_in_the_apis_words() {
        let (node, zone) = (NodeName(2), Some("b".to_owned()));
        let told = |wanted: &Wanted| (wanted.plan_body(), wanted.request());
        let put = |path: &str, body| Some((Method::PUT, path.to_owned(), Some(body)));
        let leave = Wanted::Leave { node: node.clone() };
        let posted = Some((Method::POST, "/cluster/members/n2/leave".to_owned(), None));
        assert_eq!(told(&leave), (json!({"change": "leave", "node": "n2"}), posted));
        let moved = Wanted::Zone { node: node.clone(), zone: zone.clone() };
        let request = put("/cluster/members/n2", json!({"zone": "b"}));
        assert_eq!(told(&moved), (json!({"change": "zone", "node": "n2", "zone": "b"}), request));
        let copies = Wanted::ReplicationFactor { rf: 3 };
        let request = put("/cluster/replication-factor", json!({"rf": 3}));
        assert_eq!(told(&copies), (json!({"change": "replication-factor", "rf": 3}), request));
        let join = Wanted::Join { node, weight: 1, zone };
        assert_eq!(told(&join), (json!({"change": "join", "node": "n2", "weight": 1, "zone": "b"}), None));
    }

    #[test]
    fn a_cluster_is_as_a_change_makes_it_or_is_not() {
        let member = |id: &str, weight| Member { id: id.into(), weight: Some(weight), ..Member::default() };
        let cluster = Cluster { rf: 2, members: vec![member("n1", 1), member("n2", 3)], ..Cluster::default() };
        let node = NodeName;
        for (wanted, holds) in [
            (Wanted::Leave { node: node(2) }, false),
            (Wanted::Leave { node: node(3) }, true),
            (Wanted::Weight { node: node(2), weight: 3 }, true),
            (Wanted::Weight { node: node(1), weight: 3 }, false),
            (Wanted::Zone { node: node(1), zone: None }, true),
            (Wanted::Zone { node: node(1), zone: Some("b".into()) }, false),
            (Wanted::ReplicationFactor { rf: 2 }, true),
            (Wanted::ReplicationFactor { rf: 3 }, false),
        ] {
            assert_eq!(wanted.holds(&cluster), holds, "{wanted:?}");
        }
    }
}
