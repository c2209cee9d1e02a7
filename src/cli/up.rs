//! `warren up`

use std::{env, ffi::OsString};

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use preempt_rt::sched::{Pid, Scheduler, SchedulerParams, get_scheduler, set_scheduler};
use tokio::runtime::Builder;

use super::{Ask, Failure};
use crate::{
    app::{self, Ready, Roles},
    config::Flags,
    runtime::children::ChildCommand,
    shutdown, telemetry,
};

/// What tokio reads itself, where a runtime is not told how many threads it has.
const TOKIO_THREADS: &str = "TOKIO_WORKER_THREADS";

/// Run an installation, or some roles of one.
#[derive(Debug, Args)]
pub(super) struct Up {
    /// The roles to run; all of them if none is named
    #[arg(value_enum)]
    roles: Vec<Role>,
    /// Where jobs come in over HTTP [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = NonEmptyStringValueParser::new())]
    listen: Option<String>,
    /// Where health and metrics are [default: 127.0.0.1:8081, for one role alone see `warren config defaults`]
    #[arg(long, value_name = "ADDR", value_parser = NonEmptyStringValueParser::new())]
    admin_listen: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Takes jobs over HTTP
    Gateway,
    /// Runs jobs
    Worker,
    /// Publishes jobs whose time has come
    Dispatcher,
    /// Keeps what the broker could not deliver, and removes what is kept no longer
    Keeper,
}

impl Up {
    /// To be called while the process has one thread: the others are scheduled as the one that made them.
    pub(super) fn before_threads(&self, runtime: &mut Builder) {
        let roles = self.roles();
        // Someone waits for the answers of a gateway.
        if roles.worker && !roles.gateway {
            take_turns();
            // What is done between jobs is less than one core's worth, and two threads that wake each other for it switch half
            // as often again and take a tenth more CPU a job.
            if env::var_os(TOKIO_THREADS).is_none() {
                runtime.worker_threads(1);
            }
        }
    }

    fn roles(&self) -> Roles {
        let has = |role| self.roles.is_empty() || self.roles.contains(&role);
        Roles {
            gateway: has(Role::Gateway),
            worker: has(Role::Worker),
            dispatcher: has(Role::Dispatcher),
            keeper: has(Role::Keeper),
        }
    }

    pub(super) async fn run(self, mut ask: Ask) -> Result<(), Failure> {
        let roles = self.roles();
        ask.flags.listen = self.listen;
        ask.flags.admin_listen = self.admin_listen;
        let (config, registry) = ask.installation()?;
        telemetry::init_logs(&config.log_level, config.log_format).map_err(app::StartError::from)?;
        telemetry::log_panics();
        let metrics = telemetry::init_metrics().map_err(app::StartError::from)?;
        let stop = shutdown::on_signals().map_err(|error| Failure::Failed(format!("no signals: {error}")))?;
        app::up(config, registry, roles, child(&ask.flags), metrics, stop, announce).await?;
        Ok(())
    }
}

/// Has this process wait for its turn where no core is free, instead of taking one away from whoever runs at the moment.
///
/// A worker is woken for each few jobs that the broker hands out. Where it takes the core from the broker for them, the
/// broker gets no further than those few, which are then committed alone. What waits a turn comes in bigger pieces: a quarter
/// less CPU a job with one worker on a busy machine, over a third with four. Where a core is free nothing waits.
fn take_turns() {
    let this = Pid::current_thread();
    // Whoever started it in another way has had a reason.
    if matches!(get_scheduler(this), Ok(Scheduler::SCHED_NORMAL)) {
        // Where that may not be, it does with less what it does all the same.
        _ = set_scheduler(this, Scheduler::SCHED_BATCH, SchedulerParams { priority: 0 });
    }
}

/// This very program, even when another one has taken its place on the disk, with the same configuration.
fn child(flags: &Flags) -> ChildCommand {
    let mut arguments: Vec<OsString> = vec!["perform".into()];
    for (flag, value) in [("--config", &flags.config), ("--data-dir", &flags.data_dir)] {
        if let Some(value) = value {
            arguments.extend([flag.into(), value.into()]);
        }
    }
    ChildCommand { program: "/proc/self/exe".into(), arguments }
}

/// Where everything is, and a line to try.
fn announce(ready: &Ready) {
    println!("warren {} is up, {}", env!("CARGO_PKG_VERSION"), ready.engine);
    println!("  health  http://{}/readyz", ready.admin);
    if let Some(gateway) = ready.gateway {
        let gateway = format!("{}://{gateway}", if ready.tls { "https" } else { "http" });
        println!("  jobs    {gateway}/v1/jobs/{{kind}}");
        println!("  try     curl -s --json '{{\"work_ms\": 100}}' {gateway}/v1/jobs/warren.probe");
    }
}
