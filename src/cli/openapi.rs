//! `a3 openapi`: the description of the REST interface, without a node.

use clap::Args;

use super::{Fault, output};

/// Print the OpenAPI document that every node serves at /openapi.json.
#[derive(Debug, Args)]
pub(super) struct Openapi {}

impl Openapi {
    pub(super) fn run(self) -> Result<(), Fault> {
        output::line(crate::http::openapi_json().trim_end())
    }
}
