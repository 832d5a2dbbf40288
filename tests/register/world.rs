//! Three replicas of one key, the clients, and every message on its way.
//!
//! What can happen is a list of [`Action`]s. A message arrives when somebody says so, in any order, or never: that is all
//! that loss, delay and a crashed client are. A replica keeps what it said yes to, so its crash is a lost message too.
//!
//! Left out, because nothing new can come of it:
//! - An answer arrives as soon as it is given: nobody does anything with it before the round's last one.
//! - A message that would change nothing at its replica is dropped: promises and rows only grow, so it never will. That is
//!   what becomes of duplicates of accepts and writes.
//! - A new ballot is above all before it. One below them is the same as one whose messages are late.

use std::collections::BTreeSet;
use std::sync::Arc;

use a3::protocol::register::{accept, prepare};
use a3::protocol::replica::{StoredRow, WriteRule, write};
use a3::protocol::ring::Placement;
use a3::types::{
    Ballot, Floor, Hlc, NodeNum, Promise, ReadPart, Record, Register, ReplicaReply, ReplicaRequest, Seen, Version,
};
use a3::types::{Writer, majority};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};
use stateright::{Model, Property};

use crate::client::{Came, Client, Message, record};
use crate::spec::{Op, Spec};

const REPLICAS: u16 = 3;

/// A replica: one row and its register.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Cell {
    pub(crate) row: Option<Record>,
    register: Register,
}

impl Cell {
    fn on(&mut self, request: &ReplicaRequest) -> ReplicaReply {
        let floor = Floor::default();
        match request {
            ReplicaRequest::Read { part: ReadPart::Record, .. } => {
                ReplicaReply::Record { record: self.row.clone(), floor }
            }
            ReplicaRequest::Read { part: ReadPart::Version, .. } => ReplicaReply::Version { seen: self.seen(), floor },
            ReplicaRequest::Write { record, .. } => match (self.writes(record), self.seen()) {
                (WriteRule::Dominated, Some(by)) => ReplicaReply::Dominated { by },
                (_, replaced) => {
                    self.row = Some(record.clone());
                    ReplicaReply::Stored { replaced }
                }
            },
            ReplicaRequest::Prepare { ballot, .. } => match prepare(self.register.promised, floor.ballot, *ballot) {
                Err(promised) => ReplicaReply::Outbid { promised },
                Ok(()) => {
                    self.register.promised = *ballot;
                    let (accepted, record) = (self.register.accepted.clone(), self.row.clone());
                    ReplicaReply::Promised(Box::new(Promise { accepted, record, floor }))
                }
            },
            ReplicaRequest::Accept { accepted, .. } => {
                match accept(self.register.promised, floor.ballot, accepted.ballot) {
                    Err(promised) => ReplicaReply::Outbid { promised },
                    Ok(()) => {
                        self.register = Register { promised: accepted.ballot, accepted: Some((**accepted).clone()) };
                        ReplicaReply::Accepted
                    }
                }
            }
            ReplicaRequest::Hint { .. } => panic!("no hints here"),
        }
    }

    fn seen(&self) -> Option<Seen> {
        self.row.as_ref().map(|r| Seen::of(r, Hlc(1)))
    }

    fn writes(&self, record: &Record) -> WriteRule {
        write(self.row.as_ref().map(StoredRow::of).as_ref(), &Floor::default(), record)
    }

    fn outbids(&self, request: &ReplicaRequest) -> bool {
        match request {
            ReplicaRequest::Prepare { ballot, .. } => {
                prepare(self.register.promised, Ballot::default(), *ballot).is_err()
            }
            ReplicaRequest::Accept { accepted, .. } => {
                accept(self.register.promised, Ballot::default(), accepted.ballot).is_err()
            }
            _ => false,
        }
    }

    /// Whether the message would change nothing.
    fn ignores(&self, request: &ReplicaRequest) -> bool {
        match request {
            ReplicaRequest::Write { record, .. } => self.writes(record) == WriteRule::Dominated,
            ReplicaRequest::Accept { accepted, .. } => {
                let same = self.register.accepted.as_ref() == Some(&**accepted);
                same || self.outbids(request)
            }
            _ => false,
        }
    }
}

