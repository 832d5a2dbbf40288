//! Connections over a pipe in memory, in virtual time: whoever says nothing, or takes nothing, is ended.

use super::*;
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const PATIENCE: Patience =
    Patience { header: Duration::from_secs(5), idle: Duration::from_secs(60), write: Duration::from_secs(30) };

fn guarded() -> (DuplexStream, Guarded<DuplexStream>, Arc<Traffic>) {
    guarded_with(PATIENCE)
}

fn guarded_with(patience: Patience) -> (DuplexStream, Guarded<DuplexStream>, Arc<Traffic>) {
    let (client, server) = duplex(64);
    let traffic = Arc::new(Traffic::default());
    (client, Guarded::new(server, Arc::clone(&traffic), patience), traffic)
}

fn look(stream: &mut Guarded<DuplexStream>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut scratch = [0; 64];
    loop {
        let mut buf = ReadBuf::new(&mut scratch);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf))?;
        assert!(!buf.filled().is_empty(), "the client is still there");
    }
}

/// Reads until an error, and says after how many seconds it came. As hyper reads: it flushes whenever it wakes.
async fn cut_after(stream: &mut Guarded<DuplexStream>) -> u64 {
    let started = Instant::now();
    let cut = poll_fn(|cx| {
        let looked = look(stream, cx);
        assert!(Pin::new(&mut *stream).poll_flush(cx).is_ready());
        looked
    });
    let error = tokio::time::timeout(Duration::from_secs(1000), cut).await.expect("it is cut").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    started.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_nothing_is_cut() {
    let (_client, mut stream, _) = guarded();
    assert_eq!(cut_after(&mut stream).await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_is_cut_at_its_deadline_and_not_later() {
    let (mut client, mut stream, _) = guarded();
    let trickle = async {
        loop {
            client.write_all(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        biased;
        seconds = cut_after(&mut stream) => assert_eq!(seconds, 5),
        () = trickle => unreachable!(),
    }
}

#[tokio::test(start_paused = true)]
async fn between_requests_there_is_more_time_and_a_new_head_has_its_own_deadline() {
    let (mut client, mut stream, traffic) = guarded();
    client.write_all(b"first").await.unwrap();
    stream.read_exact(&mut [0; 5]).await.unwrap();
    drop(traffic.begin(false));
    let second = async {
        tokio::time::sleep(Duration::from_secs(50)).await;
        client.write_all(b"begun").await.unwrap();
        std::future::pending::<()>().await
    };
    tokio::select! {
        biased;
        seconds = cut_after(&mut stream) => assert_eq!(seconds, 55),
        () = second => unreachable!(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_cut_in_the_end() {
    let (mut client, mut stream, traffic) = guarded();
    client.write_all(b"first").await.unwrap();
    stream.read_exact(&mut [0; 5]).await.unwrap();
    drop(traffic.begin(false));
    assert_eq!(cut_after(&mut stream).await, 60);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_in_parts_is_not_idle() {
    let (mut client, mut stream, traffic) = guarded();
    drop(traffic.begin(false));
    for _ in 0..5 {
        stream.write_all(&[0; 8]).await.unwrap();
        let cut = tokio::time::timeout(Duration::from_secs(50), cut_after(&mut stream)).await;
        assert!(cut.is_err(), "{cut:?}");
        client.read_exact(&mut [0; 8]).await.unwrap();
    }
    assert_eq!(cut_after(&mut stream).await, 10, "60 after the last part");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_waits_for_its_client_is_not_idle() {
    let (mut client, mut stream, traffic) = guarded_with(Patience { write: Duration::from_secs(300), ..PATIENCE });
    drop(traffic.begin(false));
    stream.write_all(&[0; 64]).await.unwrap();
    let late = async {
        tokio::time::sleep(Duration::from_secs(200)).await;
        client.read_exact(&mut [0; 64]).await.unwrap();
        std::future::pending::<()>().await
    };
    let sent = poll_fn(|cx| {
        if let Poll::Ready(cut) = look(&mut stream, cx) {
            return Poll::Ready(cut.map(|()| 0));
        }
        Pin::new(&mut stream).poll_write(cx, &[0; 8])
    });
    tokio::select! {
        biased;
        sent = sent => assert_eq!(sent.unwrap(), 8),
        () = late => unreachable!(),
    }
    assert_eq!(cut_after(&mut stream).await, 60);
}

#[tokio::test(start_paused = true)]
async fn a_request_under_way_and_http2_have_no_deadline_here() {
    let (_client, mut stream, traffic) = guarded();
    let under_way = traffic.begin(false);
    let read = tokio::time::timeout(Duration::from_secs(1000), stream.read(&mut [0; 8])).await;
    assert!(read.is_err(), "{read:?}");
    drop(under_way);
    assert_eq!(cut_after(&mut stream).await, 60);

    let (_client, mut stream, traffic) = guarded();
    drop(traffic.begin(true));
    assert!(tokio::time::timeout(Duration::from_secs(1000), stream.read(&mut [0; 8])).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_ends_the_connection() {
    let (mut client, mut stream, _) = guarded();
    stream.write_all(&[0; 64]).await.unwrap();
    let started = Instant::now();
    let slow = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        client.read_exact(&mut [0; 32]).await.unwrap();
        std::future::pending::<()>().await
    };
    tokio::select! {
        biased;
        result = stream.write_all(&[0; 100]) => assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut),
        () = slow => unreachable!(),
        () = tokio::time::sleep(Duration::from_secs(1000)) => panic!("it is cut"),
    }
    assert_eq!(started.elapsed().as_secs(), 50, "progress starts the time anew");
}

#[tokio::test(start_paused = true)]
async fn a_closing_stream_is_read_on_after_a_failure_only() {
    let (mut client, mut stream, traffic) = guarded();
    traffic.answered(true);
    let started = Instant::now();
    stream.shutdown().await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);

    let (mut refused, mut stream, traffic) = guarded();
    traffic.answered(false);
    let sent = async {
        refused.write_all(&[0; 1000]).await.unwrap();
        drop(refused);
    };
    let both = async { tokio::join!(sent, stream.shutdown()) };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("the rest is read").1.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    let (_stays, mut stream, traffic) = guarded();
    traffic.answered(false);
    stream.shutdown().await.unwrap();
    assert_eq!(started.elapsed(), LINGER);
    client.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_length_is_looked_for_in_the_newest_head_alone() {
    let (mut client, mut stream, traffic) = guarded();
    for (head, has) in [
        (&b"PUT / HTTP/1.1\r\ncontent-LENGTH: 3\r\n\r\nabc"[..], true),
        (b"PUT / HTTP/1.1\r\nHost: a\r\n\r\nContent-Length: 3\r\n", false),
        (b"PUT / HTTP/1.1\nContent-Length:3\n\n", true),
        (b"PUT /content-length: HTTP/1.1\r\nX: Content-Length: 3\r\n\r\n", false),
    ] {
        client.write_all(head).await.unwrap();
        stream.read_exact(&mut vec![0; head.len()]).await.unwrap();
        assert_eq!(traffic.announced_length(), has, "{}", head.escape_ascii());
        drop(traffic.begin(false));
    }
}
