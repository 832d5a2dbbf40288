//! What a body asks for as a change of the topology. Every fault in it is listed.

use std::borrow::Cow;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::http::problem::{BadParameter, Code, Problem};
use crate::protocol::succession::change::Wish;
use crate::types::limits::{REPLICATION_FACTOR_MAX, WEIGHT_MAX, ZONE_BYTES_MAX};
use crate::types::{Announcement, InstanceId, NodeNum};

/// A node by its number: `n4` is 4.
pub(super) fn node(name: &str) -> Option<NodeNum> {
    let number = name.strip_prefix('n')?.parse().ok().map(NodeNum)?;
    // One name for one node: neither `n04` nor `n+4`.
    (number.0 > 0 && number.to_string() == name).then_some(number)
}

/// A change to plan.
pub(super) fn plan(body: &[u8]) -> Result<Wish, Problem> {
    let mut members = Members::read(body)?;
    let kind = members.members.get("change").and_then(Value::as_str).unwrap_or_default().to_owned();
    let (known, wish) = match kind.as_str() {
        "join" => ("change, node, weight, zone", members.join()),
        "leave" => ("change, node", members.node().map(Wish::Leave)),
        "weight" => ("change, node, weight", members.node().zip(members.weight()).map(|(n, w)| Wish::Weight(n, w))),
        "zone" => ("change, node, zone", members.node().zip(members.zone()).map(|(n, zone)| Wish::Zone(n, zone))),
        "replication-factor" => ("change, rf", members.rf().map(Wish::ReplicationFactor)),
        _ => {
            members.fault("change", "join, leave, weight, zone or replication-factor");
            return Err(members.problem());
        }
    };
    members.finish(known, wish)
}

/// What a member is to have: another weight, or another zone.
pub(super) fn member(node: NodeNum, body: &[u8]) -> Result<Wish, Problem> {
    let mut members = Members::read(body)?;
    let wish = match (members.has("weight"), members.has("zone")) {
        (true, false) => members.weight().map(|weight| Wish::Weight(node, weight)),
        (false, true) => members.zone().map(|zone| Wish::Zone(node, zone)),
        (true, true) => {
            members.fault("zone", "given beside weight; a change is of one of them");
            None
        }
        (false, false) => {
            members.fault("weight", "missing; weight or zone is needed");
            None
        }
    };
    members.finish("weight, zone", wish)
}

/// How many copies are wanted.
pub(super) fn replication_factor(body: &[u8]) -> Result<Wish, Problem> {
    let mut members = Members::read(body)?;
    let wish = members.rf().map(Wish::ReplicationFactor);
    members.finish("rf", wish)
}

/// An object under inspection: members are taken one by one, faults are collected.
struct Members {
    members: Map<String, Value>,
    bad: Vec<BadParameter>,
}