/// What can happen next. The numbers are a client's, and a message's among its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It begins its next operation.
    Start(usize),
    /// A message of the round under way arrives, and its answer comes back.
    Arrive(usize, usize),
    /// It arrives, and its answer is lost; it will arrive once more. Not in a search.
    Repeat(usize, usize),
    /// A message of an earlier round arrives.
    ArriveLate(usize, usize),
    /// It waits no longer for the answers that are missing.
    LosePatience(usize),
    /// It begins its next ballot.
    Retry(usize),
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) cells: Vec<Cell>,
    pub(crate) clients: Vec<Client>,
    clock: Hlc,
    /// Replicas that something arrived at, from the first on.
    touched: u16,
    history: LinearizabilityTester<usize, Spec>,
}

impl State {
    /// Whether something new may come of this message now. Where a higher ballot is promised it is as good as lost; and of
    /// replicas that nothing arrived at yet one is like the other.
    fn may_arrive(&self, (to, request): &Message) -> bool {
        to.0 <= self.touched && !self.cells[usize::from(to.0)].outbids(request)
    }

    pub(crate) fn is_linearizable(&self) -> bool {
        self.history.is_consistent()
    }

    /// One version, one content: in rows, and in writes on their way there.
    pub(crate) fn is_unambiguous(&self) -> bool {
        let sent = self.clients.iter().flat_map(|c| c.open.iter().chain(&c.late));
        let written =
            sent.filter_map(|(_, m)| if let ReplicaRequest::Write { record, .. } = m { Some(record) } else { None });
        let mut all: Vec<_> = written.chain(self.cells.iter().filter_map(|c| c.row.as_ref())).collect();
        all.sort_by_key(|r| r.version);
        all.windows(2).all(|two| two[0].version != two[1].version || two[0] == two[1])
    }

    /// What was called written is on a majority, or newer is.
    pub(crate) fn is_durable(&self) -> bool {
        self.clients.iter().filter_map(|c| c.applied).all(|version| {
            let holds = |c: &&Cell| c.row.as_ref().is_some_and(|r| r.version >= version);
            self.cells.iter().filter(holds).count() >= majority(self.cells.len())
        })
    }
}

/// The first sign of an operation is where its time begins.
fn hear(history: &mut LinearizabilityTester<usize, Spec>, c: usize, client: &mut Client) {
    if let Some(op) = client.unheard.take() {
        history.on_invoke(c, op).unwrap();
    }
}

/// A case: who does what.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// The value that is there from the beginning.
    pub(crate) stored: Option<u8>,
    /// For each client its operations, and how many ballots it may try with each.
    pub(crate) plans: Vec<(Vec<Op>, u32)>,
    /// Only what something new may come of, for a search; else everything.
    pub(crate) lean: bool,
}

impl World {
    fn placement() -> Arc<Placement> {
        let set = (0..REPLICAS).map(NodeNum).collect();
        Arc::new(Placement { write_sets: [set].into_iter().collect(), fallbacks: Vec::new() })
    }

    pub(crate) fn begin(&self) -> State {
        let version = Version::plain(Hlc(1), Writer(99));
        let row = self.stored.map(|v| record(version, Some(v)));
        let cells = vec![Cell { row, ..Cell::default() }; REPLICAS.into()];
        let seen = self.stored.map(|v| (v, version));
        let placement = Self::placement();
        let clients = (0..self.plans.len()).map(|c| Client::new(c as u16, Arc::clone(&placement), seen)).collect();
        let spec = Spec { value: self.stored, ..Spec::default() };
        let mut state = State { cells, clients, clock: Hlc(1), touched: 0, history: LinearizabilityTester::new(spec) };
        for c in 0..self.plans.len() {
            state = self.next(&state, Action::Start(c));
        }
        state
    }

