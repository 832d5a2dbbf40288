//! The order, the limits and the end of an import, over work that does what it is told.

use std::sync::Arc;

use futures_util::{FutureExt, stream};
use parking_lot::Mutex;

use super::*;

fn line(number: u64, key: &str, bytes: usize) -> Line {
    let content = NewContent::value(vec![0; bytes]);
    Line { number, key: Key::new(key.to_owned()).unwrap(), entry: Entry::New { content, expires_at_ms: None } }
}

fn failure() -> Failure {
    Failure::before(FailureKind::Unavailable, Level::Quorum)
}

/// What was begun, and how much was under way at most.
#[derive(Default)]
struct Seen {
    begun: Vec<u64>,
    now: usize,
    most: usize,
}

/// Drives lines over work that yields a few times, later lines fewer times than earlier ones.
async fn driven(
    lines: impl Stream<Item = Result<Line, Stop<&'static str>>> + Unpin,
    fails: impl Fn(u64) -> bool + Send + Sync + Copy + 'static,
) -> (Result<(), Stop<&'static str>>, Vec<u64>, Seen) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let work = |line: Line| {
        let seen = Arc::clone(&seen);
        async move {
            {
                let mut seen = seen.lock();
                seen.begun.push(line.number);
                seen.now += 1;
                seen.most = seen.most.max(seen.now);
            }
            for _ in 0..7 - line.number % 7 {
                tokio::task::yield_now().await;
            }
            seen.lock().now -= 1;
            let became = if fails(line.number) { Err(failure()) } else { Ok(Became::Stored) };
            (line, became)
        }
        .boxed()
    };
    let mut told = Vec::new();
    let result = drive(lines, work, |line, _| told.push(line.number)).await;
    let seen = std::mem::take(&mut *seen.lock());
    (result, told, seen)
}

fn given(lines: Vec<Line>) -> impl Stream<Item = Result<Line, Stop<&'static str>>> + Unpin {
    stream::iter(lines.into_iter().map(Ok))
}

#[tokio::test]
async fn lines_on_one_key_stay_in_order_and_others_go_at_once() {
    let lines = (1..=300).map(|n| line(n, ["a", "b", "c"][n as usize % 3], 1)).collect();
    let (result, told, seen) = driven(given(lines), |_| false).await;
    assert!(result.is_ok() && told.len() == 300);
    for key in 0..3 {
        let of_key: Vec<u64> = told.iter().copied().filter(|n| n % 3 == key).collect();
        assert!(of_key.is_sorted());
    }
    assert_eq!(seen.most, 3);
    let lines = (1..=300).map(|n| line(n, &n.to_string(), 1)).collect();
    let (_, told, seen) = driven(given(lines), |_| false).await;
    assert_eq!((told.len(), seen.most), (300, KEYS_AT_ONCE));
}

#[tokio::test]
async fn no_more_is_taken_than_may_be_held() {
    // However large values are, one is let in; the next one is not before there is room.
    let lines = (1..=5).map(|n| line(n, &n.to_string(), BYTES_HELD_MAX)).collect();
    assert_eq!(driven(given(lines), |_| false).await.2.most, 1);
    // Lines that wait for their key are held, too: the source is not read on.
    let pulled = Arc::new(Mutex::new(0));
    let counting = Arc::clone(&pulled);
    let endless = stream::iter((1..).map(move |n| {
        *counting.lock() = n;
        Ok::<_, Stop<&'static str>>(line(n, "a", 1))
    }));
    let work = |_: Line| -> BoxFuture<'static, Done> { std::future::pending().boxed() };
    let driving = drive(endless, work, |_, _| ());
    tokio::pin!(driving);
    assert!(futures_util::poll!(&mut driving).is_pending());
    assert_eq!(*pulled.lock(), LINES_HELD_MAX as u64);
}

#[tokio::test]
async fn the_earliest_line_that_fails_ends_it_and_what_is_under_way_is_counted() {
    let lines = (1..=500).map(|n| line(n, &n.to_string(), 1)).collect();
    let (result, told, seen) = driven(given(lines), |n| n == 20 || n == 14 || n == 15).await;
    assert!(matches!(result, Err(Stop::Line { number: 14, .. })), "{result:?}");
    assert!(seen.begun.len() < 300, "no other line is begun");
    let mut ended: Vec<u64> = told;
    ended.extend([14, 15, 20]);
    ended.sort_unstable();
    let mut begun = seen.begun;
    begun.sort_unstable();
    assert_eq!(ended, begun, "each that was begun came to its end");
}

#[tokio::test]
async fn a_source_that_fails_lets_whole_lines_be_done() {
    let lines = (1..=9).map(|n| Ok(line(n, "a", 1)));
    let (result, told, _) = driven(stream::iter(lines.chain([Err(Stop::Source("gone"))])), |_| false).await;
    assert!(matches!(result, Err(Stop::Source("gone"))));
    assert_eq!(told, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}
