//! The binary: its workers, and nothing else. What it can be asked is in `cli`, how it is put together in `app`.

use std::process::ExitCode;

use warren::{cli, config::Config, runtime::registry::Registry};
use warren_workers::{analytics, event, probe, webhook};

/// Jobs are made on one thread and end on another: lapin's, the runtime's, a job's own. With glibc's allocator these wait
/// for each other's arenas, which is a fifth of the gateway's CPU.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
