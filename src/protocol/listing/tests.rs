//! Tables, and pages against an obvious model: the newest copy of each key, in one ordered map.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::protocol::quorum::Ask;
use crate::protocol::ring::Ring;
use crate::types::{
    ClusterId, Epoch, Hlc, InstanceId, Member, Moving, NodeNum, Outline, Scan, ScanPage, Slot, SlotSet, Topology,
    TopologyChange, Version, Writer,
};

const NOW: u64 = 1_000;

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).unwrap()
}

fn ring(members: u16, rf: u8) -> Arc<Ring> {
    Arc::new(Ring::new(Arc::new(topology(members, rf))))
}

/// All slots move on to the next member.
fn moving(members: u16, rf: u8) -> Arc<Ring> {
    let mut topology = topology(members, rf);
    let change = TopologyChange::ReplicationFactor;
    topology.moving = Some(Moving { since: topology.epoch, change, rf, ring: topology.ring.clone() });
    topology.ring.rotate_left(1);
    Arc::new(Ring::new(Arc::new(topology)))
}

fn topology(members: u16, rf: u8) -> Topology {
    let member = |n: u16| Member {
        node: NodeNum(n),
        instance: InstanceId(Uuid::from_u128(n.into())),
        writer: Writer(n.into()),
        zone: None,
        weight: 1,
        mesh_address: String::new(),
        http_address: String::new(),
    };
    let homes = |slot: usize| (0..rf.into()).map(|i| NodeNum(((slot + i) % usize::from(members)) as u16 + 1)).collect();
    let topology = Topology {
        epoch: Epoch::FIRST,
        cluster_id: ClusterId(Uuid::from_u128(7)),
        rf,
        members: (1..=members).map(member).collect(),
        ring: (0..Slot::COUNT).map(homes).collect(),
        next_writer: Writer(u32::from(members) + 1),
        moving: None,
    };
    topology.check().unwrap();
    topology
}

fn outline(hlc: u64, live: bool) -> Outline {
    Outline {
        version: Version::plain(Hlc(hlc), Writer(1)),
        written: Hlc(hlc),
        tombstone: !live,
        checksum: hlc,
        bytes: 1,
        content_type: None,
        expires_at_ms: None,
        value: None,
    }
}

fn scan(from: &str, delimiter: &str, limit: u32) -> Scan {
    Scan {
        slots: Slot::all().collect(),
        prefix: Bytes::new(),
        from: Bytes::copy_from_slice(from.as_bytes()),
        delimiter: Bytes::copy_from_slice(delimiter.as_bytes()),
        samples: 1,
        limit,
        values: false,
        now: Hlc::from_ms(NOW),
    }
}

fn question(prefix: &str, delimiter: &str, limit: usize) -> Question {
    Question {
        prefix: Bytes::copy_from_slice(prefix.as_bytes()),
        delimiter: Bytes::copy_from_slice(delimiter.as_bytes()),
        from: Bytes::new(),
        limit,
        values: false,
        partial: false,
    }
}

#[test]
fn places_lie_between_keys() {
    assert_eq!(&behind(&key("a"))[..], b"a\0");
    assert_eq!(past(b"ab").as_deref(), Some(&b"ac"[..]));
    assert_eq!(past(b"a\xff\xff").as_deref(), Some(&b"b"[..]));
    assert_eq!((past(b"\xff"), past(b"")), (None, None));
    let of = |prefix: &str, delimiter: &str, k: &str| {
        common(prefix.as_bytes(), delimiter.as_bytes(), &key(k)).map(|c| String::from_utf8_lossy(c).into_owned())
    };
    assert_eq!(of("", "/", "a/b/c").as_deref(), Some("a/"));
    assert_eq!(of("a/", "/", "a/b/c").as_deref(), Some("a/b/"));
    assert_eq!(of("a", "/", "a/b").as_deref(), Some("a/"), "the delimiter may follow at once");
    assert_eq!((of("a/", "/", "a/b"), of("", "", "a/b")), (None, None));
    assert_eq!(of("", "::", "a:b::c").as_deref(), Some("a:b::"));
}

