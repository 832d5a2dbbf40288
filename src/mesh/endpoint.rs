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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;
    use crate::mesh::wire::hot::{self, LastTopology};
    use crate::mesh::wire::proto;
    use crate::ports::ReplicaReply;
    use crate::types::limits::REMEMBERED_MAX;
    use crate::types::{
        Accepted, Ballot, Content, Floor, Hlc, Idempotency, OpId, Promise, Recent, Record, Remembered,
        RememberedAnswer, Version, Writer,
    };

    #[test]
    fn the_largest_promise_is_read() {
        let content = Content::value(Bytes::from(vec![0; VALUE_BYTES_CEILING]));
        let version = |hlc| Version { hlc: Hlc(hlc), writer: Writer(u32::MAX), rmw: u32::MAX };
        let record = |hlc| Record { version: version(hlc), written: Hlc(hlc), content: content.clone(), checksum: 1 };
        let ballot = Ballot { hlc: Hlc(u64::MAX), writer: Writer(u32::MAX) };
        let remembered = Remembered {
            request: Idempotency { key: 1, request: 2 },
            answer: RememberedAnswer::Replaced,
            version: version(1),
        };
        let recent = Recent::new(vec![remembered; REMEMBERED_MAX]);
        let accepted = Accepted { ballot, op: OpId(uuid::Uuid::nil()), record: Some(record(2)), recent };
        let floor = Floor { written: Hlc(1), version: version(1), ballot };
        let promise = Promise { accepted: Some(accepted), record: Some(record(1)), floor };
        let reply = hot::reply(1, Ok(ReplicaReply::Promised(Box::new(promise))), &mut LastTopology::default());
        let message = proto::Replies { header: None, replies: vec![reply] };
        assert!((2 * VALUE_BYTES_CEILING..MESSAGE_BYTES_CEILING).contains(&message.encoded_len()));
    }
}
