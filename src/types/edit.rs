//! What a client's write leaves behind: a value, for good or for a time, or nothing; or only another end for the value
//! that is there. It becomes content when it is stamped: a time to live counts from then.

use bytes::Bytes;

use super::limits::TTL_MS_MAX;
use super::record::{Content, ContentType, Record};
use super::version::Hlc;

/// How long a value lives, from when it is stamped: 1 to [`TTL_MS_MAX`] milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u64);

impl Ttl {
    /// `None` for nothing, and for more than [`TTL_MS_MAX`].
    pub fn from_ms(ms: u64) -> Option<Self> {
        (1..=TTL_MS_MAX).contains(&ms).then_some(Self(ms))
    }

    pub fn ms(self) -> u64 {
        self.0
    }

    /// When that is up, wall milliseconds, of what was written then.
    fn after(self, written: Hlc) -> u64 {
        written.ms() + self.0
    }
}

/// What a write leaves behind, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NewContent {
    Value {
        bytes: Bytes,
        /// `None` is `application/octet-stream`.
        content_type: Option<ContentType>,
        /// `None`: it has no end.
        ttl: Option<Ttl>,
    },
    Tombstone,
}

impl NewContent {
    /// A value without an end.
    pub fn value(bytes: impl Into<Bytes>) -> Self {
        NewContent::Value { bytes: bytes.into(), content_type: None, ttl: None }
    }

    /// As what is written then.
    pub fn written_at(self, written: Hlc) -> Content {
        match self {
            NewContent::Value { bytes, content_type, ttl } => {
                Content::Value { bytes, content_type, expires_at_ms: ttl.map(|ttl| ttl.after(written)) }
            }
            NewContent::Tombstone => Content::Tombstone,
        }
    }
}

/// What a register operation makes of the value that it finds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Edit {
    /// This, whatever it finds.
    Write(NewContent),
    /// The same value, with an end so much later, or with none.
    Touch { ttl: Option<Ttl> },
}

impl Edit {
    /// What it makes of the live record, or of there being none; `None` where it needs one.
    pub fn made_of(&self, live: Option<&Record>, written: Hlc) -> Option<Content> {
        match (self, live.map(|record| &record.content)) {
            (Edit::Write(content), _) => Some(content.clone().written_at(written)),
            (Edit::Touch { ttl }, Some(Content::Value { bytes, content_type, .. })) => {
                let (bytes, content_type) = (bytes.clone(), content_type.clone());
                Some(NewContent::Value { bytes, content_type, ttl: *ttl }.written_at(written))
            }
            (Edit::Touch { .. }, _) => None,
        }
    }

    /// Whether there must be a value.
    pub fn needs_a_value(&self) -> bool {
        matches!(self, Edit::Touch { .. })
    }

    /// The bytes of value and content type that it brings.
    pub fn size(&self) -> usize {
        match self {
            Edit::Write(NewContent::Value { bytes, content_type, .. }) => {
                bytes.len() + content_type.as_ref().map_or(0, |c| c.bytes().len())
            }
            Edit::Write(NewContent::Tombstone) | Edit::Touch { .. } => 0,
        }
    }

    pub fn deletes(&self) -> bool {
        matches!(self, Edit::Write(NewContent::Tombstone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Key, Version, Writer};

    #[test]
    fn a_time_to_live_has_bounds_and_counts_from_the_stamp() {
        assert_eq!([0, TTL_MS_MAX + 1].map(Ttl::from_ms), [None, None]);
        let ttl = Ttl::from_ms(1_000);
        let content =
            NewContent::Value { bytes: "v".into(), content_type: None, ttl }.written_at(Hlc::from_ms(5).next());
        assert_eq!(content, Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: Some(1_005) });
        assert_eq!(Ttl::from_ms(TTL_MS_MAX).map(Ttl::ms), Some(TTL_MS_MAX));
    }

    #[test]
    fn a_touch_keeps_the_value_and_its_type_and_needs_one() {
        let content_type = Some(ContentType::new("text/plain").unwrap());
        let old = Content::Value { bytes: "v".into(), content_type: content_type.clone(), expires_at_ms: Some(7) };
        let version = Version::plain(Hlc(1), Writer(1));
        let record = |content| Record::seal(&Key::new("k").unwrap(), version, Hlc(1), content);
        let touched = |ttl, live: Option<Content>| {
            Edit::Touch { ttl: Ttl::from_ms(ttl) }.made_of(live.map(record).as_ref(), Hlc::from_ms(10))
        };
        let with =
            |expires_at_ms| Content::Value { bytes: "v".into(), content_type: content_type.clone(), expires_at_ms };
        assert_eq!(touched(90, Some(old.clone())), Some(with(Some(100))));
        assert_eq!(touched(0, Some(old)), Some(with(None)));
        assert_eq!((touched(90, None), touched(90, Some(Content::Tombstone))), (None, None));
    }
}
