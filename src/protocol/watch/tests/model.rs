//! A watch of a model: replicas that store, restart, are partitioned, and get to know of changes of the topology one by one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What happens next; numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A write of a key, acknowledged by a majority where there is one; others store it soon, or never.
    Write(u8, u64),
    /// A message that is on its way arrives, or is lost.
    Arrive(u8, bool),
    Restart(u8),
    /// A member is asked for its changes.
    Poll(u8),
    Cut(u8, bool),
    /// Another watch goes on from the cursor, at a node that may be behind.
    Resume(bool),
    /// Another watch begins.
    Anew,
    Later(u16),
    /// A change of the topology begins, or is taken back.
    Change(u8),
    /// One that is under way ends; that member does not hear of it, nor of its beginning.
    Complete(u8),
    /// A member hears of the last epoch.
    Learn(u8),
    /// And so does the watch's.
    Told,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => any::<(u8, u64)>().prop_map(|(key, choice)| Event::Write(key, choice)),
        3 => any::<(u8, bool)>().prop_map(|(which, arrives)| Event::Arrive(which, arrives)),
        1 => any::<u8>().prop_map(Event::Restart),
        6 => any::<u8>().prop_map(Event::Poll),
        1 => any::<(u8, bool)>().prop_map(|(node, cut)| Event::Cut(node, cut)),
        1 => any::<bool>().prop_map(Event::Resume),
        1 => Just(Event::Anew),
        2 => (0..7_000u16).prop_map(Event::Later),
        1 => any::<u8>().prop_map(Event::Change),
        1 => any::<u8>().prop_map(Event::Complete),
        2 => any::<u8>().prop_map(Event::Learn),
        1 => Just(Event::Told),
    ]
}

struct Replica {
    rows: BTreeMap<u8, u64>,
    /// What it stored in this life.
    log: Vec<KeyChange>,
    boot: u64,
    /// The watch cannot reach it.
    cut: bool,
    epoch: Epoch,
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
    /// One of each epoch.
    rings: Vec<Arc<Ring>>,
    replicas: BTreeMap<NodeNum, Replica>,
    watch: Watch,
    now_ms: u64,
    version: u64,
    /// On their way: until when, to whom, of which key, under which epoch.
    sent: Vec<(u64, NodeNum, u8, u64, Epoch)>,
    acked: BTreeMap<u8, u64>,
    told: BTreeMap<u8, u64>,
}

const KEYS: u8 = 4;

impl Model {
    fn new(members: u16, rf: u8) -> Self {
        let ring = ring(1, members, rf);
        let blank = || Replica { rows: BTreeMap::new(), log: vec![], boot: 1, cut: false, epoch: Epoch(1) };
        let replicas = (1..=members).map(|n| (NodeNum(n), blank()));
        let (replicas, watch) = (replicas.collect(), Watch::new(ring.clone(), all_slots(), None).unwrap());
        let (sent, acked, told) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut model = Self { rings: vec![ring], replicas, watch, now_ms: 0, version: 0, sent, acked, told };
        model.begins().unwrap();
        model
    }

    fn begins(&mut self) -> Result<(), Gone> {
        self.poll_all()?;
        assert!(self.watch.is_covered());
        self.watch.begin();
        Ok(())
    }

    fn ring(&self) -> &Arc<Ring> {
        self.rings.last().unwrap()
    }

    fn ring_of(&self, epoch: Epoch) -> &Arc<Ring> {
        &self.rings[epoch.0 as usize - 1]
    }

    fn store(&mut self, node: NodeNum, key: u8, version: u64) {
        let replica = self.replicas.get_mut(&node).unwrap();
        if replica.rows.get(&key).is_none_or(|row| *row < version) {
            replica.rows.insert(key, version);
            replica.log.push(change(&key.to_string(), version));
        }
    }

    /// Those before, where the key's slot moves; and those it gets.
    fn write_sets(&self, epoch: Epoch, key: u8) -> Vec<Vec<NodeNum>> {
        let ring = self.ring_of(epoch);
        let placement = ring.placement(ring.token(&Key::new(key.to_string()).unwrap()).slot());
        placement.write_sets.iter().map(|set| set.to_vec()).collect()
    }