#[test]
fn a_replica_tells_one_live_key_of_a_common_prefix_and_skips_the_rest() {
    let held = [("a", true), ("b/1", false), ("b/2", true), ("b/3", true), ("b/4", true), ("c", true), ("d/1", true)];
    let held = || held.map(|(name, live)| (key(name), Some(outline(1, live))));
    let told = |scan: &Scan| {
        let page = tell_all(held(), scan);
        let names: Vec<String> =
            page.entries.iter().map(|entry| format!("{}{}", entry.key, if entry.skips { "..." } else { "" })).collect();
        (names.join(" "), page.next.map(|next| String::from_utf8_lossy(&next).into_owned()))
    };
    assert_eq!(told(&scan("", "/", 10)), ("a b/1 b/2... c d/1...".into(), None));
    assert_eq!(
        told(&scan("", "/", 2)),
        ("a b/1 b/2...".into(), Some("b0".into())),
        "a common prefix is one of the limit"
    );
    assert_eq!(told(&scan("", "/", 1)), ("a".into(), Some("a\0".into())));
    assert_eq!(told(&scan("b/3", "/", 10)), ("b/3... c d/1...".into(), None));
    assert_eq!(told(&scan("", "", 2)), ("a b/1 b/2".into(), Some("b/2\0".into())), "tombstones do not count");
    let more = Scan { samples: 2, ..scan("", "/", 10) };
    assert_eq!(told(&more), ("a b/1 b/2 b/3... c d/1".into(), None));
    let within = Scan { prefix: Bytes::from_static(b"b/"), ..scan("", "/", 10) };
    assert_eq!(told(&within), ("b/1 b/2 b/3 b/4".into(), None));
}

/// What one node holds, and how it behaves.
#[derive(Clone, Debug, Default)]
struct Replica {
    /// `None`: damaged.
    held: BTreeMap<Key, Option<Outline>>,
    down: bool,
    /// Answers so many scans, and then none.
    dies_after: Option<usize>,
    doubtful: SlotSet,
}

/// Each key with its versions, the newest last: whether there is a value, which home replica lacks it, and when it ends.
type Keys = BTreeMap<String, Vec<(bool, u8, u8)>>;

struct World {
    ring: Arc<Ring>,
    replicas: BTreeMap<NodeNum, Replica>,
    truth: BTreeMap<Key, Outline>,
    /// Which of the answers under way comes next.
    order: Vec<u8>,
    asked: usize,
}

impl World {
    fn answer(&mut self, ask: &ScanAsk) -> Result<ScanPage, String> {
        let ring = Arc::clone(&self.ring);
        let replica = self.replicas.get_mut(&ask.to).unwrap();
        if replica.down || replica.dies_after == Some(0) {
            return Err("gone".into());
        }
        replica.dies_after = replica.dies_after.map(|left| left - 1);
        let here = |key: &Key| ask.scan.slots.contains(ring.token(key).slot());
        let held = replica.held.iter().filter(|(key, _)| here(key)).map(|(key, copy)| (key.clone(), copy.clone()));
        let page = tell_all(held, &ask.scan);
        Ok(ScanPage { doubtful: replica.doubtful, ..page })
    }

    fn page(&mut self, question: Question) -> Result<Page, Vec<Slot>> {
        let down: BTreeSet<NodeNum> = self.replicas.iter().filter(|(_, r)| r.down).map(|(n, _)| *n).collect();
        let asking = |node| if down.contains(&node) { Ask::No } else { Ask::Yes };
        let mut fold = Listing::new(question, NodeNum(1), Arc::clone(&self.ring), Hlc::from_ms(NOW));
        let mut under_way = fold.start(&asking);
        loop {
            let more = match fold.state() {
                ListingState::Met => return Ok(fold.into_page()),
                ListingState::Failed => return Err(fold.missing().iter().collect()),
                ListingState::Unsure(key) => fold.on_read(Ok(self.truth.get(&key).cloned())),
                ListingState::Waiting => {
                    assert!(!under_way.is_empty(), "it waits for nobody");
                    let pick = self.order.pop().unwrap_or(0);
                    let ask = under_way.remove(usize::from(pick) % under_way.len());
                    self.asked += 1;
                    if pick % 16 == 15 {
                        // It is silent at first; its answer may come late.
                        let more = fold.on_silence(ask.number, &asking);
                        under_way.push(ask);
                        more
                    } else {
                        let answer = self.answer(&ask);
                        fold.on_answer(ask.number, answer, &asking)
                    }
                }
            };
            under_way.extend(more);
        }
    }

