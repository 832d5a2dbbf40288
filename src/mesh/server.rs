//! The server: what peers call, handed to the [`PeerHandler`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::Options;
use super::endpoint::{MESSAGE_BYTES_CEILING, STREAMS_MAX};
use super::exchange::Lane;
use super::links::{Links, Place};
use super::meters::Meters;
use super::replies::{Bounds, Reading, Serving};
use super::wire::proto::mesh_server::{Mesh, MeshServer};
use super::wire::{self, Malformed, changes, propose, proto, purge, rare, scan, status, tree};
use crate::ports::{PeerHandler, PeerReply, PeerRequest};
use crate::types::Epoch;

/// Metadata of a stream: the link it belongs to, and which of its two streams it is.
pub(super) const LINK: &str = "a3-link";
pub(super) const LANE: &str = "a3-lane";

/// How long the server rests after a connection that could not be accepted.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Where one after the other cannot be, it is told this often.
const TOLD_EVERY: Duration = Duration::from_secs(10);

pub(super) fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Small => "small",
        Lane::Large => "large",
    }
}

/// Serves the mesh until `shutdown`, then lets requests under way finish for at most `options.drain_timeout`.
/// Dropping the future stops it as well.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    handler: Arc<dyn PeerHandler>,
    options: Options,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let stop = CancellationToken::new();
    // Streams are long-lived: they end by this, also when the future is dropped.
    let _stop_streams = stop.clone().drop_guard();
    let door = Door {
        handler,
        links: Arc::default(),
        bounds: Bounds { under_way_max: options.requests_in_flight_max, bytes_max: options.bytes_in_flight_max },
        meters: Arc::new(Meters::default()),
        stop: stop.clone(),
    };
    let service = MeshServer::new(door).max_decoding_message_size(MESSAGE_BYTES_CEILING);
    let mut builder = Server::builder()
        .initial_stream_window_size(options.stream_window_bytes)
        .initial_connection_window_size(options.connection_window_bytes)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(options.keep_alive_interval))
        .http2_keepalive_timeout(Some(options.keep_alive_timeout));
    let serving = builder.add_service(service).serve_with_incoming_shutdown(connections(listener), stop.cancelled());
    let drained = async {
        shutdown.await;
        stop.cancel();
        tokio::time::sleep(options.drain_timeout).await;
    };
    tokio::select! {
        biased;
        served = serving => served.map_err(io::Error::other),
        () = drained => Ok(()),
    }
}

/// The connections that are accepted. Where none can be (no file descriptor is left) it rests instead of trying again
/// at once, which would take a whole processor.
fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold((listener, None::<Instant>), |(listener, mut told)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // It only fails on a connection that is gone, which its reader will see.
                    let _ = stream.set_nodelay(true);
                    return Some((Ok(stream), (listener, told)));
                }
                Err(error) => {
                    if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
                        tracing::warn!(%error, "a peer's connection could not be accepted");
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    })
}

struct Door {
    handler: Arc<dyn PeerHandler>,
    links: Arc<Links>,
    bounds: Bounds,
    meters: Arc<Meters>,
    stop: CancellationToken,
}

impl Door {
    /// The place of a stream in its link, by its metadata.
    fn place(&self, metadata: &MetadataMap) -> Place {
        let text = |key: &str| metadata.get(key).and_then(|v| v.to_str().ok());
        let lane = if text(LANE) == Some(lane_name(Lane::Large)) { Lane::Large } else { Lane::Small };
        self.links.join(text(LINK), lane, self.bounds)
    }

    /// Admits, answers, and makes the top of the answer.
    async fn answer(
        &self,
        header: Option<proto::Header>,
        request: Result<PeerRequest, Malformed>,
    ) -> Result<(Option<proto::Header>, PeerReply), Status> {
        let (from, to) = wire::read_header(header)?;
        self.handler.admit(&from, to).map_err(|error| status::not_admitted(error, &*self.handler))?;
        let reply = self.handler.clone().answer(from, request?).await.map_err(status::status)?;
        Ok((Some(wire::header(&self.handler.header(), Some(from.instance))), reply))
    }

