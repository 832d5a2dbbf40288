//! What happened once, of what was asked perhaps several times.

use std::collections::BTreeMap;

use crate::history::{Operation, Request};

/// One operation, or all that sent one request under an `Idempotency-Key`: it took effect at one moment, if at all.
pub(super) struct Event<'a> {
    /// The one whose answer counts.
    pub(super) operation: &'a Operation,
    /// When it was first asked.
    pub(super) began: u64,
    /// When somebody was first told what became of it.
    pub(super) ended: u64,
}

pub(super) fn of(history: &[Operation]) -> Vec<Event<'_>> {
    let mut events = Vec::with_capacity(history.len());
    let mut repeated: BTreeMap<&Request, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        match operation.request.idempotency() {
            Some(_) => repeated.entry(&operation.request).or_default().push(operation),
            None => events.push(Event { operation, began: operation.began, ended: operation.ended }),
        }
    }
    events.extend(repeated.into_values().filter_map(|same| once(&same)));
    events
}

/// `None`: it had no effect, however often it was asked.
fn once<'a>(same: &[&'a Operation]) -> Option<Event<'a>> {
    let began = same.iter().map(|o| o.began).min()?;
    let told = |o: &&&Operation| o.receipt().is_some() || o.met().is_some();
    if let Some(answered) = same.iter().filter(told).min_by_key(|o| o.ended) {
        return Some(Event { operation: answered, began, ended: answered.ended });
    }
    let open = same.iter().find(|o| !o.without_effect())?;
    Some(Event { operation: open, began, ended: u64::MAX })
}
