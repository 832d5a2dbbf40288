//! Rows in the real engine, in a database in memory: one batch is one transaction, applied inline.

use std::path::Path;

use a3::ports::{Hint, HintTotals, Holdings, ReadPart, ReplicaReply, ReplicaRequest, SlotEntry};
use a3::storage::{Change, Durability, Engine, Now, Outcome};
use a3::types::{
    Dropped, Floor, Hlc, Key, Leaf, NodeNum, Record, Scan, ScanPage, Sealed, Slot, SlotDrop, SlotFloor, SlotSet, Sum,
    Survey, Token, TokenSeed, Version,
};

use super::rows::Rows;

/// More than there ever are.
const MANY: u64 = 1 << 30;

pub(crate) struct SqlRows(Engine);

impl SqlRows {
    pub(crate) fn new(node: NodeNum) -> Self {
        let engine = Engine::open(Path::new(":memory:"), node, Durability::Normal, MANY);
        Self(engine.expect("a database in memory opens"))
    }

    fn change(&mut self, wall_ms: u64, changes: &[Change]) -> Vec<Outcome> {
        let outcomes = self.0.apply(Now { hlc: Hlc::ZERO, wall_ms }, changes);
        outcomes.expect("memory takes what it is given")
    }
}

fn change_of(token: Token, request: &ReplicaRequest) -> Option<Change> {
    let slot = token.slot();
    Some(match request.clone() {
        ReplicaRequest::Write { key, record } => Change::Write { token, key, record },
        ReplicaRequest::Hint { target, key, record, counted } => Change::Hint { target, slot, key, record, counted },
        ReplicaRequest::Prepare { key, ballot } => Change::Prepare { slot, key, ballot },
        ReplicaRequest::Accept { key, accepted } => Change::Accept { slot, key, accepted },
        ReplicaRequest::Read { .. } => return None,
    })
}

impl Rows for SqlRows {
    fn apply(&mut self, wall_ms: u64, batch: &[(Token, ReplicaRequest)]) -> Vec<ReplicaReply> {
        let changes: Vec<Change> = batch.iter().filter_map(|(token, request)| change_of(*token, request)).collect();
        let outcomes = self.change(wall_ms, &changes);
        assert_eq!(outcomes.len(), batch.len(), "reads are not written");
        let reply = |outcome| match outcome {
            Outcome::Reply(reply) => reply,
            other => panic!("no answer, but {other:?}"),
        };
        outcomes.into_iter().map(reply).collect()
    }

    fn read(&self, slot: Slot, key: &Key, part: ReadPart, hints: bool) -> ReplicaReply {
        self.0.read(Hlc::ZERO, slot, key, part, hints)
    }

    fn hints(&self, target: NodeNum, after: Option<&(Slot, Key)>, limit: usize) -> Vec<Hint> {
        self.0.hints(target, after, limit).expect("memory is not damaged")
    }

    fn forget_hints(&mut self, delivered: Vec<(NodeNum, Slot, Key, Version)>) {
        self.change(0, &[Change::ForgetHints(delivered)]);
    }

    fn drop_hints_before(&mut self, kept_before_ms: u64) -> u64 {
        match self.change(0, &[Change::DropHints { kept_before_ms, limit: MANY }]).as_slice() {
            [Outcome::Dropped(count)] => *count,
            other => panic!("no count, but {other:?}"),
        }
    }

    fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)> {
        self.0.hint_totals().into_iter().filter(|(_, totals)| totals.count > 0).collect()
    }

    fn leaf_sums(&self, seed: TokenSeed, slot: Slot) -> Option<Vec<Sum>> {
        self.0.sum_due(seed);
        self.0.leaf_sums(slot)
    }

    fn slot_sums(&self, seed: TokenSeed) -> Vec<Option<Sum>> {
        self.0.sum_due(seed);
        self.0.slot_sums()
    }

    fn holdings(&self, seed: TokenSeed, slot: Slot, leaves: &[Leaf]) -> Holdings {
        self.0.holdings(seed, slot, leaves).expect("memory is not damaged")
    }

    fn slot(&self, seed: TokenSeed, slot: Slot) -> Vec<SlotEntry> {
        let page = self.0.slot_page(seed, slot, None).expect("memory is not damaged");
        assert!(page.next.is_none(), "few keys are one page");
        page.entries
    }

    fn absorb(&mut self, entries: &[(Token, SlotEntry)]) {
        self.change(0, &[Change::Absorb(entries.to_vec())]);
    }

    fn drop_covered(&mut self, floor: &Floor, keys: &[(Token, Key)]) -> u64 {
        match self.change(0, &[Change::DropCovered { floor: *floor, keys: keys.to_vec() }]).as_slice() {
            [Outcome::Dropped(count)] => *count,
            other => panic!("no count, but {other:?}"),
        }
    }

    fn drop_slot(&mut self, seed: TokenSeed, slot: Slot) -> u64 {
        let mut all = 0;
        loop {
            match self.change(0, &[Change::DropSlot { seed, slot }]).as_slice() {
                [Outcome::DroppedPart(gone, more)] => {
                    all += gone;
                    if !more {
                        return all;
                    }
                }
                other => panic!("no count, but {other:?}"),
            }
        }
    }

    fn any_due(&self, _: TokenSeed, now: Hlc) -> bool {
        self.0.any_due(now).expect("memory is not damaged")
    }

    fn end_due(&mut self, _: TokenSeed, now: Hlc, limit: usize) -> Vec<(Key, Record)> {
        match self.change(0, &[Change::EndDue { now, limit }]).as_slice() {
            [Outcome::Ended(ended)] => ended.clone(),
            other => panic!("no list, but {other:?}"),
        }
    }

    fn scan(&self, seed: TokenSeed, scan: &Scan) -> ScanPage {
        self.0.scan(seed, scan).expect("memory is not damaged")
    }

    fn records(&self, keys: &[(Slot, Key)]) -> (Vec<(Key, Record)>, usize) {
        self.0.records(keys).expect("memory is not damaged")
    }

    fn kept(&self, slot: Slot) -> SlotFloor {
        self.0.kept(slot)
    }

    fn raise(&mut self, floors: &[(Slot, SlotFloor)]) {
        self.change(0, &[Change::Raise(floors.to_vec())]);
    }

    fn survey(&self, _: TokenSeed, slot: Slot) -> Survey {
        self.0.survey(slot).expect("memory is not damaged")
    }

    fn greatest_tombstone(&self, _: TokenSeed, slot: Slot, up_to: Hlc) -> Version {
        self.0.greatest_tombstone(slot, up_to).expect("memory is not damaged")
    }

    fn hinted(&self, up_to: Hlc) -> SlotSet {
        self.0.hinted(up_to).expect("memory is not damaged")
    }

    fn unsettled(&self, _: TokenSeed, slot: Slot) -> Sealed {
        self.0.unsettled(slot).expect("memory is not damaged")
    }

    fn purge(&mut self, seed: TokenSeed, drop: &SlotDrop) -> Dropped {
        let change = self.0.purging(seed, *drop).expect("memory is not damaged");
        match self.change(0, &[change]).as_slice() {
            [Outcome::Purged(dropped)] => *dropped,
            other => panic!("no count, but {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use a3::types::{
        Accepted, Ballot, ClusterId, Content, Floor, Idempotency, OpId, Recent, Record, Register, Remembered,
        RememberedAnswer, Span, Writer,
    };
    use proptest::prelude::*;

    use super::super::rows::MapRows;
    use super::*;

    /// Few of everything, so that they meet.
    #[derive(Clone, Debug)]
    enum Step {
        Batch(Vec<(Token, ReplicaRequest)>),
        Absorb(Vec<(Token, SlotEntry)>),
        Forget(NodeNum, Slot, Key, Version),
        DropBefore(u64),
        Raise(Slot, SlotFloor),
        Purge(SlotDrop),
        DropCovered(Floor),
        DropSlot(Slot),
        EndDue(u64),
    }

    fn record(key: &Key, hlc: u64, rmw: u32, value: Option<u8>) -> Record {
        let version = Version { hlc: Hlc(hlc), writer: Writer(1), rmw };
        let content = value.map_or(Content::Tombstone, |v| Content::Value {
            bytes: vec![v; usize::from(v) * 400].into(),
            content_type: None,
            expires_at_ms: (v > 0).then(|| hlc + u64::from(v)),
        });
        Record::seal(key, version, Hlc(hlc), content)
    }

    fn recent(count: u8) -> Recent {
        let request = |n: u8| Idempotency { key: n.into(), request: 7 };
        let entry =
            |n| Remembered { request: request(n), answer: RememberedAnswer::Created, version: Version::default() };
        Recent::new((0..count).map(entry).collect())
    }

    fn seed() -> TokenSeed {
        TokenSeed::of(ClusterId(uuid::Uuid::from_u128(1)))
    }

    fn slot_of(key: &Key) -> Slot {
        key.token(seed()).slot()
    }

    /// Two keys of one slot, one of another.
    fn keys() -> [Key; 3] {
        let key = |n: u32| Key::new(format!("k{n}")).unwrap();
        let beside = |n: &u32| slot_of(&key(*n)) == slot_of(&key(0));
        let second = (1..).find(beside).unwrap();
        let third = (1..).find(|n| !beside(n)).unwrap();
        [0, second, third].map(key)
    }

    fn request() -> impl Strategy<Value = (Token, ReplicaRequest)> {
        let ballot = |n| Ballot { hlc: Hlc(n), writer: Writer(1) };
        let keys = keys();
        (0u8..5, 0u8..3, 0u64..4, 0u32..2, prop::option::of(0u8..3), any::<bool>()).prop_map(
            move |(kind, which, number, rmw, value, flag)| {
                let key = keys[usize::from(which)].clone();
                let token = key.token(seed());
                let record = record(&key, number, rmw * 2, value);
                let request = match kind {
                    0 => ReplicaRequest::Write { key, record },
                    1 => ReplicaRequest::Hint { target: NodeNum(2 + u16::from(flag)), key, record, counted: rmw == 1 },
                    2 => ReplicaRequest::Prepare { key, ballot: ballot(number) },
                    _ => {
                        let op = OpId(uuid::Uuid::from_u128(number.into()));
                        let (record, recent) = (flag.then_some(record), recent(which * 4));
                        let accepted = Box::new(Accepted { ballot: ballot(number), op, record, recent });
                        ReplicaRequest::Accept { key, accepted }
                    }
                };
                (token, request)
            },
        )
    }

    /// What another replica may hold of a key.
    fn entry() -> impl Strategy<Value = (Token, SlotEntry)> {
        (request(), request(), prop::option::of(0u64..4)).prop_map(|((token, about), (_, other), promised)| {
            let key = about.key().clone();
            let record = match &about {
                ReplicaRequest::Write { record, .. } => Some(record.clone()),
                _ => None,
            };
            let accepted = match other {
                ReplicaRequest::Accept { accepted, .. } => Some(Accepted { record: record.clone(), ..*accepted }),
                _ => None,
            };
            let least = accepted.as_ref().map_or(Ballot::default(), |a| a.ballot);
            let promised = promised.map(|n| Ballot { hlc: Hlc(n), writer: Writer(1) }.max(least));
            let register = promised.map(|promised| Register { promised, accepted });
            (token, (key, record, register))
        })
    }

    fn slot() -> impl Strategy<Value = Slot> {
        (0usize..3).prop_map(|which| slot_of(&keys()[which]))
    }

    fn floor() -> impl Strategy<Value = Floor> {
        (0u64..4, 0u64..4, 0u32..2, 0u64..4).prop_map(|(written, hlc, rmw, ballot)| Floor {
            written: Hlc(written),
            version: Version { hlc: Hlc(hlc), writer: Writer(1), rmw: rmw * 2 },
            ballot: Ballot { hlc: Hlc(ballot), writer: Writer(1) },
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        let forget = request().prop_map(|(token, request)| {
            let version = Version { hlc: Hlc(1), writer: Writer(1), rmw: 0 };
            Step::Forget(NodeNum(2), token.slot(), request.key().clone(), version)
        });
        prop_oneof![
            8 => prop::collection::vec(request(), 1..5).prop_map(Step::Batch),
            2 => prop::collection::vec(entry(), 1..4).prop_map(Step::Absorb),
            1 => forget,
            1 => (0u64..20).prop_map(Step::DropBefore),
            2 => (slot(), floor(), 0u64..4).prop_map(|(slot, floor, sealed)| {
                Step::Raise(slot, SlotFloor { floor, sealed: Hlc(sealed) })
            }),
            2 => (slot(), floor(), 0u64..4).prop_map(|(slot, floor, up_to)| {
                Step::Purge(SlotDrop { slot, floor, up_to: Hlc(up_to) })
            }),
            1 => floor().prop_map(Step::DropCovered),
            1 => slot().prop_map(Step::DropSlot),
            2 => (0u64..8).prop_map(Step::EndDue),
        ]
    }

    fn scan(delimiter: &'static str) -> Scan {
        Scan {
            slots: Slot::all().collect(),
            prefix: "k".into(),
            from: "k0".into(),
            delimiter: delimiter.into(),
            samples: 1,
            limit: 2,
            values: true,
            now: Hlc::from_ms(4),
        }
    }

    fn everything(rows: &dyn Rows) -> impl PartialEq + std::fmt::Debug + use<> {
        let keys = keys().map(|key| (slot_of(&key), key));
        let both = [ReadPart::Record, ReadPart::Version];
        let reads: Vec<ReplicaReply> = keys
            .iter()
            .flat_map(|(slot, key)| both.map(|part| [true, false].map(|hints| rows.read(*slot, key, part, hints))))
            .flatten()
            .collect();
        let hints: Vec<Vec<Hint>> = [2, 3].map(|n| rows.hints(NodeNum(n), None, 10)).to_vec();
        let after = rows.hints(NodeNum(2), Some(&keys[0]), 1);
        let totals: Vec<(NodeNum, u64)> = rows.hint_totals().into_iter().map(|(n, t)| (n, t.count)).collect();
        let slots: BTreeSet<Slot> = keys.iter().map(|(slot, _)| *slot).collect();
        let held: Vec<_> = slots
            .iter()
            .map(|slot| {
                let leaves: Vec<Leaf> = Span::of_slot(*slot).leaves().collect();
                let sums = rows.leaf_sums(seed(), *slot);
                let purging = (rows.kept(*slot), rows.survey(seed(), *slot), rows.unsettled(seed(), *slot));
                let tombstones = rows.greatest_tombstone(seed(), *slot, Hlc(2));
                (sums, rows.holdings(seed(), *slot, &leaves[1..]), rows.slot(seed(), *slot), purging, tombstones)
            })
            .collect();
        let scans: Vec<ScanPage> = ["", "1"].map(|delimiter| rows.scan(seed(), &scan(delimiter))).to_vec();
        (reads, hints, (after, scans), totals, (rows.slot_sums(seed()), held, rows.records(&keys), rows.hinted(Hlc(2))))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn maps_and_the_engine_do_the_same(steps in prop::collection::vec(step(), 1..25)) {
            let (mut map, mut sql) = (MapRows::default(), SqlRows::new(NodeNum(1)));
            for (at, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Batch(batch) => {
                        prop_assert_eq!(map.apply(at as u64, &batch), sql.apply(at as u64, &batch));
                    }
                    Step::Absorb(entries) => {
                        map.absorb(&entries);
                        sql.absorb(&entries);
                    }
                    Step::Forget(target, slot, key, version) => {
                        map.forget_hints(vec![(target, slot, key.clone(), version)]);
                        sql.forget_hints(vec![(target, slot, key, version)]);
                    }
                    Step::Raise(slot, floor) => {
                        map.raise(&[(slot, floor)]);
                        sql.raise(&[(slot, floor)]);
                    }
                    Step::Purge(drop) => prop_assert_eq!(map.purge(seed(), &drop), sql.purge(seed(), &drop)),
                    Step::DropCovered(floor) => {
                        let keys = keys().map(|key| (key.token(seed()), key));
                        prop_assert_eq!(map.drop_covered(&floor, &keys), sql.drop_covered(&floor, &keys));
                    }
                    Step::DropSlot(slot) => {
                        prop_assert_eq!(map.drop_slot(seed(), slot), sql.drop_slot(seed(), slot));
                    }
                    Step::EndDue(ms) => {
                        let (now, limit) = (Hlc::from_ms(ms), 2);
                        prop_assert_eq!(map.any_due(seed(), now), sql.any_due(seed(), now));
                        prop_assert_eq!(map.end_due(seed(), now, limit), sql.end_due(seed(), now, limit));
                    }
                    Step::DropBefore(ms) => prop_assert_eq!(map.drop_hints_before(ms), sql.drop_hints_before(ms)),
                }
                prop_assert_eq!(everything(&map), everything(&sql));
            }
        }
    }
}