    fn poll(&mut self, node: NodeNum) -> Result<bool, Gone> {
        let replica = &self.replicas[&node];
        if replica.cut {
            return Ok(false);
        }
        if replica.epoch > self.watch.epoch() {
            let newer = self.ring_of(replica.epoch).clone();
            self.watch.move_to(newer)?;
        }
        let page = self.replicas[&node].page(self.watch.place(node));
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

    fn write(&mut self, key: u8, choice: u64) {
        // A coordinator may be an epoch behind; a replica that is ahead of it refuses.
        let last = self.ring().epoch();
        let epoch = Epoch(last.0.saturating_sub(choice >> 32 & 1).max(1));
        let sets = self.write_sets(epoch, key);
        self.version += 1;
        let mut acks = BTreeSet::new();
        let mut met = true;
        for set in &sets {
            let mut open: Vec<NodeNum> =
                set.iter().copied().filter(|node| self.replicas[node].epoch <= epoch).collect();
            met &= open.len() >= majority(set.len());
            let first = choice as usize % open.len().max(1);
            open.rotate_left(first);
            acks.extend(open.into_iter().take(majority(set.len())));
        }
        acks.iter().for_each(|node| self.store(*node, key, self.version));
        let others: BTreeSet<NodeNum> = sets.into_iter().flatten().filter(|node| !acks.contains(node)).collect();
        let until = self.now_ms + IN_FLIGHT_MS;
        self.sent.extend(others.into_iter().map(|node| (until, node, key, self.version, epoch)));
        if met {
            self.acked.insert(key, self.version);
        }
    }

    /// The new replicas have caught up with all that the others hold, and all but one have seen that there is a change.
    fn complete(&mut self, behind: NodeNum) {
        let epoch = self.ring().epoch();
        if self.ring().topology().moving.is_none() {
            return;
        }
        let slots = self.ring().topology();
        let (before, now) = (&slots.moving.as_ref().unwrap().ring, &slots.ring);
        let needed = |set: &Vec<NodeNum>| majority(set.len()) > set.iter().filter(|node| **node != behind).count();
        let waits = now.iter().any(|set| set.contains(&behind)) || before.iter().any(needed);
        for (node, replica) in &mut self.replicas {
            if waits || *node != behind {
                replica.epoch = epoch;
            }
        }
        for key in 0..KEYS {
            let [before, now] = &self.write_sets(epoch, key)[..] else { continue };
            let told = before.iter().filter(|node| self.replicas[node].epoch == epoch);
            let newest = told.filter_map(|node| self.replicas[node].rows.get(&key)).max().copied();
            for node in now {
                newest.into_iter().for_each(|version| self.store(*node, key, version));
            }
        }
        self.rings.push(after(self.ring(), complete));
    }

    fn happens(&mut self, event: Event) -> Result<(), Gone> {
        let members = self.replicas.len();
        let node = |choice: u8| NodeNum((usize::from(choice) % members) as u16 + 1);
        match event {
            Event::Write(key, choice) => self.write(key % KEYS, choice),
            Event::Arrive(which, arrives) if !self.sent.is_empty() => {
                let (_, to, key, version, epoch) = self.sent.remove(usize::from(which) % self.sent.len());
                if arrives && self.replicas[&to].epoch <= epoch {
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
            Event::Resume(behind) => {
                let cursor = Cursor::from_bytes(&self.watch.cursor().to_bytes()).unwrap();
                let ring = if behind { self.ring_of(cursor.epoch) } else { self.ring() };
                self.watch = Watch::new(ring.clone(), all_slots(), Some(&cursor))?;
            }
            Event::Anew => {
                self.watch = Watch::new(self.ring().clone(), all_slots(), None)?;
                self.replicas.values_mut().for_each(|replica| replica.cut = false);
                (self.acked, self.told) = Default::default();
                self.begins()?;
            }
            Event::Later(ms) => {
                self.now_ms += u64::from(ms);
                let now_ms = self.now_ms;
                self.sent.retain(|(until, ..)| *until >= now_ms);
            }
            Event::Change(choice) => {
                let next = match self.ring().topology().moving {
                    Some(_) => after(self.ring(), abort),
                    None => after(self.ring(), begin(choice.into(), 1 + choice / 16 % members.min(3) as u8)),
                };
                self.rings.push(next);
            }
            Event::Complete(behind) => self.complete(node(behind)),
            Event::Learn(which) => {
                self.replicas.get_mut(&node(which)).unwrap().epoch = self.rings.last().unwrap().epoch()
            }
            Event::Told if self.ring().epoch() != self.watch.epoch() => self.watch.move_to(self.ring().clone())?,
            Event::Told => {}
        }
        Ok(())
    }

    /// Everybody hears of the last epoch, and is heard.
    fn ends(&mut self) -> Result<(), Gone> {
        let epoch = self.ring().epoch();
        self.replicas.values_mut().for_each(|replica| (replica.cut, replica.epoch) = (false, epoch));
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
