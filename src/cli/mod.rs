//! The command line: one file a command. Commands speak REST like any client; only `serve` builds a node, and `dev`
//! starts nodes as processes of its own.
//!
//! Invariants:
//! - What was asked for goes to stdout and nothing else does; complaints and progress go to stderr.
//! - The exit code says what happened: see [`Fault`].

mod backup;
mod bench;
mod client;
mod completions;
mod config;
mod convergence;
mod delete;
mod dev;
mod export;
mod facts;
mod fault;
mod get;
mod health;
mod import;
mod join;
mod logging;
mod ls;
mod membership;
mod moving;
mod openapi;
mod output;
mod put;
mod repair;
mod restore;
mod ring;
mod serve;
mod settings;
mod smoke;
mod status;
mod tombstones;
mod touch;
#[cfg(feature = "otlp")]
mod traces;
mod views;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use fault::Fault;

/// a3.store: a distributed key-value store that starts with one command.
#[derive(Debug, Parser)]
#[command(name = "a3", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 condition false, 69 unavailable, \
                          78 configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::Dev),
    Serve(serve::Serve),
    Put(put::Put),
    Get(get::Get),
    Touch(touch::Touch),
    Delete(delete::Delete),
    Ls(ls::Ls),
    Watch(watch::Watch),
    Export(export::Export),
    Import(import::Import),
    Status(status::Status),
    Ring(ring::Ring),
    Plan(membership::Plan),
    Join(join::Join),
    Leave(membership::Leave),
    Replace(join::Replace),
    Weight(membership::Weight),
    Zone(membership::Zone),
    ReplicationFactor(membership::ReplicationFactor),
    Change(membership::Change),
    Convergence(convergence::Convergence),
    Repair(repair::Repair),
    Tombstones(tombstones::Tombstones),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Health(health::Health),
    Smoke(smoke::Smoke),
    Bench(bench::Bench),
    Config(config::Config),
    Openapi(openapi::Openapi),
    Completions(completions::Completions),
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// The [`Fault`] to print and exit with. Whether anything was written is in its text, where it matters.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let done = match self.command {
            // Those that end with a code of their own.
            Command::Serve(command) => return command.run(),
            Command::Join(command) => return command.run(),
            Command::Replace(command) => return command.run(),
            Command::Dev(command) => return command.run(),
            Command::Put(command) => command.run(),
            Command::Get(command) => command.run(),
            Command::Touch(command) => command.run(),
            Command::Delete(command) => command.run(),
            Command::Ls(command) => command.run(),
            Command::Watch(command) => command.run(),
            Command::Export(command) => command.run(),
            Command::Import(command) => command.run(),
            Command::Status(command) => command.run(),
            Command::Ring(command) => command.run(),
            Command::Plan(command) => command.run(),
            Command::Leave(command) => command.run(),
            Command::Weight(command) => command.run(),
            Command::Zone(command) => command.run(),
            Command::ReplicationFactor(command) => command.run(),
            Command::Change(command) => command.run(),
            Command::Convergence(command) => command.run(),
            Command::Repair(command) => command.run(),
            Command::Tombstones(command) => command.run(),
            Command::Backup(command) => command.run(),
            Command::Restore(command) => command.run(),
            Command::Health(command) => command.run(),
            Command::Smoke(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Config(command) => command.run(),
            Command::Openapi(command) => command.run(),
            Command::Completions(command) => command.run(),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}
