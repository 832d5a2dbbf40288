//! The engine does exactly what an ordered map does under the same rules, across restarts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ports::Refusal;
use crate::protocol::register as rules;
use crate::protocol::replica::{self, HintRule, StoredRow, WriteRule};
use crate::storage::row::INLINE_BYTES_MAX;
use crate::types::{Accepted, Ballot, Floor, Promise, Register, Slot};

const HINT_BYTES_MAX: u64 = 3000;

#[derive(Clone, Debug)]
enum Step {
    Write {
        key: u8,
        hlc: u64,
        size: Option<usize>,
    },
    Hint {
        target: u16,
        key: u8,
        hlc: u64,
        size: Option<usize>,
        counted: bool,
    },
    Prepare {
        key: u8,
        ballot: u64,
    },
    /// `state`: the record's stamp and content; `None` where the state has no record.
    Accept {
        key: u8,
        ballot: u64,
        state: Option<(u64, Option<usize>)>,
        remembered: usize,
    },
    Read {
        key: u8,
        hints: bool,
    },
    Forget {
        target: u16,
        key: u8,
        hlc: u64,
    },
    Drop {
        before: u64,
    },
    Tick,
    Reopen,
}

fn sizes() -> impl Strategy<Value = Option<usize>> {
    // Both sides of what fits into a row.
    prop_oneof![Just(None), Just(Some(0)), Just(Some(20)), (495usize..515).prop_map(Some), Just(Some(1500))]
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![
        6 => (0u8..4, 1u64..6, sizes()).prop_map(|(key, hlc, size)| Step::Write { key, hlc, size }),
        6 => (1u16..3, 0u8..3, 1u64..6, sizes(), any::<bool>())
            .prop_map(|(target, key, hlc, size, counted)| Step::Hint { target, key, hlc, size, counted }),
        4 => (0u8..4, 0u64..12).prop_map(|(key, ballot)| Step::Prepare { key, ballot }),
        4 => (0u8..4, 0u64..12, prop::option::weighted(0.8, (1u64..6, sizes())), 0usize..=8)
            .prop_map(|(key, ballot, state, remembered)| Step::Accept { key, ballot, state, remembered }),
        4 => (0u8..4, any::<bool>()).prop_map(|(key, hints)| Step::Read { key, hints }),
        2 => (1u16..3, 0u8..3, 1u64..6).prop_map(|(target, key, hlc)| Step::Forget { target, key, hlc }),
        1 => (0u64..12).prop_map(|before| Step::Drop { before }),
        1 => Just(Step::Tick),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..6), 1..12)
}

#[derive(Default)]
struct Model {
    records: BTreeMap<Key, Record>,
    registers: BTreeMap<Key, Register>,
    hints: BTreeMap<(NodeNum, Key), (Record, bool, u64)>,
    now_ms: u64,
}

fn weight(key: &Key, record: &Record) -> u64 {
    (key.as_bytes().len() + record.content_bytes()) as u64
}

impl Model {
    fn write(&mut self, key: Key, record: Record) -> ReplicaReply {
        let stored = self.records.get(&key);
        let seen = stored.map(|s| Seen::of(s, Hlc::ZERO));
        let replaces = match replica::write(stored.map(StoredRow::of).as_ref(), &Floor::default(), &record) {
            WriteRule::Store => true,
            WriteRule::Conflict { replace } => replace,
            WriteRule::Dominated | WriteRule::BelowFloor => false,
        };
        if replaces {
            self.records.insert(key, record);
            return ReplicaReply::Stored { replaced: seen };
        }
        match seen {
            Some(by) => ReplicaReply::Dominated { by },
            None => ReplicaReply::BelowFloor { floor: Floor::default() },
        }
    }

    fn hint(&mut self, target: NodeNum, key: Key, record: Record, counted: bool) -> ReplicaReply {
        let total: u64 = self.hints.iter().map(|((_, key), (record, ..))| weight(key, record)).sum();
        let kept = self.hints.get(&(target, key.clone()));
        let room = HINT_BYTES_MAX - total + kept.map_or(0, |(record, ..)| weight(&key, record));
        let known = kept.map(|(record, counted, _)| (record.version, *counted));
        match replica::hint(known, record.version, counted, weight(&key, &record), room) {
            HintRule::Full => return ReplicaReply::Refused(Refusal::HintsFull),
            HintRule::Kept => {}
            HintRule::Promote => {
                if let Some((_, counted, _)) = self.hints.get_mut(&(target, key)) {
                    *counted = true;
                }
            }
            HintRule::Keep { counted } => {
                self.hints.insert((target, key), (record, counted, self.now_ms));
            }
        }
        ReplicaReply::Hinted
    }

    fn prepare(&mut self, key: Key, ballot: Ballot) -> ReplicaReply {
        let record = self.records.get(&key).cloned();
        let promised = self.registers.get(&key).map_or(Ballot::default(), |r| r.promised);
        if let Err(promised) = rules::prepare(promised, Ballot::default(), ballot) {
            return ReplicaReply::Outbid { promised };
        }
        let held = self.registers.entry(key).or_default();
        held.promised = ballot;
        let accepted = held.accepted.clone();
        ReplicaReply::Promised(Box::new(Promise { accepted, record, floor: Floor::default() }))
    }

    fn accept(&mut self, key: Key, accepted: Accepted) -> ReplicaReply {
        let promised = self.registers.get(&key).map_or(Ballot::default(), |r| r.promised);
        if let Err(promised) = rules::accept(promised, Ballot::default(), accepted.ballot) {
            return ReplicaReply::Outbid { promised };
        }
        self.registers.insert(key, Register { promised: accepted.ballot, accepted: Some(accepted) });
        ReplicaReply::Accepted
    }