impl Members {
    fn read(body: &[u8]) -> Result<Self, Problem> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(members)) => Ok(Self { members, bad: Vec::new() }),
            _ => Err(Problem::new(Code::BadRequest, "the body is not a JSON object")),
        }
    }

    fn fault(&mut self, name: &str, reason: impl Into<String>) {
        self.bad.push(BadParameter { name: name.to_owned(), reason: reason.into() });
    }

    fn problem(self) -> Problem {
        Problem::bad_members(self.bad)
    }

    fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// What `read` makes of a member that must be there.
    fn needed<T>(
        &mut self,
        name: &'static str,
        wanted: Cow<'static, str>,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let Some(value) = self.members.get(name) else {
            self.fault(name, format!("missing: {wanted}"));
            return None;
        };
        let read = read(value);
        if read.is_none() {
            self.fault(name, wanted);
        }
        read
    }

    /// A whole number. To JSON `1.0` is the integer 1.
    fn number(&mut self, name: &'static str, low: u32, high: u32) -> Option<u32> {
        let wanted = format!("a whole number from {low} to {high}");
        let range = f64::from(low)..=f64::from(high);
        let whole = |value: &Value| value.as_f64().filter(|n| n.fract() == 0.0 && range.contains(n)).map(|n| n as u32);
        self.needed(name, wanted.into(), whole)
    }

    fn node(&mut self) -> Option<NodeNum> {
        self.needed("node", "a node by its number, such as n4".into(), |value| node(value.as_str()?))
    }

    fn weight(&mut self) -> Option<u32> {
        self.number("weight", 0, WEIGHT_MAX)
    }

    fn rf(&mut self) -> Option<u8> {
        self.number("rf", 1, REPLICATION_FACTOR_MAX as u32).and_then(|rf| rf.try_into().ok())
    }

    /// `null` is none.
    fn zone(&mut self) -> Option<Option<String>> {
        let wanted = format!("a name of 1 to {ZONE_BYTES_MAX} bytes, or null for none");
        self.needed("zone", wanted.into(), |value| match value {
            Value::Null => Some(None),
            Value::String(zone) if (1..=ZONE_BYTES_MAX).contains(&zone.len()) => Some(Some(zone.clone())),
            _ => None,
        })
    }

    /// A node as it would announce itself; where it is to be found does not matter to the plan.
    fn join(&mut self) -> Option<Wish> {
        let node = self.node();
        let weight = if self.has("weight") { self.weight() } else { Some(1) };
        let zone = if self.has("zone") { self.zone() } else { Some(None) };
        Some(Wish::Join(Announcement {
            node: node?,
            weight: weight?,
            zone: zone?,
            instance: InstanceId(Uuid::nil()),
            mesh_address: String::new(),
            http_address: String::new(),
            cluster_size: 1,
            rf: 1,
        }))
    }

    /// The last question: whether there was a fault, or something that no change of this kind knows.
    fn finish(mut self, known: &str, wish: Option<Wish>) -> Result<Wish, Problem> {
        let names: Vec<String> =
            self.members.keys().filter(|name| !known.split(", ").any(|k| k == *name)).cloned().collect();
        for name in names {
            self.fault(name.get(..64).unwrap_or(&name), format!("unknown; the body knows {known}"));
        }
        match wish {
            Some(wish) if self.bad.is_empty() => Ok(wish),
            _ => Err(self.problem()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(read: Result<Wish, Problem>) -> Vec<String> {
        let body: Value = serde_json::from_slice(&read.unwrap_err().body("r")).unwrap();
        assert_eq!(body["code"], "bad-body", "{body}");
        body["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_node_has_one_name() {
        assert_eq!((node("n1"), node("n65535")), (Some(NodeNum(1)), Some(NodeNum(65_535))));
        for wrong in ["", "n", "1", "n0", "n01", "n+1", "n65536", "N1", " n1", "n1 "] {
            assert_eq!(node(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn each_change_can_be_planned() {
        let of = |body: &str| plan(body.as_bytes()).unwrap();
        assert_eq!(of(r#"{"change":"leave","node":"n2"}"#), Wish::Leave(NodeNum(2)));
        assert_eq!(of(r#"{"change":"weight","node":"n1","weight":3.0}"#), Wish::Weight(NodeNum(1), 3));
        assert_eq!(of(r#"{"change":"zone","node":"n1","zone":"b"}"#), Wish::Zone(NodeNum(1), Some("b".into())));
        assert_eq!(of(r#"{"change":"zone","node":"n1","zone":null}"#), Wish::Zone(NodeNum(1), None));
        assert_eq!(of(r#"{"change":"replication-factor","rf":2}"#), Wish::ReplicationFactor(2));
        let Wish::Join(plain) = of(r#"{"change":"join","node":"n4"}"#) else { panic!("a join") };
        assert_eq!((plain.node, plain.weight, plain.zone), (NodeNum(4), 1, None));
        let Wish::Join(heavy) = of(r#"{"change":"join","node":"n4","weight":2,"zone":"b"}"#) else { panic!("a join") };
        assert_eq!((heavy.weight, heavy.zone.as_deref()), (2, Some("b")));
    }

    #[test]
    fn every_fault_of_a_plan_is_listed() {
        let of = |body: &str| faults(plan(body.as_bytes()));
        assert_eq!(of("{}"), ["change"]);
        assert_eq!(of(r#"{"change":"grow"}"#), ["change"]);
        assert_eq!(of(r#"{"change":"leave"}"#), ["node"]);
        assert_eq!(of(r#"{"change":"join","node":4,"weight":-1,"zone":"","rf":2}"#), ["node", "weight", "zone", "rf"]);
        assert_eq!(of(r#"{"change":"weight","node":"n1","weight":1001}"#), ["weight"]);
        assert_eq!(of(r#"{"change":"replication-factor","rf":17}"#), ["rf"]);
        for no_object in ["", "[]", "1", "{"] {
            assert_eq!(plan(no_object.as_bytes()).unwrap_err().code(), Code::BadRequest, "{no_object}");
        }
    }

    #[test]
    fn a_member_gets_one_thing_at_a_time() {
        let of = |body: &str| member(NodeNum(1), body.as_bytes());
        assert_eq!(of(r#"{"weight":0}"#), Ok(Wish::Weight(NodeNum(1), 0)));
        assert_eq!(of(r#"{"zone":"b"}"#), Ok(Wish::Zone(NodeNum(1), Some("b".into()))));
        assert_eq!(faults(of("{}")), ["weight"]);
        assert_eq!(faults(of(r#"{"weight":1,"zone":"b"}"#)), ["zone"]);
        assert_eq!(faults(of(r#"{"weight":1.5,"rf":1}"#)), ["weight", "rf"]);
        assert_eq!(faults(replication_factor(br#"{"rf":"3"}"#)), ["rf"]);
        assert_eq!(replication_factor(br#"{"rf":3}"#), Ok(Wish::ReplicationFactor(3)));
    }
}
