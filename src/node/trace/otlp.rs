//! Spans as parts of a trace that other programs see, too.

use std::sync::Arc;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::types::Trace;

/// Makes the span a part of what its asker does. Nothing happens where nothing is exported.
pub(super) fn join(span: &Span, trace: &Trace) {
    if let Some(parent) = trace.traceparent().and_then(read) {
        // It fails where no layer exports.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// The request's name with this span as its place in the trace.
pub(super) fn within(span: &Span, trace: Option<Arc<Trace>>) -> Option<Arc<Trace>> {
    let trace = trace?;
    let context = span.context();
    let here = context.span().span_context().clone();
    if !here.is_valid() {
        return Some(trace);
    }
    let parent = format!("00-{}-{}-{:02x}", here.trace_id(), here.span_id(), here.trace_flags().to_u8());
    Trace::new(trace.request_id(), Some(&parent)).map(Arc::new)
}

/// A `traceparent` that is well formed: version, trace, span, flags.
fn read(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}