    fn read(&self, key: &Key, hints: bool) -> Option<Record> {
        let kept = self.hints.iter().filter(|((_, k), _)| hints && k == key).map(|(_, (record, ..))| record);
        let newest = self.records.get(key).into_iter().chain(kept);
        newest.reduce(|a, b| if b.beats(a) { b } else { a }).cloned()
    }

    fn drop_before(&mut self, before: u64) -> u64 {
        let many = self.hints.len();
        self.hints.retain(|_, (_, counted, at)| *counted || *at >= before);
        (many - self.hints.len()) as u64
    }

    fn check(&self, engine: &Engine) {
        let book = engine.book.hints();
        for target in [NodeNum(1), NodeNum(2)] {
            let mine: Vec<_> = self.hints.iter().filter(|((t, _), _)| *t == target).collect();
            let totals = book.targets.get(&target).copied().unwrap_or_default();
            assert_eq!(totals.count, mine.len() as u64);
            assert_eq!(totals.bytes, mine.iter().map(|((_, key), (record, ..))| weight(key, record)).sum::<u64>());
            assert_eq!(totals.oldest_ms, mine.iter().map(|(_, (.., at))| *at).min().unwrap_or(0));
        }
        let rows = |table| -> i64 {
            engine.conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        };
        assert_eq!(rows("registers") as usize, self.registers.len());
        let kept = self.hints.iter().map(|((_, key), (record, ..))| (key, record));
        let accepted =
            self.registers.iter().filter_map(|(key, held)| Some((key, held.accepted.as_ref()?.record.as_ref()?)));
        let all = self.records.iter().chain(kept).chain(accepted);
        let spilled = all.filter(|(key, record)| weight(key, record) > INLINE_BYTES_MAX as u64);
        assert_eq!(rows("large_values") as usize, spilled.count());
    }
}

fn build(key: u8, hlc: u64, size: Option<usize>) -> (Key, Slot, Record) {
    let key = super::key(&"key".repeat(usize::from(key) + 1));
    let slot = key.token(seed()).slot();
    let content = size.map_or(Content::Tombstone, |size| Content::value(vec![hlc as u8; size]));
    let record = record(&key, hlc, content);
    (key, slot, record)
}

/// The change a step asks for, and what the model says becomes of it.
fn change(model: &mut Model, step: &Step) -> Option<(Change, Outcome)> {
    Some(match *step {
        Step::Write { key, hlc, size } => {
            let (key, _, record) = build(key, hlc, size);
            let said = model.write(key.clone(), record.clone());
            (Change::Write { token: key.token(seed()), key, record }, Outcome::Reply(said))
        }
        Step::Hint { target, key, hlc, size, counted } => {
            let (target, (key, slot, record)) = (NodeNum(target), build(key, hlc, size));
            let said = model.hint(target, key.clone(), record.clone(), counted);
            (Change::Hint { target, slot, key, record, counted }, Outcome::Reply(said))
        }
        Step::Forget { target, key, hlc } => {
            let (target, (key, slot, record)) = (NodeNum(target), build(key, hlc, None));
            let place = (target, key.clone());
            if model.hints.get(&place).is_some_and(|(kept, ..)| kept.version == record.version) {
                model.hints.remove(&place);
            }
            (Change::ForgetHints(vec![(target, slot, key, record.version)]), Outcome::Done)
        }
        Step::Drop { before } => {
            let dropped = model.drop_before(before);
            (Change::DropHints { kept_before_ms: before, limit: 100 }, Outcome::Dropped(dropped))
        }
        Step::Prepare { key, ballot } => {
            let (key, slot, _) = build(key, 1, None);
            let ballot = register::ballot(ballot);
            let said = model.prepare(key.clone(), ballot);
            (Change::Prepare { slot, key, ballot }, Outcome::Reply(said))
        }
        Step::Accept { key, ballot, state, remembered } => {
            let (hlc, size) = state.unwrap_or_default();
            let (key, slot, record) = build(key, hlc, size);
            let accepted = register::accepted(ballot, state.map(|_| record), remembered);
            let said = model.accept(key.clone(), accepted.clone());
            (Change::Accept { slot, key, accepted: Box::new(accepted) }, Outcome::Reply(said))
        }
        Step::Read { .. } | Step::Tick | Step::Reopen => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_engine_is_an_ordered_map(batches in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let open = || Engine::open(&dir.path().join("a3.db"), NodeNum(1), Durability::Normal, HINT_BYTES_MAX).unwrap();
        let mut engine = open();
        let mut model = Model { now_ms: 1, ..Model::default() };
        for batch in batches {
            let now = Now { hlc: Hlc::ZERO, wall_ms: model.now_ms };
            let (changes, expected): (Vec<_>, Vec<_>) = batch.iter().filter_map(|step| change(&mut model, step)).unzip();
            prop_assert_eq!(engine.apply(now, &changes).unwrap(), expected);
            for step in &batch {
                match *step {
                    Step::Read { key, hints } => {
                        let (key, slot, _) = build(key, 1, None);
                        let said = ReplicaReply::Record { record: model.read(&key, hints), floor: Floor::default() };
                        prop_assert_eq!(engine.read(Hlc::ZERO, slot, &key, ReadPart::Record, hints), said);
                    }
                    Step::Tick => model.now_ms += 1,
                    Step::Reopen => engine = open(),
                    _ => {}
                }
            }
            model.check(&engine);
        }
    }
}
