//! The command line: parse, call, print.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

/// Returns memory to the system, and does not slow down where many small values come and go on two threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    a3::cli::Cli::parse().run().unwrap_or_else(|fault| {
        // Where nobody can be told, the exit code tells; `eprintln!` would put a panic's in its place.
        let _ = writeln!(std::io::stderr(), "a3: {fault}");
        fault.exit_code()
    })
}
