//! `a3 serve`: one node.

use std::io;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use clap::Args;
use rustix::process::{Signal, getpid, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::settings::SettingFlags;
use super::{Fault, logging};
use crate::config::Config;
use crate::server::ServeError;

/// Run one node until Ctrl-C or SIGTERM.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Stop when the pipe on stdin closes: the node does not outlive the process that holds the other end.
    #[arg(long, hide = true)]
    parent_pipe: bool,
    #[command(flatten)]
    pub(super) settings: SettingFlags,
}

impl Serve {
    pub(super) fn run(self) -> Result<ExitCode, Fault> {
        let config = self.config()?;
        self.serve(config, None)
    }

    /// What the settings say.
    pub(super) fn config(&self) -> Result<Config, Fault> {
        Ok(self.settings.clone().load()?.1)
    }

    /// The node; `what` it is about to do is logged first.
    pub(super) fn serve(self, config: Config, what: Option<String>) -> Result<ExitCode, Fault> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Fault::Failed(format!("cannot start: {e}")))?;
        // Let go of before the runtime, which what is left to be written needs.
        let _logging = {
            let _within = runtime.enter();
            logging::init(&config)?
        };
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if let Some(what) = what {
            tracing::info!("{what}");
        }
        runtime.block_on(serve(config, self.parent_pipe))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl From<ServeError> for Fault {
    fn from(error: ServeError) -> Self {
        if error.is_configuration() {
            Fault::Configuration(error.to_string())
        } else {
            Fault::Failed(error.to_string())
        }
    }
}

async fn serve(config: Config, parent_pipe: bool) -> Result<(), Fault> {
    // Boxed, because it is as large as everything a node is made of.
    let mut serving = Box::pin(crate::server::serve(config));
    if parent_pipe {
        tokio::select! {
            biased;
            done = &mut serving => return Ok(done?),
            gone = parent_gone() => gone.map_err(|e| Fault::Failed(format!("the pipe on stdin: {e}")))?,
        }
        tracing::info!("the process that started this node is gone");
        // The node's own way to stop, with its order and its deadlines.
        kill_process(getpid(), Signal::TERM).map_err(|e| Fault::Failed(format!("cannot stop: {e}")))?;
    }
    Ok(serving.await?)
}

/// Resolves when the other end of the pipe on stdin is closed, even by `kill -9`.
async fn parent_gone() -> io::Result<()> {
    let mut stdin = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let mut ignored = [0u8; 64];
    while stdin.read(&mut ignored).await? > 0 {}
    Ok(())
}
