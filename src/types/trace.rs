//! What a client's request is called, on its way through the nodes. It is for log lines alone: nothing is decided by it.

/// Longest request id that is taken from a client, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// A request's id and, where the client is traced, its place in that trace (W3C Trace Context).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trace {
    request_id: Box<str>,
    parent: Option<Box<str>>,
}

impl Trace {
    /// `None` where the id is none. A `traceparent` that is none is left out.
    pub fn new(request_id: &str, traceparent: Option<&str>) -> Option<Self> {
        let parent = traceparent.filter(|t| is_traceparent(t.as_bytes()));
        is_request_id(request_id.as_bytes())
            .then(|| Self { request_id: request_id.into(), parent: parent.map(Into::into) })
    }

    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    pub fn traceparent(&self) -> Option<&str> {
        self.parent.as_deref()
    }
}

/// Whether it may name a request: printable, without spaces, 128 bytes at most.
pub fn is_request_id(id: &[u8]) -> bool {
    !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(u8::is_ascii_graphic)
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, as W3C Trace Context has it; anything else is not passed on.
pub fn is_traceparent(value: &[u8]) -> bool {
    let is_hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = value.split(|b| *b == b'-');
    let wanted = [2usize, 32, 16, 2];
    let shaped = wanted.iter().all(|len| parts.next().is_some_and(|p| p.len() == *len && is_hex(p)));
    shaped && parts.next().is_none() && !value.starts_with(b"ff")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_a_sound_traceparent_is_passed_on() {
        assert!(is_traceparent(PARENT.as_bytes()));
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert!(!is_traceparent(bad.as_bytes()), "{bad}");
            assert_eq!(Trace::new("a", Some(bad)).unwrap().traceparent(), None);
        }
    }

    #[test]
    fn a_request_has_a_printable_name() {
        assert_eq!(Trace::new("abc-1", Some(PARENT)).unwrap().traceparent(), Some(PARENT));
        for bad in ["", "a b", "a\nb", &"x".repeat(REQUEST_ID_BYTES_MAX + 1)] {
            assert_eq!(Trace::new(bad, None), None, "{bad}");
        }
    }
}
