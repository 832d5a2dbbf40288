//! What a conditional write asks of the value it replaces (RFC 9110, section 13).

use super::record::Record;
use super::version::Version;

/// A list of entity tags, or any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tags {
    /// `*`
    Any,
    /// Tags that are no version of ours match nothing and are left out.
    Of(Vec<Version>),
}

impl Tags {
    fn name(&self, current: Option<&Record>) -> bool {
        current.is_some_and(|record| match self {
            Tags::Any => true,
            Tags::Of(versions) => versions.contains(&record.version),
        })
    }
}

/// The preconditions of one request. The default asks nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Condition {
    pub if_match: Option<Tags>,
    pub if_none_match: Option<Tags>,
    /// Seconds since 1970; counts only where there is no `if_match`.
    pub if_unmodified_since: Option<u64>,
}

impl Condition {
    /// Whether it asks nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// One that is true of nothing: who asks it only wants to be told what stands there.
    pub fn never() -> Self {
        Self { if_match: Some(Tags::Of(Vec::new())), ..Self::default() }
    }

    /// Whether it is true of the live record, or of there being none. In the order of RFC 9110, section 13.2.2; a time is
    /// compared in whole seconds, as `Last-Modified` tells it, and what has no value has no time of modification, so that
    /// there a time asks nothing.
    pub fn holds(&self, current: Option<&Record>) -> bool {
        let first = match (&self.if_match, self.if_unmodified_since) {
            (Some(tags), _) => tags.name(current),
            (None, Some(since)) => current.is_none_or(|record| record.written.ms() / 1000 <= since),
            (None, None) => true,
        };
        first && !self.if_none_match.as_ref().is_some_and(|tags| tags.name(current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Content, Hlc, Key, Writer};

    fn record(hlc: u64) -> Record {
        let version = Version::plain(Hlc::from_ms(hlc), Writer(1));
        Record::seal(&Key::new("k").unwrap(), version, version.hlc, Content::value("v"))
    }

    #[test]
    fn each_precondition_is_judged_of_a_value_and_of_none() {
        let (current, other) = (record(5_000), record(6_000));
        let of = |record: &Record| Some(Tags::Of(vec![record.version]));
        let held = |condition: Condition| (condition.holds(Some(&current)), condition.holds(None));
        let none = Condition::default;
        assert_eq!(held(none()), (true, true));
        assert_eq!(held(Condition { if_match: Some(Tags::Any), ..none() }), (true, false));
        assert_eq!(held(Condition { if_match: of(&current), ..none() }), (true, false));
        assert_eq!(held(Condition { if_match: of(&other), ..none() }), (false, false));
        assert_eq!(held(Condition { if_match: Some(Tags::Of(Vec::new())), ..none() }), (false, false));
        assert_eq!(held(Condition { if_none_match: Some(Tags::Any), ..none() }), (false, true));
        assert_eq!(held(Condition { if_none_match: of(&current), ..none() }), (false, true));
        assert_eq!(held(Condition { if_none_match: of(&other), ..none() }), (true, true));
        assert_eq!(held(Condition { if_unmodified_since: Some(5), ..none() }), (true, true));
        assert_eq!(held(Condition { if_unmodified_since: Some(4), ..none() }), (false, true));
    }

    #[test]
    fn a_tag_is_asked_before_a_time_and_both_tags_must_agree() {
        let current = record(5_000);
        let of = Some(Tags::Of(vec![current.version]));
        let dated = Condition { if_match: of.clone(), if_unmodified_since: Some(4), ..Condition::default() };
        assert!(dated.holds(Some(&current)));
        let both = Condition { if_match: Some(Tags::Any), if_none_match: of, ..Condition::default() };
        assert!(!both.holds(Some(&current)));
    }
}
