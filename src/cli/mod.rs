//! The command line: what can be asked, and what each answer exits with.

mod config;
mod dead;
mod failure;
mod gateway;
mod job;
mod migrate;
mod output;
mod probe;
mod topology;
mod up;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::failure::Failure;
use crate::{
    config::{Config, Flags},
    runtime::registry::Registry,
};

/// Makes the workers that this build has, as the configuration says.
pub type Workers = fn(&Config) -> anyhow::Result<Registry>;

/// An event-driven message-queue worker system: jobs in over HTTP, through RabbitMQ (or one SQLite file), into typed
/// workers, results in Postgres (or the same file).
#[derive(Debug, Parser)]
#[command(name = "warren", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Global {
    /// The configuration file; `warren.toml` if it is there
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where an embedded installation keeps its files
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How to print what was asked for
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How to print what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run an installation, or some roles of one
    Up(up::Up),
    /// Send jobs and see what became of them
    #[command(subcommand)]
    Job(job::Job),
    /// Decide on jobs that were given up
    #[command(subcommand)]
    Dead(dead::Dead),
    /// See and declare what must stand in the broker
    #[command(subcommand)]
    Topology(topology::Topology),
    /// Bring the database's schema up to date
    Migrate,
    /// Send one job through a running installation and time every step
    Probe(probe::Probe),
    /// Check the configuration, and make secrets for it
    #[command(subcommand)]
    Config(config::Config),
}

/// What every verb may need.
struct Ask {
    flags: Flags,
    output: Output,
    workers: Workers,
}

impl Ask {
    fn config(&self) -> Result<Config, Failure> {
        let variables: BTreeMap<String, String> = std::env::vars().collect();
        Config::load(&self.flags, &variables).map_err(Failure::Configuration)
    }

    fn registry(&self, config: &Config) -> Result<Registry, Failure> {
        let mut registry = (self.workers)(config).map_err(|error| Failure::Usage(format!("{error:#}")))?;
        for (name, settings) in &config.kinds {
            match registry.change_policy(name, |policy| settings.apply(policy)) {
                Ok(true) => {}
                Ok(false) => {
                    let kinds: Vec<_> = registry.kinds().iter().map(ToString::to_string).collect();
                    let kinds = kinds.join(", ");
                    return Err(Failure::Usage(format!("kind.{name}: there is no such kind; there are {kinds}")));
                }
                Err(error) => return Err(Failure::Usage(error.to_string())),
            }
        }
        Ok(registry)
    }
}

/// Does what the arguments say.
pub fn main(workers: Workers) -> ExitCode {
    // clap exits with 2 by itself on wrong usage.
    let Cli { global, verb } = Cli::parse();
    let Global { config, data_dir, output } = global;
    let flags = Flags { config, data_dir, ..Flags::default() };
    let ask = Ask { flags, output, workers };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::Failed(format!("no runtime: {error}")).report(),
    };
    let done = runtime.block_on(run(ask, verb));
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(ask: Ask, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Up(up) => up.run(ask).await,
        Verb::Job(job) => job.run(ask).await,
        Verb::Dead(dead) => dead.run(ask).await,
        Verb::Topology(topology) => topology.run(ask).await,
        Verb::Migrate => migrate::run(ask).await,
        Verb::Probe(probe) => probe.run(ask).await,
        Verb::Config(config) => config.run(&ask),
    }
}