    fn all(&mut self, question: &Question) -> Result<(Vec<Key>, Vec<Bytes>, bool), Vec<Slot>> {
        let (mut keys, mut prefixes, mut strict) = (Vec::new(), Vec::new(), true);
        let mut from = question.from.clone();
        loop {
            let page = self.page(Question { from: from.clone(), ..question.clone() })?;
            assert!(page.items.len() + page.common_prefixes.len() <= question.limit);
            for item in &page.items {
                let outline = item.outline.as_ref().unwrap();
                assert!(!page.strict || Some(outline) == self.truth.get(&item.key), "the newest copy");
            }
            keys.extend(page.items.into_iter().map(|item| item.key));
            prefixes.extend(page.common_prefixes);
            strict &= page.strict;
            let Some(next) = page.next else { return Ok((keys, prefixes, strict)) };
            assert!(next > from, "a page leads on");
            from = next;
        }
    }

    /// What a listing must show.
    fn model(&self, question: &Question) -> (Vec<Key>, Vec<Bytes>) {
        let (mut keys, mut prefixes) = (Vec::new(), BTreeSet::new());
        for (key, outline) in &self.truth {
            let bytes = key.as_bytes();
            if !outline.is_live(Hlc::from_ms(NOW)) || !bytes.starts_with(&question.prefix) || bytes < &question.from[..]
            {
                continue;
            }
            match common(&question.prefix, &question.delimiter, key) {
                Some(common) => drop(prefixes.insert(Bytes::copy_from_slice(common))),
                None => keys.push(key.clone()),
            }
        }
        (keys, prefixes.into_iter().collect())
    }
}

/// Three or more copies; each key's newest version is on a majority, the other replicas have an older one or none.
fn world(members: u16, rf: u8, keys: Keys, order: Vec<u8>) -> World {
    let ring = ring(members, rf);
    let mut replicas: BTreeMap<NodeNum, Replica> = (1..=members).map(|n| (NodeNum(n), Replica::default())).collect();
    let mut truth = BTreeMap::new();
    for (name, versions) in keys {
        let key = key(&name);
        let homes = ring.placement(ring.token(&key).slot()).home_replicas();
        for (number, (live, lacks, ends)) in versions.into_iter().enumerate() {
            let mut outline = outline(number as u64 + 1, live);
            outline.expires_at_ms = (live && ends < 3).then(|| NOW - 1 + u64::from(ends));
            let behind = homes[usize::from(lacks) % homes.len()];
            for home in homes.iter().filter(|home| homes.len() < 3 || **home != behind) {
                replicas.get_mut(home).unwrap().held.insert(key.clone(), Some(outline.clone()));
            }
            truth.insert(key.clone(), outline);
        }
    }
    World { ring, replicas, truth, order, asked: 0 }
}

fn keys() -> impl Strategy<Value = Keys> {
    let version = (prop::bool::weighted(0.7), any::<u8>(), 0u8..16);
    prop::collection::btree_map("[ab/]{1,4}", prop::collection::vec(version, 1..4), 0..60)
}

