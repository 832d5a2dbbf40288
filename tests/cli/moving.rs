//! `a3 export` and `a3 import`: what is sent, what becomes of the file, and when that is a failure.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use super::{a3, run, told};

/// A request's first line, its Content-Type, and its body.
type Asked = (String, String, Vec<u8>);

/// Answers each request with that, and tells what was asked. `reads`: bodies are read before.
#[expect(clippy::disallowed_methods, reason = "a server for this test alone, outside any node")]
fn answering(answer: Vec<u8>, reads: bool) -> (String, Receiver<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let request = serve(&stream.unwrap(), &answer, reads);
            if request.is_ok_and(|request| tell.send(request).is_err()) {
                return;
            }
        }
    });
    (address, asked)
}

fn serve(stream: &TcpStream, answer: &[u8], reads: bool) -> std::io::Result<Asked> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default().to_owned();
    let mut body = Vec::new();
    while reads && head.contains("transfer-encoding: chunked") {
        let mut size = String::new();
        reader.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut piece = vec![0; size + 2];
        reader.read_exact(&mut piece)?;
        body.extend_from_slice(&piece[..size]);
        if size == 0 {
            break;
        }
    }
    let mut writer = stream;
    writer.write_all(answer)?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), kind, body))
}

/// An answer whose body comes in one piece; `whole`: and comes to its end.
fn lines(body: &str, whole: bool) -> Vec<u8> {
    let head =
        "HTTP/1.1 200 X\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\nConnection: close";
    let end = if whole { "0\r\n\r\n" } else { "" };
    format!("{head}\r\n\r\n{:x}\r\n{body}\r\n{end}", body.len()).into_bytes()
}

fn answer(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").into_bytes()
}

const END: &str = "{\"end\":{\"keys\":1,\"damaged\":0,\"strict\":true}}\n";
const RECORD: &str = "{\"key\":\"a\",\"value\":\"1\"}\n";

#[test]
fn an_export_gets_its_name_when_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let body = format!("{RECORD}{END}");
    let (host, asked) = answering(lines(&body, true), true);
    let whole = path("whole.ndjson");
    let (code, stdout, stderr) = run(&["export", &whole, "--prefix", "a/b", "--host", &host]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "", "1 keys, 69 B\n"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&whole).unwrap(), body);
    assert_eq!(asked.recv().unwrap().0, "GET /export?format=ndjson&prefix=a%2Fb HTTP/1.1");
    assert_eq!(run(&["export", "--host", &host]), (0, body, String::new()), "bytes exact on stdout");

    let error = "{\"error\":{\"title\":\"Gone\",\"detail\":\"n2 is\"}}\n";
    for (answer, why) in [
        (lines(RECORD, true), "it has no end"),
        (lines(&format!("{RECORD}{END}"), false), "the answer broke off"),
        (lines(&format!("{RECORD}{error}"), true), "Gone: n2 is"),
    ] {
        let (host, _asked) = answering(answer, true);
        let cut = path("cut.ndjson");
        let (code, _, stderr) = run(&["export", &cut, "--host", &host]);
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains(why) && stderr.contains("cut.ndjson.part"), "{stderr}");
        assert!(!std::path::Path::new(&cut).exists());
        assert!(std::fs::read_to_string(format!("{cut}.part")).unwrap().starts_with(RECORD));
        assert_eq!(run(&["export", "--host", &host]).0, 1);
    }
}

#[test]
fn rows_have_no_end_but_that_of_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.csv");
    let file = file.to_str().unwrap();
    let (host, _asked) = answering(lines("key,value\r\na,1\r\n", false), true);
    assert_eq!(run(&["export", file, "--host", &host]).0, 1);
    assert!(!std::path::Path::new(file).exists());
    let (host, asked) = answering(lines("key,value\r\na,1\r\n", true), true);
    assert_eq!(run(&["export", file, "--host", &host]), (0, String::new(), String::new()));
    assert_eq!(asked.recv().unwrap().0, "GET /export?format=csv&prefix= HTTP/1.1", "as the file's name ends");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "key,value\r\na,1\r\n");
}

