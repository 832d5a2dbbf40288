//! Each key has a linear history: one order of its operations, each between being asked and being told, in which every
//! answer is right. Searched for by the algorithm of Wing and Gong as improved by Lowe (`todc-utils`).
//!
//! What is in a history:
//! - linearizable reads, and reads at quorum or `all` that counted home replicas alone: they found exactly this version;
//! - linearizable writes, and plain ones that are acknowledged as strict: they happened;
//! - conditional writes: their condition was true, and they took the next even count above what was there; or it was
//!   false of what they were told stands there. A request that was repeated under its `Idempotency-Key` is one;
//! - **maybes**: every other version that some disk ever held or accepted. It came to be at some time, a linearizable or
//!   conditional one after its request was first asked, or never. So are writes that are not strict, whose answer was unknown or lost, and the first stamp of one
//!   that was stamped twice.
//!
//! The end of a value is no operation of anybody's: a value with an end may turn into its tombstone at any time. That this
//! is not too early or too late is for `ends`.
//!
//! What stands in the register only ever gets newer, as versions are what replicas go by. A plain maybe has its place in
//! that order by a clock that may lag: there it may come before what was there when it was asked. (That nobody sees it
//! before it is asked is for `contents`.)
//!
//! What is left out: reads at `one` and reads that counted a stand-in, which promise nothing; reads at quorum and `all` that
//! tell an end, which does not go through the register there (`ends` says what holds of them); requests that were told they
//! had no effect otherwise than by their condition (409, 422, 503: `contents` looks for traces of them); maybes that
//! nobody saw, named or built upon, as a version that is overwritten unseen constrains nothing. Of the others it is certain
//! that they happened. That makes the search cheap, as it is exponential in maybes. A search that does not end within [`BUDGET`] is counted, and believed.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use a3::types::{Key, Level, Version};
use todc_utils::{Action, History, Specification, WGLChecker};

use super::Verdict;
use super::events::Event;
use crate::history::{Contents, Held, Operation, Told, Wish};
use crate::world::World;

/// Tries to place one operation, of one key's history.
const BUDGET: u64 = 300_000;
/// Steps before the wrong one that a failure shows.
const SHOWN: usize = 14;

/// What stands in the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Nothing,
    Record {
        version: Version,
        live: bool,
        /// Its time may be up.
        ends: bool,
    },
    /// The search was given up: anything goes.
    GivenUp,
}

impl State {
    fn version(self) -> Option<Version> {
        if let State::Record { version, .. } = self { Some(version) } else { None }
    }

    fn live(self) -> Option<Version> {
        if let State::Record { version, live: true, .. } = self { Some(version) } else { None }
    }

