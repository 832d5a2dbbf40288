//! What the nodes of a development cluster are called, where they listen and how each is started.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::Fault;
use super::super::client::Host;

/// Everything listens here.
const LOOPBACK: &str = "127.0.0.1";
/// From a node's REST port to its mesh port, so that one number moves both.
const MESH_ABOVE_REST: u16 = 50_051 - 8001;
/// Where it is remembered which nodes were added, and which are not started with the others.
const REMEMBERED: &str = "nodes.json";

/// A node to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) number: u16,
    pub(super) name: String,
    http_port: u16,
    mesh_port: u16,
    pub(super) data_dir: PathBuf,
    pub(super) log: PathBuf,
    /// What follows the program's name.
    pub(super) arguments: Vec<OsString>,
}

impl Node {
    pub(super) fn http(&self) -> Host {
        Host(format!("{LOOPBACK}:{}", self.http_port))
    }

    pub(super) fn mesh(&self) -> String {
        format!("{LOOPBACK}:{}", self.mesh_port)
    }

    /// Whether nobody listens on either port.
    ///
    /// # Errors
    /// The first port that cannot be listened on, and why.
    pub(super) fn check_ports(&self) -> Result<(), (u16, std::io::Error)> {
        for port in [self.http_port, self.mesh_port] {
            TcpListener::bind((LOOPBACK, port)).map_err(|e| (port, e))?;
        }
        Ok(())
    }
}

/// What is remembered of a node that was added to a running cluster, or that is not started with the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) node: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) weight: Option<u32>,
    /// It is not started with the others.
    #[serde(default)]
    pub(super) stopped: bool,
}

/// What all nodes of a cluster follow from.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// How many nodes found the cluster; their numbers are 1 and up.
    pub(super) founders: u16,
    rf: u8,
    base_port: u16,
    mesh_base_port: u16,
    pub(super) dir: PathBuf,
}

impl Plan {
    /// A cluster in `dir`, REST from `base_port` on, the mesh from `mesh_base_port` on.
    ///
    /// # Errors
    /// When the ports do not fit below 65536, or overlap.
    pub(super) fn new(
        founders: u16,
        rf: u8,
        base_port: u16,
        mesh_base_port: Option<u16>,
        dir: &Path,
    ) -> Result<Self, Fault> {
        let mesh_base_port = mesh_base_port.or_else(|| base_port.checked_add(MESH_ABOVE_REST));
        // The highest port shows what is wrong, and below it all is well.
        let plan =
            Self { founders, rf, base_port, mesh_base_port: mesh_base_port.unwrap_or(u16::MAX), dir: dir.into() };
        plan.ports(founders)?;
        Ok(plan)
    }

    /// The ports of a node, REST first.
    fn ports(&self, number: u16) -> Result<(u16, u16), Fault> {
        if self.base_port.max(self.mesh_base_port).checked_add(number).is_none() {
            let choose = "choose --base-port and --mesh-base-port";
            return Err(Fault::Usage(format!("the ports do not fit below 65536: {choose}")));
        }
        if self.base_port.abs_diff(self.mesh_base_port) < number {
            return Err(Fault::Usage("the ports of REST and mesh overlap: choose --mesh-base-port".into()));
        }
        Ok((self.base_port + number - 1, self.mesh_base_port + number - 1))
    }

    /// The nodes that found the cluster.
    pub(super) fn nodes(&self) -> Result<Vec<Node>, Fault> {
        let mut seeds = Vec::new();
        for number in 1..=self.founders {
            seeds.push(format!("{LOOPBACK}:{}", self.ports(number)?.1));
        }
        // A single node founds its cluster alone; seeds would make it look for others first.
        let seeds = if self.founders > 1 { &seeds[..] } else { &[] };
        (1..=self.founders).map(|number| self.node(number, seeds)).collect()
    }

    /// A node that is added to those.
    ///
    /// # Errors
    /// When there are no ports for it.
    pub(super) fn addition(&self, added: &Remembered, beside: &[Node]) -> Result<Node, Fault> {
        let seeds: Vec<String> = beside.iter().filter(|n| n.number != added.node).map(Node::mesh).collect();
        let mut node = self.node(added.node, &seeds)?;
        let mut flag = |name: &str, value: &str| node.arguments.extend([format!("--{name}").into(), value.into()]);
        added.zone.iter().for_each(|zone| flag("zone", zone));
        added.weight.iter().for_each(|weight| flag("weight", &weight.to_string()));
        Ok(node)
    }

