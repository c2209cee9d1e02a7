//! The binary: its workers, and nothing else. What it can be asked is in `cli`, how it is put together in `app`.

use std::process::ExitCode;

use warren::{cli, config::Config, runtime::registry::Registry};
use warren_workers::{analytics, event, probe, webhook};

fn main() -> ExitCode {
    cli::main(workers)
}

/// Every kind of job that this build performs.
fn workers(config: &Config) -> anyhow::Result<Registry> {
    Ok(Registry::default()
        .register(event::Keep)?
        .register(analytics::Keep)?
        .register(probe::Probe)?
        .register(webhook::Deliver::new(config.webhook.clone())?)?)
}
