//! `warren bench`: measures an installation of its own, on the embedded engine or on the configured servers.

mod cpu;
mod drain;
mod generator;
mod installation;
mod measure;
mod summary;

use clap::{Args, Subcommand};

use super::{Ask, Failure, output};

/// Measure an installation made for the purpose, and removed after it.
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Clone, Subcommand)]
pub(super) enum Mode {
    /// How many jobs a second a gateway takes over HTTP, each answered after it is durable
    Accept(Load),
    /// How fast one worker process drains jobs that wait, results stored
    Drain(Drain),
    /// How long a job waits for its start and for its record, on an idle installation or at a rate
    Latency(Load),
    /// Plain, keyed, delayed and failing jobs together, at a rate
    Mixed(Load),
}

#[derive(Debug, Clone, Args)]
pub(super) struct Drain {
    /// How many jobs wait
    #[arg(long, default_value_t = 200_000)]
    jobs: usize,
    /// How many bytes the output of each carries
    #[arg(long, default_value_t = 0)]
    payload_bytes: u32,
    /// Over how many kinds they are spread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    kinds: u16,
    /// How many worker processes there are
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// How many rows of other jobs the table holds before
    #[arg(long, default_value_t = 0)]
    rows: usize,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Load {
    /// How long, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Jobs a second, sent when they are due whether or not answers have come; as many as are taken, if not given
    #[arg(long)]
    rate: Option<u32>,
    /// How many connections; if not given, 64 where there is a rate and 256 where there is none
    #[arg(long)]
    connections: Option<usize>,
    /// How many jobs one request holds
    #[arg(long, default_value_t = 1)]
    batch: usize,
}

impl Bench {
    pub(super) async fn run(self, ask: Ask) -> Result<(), Failure> {
        let config = ask.config()?;
        let kinds = ask.registry(&config)?.kinds();
        let spread = match &self.mode {
            Mode::Drain(drain) => drain.kinds,
            _ => 1,
        };
        let installation = installation::Installation::prepare(&ask.flags, &config, kinds, spread).await?;
        let measured = measure::measure(&installation, &self.mode).await;
        installation.remove().await;
        let report = measured?;
        output::print(ask.output, &report, || report.to_string());
        Ok(())
    }
}