fn asked() -> impl Strategy<Value = Question> {
    let delimiter = prop::sample::select(vec!["", "/", "b", "/a"]);
    ("[ab/]{0,2}", delimiter, 1usize..12, "[ab/]{0,2}").prop_map(|(prefix, delimiter, limit, from)| Question {
        from: Bytes::from(from),
        ..question(&prefix, delimiter, limit)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn pages_together_are_what_a_majority_holds(
        (members, rf) in prop::sample::select(vec![(1, 1), (3, 2), (3, 3), (5, 3)]),
        keys in keys(), question in asked(), order in prop::collection::vec(any::<u8>(), 0..40)
    ) {
        let mut world = world(members, rf, keys, order);
        let (found, prefixes, strict) = world.all(&question).unwrap();
        // Stand-ins for the silent were told nothing here, and the page says that it counted them.
        if strict || u16::from(rf) == members {
            prop_assert_eq!((found, prefixes), world.model(&question));
        }
    }

    /// One of three copies is down, dies, has damaged rows, or knows that it may miss some.
    #[test]
    fn one_replica_may_fail_in_any_way(
        keys in keys(), question in asked(), order in prop::collection::vec(any::<u8>(), 0..40),
        (which, how, after) in (1u16..=4, 0u8..4, 0usize..4), members in prop::sample::select(vec![3u16, 4]),
    ) {
        let mut world = world(members, 3, keys, order.into_iter().map(|pick| pick & !8).collect());
        let replica = world.replicas.get_mut(&NodeNum(which.min(members))).unwrap();
        match how {
            0 => replica.down = true,
            1 => replica.dies_after = Some(after),
            2 => replica.held.values_mut().step_by(after + 1).for_each(|copy| *copy = None),
            _ => replica.doubtful = Slot::all().step_by(after + 2).collect(),
        }
        let (found, prefixes, strict) = world.all(&question).unwrap();
        prop_assert_eq!((found, prefixes), world.model(&question));
        prop_assert!(strict);
    }
}

fn names(count: usize) -> Keys {
    (0..count).map(|n| (format!("k{n:04}"), vec![(true, 0, 9)])).collect()
}

#[test]
fn a_page_asks_each_node_once() {
    let mut world = world(3, 2, names(2000), Vec::new());
    let page = world.page(question("", "", 100)).unwrap();
    assert_eq!((page.items.len(), page.strict), (100, true));
    assert_eq!(world.asked, 3);
    world.asked = 0;
    // With three copies two nodes have every slot.
    let mut three = self::world(3, 3, names(100), Vec::new());
    assert_eq!(three.page(question("", "", 100)).unwrap().next, None);
    assert_eq!(three.asked, 2);
}

#[test]
fn a_stand_in_is_counted_with_its_hints_and_the_page_says_so() {
    let mut world = world(3, 2, names(50), Vec::new());
    world.replicas.get_mut(&NodeNum(2)).unwrap().down = true;
    // What was written meanwhile, for the home replica that is down, is kept by its stand-in.
    let ring = Arc::clone(&world.ring);
    let hinted: Vec<Key> = (0..200).map(|n| key(&format!("h{n:03}"))).collect();
    for key in &hinted {
        let placement = ring.placement(ring.token(key).slot());
        let keepers = placement.home_replicas().into_iter().chain(placement.fallbacks.clone());
        for node in keepers.filter(|node| *node != NodeNum(2)).take(2) {
            world.replicas.get_mut(&node).unwrap().held.insert(key.clone(), Some(outline(5, true)));
        }
        world.truth.insert(key.clone(), outline(5, true));
    }
    let (found, _, strict) = world.all(&question("h", "", 30)).unwrap();
    assert_eq!((found, strict), (hinted, false));
}

#[test]
fn slots_that_cannot_be_had_fail_it_or_are_named() {
    let mut world = world(3, 2, names(200), Vec::new());
    world.replicas.get_mut(&NodeNum(2)).unwrap().down = true;
    world.replicas.get_mut(&NodeNum(3)).unwrap().down = true;
    assert_eq!(world.page(question("", "", 10)).unwrap_err().len(), 256);
    let alone = Question { partial: true, ..question("", "", 1000) };
    let page = world.page(alone).unwrap();
    assert_eq!((page.items.len(), page.missing.count(), page.next), (0, 256, None));
    // With one copy the slots of the one that is there are listed: that nothing is in the others' nobody can say.
    let mut world = self::world(2, 1, names(200), Vec::new());
    world.replicas.get_mut(&NodeNum(2)).unwrap().dies_after = Some(0);
    let page = world.page(Question { partial: true, ..question("", "", 1000) }).unwrap();
    assert_eq!((page.missing.count(), page.strict), (128, true));
    assert!((60..140).contains(&page.items.len()), "{}", page.items.len());
}

#[test]
fn what_was_settled_before_slots_were_lost_is_complete_and_nothing_comes_to_it() {
    let mut world = world(2, 2, names(3000), Vec::new());
    // Its first answer is not enough for a page of 1,000 and it gives no second one; nobody is left.
    let ring = Arc::clone(&world.ring);
    let mut fold = Listing::new(question("", "", 1000), NodeNum(1), ring, Hlc::from_ms(NOW));
    let asks = fold.start(&|_| Ask::Yes);
    let first = world.answer(&asks[0]).unwrap();
    fold.on_answer(asks[0].number, Ok(first), &|_| Ask::Yes);
    let mut short = asks[1].clone();
    short.scan.limit = 100;
    let short_page = world.answer(&short).unwrap();
    let more = fold.on_answer(asks[1].number, Ok(short_page), &|_| Ask::Yes);
    assert_eq!((fold.state(), more.len()), (ListingState::Waiting, 1));
    fold.on_answer(more[0].number, Err("gone".into()), &|_| Ask::Yes);
    assert_eq!(fold.state(), ListingState::Failed);
    assert!(fold.has_advanced());
    let page = fold.into_page();
    assert_eq!((page.items.len(), page.next.as_deref()), (100, Some(&b"k0099\0"[..])));
}

#[test]
fn what_one_replica_thinks_live_does_not_make_a_common_prefix() {
    let mut keys = names(0);
    keys.extend((0..300).map(|n| (format!("a/{n:03}"), vec![(true, 0, 9), (false, 1, 9)])));
    keys.insert("b/1".to_owned(), vec![(true, 0, 9)]);
    let mut world = world(3, 3, keys, Vec::new());
    let page = world.page(question("", "/", 10)).unwrap();
    assert_eq!(page.common_prefixes, [Bytes::from_static(b"b/")]);
    assert!(page.items.is_empty() && page.next.is_none());
    assert!(world.asked < 30, "{} scans: those that are in doubt are asked for more each time", world.asked);
}

#[test]
fn a_page_examines_so_many_keys_and_no_more() {
    let dead = (0..12_000).map(|n| (format!("k{n:05}"), vec![(false, 0, 9)])).collect::<Keys>();
    let mut world = world(1, 1, dead, Vec::new());
    let page = world.page(question("", "", 10)).unwrap();
    assert!(page.items.is_empty());
    assert_eq!(page.next.as_deref(), Some(&b"k09999\0"[..]));
    assert_eq!(world.all(&question("", "", 10)).unwrap().0, Vec::new());
}

#[test]
fn a_place_behind_the_prefix_has_nothing_to_tell() {
    let mut world = world(3, 2, names(20), Vec::new());
    let page = world.page(Question { from: Bytes::from_static(b"z"), ..question("k", "", 10) }).unwrap();
    assert_eq!((page.items.len(), page.next, world.asked), (0, None, 0));
}

#[test]
fn while_slots_move_a_majority_of_what_was_and_of_what_comes_tells() {
    // With one copy each slot has one member before and another one after, which holds nothing yet.
    let mut world = world(3, 1, names(30), vec![]);
    world.ring = moving(3, 1);
    let (keys, _, strict) = world.all(&question("", "", 100)).unwrap();
    assert_eq!((keys.len(), strict), (30, true), "each is at the one that had it");
    // What is written now is at both, and who had it may be behind with another key.
    let two = key("k00");
    let token = world.ring.token(&two);
    let after = world.ring.topology().home_replicas(token.slot())[0];
    world.replicas.get_mut(&after).unwrap().held.insert(two.clone(), Some(outline(9, false)));
    world.truth.insert(two.clone(), outline(9, false));
    assert!(!world.all(&question("", "", 100)).unwrap().0.contains(&two), "the newest of both counts");
    // Neither of the two is enough.
    world.replicas.get_mut(&after).unwrap().down = true;
    let lost = world.all(&question("", "", 100)).unwrap_err();
    assert!(lost.contains(&token.slot()));
}

#[test]
fn a_change_in_the_middle_of_a_page_keeps_what_is_settled_and_asks_the_rest_anew() {
    let mut world = world(3, 1, names(30), vec![]);
    let yes = |_| Ask::Yes;
    let mut fold = Listing::new(question("", "", 30), NodeNum(1), Arc::clone(&world.ring), Hlc::from_ms(NOW));
    for ask in fold.start(&yes) {
        // So short that nobody tells all at once.
        let few = ScanAsk { scan: Scan { limit: 6, ..ask.scan.clone() }, ..ask };
        fold.on_answer(few.number, world.answer(&few), &yes);
    }
    assert!(fold.has_advanced() && fold.state() == ListingState::Waiting);
    world.ring = moving(3, 1);
    let mut under_way = fold.restart(Arc::clone(&world.ring), &yes);
    assert!(under_way.iter().all(|ask| ask.scan.from > Bytes::new()), "not from the beginning");
    while fold.state() == ListingState::Waiting {
        let ask = under_way.pop().unwrap();
        under_way.extend(fold.on_answer(ask.number, world.answer(&ask), &yes));
    }
    let told: Vec<Key> = fold.into_page().items.into_iter().map(|item| item.key).collect();
    assert_eq!(told, world.truth.keys().cloned().collect::<Vec<_>>(), "each once, in order");
}
