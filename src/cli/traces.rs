//! Traces over OTLP: with the feature `otlp`, and where `OTEL_EXPORTER_OTLP_ENDPOINT` says whereto (gRPC). The other
//! variables of OpenTelemetry count, too. What is exported are the requests of clients, with the lines that `DEBUG_LOG` shows
//! as their events, so a node that exports pays as for these.

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::Fault;
use crate::config::Config;

/// What is exported.
const TARGET: &str = "a3::events";

/// Exports until it is dropped, and then what is left.
#[derive(Debug)]
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// `None` where nothing is to be exported. Call it within the runtime that the exporter is to use.
    ///
    /// # Errors
    /// Where the variables make no sense.
    pub(super) fn begin(config: &Config) -> Result<Option<Self>, Fault> {
        if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_none() {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_tonic().build();
        let exporter = exporter.map_err(|e| Fault::Configuration(format!("OTEL_EXPORTER_OTLP_ENDPOINT: {e}")))?;
        let node = KeyValue::new("service.instance.id", config.node.to_string());
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name("a3").with_attributes([node, version]).build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        Ok(Some(Self(provider)))
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let layer = tracing_opentelemetry::layer().with_tracer(self.0.tracer("a3"));
        layer.with_filter(Targets::new().with_target(TARGET, tracing::Level::DEBUG))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}