    pub(crate) fn possible(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        let is_over = |(client, (plan, _)): (&Client, &(Vec<Op>, u32))| client.is_idle() && client.begun >= plan.len();
        if self.lean && state.clients.iter().zip(&self.plans).all(is_over) {
            return actions;
        }
        for (c, (client, (plan, _))) in state.clients.iter().zip(&self.plans).enumerate() {
            if client.is_idle() && client.begun < plan.len() {
                actions.push(Action::Start(c));
            }
            let may = |message: &&Message| !self.lean || state.may_arrive(message);
            let arriving =
                |messages: &[Message]| (0..messages.len()).filter(|m| may(&&messages[*m])).collect::<Vec<_>>();
            actions.extend(arriving(&client.open).into_iter().map(|m| Action::Arrive(c, m)));
            if !self.lean {
                actions.extend((0..client.open.len()).map(|m| Action::Repeat(c, m)));
            }
            actions.extend(arriving(&client.late).into_iter().map(|m| Action::ArriveLate(c, m)));
            if if self.lean { client.may_lose_patience_at_once() } else { client.may_lose_patience() } {
                actions.push(Action::LosePatience(c));
            }
            if client.is_pausing() {
                actions.push(Action::Retry(c));
            }
        }
        actions
    }

    /// Who pauses without a ballot left gives up. In a search, who alone has ballots left goes on at once: what waits is but
    /// which ballot is higher.
    fn pause(&self, clients: &mut [Client], c: usize, clock: &mut Hlc) -> Option<Came> {
        if !clients[c].is_pausing() {
            return None;
        }
        if !clients[c].has_ballots_left() {
            return Some(clients[c].give_up());
        }
        let mut others = clients.iter().zip(&self.plans).enumerate().filter(|(o, _)| *o != c);
        let alone = !others.any(|(_, (other, (plan, _)))| other.has_ballots_left() || other.begun < plan.len());
        (self.lean && alone).then(|| clients[c].prepare(clock))
    }

    pub(crate) fn next(&self, last: &State, action: Action) -> State {
        let mut state = last.clone();
        let State { cells, clients, clock, touched, history } = &mut state;
        let (c, came) = match action {
            Action::Start(c) => {
                let (plan, ballots) = &self.plans[c];
                let op = clients[c].op(plan[clients[c].begun]);
                (c, clients[c].start(op, *ballots, clock))
            }
            Action::Arrive(c, m) => {
                let (to, request) = clients[c].open.remove(m);
                hear(history, c, &mut clients[c]);
                *touched = (*touched).max(to.0 + 1);
                let reply = cells[usize::from(to.0)].on(&request);
                (c, clients[c].on_answer(to, Ok(reply), clock))
            }
            Action::Repeat(c, m) => {
                hear(history, c, &mut clients[c]);
                let (to, request) = &clients[c].open[m];
                cells[usize::from(to.0)].on(request);
                (c, Came::Nothing)
            }
            Action::ArriveLate(c, m) => {
                let (to, request) = clients[c].late.remove(m);
                *touched = (*touched).max(to.0 + 1);
                cells[usize::from(to.0)].on(&request);
                (c, Came::Nothing)
            }
            Action::LosePatience(c) => (c, clients[c].lose_patience(clock)),
            Action::Retry(c) => (c, clients[c].prepare(clock)),
        };
        let came = self.pause(clients, c, clock).unwrap_or(came);
        match came {
            Came::Nothing => {}
            Came::Said(said) => {
                hear(history, c, &mut clients[c]);
                history.on_return(c, said).unwrap();
            }
            // It stays under way for ever.
            Came::Unknown => clients[c].begun = usize::MAX,
        }
        for client in clients {
            client.late.retain(|(to, request)| !cells[usize::from(to.0)].ignores(request));
        }
        state
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.begin()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(self.possible(state));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        Some(self.next(last, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("linearizable", |_, state: &State| state.is_linearizable()),
            Property::always("one version, one content", |_, state: &State| state.is_unambiguous()),
            Property::always("what is applied is on a majority", |_, state: &State| state.is_durable()),
            Property::always("one creator", |world: &Self, state: &State| {
                let created: BTreeSet<_> = state.clients.iter().filter_map(|c| c.created).collect();
                created.len() <= usize::from(world.stored.is_none())
            }),
        ]
    }
}
