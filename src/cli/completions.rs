//! `a3 completions`: what a shell needs to complete our commands.

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::{Cli, Fault, output};

/// Print the completion script for a shell, e.g. `a3 completions bash > /etc/bash_completion.d/a3`.
#[derive(Debug, Args)]
pub(super) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Fault> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "a3", &mut script);
        output::write(&script)
    }
}
