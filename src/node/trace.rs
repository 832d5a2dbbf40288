//! Whose request a task works on, so that what it sends to other nodes, and what they log of it, carries that name.
//!
//! It travels beside the calls and not through them, as nothing is decided by it. Where nobody named the request and no
//! events are logged there is none, and all this costs is a look at a variable of the task.
//!
//! With the feature `otlp` the spans are exported where the command line has set that up, and what other nodes do is part of
//! the span that caused it.

use std::sync::Arc;

use tracing::Span;

#[cfg(feature = "otlp")]
mod otlp;

use super::events;
use crate::types::Trace;

tokio::task_local! {
    static CURRENT: Option<Arc<Trace>>;
}

/// Does the work under that name.
pub fn carried<F: Future>(trace: Option<Arc<Trace>>, work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(trace, work)
}

/// The name of the request that this task works on.
pub(super) fn current() -> Option<Arc<Trace>> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// Whether the events of requests are logged here, so that one needs a name even where its client gave it none.
pub fn wanted() -> bool {
    events::shown()
}

/// The span that its lines stand in, at whichever node.
pub fn span(trace: Option<&Trace>) -> Span {
    let Some(trace) = trace else { return Span::none() };
    let span =
        tracing::debug_span!(target: "a3::events", "request", id = trace.request_id(), trace = trace.traceparent());
    #[cfg(feature = "otlp")]
    otlp::join(&span, trace);
    span
}

/// What the request is called by those whom the span's work asks: the span is then what caused theirs.
#[cfg(feature = "otlp")]
pub fn within(span: &Span, trace: Option<Arc<Trace>>) -> Option<Arc<Trace>> {
    otlp::within(span, trace)
}

/// What the request is called by those whom the span's work asks.
#[cfg(not(feature = "otlp"))]
pub fn within(_: &Span, trace: Option<Arc<Trace>>) -> Option<Arc<Trace>> {
    trace
}
