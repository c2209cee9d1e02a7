//! The worker role: takes jobs from the broker, runs them, records what came of them, and settles them, in that order.
//!
//! Owns registration ([`registry`]), a job's way through a process (`executor`), and group commit (`lane`). It
//! promises that nothing is settled that is not recorded, that a panic, a hang or a blocked thread harms only its own
//! job, and that a drain leaves nothing behind that was started. It must not know which broker or store it works on.

mod executor;
mod gate;
mod inflight;
mod intake;
mod lane;
mod outcome;
mod prefetch;
pub mod registry;

use std::{num::NonZero, sync::Arc, thread::available_parallelism, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use self::{
    executor::{Executor, Shared},
    gate::Gate,
    intake::Intake,
    lane::Lane,
    prefetch::Prefetch,
    registry::Registry,
};
use crate::{broker::Subscribe, health::Health, id::Minter, store::Store};

/// More lanes than this gain nothing.
const MAX_LANES: usize = 4;
/// How long beyond its timeout a kind may end nothing.
const STALLED: Duration = Duration::from_secs(30);
/// How often timeouts are looked for.
const TICK: Duration = Duration::from_millis(100);

/// A running worker role.
pub struct Runtime {
    executors: Vec<Arc<Executor>>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
    jobs: Option<tokio::runtime::Runtime>,
}

impl Drop for Runtime {
    /// Without a drain nothing that runs is waited for; it comes again elsewhere.
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(jobs) = self.jobs.take() {
            jobs.shutdown_background();
        }
    }
}

/// What a drain left behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Jobs that had not started and were given back.
    pub given_back: usize,
    /// Jobs that still ran at the deadline; they come again elsewhere.
    pub abandoned: usize,
}

impl Runtime {
    /// Begins to work. Must be called within the runtime that receives, records and settles.
    pub fn start(
        registry: &Registry,
        broker: &dyn Subscribe,
        store: Arc<dyn Store>,
        minter: Arc<Minter>,
        health: Arc<Health>,
    ) -> std::io::Result<Self> {
        let cores = available_parallelism().map_or(2, NonZero::get);
        let jobs = tokio::runtime::Builder::new_multi_thread()
            .thread_name("warren-job")
            .worker_threads((2 * cores).max(8))
            .enable_all()
            .build()?;
        let gate = Arc::new(Gate::default());
        let lanes: Vec<_> = (0..cores.min(MAX_LANES)).map(|_| Arc::<Lane>::default()).collect();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for lane in &lanes {
            let run = lane.clone().run(store.lane(), gate.clone(), store.clone());
            tasks.spawn(stop.clone().run_until_cancelled_owned(run));
        }
        let shared = Arc::new(Shared {
            jobs: jobs.handle().clone(),
            drivers: cores,
            lanes,
            gate,
            minter,
            settled: Notify::new(),
        });
        let (mut executors, mut watched) = (Vec::new(), Vec::new());
        for (kind, registered) in registry.iter() {
            let executor = Arc::new(Executor::new(kind.clone(), registered, shared.clone()));
            let lookups = intake::Lookups::start(executor.clone(), store.clone(), &stop, &tasks);
            let prefetch = Prefetch::new(&registered.policy, shared.lanes.len(), std::time::Instant::now());
            let lines = (0..shared.lanes.len()).map(|line| {
                let sink = Arc::new(Intake::new(line, executor.clone(), lookups.clone()));
                broker.subscribe(kind, prefetch.per_line(), sink)
            });
            executor.attach(lines.collect());
            watched.push(Watched::new(executor.clone(), prefetch));
            executors.push(executor);
        }
        tasks.spawn(stop.clone().run_until_cancelled_owned(watch(watched, shared.gate.clone(), health)));
        Ok(Self { executors, shared, stop, tasks, jobs: Some(jobs) })
    }

    /// Takes nothing more in, finishes what was delivered, and gives back what had not started by the deadline.
    pub async fn drain(mut self, within: Duration) -> Drained {
        let deadline = Instant::now() + within;
        for line in self.executors.iter().flat_map(|executor| executor.lines()) {
            line.stop().await;
        }
        loop {
            let settled = self.shared.settled.notified();
            if self.held() == 0 || timeout_at(deadline, settled).await.is_err() {
                break;
            }
        }
        let mut drained = Drained::default();
        for executor in &self.executors {
            drained.given_back += executor.give_back_unstarted();
            drained.abandoned += executor.cancel_running();
        }
        for line in self.executors.iter().flat_map(|executor| executor.lines()) {
            line.close().await;
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(jobs) = self.jobs.take() {
            // A job that keeps its thread must not keep the process.
            jobs.shutdown_background();
        }
        match drained {
            Drained { given_back: 0, abandoned: 0 } => info!("drained"),
            Drained { given_back, abandoned } => warn!(given_back, abandoned, "drained at the deadline"),
        }
        drained
    }

    fn held(&self) -> usize {
        self.executors.iter().map(|executor| executor.held()).sum()
    }
}

struct Watched {
    executor: Arc<Executor>,
    prefetch: Prefetch,
    started: u64,
    ended: u64,
    /// When a job last ended, or there was none to end.
    moved: std::time::Instant,
}

impl Watched {
    fn new(executor: Arc<Executor>, prefetch: Prefetch) -> Self {
        Self { executor, prefetch, started: 0, ended: 0, moved: std::time::Instant::now() }
    }

    fn tick(&mut self, share: f64, now: std::time::Instant) {
        let busy = self.executor.tick(&mut self.started);
        let (ended, bytes) = self.executor.totals();
        if !busy || ended != self.ended {
            (self.ended, self.moved) = (ended, now);
        }
        if self.prefetch.measure(ended, bytes, share, now) {
            let per_line = self.prefetch.per_line();
            debug!(kind = %self.executor.kind(), per_line, "another prefetch");
            self.executor.lines().iter().for_each(|line| line.set_prefetch(per_line));
        }
    }

    /// Health is progress: work that is there and none that ends, for longer than any job may take.
    fn is_stalled(&self, now: std::time::Instant) -> bool {
        now - self.moved > self.executor.policy().timeout + STALLED
    }
}

/// Looks after timeouts, drivers that are stuck, and the prefetch; and says how it goes.
async fn watch(mut kinds: Vec<Watched>, gate: Arc<Gate>, health: Arc<Health>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let share = prefetch::share(kinds.iter().map(|kind| kind.prefetch.bytes()).sum());
        let now = std::time::Instant::now();
        for kind in &mut kinds {
            kind.tick(share, now);
        }
        health.report("worker", progress(&kinds, &gate, now));
    }
}

fn progress(kinds: &[Watched], gate: &Gate, now: std::time::Instant) -> Result<(), String> {
    if let Some(missing) = gate.missing_for() {
        return Err(format!("results cannot be recorded: the database has been away for {} s", missing.as_secs()));
    }
    let stalled = kinds.iter().filter(|kind| kind.is_stalled(now)).map(|kind| kind.executor.kind().to_string());
    match stalled.collect::<Vec<_>>() {
        stalled if stalled.is_empty() => Ok(()),
        stalled => Err(format!("no job has ended for too long although there are some: {}", stalled.join(", "))),
    }
}
