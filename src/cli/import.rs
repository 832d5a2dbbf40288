//! `a3 import`: lines of a file, of any length, which is sent as it is read.
//!
//! That nothing of the file moves says little: some megabytes of it lie in buffers between here and the node, and the node takes them as fast
//! as it writes lines. It limits itself how long it tries a line and how long it waits for the next. So the answer is waited for as
//! long as the connection lives, within reason.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::Args;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Method;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, interval};

use super::Fault;
use super::client::{ANSWER, Asked, Host, Sent, block_on, open, within};
use super::moving::{LineFormat, Progress};
use super::output::{self, Output};
use crate::config::units::show_duration;

/// Bytes of the file read at a time.
const PIECE_BYTES: usize = 64 * 1024;
/// How long nothing may move before the node is given up, in a connection that lives.
const STILL: Duration = Duration::from_secs(15 * 60);
/// How often is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Store the lines of a file: what `a3 export` wrote, or what people write. Exit code 1 where a line was refused.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// Where from; - or nothing: stdin.
    file: Option<PathBuf>,
    /// Write every line as a new version, above what is there, and bring back what was deleted.
    #[arg(long)]
    restamp: bool,
    /// How lines are spelled [default: as FILE ends: csv, else ndjson].
    #[arg(id = "lines", long = "format", value_enum, value_name = "FORMAT")]
    format: Option<LineFormat>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

/// What became of the lines, as far as this command shows it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    lines: u64,
    stored: u64,
    unchanged: u64,
    older: u64,
    expired: u64,
    refused: u64,
    complete: bool,
    problems: Vec<LineProblem>,
    stopped_at: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LineProblem {
    line: u64,
    key: Option<String>,
    code: String,
    detail: String,
}

impl Import {
    pub(super) fn run(self) -> Result<(), Fault> {
        let file = self.file.clone().filter(|file| file != Path::new("-"));
        let opened = match &file {
            Some(path) if path.is_dir() => return Err(Fault::Failed(format!("{}: is a directory", path.display()))),
            Some(path) => File::open(path).map_err(|e| Fault::Usage(format!("{}: {e}", path.display())))?,
            None => {
                let stdin = std::io::stdin().as_fd().try_clone_to_owned();
                File::from(stdin.map_err(|e| Fault::Failed(format!("stdin: {e}")))?)
            }
        };
        let format = self.format.unwrap_or_else(|| LineFormat::of_name(file.as_deref()));
        block_on(self.import(opened, format))
    }

    async fn import(&self, file: File, format: LineFormat) -> Result<(), Fault> {
        let kind = match format {
            LineFormat::Ndjson => "application/x-ndjson",
            LineFormat::Csv => "text/csv",
        };
        let headers: HeaderMap = [(CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect();
        let restamp = if self.restamp { "&restamp=true" } else { "" };
        let path = format!("/import?format={}{restamp}", format.name());
        let sent = Arc::new(AtomicU64::new(0));
        let (status, body) = self.send(&path, headers, body_of(file, Arc::clone(&sent)), &sent).await?;
        if !(200..300).contains(&status) {
            let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
            if let Ok(told) = Told::deserialize(&problem["import"]) {
                eprintln!("{}", told.before());
            }
            return Err(Fault::of_answer(status, &body));
        }
        let no_answer = |_| Fault::Failed("the answer is not JSON: is this an a3 node?".into());
        let whole: Value = serde_json::from_slice(&body).map_err(no_answer)?;
        let told = Told::deserialize(&whole).unwrap_or_default();
        if self.output.is_json() { output::json(&whole) } else { output::line(&told.shown()) }?;
        told.verdict()
    }

    /// The whole answer; how far the file is gone is told meanwhile.
    async fn send(&self, path: &str, headers: HeaderMap, body: Sent, sent: &AtomicU64) -> Result<(u16, Bytes), Fault> {
        let host = &self.asked.host;
        let (head, body) =
            while_it_moves(open(Method::POST, host, path, headers, body), sent, host).await?.into_parts();
        Ok((head.status.as_u16(), whole(body, &self.asked).await?))
    }
}

/// The answer, unless nothing is sent and nothing comes for too long.
async fn while_it_moves<T>(
    answer: impl Future<Output = Result<T, Fault>>,
    sent: &AtomicU64,
    host: &Host,
) -> Result<T, Fault> {
    tokio::pin!(answer);
    let (mut look, mut progress) = (interval(LOOK_EVERY), Progress::new("sent"));
    let (mut last, mut moved) = (0, Instant::now());
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut answer => break answer,
            _ = look.tick() => {
                let bytes = sent.load(Ordering::Relaxed);
                progress.show(bytes);
                if bytes > last {
                    (last, moved) = (bytes, Instant::now());
                } else if moved.elapsed() > STILL {
                    let still = show_duration(STILL);
                    break Err(Fault::Unavailable(format!("{host}: it took nothing for {still} and does not answer")));
                }
            }
        }
    };
    progress.clear();
    answer
}

