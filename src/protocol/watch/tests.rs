//! Tables, and a watch of a model of replicas that store, restart and are partitioned.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::types::{ChangeKind, ClusterId, Hlc, InstanceId, Key, Member, Topology, Version, Writer};

fn ring(epoch: u64, members: u16, rf: u8) -> Arc<Ring> {
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
        epoch: Epoch(epoch),
        cluster_id: ClusterId(Uuid::from_u128(7)),
        rf,
        members: (1..=members).map(member).collect(),
        ring: (0..Slot::COUNT).map(homes).collect(),
        next_writer: Writer(u32::from(members) + 1),
        moving: None,
    };
    topology.check().unwrap();
    Arc::new(Ring::new(Arc::new(topology)))
}

fn change(key: &str, version: u64) -> KeyChange {
    let version = Version::plain(Hlc(version), Writer(1));
    KeyChange { key: Key::new(key.to_owned()).unwrap(), version, kind: ChangeKind::Delete }
}

fn page(boot: u64, seq: u64, reaches: bool, changes: Vec<KeyChange>) -> ChangesPage {
    ChangesPage { changes, at: Position { boot, seq }, reaches, more: false }
}

fn all_slots() -> SlotSet {
    Slot::all().collect()
}

/// A watch of three members with two copies, from now on.
fn begun() -> Watch {
    let mut watch = Watch::new(ring(1, 3, 2), all_slots(), None).unwrap();
    for node in 1..=3 {
        assert_eq!(watch.place(NodeNum(node)), None);
        assert_eq!(watch.on_page(NodeNum(node), page(1, 10, false, vec![]), (0, 1)), Ok(vec![]));
        // Of two copies one is enough.
        assert_eq!((watch.is_covered(), watch.awaits()), (node >= 2, node < 3), "{node}");
    }
    watch.begin();
    watch
}

fn resumed(cursor: &Cursor) -> Result<Watch, Gone> {
    Watch::new(ring(1, 3, 2), all_slots(), Some(cursor))
}

fn lost(watch: &mut Watch, node: u16, now_ms: u64) -> Result<Vec<KeyChange>, Gone> {
    watch.on_page(NodeNum(node), page(2, 3, false, vec![]), (now_ms, now_ms))
}

fn caught_up(watch: &mut Watch, node: u16, asked_ms: u64) {
    let Position { boot, seq } = watch.place(NodeNum(node)).unwrap();
    assert_eq!(watch.on_page(NodeNum(node), page(boot, seq + 1, true, vec![]), (asked_ms, asked_ms)), Ok(vec![]));
}

#[test]
fn what_two_replicas_stored_is_told_once() {
    let mut watch = begun();
    let told = watch.on_page(NodeNum(1), page(1, 12, true, vec![change("a", 5), change("b", 6)]), (2, 3));
    assert_eq!(told, Ok(vec![change("a", 5), change("b", 6)]));
    let told =
        watch.on_page(NodeNum(2), page(1, 13, true, vec![change("a", 4), change("a", 5), change("a", 7)]), (2, 3));
    assert_eq!(told, Ok(vec![change("a", 7)]));
    assert_eq!(watch.place(NodeNum(2)), Some(Position { boot: 1, seq: 13 }));
    let places: Vec<u64> = watch.cursor().places.iter().map(|(_, at)| at.seq).collect();
    assert_eq!(places, [12, 13, 10]);
}

#[test]
fn a_member_that_restarts_covers_again_once_the_others_were_heard() {
    let mut watch = begun();
    assert_eq!(lost(&mut watch, 1, 1_000), Ok(vec![]));
    assert_eq!(watch.cursor().places.iter().map(|(node, _)| node.0).collect::<Vec<_>>(), [2, 3]);
    caught_up(&mut watch, 2, 1_000 + IN_FLIGHT_MS - 1);
    caught_up(&mut watch, 3, 1_000 + IN_FLIGHT_MS);
    assert_eq!(watch.place(NodeNum(1)), Some(Position { boot: 2, seq: 3 }));
    let mut too_soon = Watch { members: watch.members.clone(), ..begun() };
    assert!(matches!(lost(&mut too_soon, 2, 6_500), Err(Gone::Forgotten(_))), "of it and node 1 nobody knows");
    caught_up(&mut watch, 2, 1_000 + IN_FLIGHT_MS);
    assert_eq!(watch.cursor().places.len(), 3);
    assert_eq!(lost(&mut watch, 2, 6_500), Ok(vec![]));
}

#[test]
fn who_is_not_heard_keeps_those_waiting_that_share_slots_with_it() {
    let mut watch = begun();
    assert_eq!(lost(&mut watch, 1, 1_000), Ok(vec![]));
    caught_up(&mut watch, 2, 7_000);
    // Node 3 was not heard: of slots on nodes 1 and 3 it alone knows; of those on 1 and 2 both do.
    let mut other = Watch { members: watch.members.clone(), ..begun() };
    assert_eq!(lost(&mut other, 2, 7_500), Ok(vec![]));
    assert!(matches!(lost(&mut watch, 3, 7_500), Err(Gone::Forgotten(_))));
}