    /// Once the time of the value that stands there is up; `None` where that never comes.
    fn ended(self) -> Option<State> {
        match self {
            State::Record { version, live: true, ends: true } => {
                Some(State::Record { version: version.ended(), live: false, ends: false })
            }
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
enum Effect {
    Read {
        found: Option<Version>,
    },
    /// The condition was false of that live version.
    Refused {
        wish: Wish,
        /// It needs a value, too.
        touches: bool,
        met: Option<Version>,
    },
    Write {
        version: Version,
        live: bool,
        ends: bool,
    },
    Conditional {
        version: Version,
        live: bool,
        ends: bool,
        wish: Wish,
        touches: bool,
        /// What it was told; not known of a maybe.
        created: Option<bool>,
        /// Where the key had no record any more it goes above this, which its slot had purged up to.
        floor: Version,
    },
}

#[derive(Clone, Debug)]
struct Step<'a> {
    effect: Effect,
    began: u64,
    /// Absent: a maybe.
    ended: Option<u64>,
    operation: Option<&'a Operation>,
    budget: Rc<Cell<u64>>,
}

impl Step<'_> {
    /// The state after it, if it can be placed there.
    fn after(&self, state: State) -> Option<State> {
        match self.effect {
            Effect::Read { found } => {
                let is = |state: &State| state.version() == found;
                Some(state).filter(is).or(state.ended().filter(is))
            }
            Effect::Refused { wish, touches, met } => {
                let holds = wish.holds(met) && (met.is_some() || !touches);
                let is = |state: &State| state.live() == met && !holds;
                Some(state).filter(is).or(state.ended().filter(is))
            }
            Effect::Write { version, live, ends } => match (state.version() < Some(version), self.ended) {
                (true, _) => Some(State::Record { version, live, ends }),
                // It came to be where something newer stood already, or never.
                (false, None) => Some(state),
                (false, Some(_)) => None,
            },
            Effect::Conditional { version, live, ends, wish, touches, created, floor } => {
                let right = |state: State| {
                    let base = state.version().unwrap_or_default();
                    let told = created.is_none_or(|created| created == state.live().is_none());
                    let holds = wish.holds(state.live()) && (state.live().is_some() || !touches);
                    let anew = || state.live().is_none() && version > base && is_anew(version, floor);
                    holds && (base.conditional() == Some(version) || anew()) && told
                };
                match (right(state) || state.ended().is_some_and(right), self.ended) {
                    (true, _) => Some(State::Record { version, live, ends }),
                    // It never came to be.
                    (false, None) => Some(state),
                    (false, Some(_)) => None,
                }
            }
        }
    }

    /// Whether it leaves a value behind, for good.
    fn leaves_a_value(&self) -> bool {
        matches!(
            self.effect,
            Effect::Write { live: true, ends: false, .. } | Effect::Conditional { live: true, ends: false, .. }
        )
    }

    fn version(&self) -> Option<Version> {
        match self.effect {
            Effect::Write { version, .. } | Effect::Conditional { version, .. } => Some(version),
            Effect::Read { .. } | Effect::Refused { .. } => None,
        }
    }
}

/// Whether it may have been written where everything was purged: above some version that a floor named.
fn is_anew(version: Version, floor: Version) -> bool {
    floor != Version::default() && Some(version) <= floor.conditional()
}

struct Register<'a>(std::marker::PhantomData<&'a ()>);

impl<'a> Specification for Register<'a> {
    type State = State;
    type Operation = Step<'a>;

    fn init() -> State {
        State::Nothing
    }

    fn apply(step: &Step<'a>, state: &State) -> (bool, State) {
        let left = step.budget.get().saturating_sub(1);
        step.budget.set(left);
        if left == 0 {
            return (true, State::GivenUp);
        }
        step.after(*state).map_or((false, *state), |after| (true, after))
    }
}

pub(super) fn all(world: &World, events: &[Event<'_>]) -> Verdict {
    let seen = world.witness.seen();
    for key in world.keys() {
        let steps = steps(world, key, events, &seen);
        if !is_linear(&steps) {
            return Err(explained(key, &steps));
        }
        if steps.first().is_some_and(|s| s.budget.get() == 0) {
            world.history.count("linear: given up");
        }
    }
    Ok(())
}

fn is_linear(steps: &[Step<'_>]) -> bool {
    let Some(first) = steps.first() else { return true };
    first.budget.set(BUDGET);
    let mut actions: Vec<(u64, usize, Action<Step<'_>>)> = Vec::with_capacity(steps.len() * 2);
    for (process, step) in steps.iter().enumerate() {
        actions.push((step.began, process, Action::Call(step.clone())));
        actions.push((step.ended.unwrap_or(u64::MAX), process, Action::Response(step.clone())));
    }
    actions.sort_by_key(|(at, process, action)| (*at, matches!(action, Action::Response(_)), *process));
    let actions = actions.into_iter().map(|(_, process, action)| (process, action)).collect();
    WGLChecker::<Register<'_>>::is_linearizable(History::from_actions(actions))
}

// ------------------------------------------------------------------------------------------------- building a history

fn steps<'a>(world: &World, key: &Key, events: &[Event<'a>], seen: &Contents) -> Vec<Step<'a>> {
    let budget = Rc::new(Cell::new(0));
    let of_key = || events.iter().filter(|e| e.operation.key() == key);
    let step = |effect, began, ended, operation| Step { effect, began, ended, operation, budget: budget.clone() };
    let mut steps: Vec<Step<'a>> = of_key()
        .filter_map(|e| {
            let (effect, definite) = effect_of(e.operation)?;
            let (began, ended) = if definite { (e.began, Some(e.ended)) } else { (0, None) };
            Some(step(effect, began, ended, Some(e.operation)))
        })
        .collect();
    let claimed: BTreeSet<Version> = steps.iter().filter_map(Step::version).collect();
    let rows = seen.iter().filter(|((k, _), _)| k == key).map(|((_, version), held)| (*version, held.clone()));
    let accepted = world.witness.ever_accepted().into_iter().filter(|(k, ..)| k == key).map(|(_, v, held)| (v, held));
    let unclaimed: BTreeSet<(Version, Held)> =
        rows.chain(accepted).filter(|(version, _)| !claimed.contains(version) && !version.is_end()).collect();
    for (version, held) in unclaimed {
        let by = |e: &&Event<'a>| e.operation.request.made(&held);
        let Some(first) = of_key().filter(by).min_by_key(|e| e.began) else { continue };
        let (live, ends) = (held.text.is_some(), held.ttl.is_some());
        let plain = version.rmw == 0 && (!live || first.operation.request.level != Level::Linearizable);
        let began = if plain { 0 } else { first.began };
        let effect = if version.rmw == 0 {
            Effect::Write { version, live, ends }
        } else {
            // Which of the deletes left a tombstone is not known.
            let terms = first.operation.request.terms.as_ref().filter(|_| live);
            let wish = terms.map_or(Wish::Nothing, |terms| terms.wish);
            let (touches, floor) = (held.is_touched(), world.floor(key));
            Effect::Conditional { version, live, ends, wish, touches, created: None, floor }
        };
        steps.push(step(effect, began, None, live.then_some(first.operation)));
    }
    with_what_was_seen(steps)
}