    fn node(&self, number: u16, seeds: &[String]) -> Result<Node, Fault> {
        let (http_port, mesh_port) = self.ports(number)?;
        let data_dir = self.dir.join(format!("node{number}"));
        let mut arguments: Vec<OsString> = vec!["serve".into()];
        let mut flag = |name: &str, value: OsString| arguments.extend([format!("--{name}").into(), value]);
        flag("node-num", number.to_string().into());
        flag("http-port", http_port.to_string().into());
        flag("grpc-port", mesh_port.to_string().into());
        flag("replication-factor", self.rf.to_string().into());
        if !seeds.is_empty() {
            flag("cluster-size", self.founders.to_string().into());
            flag("seeds", seeds.join(",").into());
        }
        flag("data-dir", data_dir.clone().into());
        let (name, log) = (format!("n{number}"), self.dir.join(format!("node{number}.log")));
        Ok(Node { number, name, http_port, mesh_port, data_dir, log, arguments })
    }

    /// What is remembered of the cluster that ran here before.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn remembered(&self) -> Result<Vec<Remembered>, Fault> {
        let path = self.dir.join(REMEMBERED);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Fault::Failed(format!("{}: {e}", path.display()))),
        };
        serde_json::from_slice(&text).map_err(|e| Fault::Failed(format!("{}: {e}", path.display())))
    }

    /// # Errors
    /// When it cannot be written.
    pub(super) fn remember(&self, nodes: &[&Remembered]) -> Result<(), Fault> {
        let path = self.dir.join(REMEMBERED);
        let text = serde_json::to_vec_pretty(nodes).map_err(|e| Fault::Failed(e.to_string()))?;
        std::fs::write(&path, text).map_err(|e| Fault::Failed(format!("{}: {e}", path.display())))
    }
}

/// A word as a shell takes it back.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(node: &Node) -> String {
        node.arguments.iter().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_node_is_told_where_it_is_and_who_else_there_is() {
        let nodes = Plan::new(3, 2, 8001, None, Path::new("/tmp/a b")).unwrap().nodes().unwrap();
        assert_eq!((nodes[1].http().0.as_str(), nodes[1].mesh().as_str()), ("127.0.0.1:8002", "127.0.0.1:50052"));
        assert_eq!(
            words(&nodes[1]),
            "serve --node-num 2 --http-port 8002 --grpc-port 50052 --replication-factor 2 --cluster-size 3 \
             --seeds 127.0.0.1:50051,127.0.0.1:50052,127.0.0.1:50053 --data-dir '/tmp/a b/node2'"
        );
    }

    #[test]
    fn one_node_needs_no_seeds_and_one_that_is_added_has_them() {
        let plan = Plan::new(1, 1, 9001, Some(9101), Path::new("d")).unwrap();
        let nodes = plan.nodes().unwrap();
        assert!(!words(&nodes[0]).contains("seeds"));
        assert_eq!(nodes[0].mesh(), "127.0.0.1:9101");
        let second = Remembered { node: 2, zone: Some("b".into()), weight: Some(3), stopped: false };
        let added = plan.addition(&second, &nodes).unwrap();
        assert_eq!(
            words(&added),
            "serve --node-num 2 --http-port 9002 --grpc-port 9102 --replication-factor 1 --cluster-size 1 \
             --seeds 127.0.0.1:9101 --data-dir d/node2 --zone b --weight 3"
        );
        let beyond = plan.addition(&Remembered { node: 101, ..second }, &nodes);
        assert!(matches!(beyond, Err(Fault::Usage(_))), "its REST port would be n1's mesh port");
    }

    #[test]
    fn ports_that_do_not_fit_are_a_usage_error() {
        for (base, mesh) in [(23_490, None), (65_533, Some(1000)), (8001, Some(8003)), (8001, Some(65_533))] {
            let refused = Plan::new(3, 2, base, mesh, Path::new("d"));
            assert!(matches!(refused, Err(Fault::Usage(_))), "{base} {mesh:?}");
        }
    }

    #[test]
    fn what_was_added_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::new(3, 2, 8001, None, dir.path()).unwrap();
        assert_eq!(plan.remembered().unwrap(), []);
        let added = |node| Remembered { node, zone: None, weight: Some(2), stopped: node == 5 };
        plan.remember(&[&added(4), &added(5)]).unwrap();
        assert_eq!(plan.remembered().unwrap(), [added(4), added(5)]);
        std::fs::write(dir.path().join(REMEMBERED), "{").unwrap();
        assert!(matches!(plan.remembered(), Err(Fault::Failed(_))));
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("--a=b:1,c"), "--a=b:1,c");
    }
}