#[test]
fn who_answers_when_it_is_in_force_only_joins() {
    let mut watch = Watch::new(ring(1, 3, 2), all_slots(), None).unwrap();
    for node in [1, 2] {
        assert_eq!(watch.on_page(NodeNum(node), page(1, 10, false, vec![]), (0, 1)), Ok(vec![]));
    }
    watch.begin();
    assert_eq!(watch.on_page(NodeNum(3), page(1, 10, false, vec![]), (0, 1)), Ok(vec![]));
    assert_eq!(watch.cursor().places.len(), 2);
    assert!(matches!(lost(&mut watch, 1, 2), Err(Gone::Forgotten(_))), "what node 3 had stored before is not known");
}

#[test]
fn the_only_copy_that_restarts_ends_it() {
    let mut watch = Watch::new(ring(1, 1, 1), all_slots(), None).unwrap();
    assert_eq!(watch.on_page(NodeNum(1), page(1, 1, false, vec![]), (0, 1)), Ok(vec![]));
    assert!(watch.is_covered());
    watch.begin();
    assert_eq!(watch.on_page(NodeNum(1), page(2, 0, false, vec![]), (2, 3)), Err(Gone::Forgotten(Slot(0))));
}

#[test]
fn a_cursor_is_good_while_every_slot_is_covered() {
    let cursor = begun().cursor();
    let mut watch = resumed(&cursor).unwrap();
    assert_eq!(watch.place(NodeNum(3)), Some(Position { boot: 1, seq: 10 }));
    assert_eq!(lost(&mut watch, 1, 1_000), Ok(vec![]));
    assert!(!watch.is_covered());
    caught_up(&mut watch, 2, 1_000);
    assert!(!watch.is_covered(), "of slots on nodes 1 and 3 nobody has answered");
    caught_up(&mut watch, 3, 1_000);
    assert!(watch.is_covered());
    let mut watch = resumed(&cursor).unwrap();
    assert_eq!(lost(&mut watch, 1, 1_000), Ok(vec![]));
    assert!(matches!(lost(&mut watch, 2, 1_000), Err(Gone::Forgotten(_))));
    let few = Cursor { places: vec![(NodeNum(1), Position::default())], ..cursor.clone() };
    assert!(matches!(resumed(&few), Err(Gone::Forgotten(_))));
    assert_eq!(resumed(&Cursor { cluster: 1, ..cursor.clone() }).unwrap_err(), Gone::Foreign);
    let other = Watch::new(ring(2, 3, 2), all_slots(), Some(&cursor)).unwrap_err();
    assert_eq!(other, Gone::Epoch { from: Epoch(1), to: Epoch(2) });
}

// ------------------------------------------------------------------------------------------------------- the model

/// What happens next; numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A write of a key, acknowledged by a majority; others store it soon, or never.
    Write(u8, u64),
    /// A message that is on its way arrives, or is lost.
    Arrive(u8, bool),
    Restart(u8),
    /// A member is asked for its changes.
    Poll(u8),
    Cut(u8, bool),
    /// Another watch goes on from the cursor.
    Resume,
    Later(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<(u8, u64)>().prop_map(|(key, choice)| Event::Write(key, choice)),
        3 => any::<(u8, bool)>().prop_map(|(which, arrives)| Event::Arrive(which, arrives)),
        1 => any::<u8>().prop_map(Event::Restart),
        6 => any::<u8>().prop_map(Event::Poll),
        1 => any::<(u8, bool)>().prop_map(|(node, cut)| Event::Cut(node, cut)),
        1 => Just(Event::Resume),
        2 => (0..7_000u16).prop_map(Event::Later),
    ]
}

struct Replica {
    rows: BTreeMap<u8, u64>,
    /// What it stored in this life.
    log: Vec<KeyChange>,
    boot: u64,
    /// The watch cannot reach it.
    cut: bool,
}

impl Replica {
    /// At most two changes behind that place.
    fn page(&self, from: Option<Position>) -> ChangesPage {
        let end = self.log.len();
        let at = |seq: usize| Position { boot: self.boot, seq: seq as u64 };
        let Some(from) = from.filter(|from| from.boot == self.boot) else {
            return page(self.boot, end as u64, false, vec![]);
        };
        let (from, to) = (from.seq as usize, end.min(from.seq as usize + 2));
        ChangesPage { changes: self.log[from..to].to_vec(), at: at(to), reaches: true, more: to < end }
    }
}

struct Model {
    ring: Arc<Ring>,
    replicas: BTreeMap<NodeNum, Replica>,
    watch: Watch,
    now_ms: u64,
    version: u64,
    /// On their way: until when, to whom, of which key.
    sent: Vec<(u64, NodeNum, u8, u64)>,
    acked: BTreeMap<u8, u64>,
    told: BTreeMap<u8, u64>,
}

