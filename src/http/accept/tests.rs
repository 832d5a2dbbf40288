//! Connections over real sockets: cut, limited, and brought to an end.

use super::*;
use axum::response::Sse;
use axum::response::sse::Event;
use axum::routing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

struct Served {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    /// Told by each request for `/slow` or `/never` that it is under way.
    begun: Arc<Notify>,
    server: JoinSet<()>,
}

/// More than the system's buffers hold.
const BIG: usize = 64 * 1024 * 1024;

/// Serves these over real sockets: `/` answers at once, `/slow` after 300 ms, `/never` never, `/big` with
/// [`BIG`] bytes, and `/events` with ten events in a second.
async fn served(options: Options) -> Served {
    let begun = Arc::new(Notify::new());
    let slow = {
        let begun = Arc::clone(&begun);
        async move || {
            begun.notify_one();
            tokio::time::sleep(Duration::from_millis(300)).await;
            "slow"
        }
    };
    let never = {
        let begun = Arc::clone(&begun);
        async move || {
            begun.notify_one();
            std::future::pending::<&'static str>().await
        }
    };
    let events = || async {
        let ticks = tokio::time::interval(Duration::from_millis(100));
        let told = stream::unfold((ticks, 0), |(mut ticks, told)| async move {
            ticks.tick().await;
            (told < 10).then(|| (Ok::<_, Infallible>(Event::default().data(told.to_string())), (ticks, told + 1)))
        });
        Sse::new(told)
    };
    let router = Router::new()
        .route("/", routing::get(|| async { "hi" }))
        .route("/events", routing::get(events))
        .route("/refuse", routing::put(|| async { axum::http::StatusCode::PAYLOAD_TOO_LARGE }))
        .route("/slow", routing::get(slow))
        .route("/never", routing::get(never))
        .route("/big", routing::get(|| async { vec![0u8; BIG] }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        serve(listener, router, &options, stopped).await;
    });
    Served { address, stop, begun, server }
}

fn short() -> Options {
    Options {
        header_timeout: Duration::from_millis(200),
        idle_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_millis(200),
        farewell: Duration::ZERO,
        grace: Duration::from_secs(10),
        ..Options::default()
    }
}

/// This, which takes a moment.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it comes soon")
}

async fn open(served: &Served, bytes: &[u8]) -> TcpStream {
    let mut stream = soon(TcpStream::connect(served.address)).await.unwrap();
    soon(stream.write_all(bytes)).await.unwrap();
    stream
}

/// What comes until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut got = Vec::new();
    let _ = soon(stream.read_to_end(&mut got)).await;
    String::from_utf8_lossy(&got).into_owned()
}

