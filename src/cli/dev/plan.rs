//! What the nodes of a development cluster are called, where they listen and how each is started.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::super::Fault;
use super::super::client::Host;

/// Everything listens here.
const LOOPBACK: &str = "127.0.0.1";
/// From a node's REST port to its mesh port, so that one number moves both.
const MESH_ABOVE_REST: u16 = 50_051 - 8001;

/// A node to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
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

    /// The command line that starts this node again, to paste into a shell.
    pub(super) fn command_line(&self, program: &Path) -> String {
        let words = std::iter::once(program.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str));
        words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
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

/// The nodes of a cluster in `dir`, REST from `base_port` on, the mesh from `mesh_base_port` on.
///
/// # Errors
/// When the ports do not fit below 65536, or overlap.
pub(super) fn nodes(
    count: u16,
    rf: u8,
    base_port: u16,
    mesh_base_port: Option<u16>,
    dir: &Path,
) -> Result<Vec<Node>, Fault> {
    let too_high = || Fault::Usage("the ports do not fit below 65536: choose --base-port and --mesh-base-port".into());
    let mesh_base_port = mesh_base_port.or_else(|| base_port.checked_add(MESH_ABOVE_REST)).ok_or_else(too_high)?;
    if base_port.max(mesh_base_port).checked_add(count).is_none() {
        return Err(too_high());
    }
    if base_port.abs_diff(mesh_base_port) < count {
        return Err(Fault::Usage("the ports of REST and mesh overlap: choose --mesh-base-port".into()));
    }
    let all: Vec<u16> = (0..count).collect();
    let seeds: Vec<String> = all.iter().map(|i| format!("{LOOPBACK}:{}", mesh_base_port + i)).collect();
    let node = |i: &u16| {
        let name = format!("n{}", i + 1);
        let data_dir = dir.join(format!("node{}", i + 1));
        let (http_port, mesh_port) = (base_port + i, mesh_base_port + i);
        let mut arguments: Vec<OsString> = vec!["serve".into()];
        let mut flag = |name: &str, value: OsString| arguments.extend([format!("--{name}").into(), value]);
        flag("node-num", (i + 1).to_string().into());
        flag("http-port", http_port.to_string().into());
        flag("grpc-port", mesh_port.to_string().into());
        flag("replication-factor", rf.to_string().into());
        // A single node founds its cluster alone; seeds would make it look for others first.
        if count > 1 {
            flag("cluster-size", count.to_string().into());
            flag("seeds", seeds.join(",").into());
        }
        flag("data-dir", data_dir.clone().into());
        Node { log: dir.join(format!("node{}.log", i + 1)), name, http_port, mesh_port, data_dir, arguments }
    };
    Ok(all.iter().map(node).collect())
}

/// A word as a shell takes it back.
fn quoted(word: &str) -> String {
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

    #[test]
    fn each_node_is_told_where_it_is_and_who_else_there_is() {
        let nodes = nodes(3, 2, 8001, None, Path::new("/tmp/a b")).unwrap();
        assert_eq!((nodes[1].http().0.as_str(), nodes[1].mesh().as_str()), ("127.0.0.1:8002", "127.0.0.1:50052"));
        assert_eq!(
            nodes[1].command_line(Path::new("/bin/a3")),
            "/bin/a3 serve --node-num 2 --http-port 8002 --grpc-port 50052 --replication-factor 2 --cluster-size 3 \
             --seeds 127.0.0.1:50051,127.0.0.1:50052,127.0.0.1:50053 --data-dir '/tmp/a b/node2'"
        );
    }

    #[test]
    fn one_node_needs_no_seeds() {
        let nodes = nodes(1, 1, 9001, Some(9101), Path::new("d")).unwrap();
        assert!(!nodes[0].command_line(Path::new("a3")).contains("seeds"));
        assert_eq!(nodes[0].mesh(), "127.0.0.1:9101");
    }

    #[test]
    fn ports_that_do_not_fit_are_a_usage_error() {
        for (base, mesh) in [(23_490, None), (65_533, Some(1000)), (8001, Some(8003)), (8001, Some(65_533))] {
            let refused = nodes(3, 2, base, mesh, Path::new("d"));
            assert!(matches!(refused, Err(Fault::Usage(_))), "{base} {mesh:?}");
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("--a=b:1,c"), "--a=b:1,c");
    }
}