/// What an operation did by its answer, and whether that is certain.
fn effect_of(o: &Operation) -> Option<(Effect, bool)> {
    let ((live, ends), touches) = (o.request.leaves(), o.request.touches().is_some());
    match (&o.told, &o.request.terms) {
        (Told::Found { version, .. }, _) => {
            let unregistered = o.request.level != Level::Linearizable && version.is_some_and(|v| v.is_end());
            o.strict_read().filter(|_| !unregistered).map(|found| (Effect::Read { found }, true))
        }
        (Told::Wrote(r), None) => Some((Effect::Write { version: r.version, live, ends }, r.strict)),
        (Told::Wrote(r), Some(terms)) => {
            let (version, created) = (r.version, Some(r.created));
            Some((
                Effect::Conditional { version, live, ends, wish: terms.wish, touches, created, floor: o.floor },
                true,
            ))
        }
        (_, Some(terms)) => o.met().map(|met| (Effect::Refused { wish: terms.wish, touches, met }, true)),
        _ => None,
    }
}

/// Drops maybes that nobody saw, named or built upon. What somebody did see happened, before he was told, and may as well
/// have happened right before the first who saw it: nobody can tell. That leaves little to search.
fn with_what_was_seen(steps: Vec<Step<'_>>) -> Vec<Step<'_>> {
    let (mut kept, mut maybes): (Vec<_>, Vec<_>) = steps.into_iter().partition(|s| s.ended.is_some());
    let mut seen = Seen::default();
    kept.iter().for_each(|step| seen.by(step));
    // A conditional write is built upon an older version: so the newest come first, and all who saw a version before it.
    maybes.sort_unstable_by_key(|step| Reverse(step.version()));
    let same = maybes.windows(2).filter(|two| two[0].version() == two[1].version());
    let contested: BTreeSet<Version> = same.filter_map(|two| two[0].version()).collect();
    for step in maybes {
        let (Some(version), live) = (step.version(), step.leaves_a_value()) else { continue };
        let witness = seen.versions.get(&version).copied();
        let first = witness.map(|(began, _)| began).into_iter().chain(seen.nothing.filter(|_| !live)).min();
        let Some(first) = first else { continue };
        let began = step.began.max(first);
        // Two proposals may have been accepted as one version, of which one at most was decided.
        let alone = !contested.contains(&version);
        let ended = witness.map(|(_, told)| told.max(began)).filter(|told| alone && *told < u64::MAX);
        let step = Step { began, ended, ..step };
        seen.by(&step);
        kept.push(step);
    }
    kept
}

/// Who saw what, first.
#[derive(Default)]
struct Seen {
    /// When the first of those who saw a version began, and when the first of them was told (never: the greatest number).
    versions: BTreeMap<Version, (u64, u64)>,
    /// When the first began whose condition was false of no value: which tombstone stood there is not said.
    nothing: Option<u64>,
}

impl Seen {
    fn by(&mut self, step: &Step<'_>) {
        let version = match step.effect {
            // Who saw an end saw that the value had been there.
            Effect::Read { found } => found.map(|v| if v.is_end() { Version { rmw: v.rmw - 1, ..v } } else { v }),
            Effect::Refused { met: None, .. } => {
                self.nothing = Some(self.nothing.map_or(step.began, |began| began.min(step.began)));
                None
            }
            Effect::Refused { met, .. } => met,
            Effect::Conditional { version, floor, .. } => {
                if is_anew(version, floor) {
                    self.nothing = Some(self.nothing.map_or(step.began, |began| began.min(step.began)));
                }
                Some(Version { rmw: version.rmw.saturating_sub(2), ..version })
            }
            Effect::Write { .. } => None,
        };
        let Some(version) = version else { return };
        let ended = step.ended.unwrap_or(u64::MAX);
        let (first, told) = self.versions.entry(version).or_insert((step.began, ended));
        (*first, *told) = (step.began.min(*first), ended.min(*told));
    }
}

// ------------------------------------------------------------------------------------------------- telling what is wrong

/// The first answer that no order explains, with what went before.
fn explained(key: &Key, steps: &[Step<'_>]) -> String {
    let mut ends: Vec<u64> = steps.iter().filter_map(|s| s.ended).collect();
    ends.sort_unstable();
    let wrong = ends.into_iter().find(|end| !is_linear(&until(steps, *end)));
    let wrong = wrong.unwrap_or(u64::MAX);
    let mut shown: Vec<&Step<'_>> = steps.iter().filter(|s| s.began <= wrong).collect();
    shown.sort_by_key(|s| s.ended.unwrap_or(u64::MAX).min(wrong));
    let line = |s: &&Step<'_>| match (s.ended, s.operation) {
        (Some(_), Some(operation)) => format!("  {operation}"),
        (_, operation) => {
            let by = operation.map_or_else(|| "some delete".to_owned(), |o| format!("{}", o.request));
            format!("  maybe, at {} or later: {:?} by {by}", s.began, s.version())
        }
    };
    let first = shown.len().saturating_sub(SHOWN);
    let lines: Vec<String> = shown[first..].iter().map(line).collect();
    format!("{key:?} has no linear history up to event {wrong}:\n{}", lines.join("\n"))
}

/// The history up to an event. What was under way then may have happened; who had not been told of it saw nothing.
fn until<'a>(steps: &[Step<'a>], end: u64) -> Vec<Step<'a>> {
    let begun = steps.iter().filter(|s| s.began <= end).cloned();
    let cut = begun.map(|s| Step { ended: s.ended.filter(|e| *e <= end), ..s });
    cut.filter(|s| s.ended.is_some() || s.version().is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use a3::types::{Hlc, Writer};

    fn v(hlc: u64, rmw: u32) -> Version {
        Version { hlc: Hlc(hlc), writer: Writer(1), rmw }
    }

    fn history(steps: &[(Effect, u64, Option<u64>)]) -> bool {
        let budget = Rc::new(Cell::new(0));
        let step = |(effect, began, ended): &(Effect, u64, Option<u64>)| Step {
            effect: effect.clone(),
            began: *began,
            ended: *ended,
            operation: None,
            budget: budget.clone(),
        };
        is_linear(&with_what_was_seen(steps.iter().map(step).collect()))
    }

    fn read(found: Option<Version>) -> Effect {
        Effect::Read { found }
    }

    fn write(version: Version) -> Effect {
        Effect::Write { version, live: true, ends: false }
    }

    fn ending(version: Version) -> Effect {
        Effect::Write { version, live: true, ends: true }
    }

    fn matched(version: Version, base: Version) -> Effect {
        let (wish, floor) = (Wish::Match(base), Version::default());
        Effect::Conditional { version, live: true, ends: false, wish, touches: false, created: None, floor }
    }

    #[test]
    fn a_read_sees_what_was_written_before_it() {
        assert!(history(&[(write(v(1, 0)), 1, Some(2)), (read(Some(v(1, 0))), 3, Some(4))]));
        assert!(!history(&[(write(v(1, 0)), 1, Some(2)), (read(None), 3, Some(4))]));
        assert!(history(&[(write(v(1, 0)), 1, Some(4)), (read(None), 2, Some(3))]));
    }

    #[test]
    fn one_base_is_built_upon_once() {
        let (base, next) = (v(1, 0), v(1, 2));
        let before = (write(base), 1, Some(2));
        assert!(history(&[before.clone(), (matched(next, base), 3, Some(4)), (read(Some(next)), 5, Some(6))]));
        assert!(!history(&[before.clone(), (matched(next, base), 3, Some(5)), (matched(next, base), 4, Some(6))]));
        let refused = Effect::Refused { wish: Wish::Match(base), touches: false, met: Some(next) };
        assert!(history(&[before.clone(), (matched(next, base), 3, Some(5)), (refused.clone(), 4, Some(6))]));
        assert!(!history(&[before, (refused, 3, Some(4)), (matched(next, base), 5, Some(6))]));
    }

    #[test]
    fn a_value_ends_once_and_nothing_is_built_upon_it_then() {
        let (value, end, next) = (v(1, 0), v(1, 1), v(1, 2));
        let before = (ending(value), 1, Some(2));
        assert!(history(&[before.clone(), (read(Some(value)), 3, Some(4)), (read(Some(end)), 5, Some(6))]));
        assert!(!history(&[before.clone(), (read(Some(end)), 3, Some(4)), (read(Some(value)), 5, Some(6))]));
        assert!(!history(&[(write(value), 1, Some(2)), (read(Some(end)), 3, Some(4))]), "it has no end");
        assert!(history(&[before.clone(), (matched(next, value), 3, Some(4))]));
        assert!(!history(&[before.clone(), (read(Some(end)), 3, Some(4)), (matched(next, value), 5, Some(6))]));
        let created = Effect::Conditional {
            version: next,
            live: true,
            ends: false,
            wish: Wish::None,
            touches: false,
            created: Some(true),
            floor: Version::default(),
        };
        assert!(history(&[before.clone(), (created.clone(), 3, Some(4)), (read(Some(next)), 5, Some(6))]));
        assert!(!history(&[(write(value), 1, Some(2)), (created, 3, Some(4))]));
        let untouched = (Effect::Refused { wish: Wish::Nothing, touches: true, met: None }, 3, Some(4));
        assert!(history(&[before.clone(), untouched.clone(), (read(Some(end)), 5, Some(6))]));
        assert!(!history(&[before, untouched, (read(Some(value)), 5, Some(6))]));
        let maybe = (ending(value), 1, None);
        assert!(history(&[maybe, (read(Some(end)), 3, Some(4))]));
    }

    #[test]
    fn a_maybe_happens_at_any_time_or_never() {
        let maybe = (write(v(1, 0)), 1, None);
        assert!(history(&[maybe.clone(), (read(None), 2, Some(3)), (read(Some(v(1, 0))), 4, Some(5))]));
        assert!(history(&[maybe.clone(), (read(None), 2, Some(3)), (read(None), 4, Some(5))]));
        assert!(!history(&[maybe, (read(Some(v(1, 0))), 2, Some(3)), (read(None), 4, Some(5))]));
        let base = (write(v(1, 0)), 1, Some(2));
        let older = (write(v(1, 0)), 1, None);
        assert!(!history(&[older, (write(v(2, 0)), 2, Some(3)), (write(v(1, 2)), 4, Some(5))]));
        let built = (matched(v(1, 2), v(1, 0)), 3, None);
        let upon = (matched(v(1, 4), v(1, 2)), 4, Some(5));
        assert!(history(&[base.clone(), built, upon.clone()]));
        assert!(!history(&[base, upon]));
    }
}
