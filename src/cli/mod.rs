//! The command line: what can be asked, and what each answer exits with.

mod bench;
mod config;
mod dead;
mod doctor;
mod failure;
mod gateway;
mod job;
mod key;
mod migrate;
mod output;
mod perform;
mod probe;
mod queue;
mod topology;
mod up;
mod worker;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::failure::Failure;
use crate::{
    app,
    config::{Config, Flags, KindSettings, Mistake},
    job::{Kind, chain},
    nearest::did_you_mean,
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
    /// Make, see and revoke the keys that senders and operators need
    #[command(subcommand)]
    Key(key::Key),
    /// See and declare what must stand in the broker
    #[command(subcommand)]
    Topology(topology::Topology),
    /// See what waits where
    #[command(subcommand)]
    Queue(queue::Queue),
    /// See what runs where
    #[command(subcommand)]
    Worker(worker::Worker),
    /// Measure an installation made for the purpose, and removed after it
    Bench(bench::Bench),
    /// Look the installation over: what is wrong with it, and what mends it
    Doctor,
    /// Bring the database's schema up to date
    Migrate,
    /// Send one job through a running installation and time every step
    Probe(probe::Probe),
    /// Check the configuration, and make secrets for it
    #[command(subcommand)]
    Config(config::Config),
    /// Perform one job that standard input tells of; a worker runs it so
    #[command(hide = true)]
    Perform,
}

/// What every verb may need.
struct Ask {
    flags: Flags,
    output: Output,
    workers: Workers,
}

impl Ask {
    fn variables() -> BTreeMap<String, String> {
        // What is not UTF-8 is none of ours.
        std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
            .collect()
    }

    fn config(&self) -> Result<Config, Failure> {
        Config::load(&self.flags, &Self::variables()).map_err(Failure::Configuration)
    }

    fn registry(&self, config: &Config) -> Result<Registry, Failure> {
        let (registry, mistakes) = self.workers_as_configured(config)?;
        if mistakes.is_empty() { Ok(registry) } else { Err(Failure::Configuration(mistakes)) }
    }

    /// Everything that an installation runs with, or everything that keeps it from running.
    fn installation(&self) -> Result<(Config, Registry), Failure> {
        let (config, mut mistakes) = Config::read(&self.flags, &Self::variables());
        mistakes.extend(config.problems());
        let (registry, problems) = self.workers_as_configured(&config)?;
        mistakes.extend(problems);
        if mistakes.is_empty() { Ok((config, registry)) } else { Err(Failure::Configuration(mistakes)) }
    }

    fn workers_as_configured(&self, config: &Config) -> Result<(Registry, Vec<Mistake>), Failure> {
        let mut registry = (self.workers)(config).map_err(|error| Failure::Usage(format!("{error:#}")))?;
        let mut mistakes = Vec::new();
        let built_in = registry.kinds();
        for (name, settings) in &config.kinds {
            if let Err(problem) = configure(&mut registry, &built_in, name, settings) {
                mistakes.push(Mistake { origin: "all in all".into(), setting: format!("kind.{name}"), problem });
            }
        }
        mistakes.extend(app::check_routes(&config.events, &registry));
        Ok((registry, mistakes))
    }
}

/// Makes one kind as its settings say, or says what is wrong with them.
fn configure(registry: &mut Registry, built_in: &[Kind], name: &str, settings: &KindSettings) -> Result<(), String> {
    let is_built_in = |name: &str| built_in.iter().any(|kind| kind.as_str() == name);
    let no_such = |name: &str| {
        let kinds: Vec<_> = built_in.iter().map(Kind::as_str).collect();
        match did_you_mean(name, kinds.iter().copied()) {
            hint if hint.is_empty() => format!("there is no such kind; there are {}", kinds.join(", ")),
            hint => format!("there is no such kind{hint}"),
        }
    };
    if let Some(like) = &settings.like {
        if is_built_in(name) {
            return Err("it has a worker of its own: leave `like` away, or give it another name".into());
        }
        if !is_built_in(like) {
            return Err(format!("like: {}", no_such(like)));
        }
        registry.register_like(name, like).map_err(|error| chain(&error))?;
    }
    match registry.change_policy(name, |policy| settings.apply(policy)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(no_such(name)),
        Err(error) => Err(error.to_string()),
    }
}

/// Does what the arguments say.
pub fn main(workers: Workers) -> ExitCode {
    // clap exits with 2 by itself on wrong usage.
    let Cli { global, verb } = Cli::parse();
    let Global { config, data_dir, output } = global;
    let flags = Flags { config, data_dir, ..Flags::default() };
    let ask = Ask { flags, output, workers };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Verb::Up(up) = &verb {
        up.before_threads(&mut builder);
    }
    let runtime = match builder.enable_all().build() {
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
        Verb::Key(key) => key.run(ask).await,
        Verb::Topology(topology) => topology.run(ask).await,
        Verb::Queue(queue) => queue.run(ask).await,
        Verb::Worker(worker) => worker.run(ask).await,
        Verb::Bench(bench) => bench.run(ask).await,
        Verb::Doctor => doctor::run(ask).await,
        Verb::Migrate => migrate::run(ask).await,
        Verb::Probe(probe) => probe.run(ask).await,
        Verb::Config(config) => config.run(&ask),
        Verb::Perform => tokio::task::block_in_place(|| perform::run(&ask)),
    }
}