#[test]
fn an_export_that_does_not_begin_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("none");
    let (host, _asked) = answering(answer(503, r#"{"title":"Unavailable","code":"unavailable"}"#), true);
    let (code, _, stderr) = run(&["export", file.to_str().unwrap(), "--host", &host]);
    assert_eq!((code, stderr.as_str()), (69, "a3: Unavailable\n"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let damaged = "{\"end\":{\"keys\":0,\"damaged\":2,\"strict\":false}}\n";
    let (host, _asked) = answering(lines(damaged, true), true);
    let (code, _, stderr) = run(&["export", "--host", &host]);
    assert_eq!(code, 1);
    assert!(stderr.contains("2 keys could not be read") && stderr.contains("stood in for"), "{stderr}");
}

#[test]
fn what_is_no_ordinary_file_is_written_into_and_a_link_stays_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let body = format!("{RECORD}{END}");
    let (host, asked) = answering(lines(&body, true), true);
    assert_eq!(run(&["export", "-", "--host", &host]), (0, body.clone(), String::new()));
    assert_eq!(run(&["export", "/dev/null", "--host", &host]).0, 0);
    assert!(!std::path::Path::new("/dev/null.part").exists());
    // A link, to something or to nothing yet.
    std::fs::create_dir(path("there")).unwrap();
    std::fs::write(path("there/old"), "old").unwrap();
    for (link, target) in [("a", "old"), ("b", "new")] {
        std::os::unix::fs::symlink(format!("there/{target}"), path(link)).unwrap();
        assert_eq!(run(&["export", &path(link), "--host", &host]).0, 0);
        assert!(std::fs::symlink_metadata(path(link)).unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(path(&format!("there/{target}"))).unwrap(), body);
    }
    while asked.try_recv().is_ok() {}
    let (code, _, stderr) = run(&["export", dir.path().to_str().unwrap(), "--host", &host]);
    assert!(code == 1 && stderr.contains("is a directory"), "{stderr}");
    assert!(asked.try_recv().is_err(), "nothing was asked");
    let (code, _, stderr) = run(&["import", dir.path().to_str().unwrap(), "--host", &host]);
    assert!(code == 1 && stderr.contains("is a directory"), "{stderr}");

    // What is damaged does not take a good file's place.
    let good = path("good.ndjson");
    std::fs::write(&good, "good").unwrap();
    let damaged = "{\"end\":{\"keys\":0,\"damaged\":2,\"strict\":true}}\n";
    let (host, _asked) = answering(lines(damaged, true), true);
    let (code, _, stderr) = run(&["export", &good, "--host", &host]);
    assert!(code == 1 && stderr.contains("good.ndjson.part"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&good).unwrap(), "good");
    assert_eq!(std::fs::read_to_string(path("good.ndjson.part")).unwrap(), damaged);
}

#[test]
fn a_backup_is_read_whatever_host_the_environment_names() {
    let mut command = a3(&["export", "--backup", "/nowhere/at/all"]);
    let (code, _, stderr) = told(command.env("A3_HOST", "http://n1:8001").output().unwrap());
    assert!(code == 1 && stderr.contains("/nowhere/at/all"), "{code}: {stderr}");
}

#[test]
fn an_import_sends_the_file_as_it_is_and_shows_what_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let good =
        r#"{"lines":3,"stored":2,"unchanged":1,"older":0,"expired":0,"refused":0,"complete":true,"problems":[]}"#;
    let (host, asked) = answering(answer(200, good), true);
    // More than one piece of it.
    let body: Vec<u8> = (0..500_000u32).map(|n| (n % 251) as u8).collect();
    let file = dir.path().join("rows.csv");
    std::fs::write(&file, &body).unwrap();
    let (code, stdout, stderr) = run(&["import", file.to_str().unwrap(), "--host", &host]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let words: Vec<&str> = stdout.split_whitespace().collect();
    assert_eq!(words[..3], ["LINES", "STORED", "UNCHANGED"]);
    assert_eq!(words[6..], ["3", "2", "1", "0", "0", "0"]);
    let (first, kind, sent) = asked.recv().unwrap();
    assert_eq!((first.as_str(), kind.as_str()), ("POST /import?format=csv HTTP/1.1", "text/csv"));
    assert!(sent == body, "byte for byte");

    for arguments in [&["import", "--restamp", "-o", "json"][..], &["import", "-", "--restamp", "-o", "json"]] {
        let mut command = a3(&[arguments, &["--host", &host]].concat());
        let (code, stdout, _) = told(command.write_stdin(RECORD).output().unwrap());
        let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((code, &shown["unchanged"]), (0, &serde_json::json!(1)));
        let (first, kind, sent) = asked.recv().unwrap();
        let wanted = ("POST /import?format=ndjson&restamp=true HTTP/1.1", "application/x-ndjson", RECORD.as_bytes());
        assert_eq!((first.as_str(), kind.as_str(), &sent[..]), wanted);
    }
    assert_eq!(run(&["import", "/nowhere/at/all", "--host", &host]).0, 2);
}

#[test]
fn an_import_that_refuses_lines_or_cannot_go_on_fails() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    let file = file.to_str().unwrap();
    std::fs::write(file, RECORD.repeat(100)).unwrap();
    let refused = r#"{"lines":3,"stored":2,"refused":1,"complete":true,"problems":[{"line":2,"key":"b","code":"bad-line","detail":"no"}]}"#;
    let (host, _asked) = answering(answer(200, refused), true);
    let (code, stdout, stderr) = run(&["import", file, "--host", &host]);
    assert_eq!((code, stderr.as_str()), (1, "a3: 1 of 3 lines were refused\n"));
    assert!(stdout.ends_with("\nline 2 (b): bad-line: no\n"), "{stdout}");
    let (host, _asked) = answering(answer(200, r#"{"lines":3,"stored":3,"complete":false}"#), true);
    assert_eq!(run(&["import", file, "--host", &host]).0, 1);

    // Before all of the file was taken.
    std::fs::write(file, RECORD.repeat(1_000_000)).unwrap();
    let stopped = r#"{"title":"Unavailable","code":"unavailable","import":{"lines":9,"stored":9,"stopped_at":10}}"#;
    let (host, _asked) = answering(answer(503, stopped), false);
    let (code, stdout, stderr) = run(&["import", file, "--host", &host]);
    assert_eq!((code, stdout.as_str()), (69, ""));
    // Where it was reset, the answer may be lost with the rest.
    assert!(stderr.contains("stopped at line 10") || stderr.contains("no answer"), "{stderr}");
}
