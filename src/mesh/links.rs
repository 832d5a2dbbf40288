//! Which streams belong together: the two of a link share one set of answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::exchange::Lane;
use super::replies::Replies;

/// The longest name a link may have, in bytes; ours are UUIDs.
const NAME_BYTES_MAX: usize = 64;

/// The links that have a stream open, by name.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<BTreeMap<String, Weak<Replies>>>);

/// A stream's place in its link, held while the stream lives.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) replies: Arc<Replies>,
    pub(super) lane: Lane,
    link: Option<(Arc<Links>, String)>,
}

impl Links {
    /// The place of a stream that names that link. A stream that names none, or a lane that is taken, stands alone.
    /// `under_way_max` bounds the link's requests.
    pub(super) fn join(self: &Arc<Self>, name: Option<&str>, lane: Lane, under_way_max: usize) -> Place {
        let alone = |link| {
            let replies = Arc::new(Replies::new(under_way_max));
            replies.attach(lane);
            Place { replies, lane, link }
        };
        let Some(name) = name.filter(|name| name.len() <= NAME_BYTES_MAX) else { return alone(None) };
        let link = Some((self.clone(), name.to_owned()));
        let mut links = self.0.lock();
        match links.get(name).and_then(Weak::upgrade) {
            Some(replies) if replies.attach(lane) => Place { replies, lane, link },
            Some(_) => alone(None),
            None => {
                let place = alone(link);
                links.insert(name.to_owned(), Arc::downgrade(&place.replies));
                place
            }
        }
    }
}

impl Drop for Place {
    /// With its last stream a link's name is free.
    fn drop(&mut self) {
        if self.replies.detach(self.lane)
            && let Some((links, name)) = self.link.take()
        {
            links.0.lock().remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_streams_of_a_link_meet_and_its_name_is_freed() {
        let links = Arc::new(Links::default());
        let small = links.join(Some("a"), Lane::Small, 1);
        let large = links.join(Some("a"), Lane::Large, 1);
        assert!(Arc::ptr_eq(&small.replies, &large.replies));
        for stranger in [links.join(Some("a"), Lane::Small, 1), links.join(None, Lane::Large, 1)] {
            assert!(!Arc::ptr_eq(&small.replies, &stranger.replies));
        }
        drop(small);
        assert_eq!(links.0.lock().len(), 1);
        drop(large);
        assert!(links.0.lock().is_empty());
    }
}