const KEYS: u8 = 4;

impl Model {
    fn new(members: u16, rf: u8) -> Self {
        let ring = ring(1, members, rf);
        let replica = || Replica { rows: BTreeMap::new(), log: Vec::new(), boot: 1, cut: false };
        let replicas = (1..=members).map(|n| (NodeNum(n), replica())).collect();
        let watch = Watch::new(ring.clone(), all_slots(), None).unwrap();
        let (sent, acked, told) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut model = Self { ring, replicas, watch, now_ms: 0, version: 0, sent, acked, told };
        model.poll_all().unwrap();
        assert!(model.watch.is_covered());
        model.watch.begin();
        model
    }

    fn store(&mut self, node: NodeNum, key: u8, version: u64) {
        let replica = self.replicas.get_mut(&node).unwrap();
        if replica.rows.get(&key).is_none_or(|row| *row < version) {
            replica.rows.insert(key, version);
            replica.log.push(change(&key.to_string(), version));
        }
    }

    fn homes(&self, key: u8) -> Vec<NodeNum> {
        self.ring.placement(Slot(key)).home_replicas().to_vec()
    }

    fn poll(&mut self, node: NodeNum) -> Result<bool, Gone> {
        let replica = &self.replicas[&node];
        if replica.cut {
            return Ok(false);
        }
        let page = replica.page(self.watch.place(node));
        for change in self.watch.on_page(node, page, (self.now_ms, self.now_ms))? {
            let told = self.told.entry(change.key.to_string().parse().unwrap()).or_default();
            *told = change.version.hlc.0.max(*told);
        }
        Ok(true)
    }

    fn poll_all(&mut self) -> Result<(), Gone> {
        for node in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.poll(node)?;
        }
        Ok(())
    }

    fn happens(&mut self, event: Event) -> Result<(), Gone> {
        let members = self.replicas.len();
        let node = |choice: u8| NodeNum((usize::from(choice) % members) as u16 + 1);
        match event {
            Event::Write(key, choice) => {
                let (key, mut homes) = (key % KEYS, self.homes(key % KEYS));
                self.version += 1;
                let first = choice as usize % homes.len();
                homes.rotate_left(first);
                for (at, home) in homes.iter().enumerate() {
                    if at < majority(homes.len()) {
                        self.store(*home, key, self.version);
                    } else {
                        self.sent.push((self.now_ms + IN_FLIGHT_MS, *home, key, self.version));
                    }
                }
                self.acked.insert(key, self.version);
            }
            Event::Arrive(which, arrives) if !self.sent.is_empty() => {
                let (_, to, key, version) = self.sent.remove(usize::from(which) % self.sent.len());
                if arrives {
                    self.store(to, key, version);
                }
            }
            Event::Arrive(..) => {}
            Event::Restart(which) => {
                let replica = self.replicas.get_mut(&node(which)).unwrap();
                replica.boot += 1;
                replica.log.clear();
            }
            Event::Poll(which) => drop(self.poll(node(which))?),
            Event::Cut(which, cut) => self.replicas.get_mut(&node(which)).unwrap().cut = cut,
            Event::Resume => {
                let cursor = Cursor::from_bytes(&self.watch.cursor().to_bytes()).unwrap();
                self.watch = Watch::new(self.ring.clone(), all_slots(), Some(&cursor))?;
            }
            Event::Later(ms) => {
                self.now_ms += u64::from(ms);
                let now_ms = self.now_ms;
                self.sent.retain(|(until, ..)| *until >= now_ms);
            }
        }
        Ok(())
    }

    /// Everybody is heard, and whoever lacks something is repaired.
    fn ends(&mut self) -> Result<(), Gone> {
        for key in 0..KEYS {
            let newest = self.replicas.values().filter_map(|replica| replica.rows.get(&key)).max().copied();
            for home in self.homes(key) {
                newest.into_iter().for_each(|version| self.store(home, key, version));
            }
        }
        self.replicas.values_mut().for_each(|replica| replica.cut = false);
        let most = self.replicas.values().map(|replica| replica.log.len()).max().unwrap_or(0);
        (0..=most).try_for_each(|_| self.poll_all())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn no_acknowledged_write_is_missed(members in 1u16..5, rf in 1u8..4, events in prop::collection::vec(event(), 1..60)) {
        let mut model = Model::new(members, rf.min(members as u8));
        let gone = events.iter().try_for_each(|event| model.happens(*event)).and_then(|()| model.ends());
        if gone.is_ok() {
            for (key, acked) in &model.acked {
                let told = model.told.get(key).copied().unwrap_or_default();
                prop_assert!(told >= *acked, "of key {key} {told} was told and {acked} acknowledged");
            }
        }
    }
}
