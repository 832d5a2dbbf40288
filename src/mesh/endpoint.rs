//! How connections are made.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tonic::transport::{Channel, Endpoint};

use super::Options;
use super::wire::proto::mesh_client::MeshClient;
use crate::ports::{PeerError, Spawn};
use crate::types::limits::{MESH_MESSAGE_BYTES_MAX, VALUE_BYTES_CEILING};

/// The largest message that is read: two of the largest values (a promise shows what is accepted beside what is
/// stored), and room for what stands around them.
pub(super) const MESSAGE_BYTES_CEILING: usize = 2 * VALUE_BYTES_CEILING + MESH_MESSAGE_BYTES_MAX;
/// Streams and calls that one connection may have open. More would wait unseen in the client's HTTP/2.
pub(super) const STREAMS_MAX: u32 = 1024;

/// Runs the connections' own tasks as the node's, so that they die with it.
struct Tasks(Arc<dyn Spawn>);

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Tasks {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(task);
    }
}

/// An endpoint at `host:port`.
///
/// # Errors
/// [`PeerError::Unreachable`] when that is no address.
pub(super) fn endpoint(address: &str, options: &Options, spawn: &Arc<dyn Spawn>) -> Result<Endpoint, PeerError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| PeerError::Unreachable)?;
    Ok(endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(options.keep_alive_interval)
        .keep_alive_timeout(options.keep_alive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(options.stream_window_bytes)
        .initial_connection_window_size(options.connection_window_bytes)
        .executor(Tasks(spawn.clone())))
}

pub(super) fn client(channel: Channel) -> MeshClient<Channel> {
    MeshClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_CEILING)
}
