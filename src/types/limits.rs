//! Every limit that is not a setting, named with its unit. Settings (value size, hint bytes, deadlines) live in
//! `config` and reach a module through its `Options`.

/// Longest key, in bytes. The shortest is one byte.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest content type that is stored with a value, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// The longest a value may be given to live, in milliseconds (some 31 years). The shortest is one.
pub const TTL_MS_MAX: u64 = 999_999_999_999;
/// The most a value may be configured to hold, in bytes (the setting `VALUE_BYTES_MAX` defaults to 1 MiB).
pub const VALUE_BYTES_CEILING: usize = 64 * 1024 * 1024;
/// Most members a topology may list.
pub const MEMBERS_MAX: usize = 256;
/// Most copies of a key.
pub const REPLICATION_FACTOR_MAX: usize = 16;
/// Longest zone name, in bytes.
pub const ZONE_BYTES_MAX: usize = 64;
/// Longest published address (`host:port`), in bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Largest weight of a member.
pub const WEIGHT_MAX: u32 = 1000;
/// Answers that a key's register remembers for requests with an `Idempotency-Key`.
pub const REMEMBERED_MAX: usize = 8;
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Entity tags that one precondition may list. A request's header of 16 KiB has room for some more.
pub const CONDITION_TAGS_MAX: usize = 512;
/// The longest a conditional write may be given by who passes it on to its proposer, in milliseconds.
pub const PROPOSAL_TIMEOUT_MS_MAX: u64 = 60_000;
/// One message between two nodes holds this many bytes of requests, or one request, whichever is more.
pub const MESH_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// A value longer than this, in bytes, travels on the second stream, so that it does not delay small ones.
pub const SMALL_VALUE_BYTES_MAX: usize = 64 * 1024;
/// A gossip packet, in bytes.
pub const GOSSIP_PACKET_BYTES_MAX: usize = 64 * 1024;
/// Spans in one `GetChunkHash`; each is answered by 128 bytes.
pub const CHUNK_HASH_SPANS_MAX: usize = 4096;
/// Records listed in one `FetchRange`, where it is of more than one leaf; each takes 28 bytes.
pub const EXCHANGE_ENTRIES_MAX: usize = 16_384;
/// Keys that one comparison names, and how many bytes they may have together.
pub const NAMES_MAX: usize = 100_000;
pub const NAMES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Keys that one `Scan` tells, at most: one or two milliseconds of a reader's time, as its other work is cut, too.
pub const SCAN_ROWS_MAX: usize = 2048;
/// A `Scan` is answered by about this many bytes, or one value.
pub const SCAN_BYTES_MAX: usize = 512 * 1024;
/// Longest delimiter of a listing, in bytes.
pub const DELIMITER_BYTES_MAX: usize = 64;
/// Keys and common prefixes on one page of a listing, at most.
pub const LISTING_ITEMS_MAX: usize = 1000;
/// Keys that are examined for one page of a listing: those too that are deleted, or share a common prefix.
pub const LISTING_ROWS_MAX: usize = 10_000;
/// A page of a listing ends at about this many bytes, or one value.
pub const LISTING_BYTES_MAX: usize = 1024 * 1024;
/// Changes that one answer to `Changes` tells, at most.
pub const CHANGES_PAGE_MAX: usize = 500;
/// The keys of one such answer have about this many bytes, at most.
pub const CHANGES_BYTES_MAX: usize = 64 * 1024;
/// How long an answer to `Changes` may be waited for, in milliseconds.
pub const CHANGES_WAIT_MS_MAX: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that a client or an operator meets.
    #[test]
    fn the_page_of_limits_has_these_figures() {
        let page = include_str!("../../docs/limits.md");
        for row in [
            format!("| key | 1 to {} bytes |", thousands(KEY_BYTES_MAX)),
            format!("| content type | 1 to {CONTENT_TYPE_BYTES_MAX} visible"),
            format!("1 MiB, at most {} MiB |", VALUE_BYTES_CEILING >> 20),
            format!(
                "1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters; of each key the last {REMEMBERED_MAX} answers"
            ),
            format!("`If-None-Match` | {CONDITION_TAGS_MAX} |"),
            format!("{} items, {} keys looked at", thousands(LISTING_ITEMS_MAX), thousands(LISTING_ROWS_MAX)),
            format!("1 to {}; 1 to {DELIMITER_BYTES_MAX} bytes |", thousands(LISTING_ITEMS_MAX)),
            format!("| {}, or {} MiB of names |", thousands(NAMES_MAX), NAMES_BYTES_MAX >> 20),
            format!("| members | {MEMBERS_MAX} |"),
            format!("| copies of a key | 1 to {REPLICATION_FACTOR_MAX} |"),
            format!("| weight of a member | 0 to {} |", thousands(WEIGHT_MAX as usize)),
            format!("| zone's name | 1 to {ZONE_BYTES_MAX} bytes |"),
        ] {
            assert!(page.contains(&row), "{row}");
        }
    }

    fn thousands(number: usize) -> String {
        let (above, below) = (number / 1000, number % 1000);
        if above == 0 { below.to_string() } else { format!("{above},{below:03}") }
    }
}