    /// A message of healing that came, counted.
    fn heard<M: Message>(&self, request: Request<M>) -> M {
        let message = request.into_inner();
        self.meters.healing_received(&message);
        message
    }

    /// A message of healing in answer, counted; or what the handler said instead.
    fn told<M: Message>(&self, reply: Result<M, PeerReply>) -> Result<Response<M>, Status> {
        let message = reply.map_err(|other| mismatch(&other))?;
        self.meters.healing_sent(&message);
        Ok(Response::new(message))
    }
}

/// The handler answered another question: a fault of this node, after which nothing is known.
fn mismatch(reply: &PeerReply) -> Status {
    tracing::error!(?reply, "an answer of the wrong kind");
    Status::internal("an answer of the wrong kind")
}

#[tonic::async_trait]
impl Mesh for Door {
    type ExchangeStream = Pin<Box<Serving>>;

    async fn exchange(
        &self,
        request: Request<Streaming<proto::Requests>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let place = self.place(request.metadata());
        Ok(Response::new(Box::pin(Serving {
            incoming: request.into_inner(),
            place,
            handler: self.handler.clone(),
            meters: self.meters.clone(),
            stop: Box::pin(self.stop.clone().cancelled_owned()),
            reading: Reading::default(),
        })))
    }

    async fn gossip(&self, request: Request<proto::GossipRequest>) -> Result<Response<proto::GossipReply>, Status> {
        let mut request = request.into_inner();
        match self.answer(request.header.take(), rare::read_gossip(request)).await? {
            (header, PeerReply::Done) => Ok(Response::new(proto::GossipReply { header })),
            (_, other) => Err(mismatch(&other)),
        }
    }

    async fn node_info(
        &self,
        request: Request<proto::NodeInfoRequest>,
    ) -> Result<Response<proto::NodeInfoReply>, Status> {
        let mut request = request.into_inner();
        match self.answer(request.header.take(), rare::read_node_info(request)).await? {
            (header, PeerReply::NodeInfo { infos, digest }) => {
                let infos = infos.into_iter().map(rare::info).collect();
                Ok(Response::new(proto::NodeInfoReply { header, infos, digest: rare::stamps(digest) }))
            }
            (_, other) => Err(mismatch(&other)),
        }
    }

    async fn topology(
        &self,
        request: Request<proto::TopologyRequest>,
    ) -> Result<Response<proto::TopologyReply>, Status> {
        match self.answer(request.into_inner().header, Ok(PeerRequest::Topology)).await? {
            (header, PeerReply::Topology { topology }) => {
                Ok(Response::new(proto::TopologyReply { header, topology: rare::topology_or_none(topology) }))
            }
            (_, other) => Err(mismatch(&other)),
        }
    }

    async fn announce(
        &self,
        request: Request<proto::AnnounceRequest>,
    ) -> Result<Response<proto::AnnounceReply>, Status> {
        let mut request = request.into_inner();
        match self.answer(request.header.take(), rare::read_announce(request)).await? {
            (header, PeerReply::Announced { topology, heard }) => {
                let (topology, heard) =
                    (rare::topology_or_none(topology), heard.into_iter().map(rare::announcement).collect());
                Ok(Response::new(proto::AnnounceReply { header, topology, heard }))
            }
            (_, other) => Err(mismatch(&other)),
        }
    }

    async fn propose(&self, request: Request<proto::ProposeRequest>) -> Result<Response<proto::ProposeReply>, Status> {
        let mut request = request.into_inner();
        match self.answer(request.header.take(), propose::read_request(request)).await? {
            (header, PeerReply::Proposed(verdict)) => Ok(Response::new(propose::reply(header, *verdict))),
            (_, other) => Err(mismatch(&other)),
        }
    }

