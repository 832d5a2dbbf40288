//! Peers that do not speak as ours do: what a server makes of them.

use futures_util::stream;
use tonic::{Code, Status, Streaming};

use super::*;
use crate::mesh::wire::proto::{self, mesh_client::MeshClient, reply, request};
use crate::mesh::wire::{header, status};

/// Sends these messages on one stream and keeps it open; what the server answers.
async fn exchange(listening: &Listening, messages: Vec<proto::Requests>) -> Streaming<proto::Replies> {
    use futures_util::StreamExt;
    let mut client = MeshClient::connect(format!("http://{}", listening.text())).await.unwrap();
    let open = stream::iter(messages).chain(stream::pending());
    client.exchange(open).await.unwrap().into_inner()
}

async fn next(replies: &mut Streaming<proto::Replies>) -> Result<proto::Replies, Status> {
    tokio::time::timeout(PATIENCE, replies.message()).await.expect("an answer").map(|m| m.expect("not the end"))
}

fn get(id: u64, key: &'static [u8]) -> proto::Request {
    let read = request::Request::Read(proto::Read::default());
    proto::Request { id, epoch: 1, key: key.into(), request: Some(read), behind: false, trace: None }
}

fn message(from: &Node, to: u128, requests: Vec<proto::Request>) -> proto::Requests {
    proto::Requests { header: Some(header(&from.header, Some(instance(to)))), requests }
}

#[tokio::test]
async fn a_request_that_makes_no_sense_harms_no_other() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let requests = vec![get(5, b"k"), get(6, b""), proto::Request { request: None, ..get(7, b"k") }, get(8, b"k")];
    let mut replies = exchange(&listening, vec![message(&one, 2, requests)]).await;
    assert!(next(&mut replies).await.unwrap().replies.is_empty(), "the greeting");
    let mut came = BTreeMap::new();
    while came.len() < 4 {
        came.extend(next(&mut replies).await.unwrap().replies.into_iter().map(|r| (r.id, r.reply)));
    }
    for (id, reply) in came {
        match reply {
            Some(reply::Reply::Record(_)) => assert!(id == 5 || id == 8),
            Some(reply::Reply::Failed(failed)) => {
                assert!(id == 6 || id == 7);
                assert_eq!(failed.kind(), proto::failed::Kind::NotUnderstood);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_refused_message_ends_the_stream_and_says_why() {
    let (one, two) = (Node::new(1, 9), Node::new(2, 9));
    let listening = Listening::start(&two, None);
    let mut replies = exchange(&listening, vec![message(&one, 2, vec![]), message(&one, 3, vec![get(1, b"k")])]).await;
    assert!(next(&mut replies).await.unwrap().replies.is_empty(), "the greeting");
    let refusal = next(&mut replies).await.unwrap_err();
    assert_eq!((refusal.code(), status::error(&refusal)), (Code::FailedPrecondition, PeerError::WrongRecipient));
    assert_eq!(two.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_message_without_a_header_ends_the_stream() {
    let two = Node::new(2, 9);
    let listening = Listening::start(&two, None);
    let bare = proto::Requests { header: None, requests: vec![get(1, b"k")] };
    let refusal = next(&mut exchange(&listening, vec![bare]).await).await.unwrap_err();
    assert!(matches!(status::error(&refusal), PeerError::Protocol(_)));
    assert_eq!(two.requests.load(Ordering::SeqCst), 0);
}
