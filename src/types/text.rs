//! Bytes in lines of text: as they are, or in base64.
//!
//! Invariant: what is told as it is takes at most [`escaped_bytes_max`] bytes of its line, whatever is in it. Control characters take
//! six bytes each in JSON, so a value of them would be longer than any line that a node takes back.

/// What escapes may add to a text beyond the length of base64, in bytes.
const ESCAPES_BYTES_MAX: usize = 4096;

/// The most that so many bytes take in a line, in bytes, whichever way they are told.
pub fn escaped_bytes_max(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4 + ESCAPES_BYTES_MAX
}

/// The bytes as text, where they are UTF-8 and not much longer so than in base64. `cost`: what a byte takes in the line.
pub fn as_text(bytes: &[u8], cost: impl Fn(u8) -> usize) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let length: usize = bytes.iter().map(|byte| cost(*byte)).sum();
    (length <= escaped_bytes_max(bytes.len())).then_some(text)
}

/// What a byte of a text takes in JSON.
pub fn json_cost(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_base64_makes_shorter_is_told_so() {
        for (bytes, text) in [
            (&b"plain"[..], true),
            (b"\xff", false),
            (b"", true),
            (&[1; 500], true),
            (&[1; 2000], false),
            (&[b'\n'; 5000], true),
            (&[b'\n'; 10_000], false),
            (&[b'x'; 1_000_000], true),
        ] {
            assert_eq!(as_text(bytes, json_cost).is_some(), text, "{} of {:?}", bytes.len(), bytes.first());
        }
    }

    #[test]
    fn the_cost_is_what_json_takes() {
        for byte in 0..0x80u8 {
            let written = serde_json::to_string(std::str::from_utf8(&[byte]).unwrap()).unwrap();
            assert_eq!(written.len() - 2, json_cost(byte), "{byte}");
        }
    }
}