    async fn replace(&self, request: Request<proto::ReplaceRequest>) -> Result<Response<proto::ReplaceReply>, Status> {
        let mut request = request.into_inner();
        match self.answer(request.header.take(), rare::read_replace(request)).await? {
            (header, PeerReply::Replaced { topology }) => {
                Ok(Response::new(proto::ReplaceReply { header, topology: rare::topology_or_none(topology) }))
            }
            (_, other) => Err(mismatch(&other)),
        }
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteReply>, Status> {
        let mut request = request.into_inner();
        match self.answer(request.header.take(), rare::read_vote(request)).await? {
            (header, PeerReply::Voted(vote)) => {
                Ok(Response::new(proto::VoteReply { header, vote: vote.encode().into() }))
            }
            (_, other) => Err(mismatch(&other)),
        }
    }

    async fn catch_up(&self, request: Request<proto::CatchUpRequest>) -> Result<Response<proto::CatchUpReply>, Status> {
        let proto::CatchUpRequest { header, epoch } = request.into_inner();
        let (header, reply) = self.answer(header, Ok(PeerRequest::CatchUp { epoch: Epoch(epoch) })).await?;
        rare::catch_up_reply(header, reply).map(Response::new).map_err(|other| mismatch(&other))
    }

    async fn found(&self, request: Request<proto::FoundRequest>) -> Result<Response<proto::FoundReply>, Status> {
        let mut request = request.into_inner();
        match self.answer(request.header.take(), rare::read_found(request)).await? {
            (header, PeerReply::Done) => Ok(Response::new(proto::FoundReply { header })),
            (_, other) => Err(mismatch(&other)),
        }
    }

    async fn get_chunk_hash(
        &self,
        request: Request<proto::ChunkHashRequest>,
    ) -> Result<Response<proto::ChunkHashReply>, Status> {
        let mut request = self.heard(request);
        let (header, reply) = self.answer(request.header.take(), tree::read_chunk_hash_request(request)).await?;
        self.told(tree::chunk_hash_reply(header, reply))
    }

    async fn fetch_range(&self, request: Request<proto::RangeRequest>) -> Result<Response<proto::RangeReply>, Status> {
        let mut request = self.heard(request);
        let (header, reply) = self.answer(request.header.take(), tree::read_range_request(request)).await?;
        self.told(tree::range_reply(header, reply))
    }

    async fn fetch_slot(&self, request: Request<proto::SlotRequest>) -> Result<Response<proto::SlotReply>, Status> {
        let mut request = self.heard(request);
        let (header, reply) = self.answer(request.header.take(), tree::read_slot_request(request)).await?;
        self.told(tree::slot_reply(header, reply))
    }

    async fn purge(&self, request: Request<proto::PurgeRequest>) -> Result<Response<proto::PurgeReply>, Status> {
        let mut request = request.into_inner();
        let (header, reply) = self.answer(request.header.take(), purge::read_request(request)).await?;
        purge::reply(header, reply).map(Response::new).map_err(|other| mismatch(&other))
    }

    async fn converge(
        &self,
        request: Request<proto::ConvergeRequest>,
    ) -> Result<Response<proto::ConvergeReply>, Status> {
        let mut request = self.heard(request);
        let (header, reply) = self.answer(request.header.take(), tree::read_converge_request(&request)).await?;
        self.told(tree::converge_reply(header, reply))
    }

    async fn scan(&self, request: Request<proto::ScanRequest>) -> Result<Response<proto::ScanReply>, Status> {
        let mut request = request.into_inner();
        let (header, reply) = self.answer(request.header.take(), scan::read_request(request)).await?;
        scan::reply(header, reply).map(Response::new).map_err(|other| mismatch(&other))
    }

    async fn changes(&self, request: Request<proto::ChangesRequest>) -> Result<Response<proto::ChangesReply>, Status> {
        let mut request = request.into_inner();
        let (header, reply) = self.answer(request.header.take(), changes::read_request(request)).await?;
        changes::reply(header, reply).map(Response::new).map_err(|other| mismatch(&other))
    }
}
