//! As much of HTTP/1.1 as a load generator needs: where an answer ends, its status and its ETag.
//!
//! The generator shares its cores with the servers, so it must cost little: no header map, no copies, and bodies are
//! passed over unread.

/// Longest head of an answer, in bytes; a longer one is no answer of a server under test.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest body that is waited for, in bytes.
const BODY_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Longest ETag that is taken note of, in bytes; a3's have at most 36.
pub(super) const ETAG_BYTES_MAX: usize = 40;

/// An ETag, quotes included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Etag {
    bytes: [u8; ETAG_BYTES_MAX],
    length: usize,
}

impl Etag {
    /// `None` where it is too long.
    pub(super) fn of(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; ETAG_BYTES_MAX];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(Self { bytes, length: text.len() })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// An answer that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    /// How many bytes of the buffer it took.
    pub(super) length: usize,
    /// Whether the server closes the connection behind it.
    pub(super) close: bool,
    pub(super) etag: Option<Etag>,
}

/// The bytes are no answer this client can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Garbled;

/// The first answer in the buffer; `None` while it is incomplete.
///
/// # Errors
/// [`Garbled`] for what is not HTTP/1.1, is over the limits, or ends only with the connection.
pub(super) fn parse(buffer: &[u8]) -> Result<Option<Response>, Garbled> {
    let Some(head_length) = find(buffer, b"\r\n\r\n").map(|at| at + 4) else {
        return if buffer.len() > HEAD_BYTES_MAX { Err(Garbled) } else { Ok(None) };
    };
    let head = Head::parse(&buffer[..head_length])?;
    if (100..200).contains(&head.status) {
        // An interim answer; the real one follows.
        let rest = parse(&buffer[head_length..])?;
        return Ok(rest.map(|r| Response { length: head_length + r.length, ..r }));
    }
    let body = &buffer[head_length..];
    let body_length = match head.body {
        Body::Length(length) if length > BODY_BYTES_MAX => return Err(Garbled),
        Body::Length(length) => (body.len() >= length).then_some(length),
        Body::Chunked => chunked(body)?,
    };
    let Head { status, close, etag, .. } = head;
    Ok(body_length.map(|length| Response { status, length: head_length + length, close, etag }))
}

enum Body {
    Length(usize),
    Chunked,
}

struct Head {
    status: u16,
    body: Body,
    close: bool,
    etag: Option<Etag>,
}

impl Head {
    /// `head` ends with its empty line.
    fn parse(head: &[u8]) -> Result<Self, Garbled> {
        let mut lines = head.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let status_line = lines.next().and_then(|line| line.strip_prefix(b"HTTP/1.1 ")).ok_or(Garbled)?;
        let status = number(status_line.get(..3).ok_or(Garbled)?, 10).ok_or(Garbled)? as u16;
        let (mut length, mut is_chunked, mut close, mut etag) = (None, false, false, None);
        for line in lines {
            let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                length = Some(number(value, 10).ok_or(Garbled)?);
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                is_chunked = value.eq_ignore_ascii_case(b"chunked");
            } else if name.eq_ignore_ascii_case(b"connection") {
                close = value.eq_ignore_ascii_case(b"close");
            } else if name.eq_ignore_ascii_case(b"etag") {
                etag = Etag::of(value);
            }
        }
        let body = match (status, is_chunked, length) {
            (204 | 304 | 100..200, _, _) => Body::Length(0),
            (_, true, _) => Body::Chunked,
            (_, false, Some(length)) => Body::Length(length),
            (_, false, None) => return Err(Garbled),
        };
        Ok(Self { status, body, close, etag })
    }
}

/// Length of a chunked body, its last line included; `None` while it is incomplete.
fn chunked(body: &[u8]) -> Result<Option<usize>, Garbled> {
    let mut at = 0;
    loop {
        let Some(line) = find(&body[at..], b"\r\n") else { return Ok(None) };
        let size_line = &body[at..at + line];
        let size = size_line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        let size = number(size, 16).filter(|size| *size <= BODY_BYTES_MAX).ok_or(Garbled)?;
        at += line + 2;
        if size == 0 {
            break;
        }
        // The chunk and the line end behind it.
        at += size + 2;
        if at > body.len() {
            return Ok(None);
        }
    }
    // Trailers, up to an empty line.
    loop {
        let Some(line) = find(&body[at..], b"\r\n") else { return Ok(None) };
        at += line + 2;
        if line == 0 {
            return Ok(Some(at));
        }
    }
}

/// Only digits, no sign; `None` for anything else and for what does not fit.
fn number(text: &[u8], radix: u32) -> Option<usize> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits)?;
    usize::from_str_radix(text, radix).ok()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: &[u8] = b"HTTP/1.1 201 Created\r\nETag: \"1-1-0\"\r\ncontent-LENGTH: 5\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123\r\n6789\r\n0\r\nT: 1\r\n\r\n";
    const CONTINUED: &[u8] =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    const EMPTY: &[u8] = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n";

    fn answer(status: u16, length: usize, close: bool) -> Result<Option<Response>, Garbled> {
        Ok(Some(Response { status, length, close, etag: None }))
    }

    #[test]
    fn an_answer_ends_where_its_framing_says() {
        let plain = answer(201, PLAIN.len(), false).map(|r| r.map(|r| Response { etag: Etag::of(b"\"1-1-0\""), ..r }));
        assert_eq!(parse(PLAIN), plain);
        assert_eq!(parse(CHUNKED), answer(200, CHUNKED.len(), false));
        assert_eq!(parse(CONTINUED), answer(404, CONTINUED.len(), true));
        assert_eq!(parse(EMPTY), answer(304, EMPTY.len(), false));
    }

    #[test]
    fn a_part_of_an_answer_is_none_and_what_follows_is_left() {
        for whole in [PLAIN, CHUNKED, CONTINUED, EMPTY] {
            for cut in 0..whole.len() {
                assert_eq!(parse(&whole[..cut]), Ok(None), "{:?}", whole[..cut].escape_ascii().to_string());
            }
            let two = [whole, PLAIN].concat();
            assert_eq!(parse(&two).map(|r| r.map(|r| r.length)), Ok(Some(whole.len())));
        }
    }

    #[test]
    fn an_etag_is_kept_with_its_quotes_where_it_fits() {
        let longest = [b'x'; ETAG_BYTES_MAX];
        assert_eq!(Etag::of(&longest).unwrap().bytes(), longest);
        assert_eq!(Etag::of(&[b'x'; ETAG_BYTES_MAX + 1]), None);
        assert_eq!(parse(PLAIN).unwrap().unwrap().etag.unwrap().bytes(), b"\"1-1-0\"");
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        for bad in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nuntil the end",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), Err(Garbled), "{bad}");
        }
        assert_eq!(parse(&[b'x'; HEAD_BYTES_MAX + 1]), Err(Garbled));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&tail);
            let _ = parse(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(), &tail].concat());
        }
    }
}