/// Until a place is given back, where there was none.
async fn until_there_is_a_place(served: &Served) {
    soon(async { while !rest(&mut open(served, GET_AND_CLOSE).await).await.ends_with("hi") {} }).await;
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const GET_AND_CLOSE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn connections_that_never_finish_a_head_are_cut_and_others_served() {
    let served = served(short()).await;
    let mut slow = Vec::new();
    for i in 0..100 {
        let beginnings: [&[u8]; 4] = [b"", b"P", b"PRI * HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: "];
        slow.push(open(&served, beginnings[i % 4]).await);
    }
    assert!(rest(&mut open(&served, GET_AND_CLOSE).await).await.ends_with("hi"));
    for stream in &mut slow {
        assert_eq!(rest(stream).await, "");
    }
}

#[tokio::test]
async fn an_idle_connection_outlives_the_header_deadline() {
    let served = served(short()).await;
    let mut stream = open(&served, GET).await;
    let mut answer = [0; 512];
    assert!(soon(stream.read(&mut answer)).await.unwrap() > 0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    soon(stream.write_all(GET_AND_CLOSE)).await.unwrap();
    assert!(rest(&mut stream).await.ends_with("hi"));
}

#[tokio::test]
async fn a_connection_is_not_idle_while_events_come() {
    let idle_timeout = Duration::from_millis(200);
    let served = served(Options { idle_timeout, ..short() }).await;
    let mut stream = open(&served, b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let came = rest(&mut stream).await;
    assert!(came.contains("data: 9\n") && came.ends_with("\r\n0\r\n\r\n"), "whole, and then it is idle: {came}");
}

#[tokio::test]
async fn a_connection_is_not_idle_while_an_answer_is_sent() {
    // The client may pause for as long as the machine likes: what is measured is not the write time-out.
    let patience = Options { write_timeout: Duration::from_secs(60), ..short() };
    let served = served(Options { idle_timeout: Duration::from_millis(200), ..patience }).await;
    let mut stream = open(&served, b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (began, mut bytes, mut piece) = (Instant::now(), 0, vec![0; 4 * 1024 * 1024]);
    // It takes its answer for longer than it may be idle, and then it is idle.
    loop {
        let came = soon(stream.read(&mut piece)).await.unwrap();
        bytes += came;
        if came == 0 {
            break;
        }
        if began.elapsed() < Duration::from_millis(600) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(bytes > BIG, "{bytes}");
}

#[tokio::test]
async fn an_idle_connection_is_cut_also_after_a_slow_answer() {
    let served = served(Options { idle_timeout: Duration::from_millis(200), ..short() }).await;
    let mut stream = open(&served, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(rest(&mut stream).await.ends_with("slow"));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let served = served(Options { connections_max: 1, ..short() }).await;
    let mut stream = open(&served, b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until_there_is_a_place(&served).await;
    assert!(rest(&mut stream).await.len() < BIG);
}

#[tokio::test]
async fn a_refused_body_does_not_lose_the_answer() {
    let served = served(short()).await;
    let head = b"PUT /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n";
    let mut stream = open(&served, head).await;
    soon(stream.write_all(&vec![0; 2_000_000])).await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn connections_are_limited_together_and_by_address() {
    let limits = [(2, 100), (100, 2)];
    for (connections_max, connections_per_address_max) in limits {
        let served = served(Options { connections_max, connections_per_address_max, ..short() }).await;
        let first = open(&served, GET).await;
        let mut second = open(&served, GET).await;
        assert!(soon(second.read(&mut [0; 512])).await.unwrap() > 0);
        let refused = rest(&mut open(&served, b"").await).await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        drop((first, second));
        until_there_is_a_place(&served).await;
    }
}

#[test]
fn the_refusal_is_a_whole_answer() {
    let text = std::str::from_utf8(REFUSAL).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())));
    assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
}

#[tokio::test]
async fn stopping_finishes_requests_closes_idle_connections_and_takes_no_more() {
    let mut served = served(short()).await;
    let mut idle = open(&served, GET).await;
    assert!(soon(idle.read(&mut [0; 512])).await.unwrap() > 0);
    let mut busy = open(&served, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    soon(served.begun.notified()).await;
    served.stop.send(()).unwrap();
    assert_eq!(rest(&mut idle).await, "");
    assert!(rest(&mut busy).await.ends_with("slow"));
    soon(served.server.join_next()).await.unwrap().unwrap();
    assert!(soon(TcpStream::connect(served.address)).await.is_err());
}

#[tokio::test]
async fn a_busy_client_of_a_stopping_server_is_told_and_loses_nothing() {
    let mut served = served(Options { farewell: Duration::from_millis(500), ..short() }).await;
    let mut idle = open(&served, GET).await;
    assert!(soon(idle.read(&mut [0; 512])).await.unwrap() > 0);
    served.stop.send(()).unwrap();
    let (mut answered, mut refused) = (0, false);
    while !refused {
        // Asked anew at any moment of the stop: either there is no connection, or there is a whole answer.
        match soon(TcpStream::connect(served.address)).await {
            Ok(mut stream) => {
                soon(stream.write_all(GET)).await.unwrap();
                let came = rest(&mut stream).await;
                assert!(came.ends_with("hi"), "the {answered} before were answered, this one: {came:?}");
                assert!(answered == 0 || came.contains("connection: close"), "{came}");
                answered += 1;
            }
            Err(_) => refused = true,
        }
    }
    assert!(answered > 1);
    assert_eq!(rest(&mut idle).await, "", "the idle one is closed, too");
    soon(served.server.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn stopping_cuts_what_outlasts_the_grace() {
    let mut served = served(Options { grace: Duration::from_millis(50), ..short() }).await;
    let mut busy = open(&served, b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n").await;
    soon(served.begun.notified()).await;
    served.stop.send(()).unwrap();
    soon(served.server.join_next()).await.unwrap().unwrap();
    assert_eq!(rest(&mut busy).await, "");
}