async fn whole(body: Incoming, asked: &Asked) -> Result<Bytes, Fault> {
    let broken = |e| Fault::Unavailable(format!("{}: the answer broke off: {e}", asked.host));
    let collected = within(ANSWER, &asked.host, async { body.collect().await.map_err(broken) });
    Ok(collected.await?.to_bytes())
}

/// The file, piece by piece, as fast as it is taken.
fn body_of(file: File, sent: Arc<AtomicU64>) -> Sent {
    let file = tokio::fs::File::from_std(file);
    let pieces = stream::unfold((file, sent), |(mut file, sent)| async {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        match file.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                sent.fetch_add(read as u64, Ordering::Relaxed);
                Some((Ok(Frame::data(piece.freeze())), (file, sent)))
            }
            Err(error) => Some((Err(error), (file, sent))),
        }
    });
    StreamBody::new(pieces).boxed_unsync()
}

impl Told {
    fn counts(&self) -> String {
        let numbers = [self.lines, self.stored, self.unchanged, self.older, self.expired, self.refused];
        let header = ["LINES", "STORED", "UNCHANGED", "OLDER", "EXPIRED", "REFUSED"];
        output::rows(&header, &[numbers.map(|number| number.to_string()).to_vec()])
    }

    fn shown(&self) -> String {
        let named = self.problems.iter().map(|LineProblem { line, key, code, detail }| {
            let key = key.as_ref().map(|key| format!(" ({})", key.escape_debug())).unwrap_or_default();
            format!("\nline {line}{key}: {code}: {detail}")
        });
        let more = self.refused.saturating_sub(self.problems.len() as u64);
        let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
        self.counts() + &named.collect::<String>() + &more
    }

    /// Of an import that could not go on.
    fn before(&self) -> String {
        let at =
            self.stopped_at.map(|line| format!("\nstopped at line {line}; it may be begun again")).unwrap_or_default();
        format!("done before:\n{}{at}", self.counts())
    }

    fn verdict(&self) -> Result<(), Fault> {
        if self.refused > 0 {
            return Err(Fault::Failed(format!("{} of {} lines were refused", self.refused, self.lines)));
        }
        if !self.complete {
            return Err(Fault::Failed("lines of an export, and no end follows: the file may be cut".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_waited_for_while_the_node_works() {
        let (host, sent) = (Host("n1:1".into()), AtomicU64::new(0));
        let after = async |time: Duration| {
            sleep(time).await;
            Ok(7)
        };
        assert_eq!(while_it_moves(after(Duration::from_secs(14 * 60)), &sent, &host).await, Ok(7));
        let never = while_it_moves(after(Duration::from_secs(3600)), &sent, &host).await;
        assert!(matches!(never, Err(Fault::Unavailable(why)) if why.contains("15m")), "it has an end");
        let slowly = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(10 * 60)).await;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            Ok(8)
        };
        assert_eq!(while_it_moves(slowly, &sent, &host).await, Ok(8));
    }

    #[test]
    fn the_counts_are_shown_and_decide() {
        let told = |answer: Value| Told::deserialize(&answer).unwrap();
        let good = told(json!({"lines": 5, "stored": 3, "unchanged": 2, "complete": true, "news": 1}));
        assert_eq!(good.verdict(), Ok(()));
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&good.shown())[6..], ["5", "3", "2", "0", "0", "0"]);
        let cut = told(json!({"lines": 5, "stored": 5, "complete": false}));
        assert!(matches!(cut.verdict(), Err(Fault::Failed(why)) if why.contains("no end follows")));
        let problem = json!({"line": 17, "key": "a\n", "code": "bad-line", "detail": "no"});
        let bad = told(json!({"lines": 9, "refused": 3, "complete": true, "problems": [problem]}));
        assert!(bad.shown().ends_with("\nline 17 (a\\n): bad-line: no\nand 2 more"));
        assert_eq!(bad.verdict(), Err(Fault::Failed("3 of 9 lines were refused".into())));
        assert!(told(json!({"stopped_at": 4})).before().ends_with("stopped at line 4; it may be begun again"));
    }
}
