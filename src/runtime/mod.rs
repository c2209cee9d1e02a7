//! The worker role: takes jobs from the broker, runs them, records what came of them, and settles them, in that order.
//!
//! Owns registration ([`registry`]), a job's way through a process (`executor`), and group commit (`gathering`, `lane`). It
//! promises that nothing is settled that is not recorded, that a panic, a hang or a blocked thread harms only its own
//! job, and that a drain leaves nothing behind that was started. It must not know which broker or store it works on.

pub mod children;
mod executor;
mod gate;
mod gathering;
mod inflight;
mod intake;
mod lane;
mod outcome;
mod prefetch;
mod problems;
pub mod registry;
mod running;
mod tombstones;

use std::{
    num::NonZero,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::available_parallelism,
    time::Duration,
};

use futures_util::{FutureExt as _, future::join_all};
use tokio::{
    sync::{Notify, watch as channel},
    time::{Instant, MissedTickBehavior, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use self::{
    children::{ChildCommand, Children},
    executor::{Executor, Shared},
    gate::Gate,
    gathering::Gathering,
    intake::Intake,
    lane::Lane,
    prefetch::Prefetch,
    registry::Registry,
    tombstones::Tombstones,
};
use crate::{
    broker::{Subscribe, Subscription},
    health::Health,
    id::Minter,
    store::{Store, Work},
};

/// Threads for look-ups of names and the like, beside those that jobs have for themselves.
const SPARE_THREADS: usize = 512;
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
    failure: Failure,
}

/// How a worker is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long jobs that have not started are held while the database is away. Giving them back counts against them, so
    /// it is done once, and before the broker takes them back by itself.
    pub hold: Duration,
    /// How long a job may wait for a build that reads its version.
    pub unknown_version: Duration,
    /// How suspects are run in processes of their own; without it they run like all others.
    pub children: Option<ChildCommand>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { hold: Duration::from_mins(5), unknown_version: Duration::from_hours(24), children: None }
    }
}

/// What this process cannot go on with: the first reason stands.
#[derive(Clone)]
struct Failure(Arc<channel::Sender<Option<String>>>);

impl Failure {
    fn new() -> Self {
        Self(Arc::new(channel::channel(None).0))
    }

    fn set(&self, reason: String) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                error!(reason, "this process cannot go on");
                *first = Some(reason);
            }
            is_first
        });
    }
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
        settings: Settings,
    ) -> std::io::Result<Self> {
        let cores = available_parallelism().map_or(2, NonZero::get);
        let threads = (2 * cores).max(8);
        // A job that waits for a thread of its own lets its time run, so there is one for each that may run.
        let own = registry.iter().filter(|(_, registered)| registered.policy.blocking);
        let own_threads: usize = own.map(|(_, registered)| registered.policy.concurrency).sum();
        let jobs = tokio::runtime::Builder::new_multi_thread()
            .thread_name("warren-job")
            .worker_threads(threads)
            .max_blocking_threads(own_threads + SPARE_THREADS)
            .enable_all()
            .build()?;
        let gate = Arc::new(Gate::default());
        let finished = Arc::new(Gathering::new(cores.min(MAX_LANES)));
        let shared = Arc::new(Shared {
            jobs: jobs.handle().clone(),
            drivers: cores,
            threads,
            lost: Arc::new(AtomicUsize::new(0)),
            finished,
            gate,
            minter,
            children: settings.children.clone().map(Children::new),
            tombstones: Arc::default(),
            unknown_version: settings.unknown_version,
            settled: Notify::new(),
        });
        let runtime = Self {
            executors: Vec::new(),
            shared,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            jobs: Some(jobs),
            failure: Failure::new(),
        };
        Ok(runtime.with_kinds(registry, broker, &store, health, settings))
    }

    fn with_kinds(
        mut self,
        registry: &Registry,
        broker: &dyn Subscribe,
        store: &Arc<dyn Store>,
        health: Arc<Health>,
        settings: Settings,
    ) -> Self {
        let (mut watched, mut lookups, mut senders) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, registered) in registry.iter() {
            let executor = Arc::new(Executor::new(kind.clone(), registered, self.shared.clone()));
            let (sender, waiting) = intake::Lookups::new();
            let prefetch = Prefetch::new(&registered.policy, self.shared.finished.lanes(), std::time::Instant::now());
            let lines = (0..prefetch.lines()).map(|line| {
                let sink = Arc::new(Intake::new(line, executor.clone(), sender.clone()));
                broker.subscribe(kind, prefetch.per_line(), sink)
            });
            executor.attach(lines.collect());
            senders.push((executor.clone(), sender));
            lookups.push((executor.clone(), waiting));
            watched.push(Watched::new(executor.clone(), prefetch));
            self.executors.push(executor);
        }
        // What settles begins only now that there are lines to settle on.
        for number in 0..self.shared.finished.lanes() {
            let lane = Lane { number, gathering: self.shared.finished.clone() };
            self.keep_running("a lane", lane.run(store.lane(), self.shared.gate.clone(), store.clone()));
        }
        for (executor, waiting) in lookups {
            self.keep_running("a look-up", intake::look_up(executor, store.clone(), waiting));
        }
        let (tombstones, store): (Arc<Tombstones>, _) = (self.shared.tombstones.clone(), store.clone());
        self.keep_running("the watch over tombstones", async move {
            let tell = |new| {
                for (executor, lookups) in &senders {
                    executor.cancel(&new);
                    lookups.look_up(executor.take_called_off(&new));
                }
            };
            tombstones.keep_up(store.as_ref(), tell).await;
        });
        let watcher =
            Watcher { kinds: watched, shared: self.shared.clone(), health, settings, failure: self.failure.clone() };
        self.keep_running("the watch over jobs", watcher.run());
        self
    }

    /// Runs something without which nothing is recorded or settled any more.
    fn keep_running(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (failure, stop) = (self.failure.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let ended = AssertUnwindSafe(stop.run_until_cancelled(task)).catch_unwind().await;
            if ended.is_err() {
                failure.set(format!("{what} has panicked"));
            }
        });
    }

    /// Tells what runs, now and later.
    pub fn at_work(&self) -> impl Fn() -> Vec<Work> + Send + Sync + 'static {
        let executors = self.executors.clone();
        move || executors.iter().flat_map(|executor| executor.work()).collect()
    }

    /// Waits for something with which this process cannot go on, and answers what: someone is to end it and start
    /// another.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.0.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender lives as long as this.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes nothing more in, finishes what was delivered, and gives back what had not started by the deadline.
    pub async fn drain(mut self, within: Duration) -> Drained {
        let deadline = Instant::now() + within;
        // All at once, and within the deadline: a broker that hangs must not make each of them wait in turn.
        _ = timeout_at(deadline, join_all(self.lines().map(|line| line.stop()))).await;
        loop {
            let settled = self.shared.settled.notified();
            if self.held() == 0 || timeout_at(deadline, settled).await.is_err() {
                break;
            }
        }
        let mut drained = Drained::default();
        for executor in &self.executors {
            executor.drain();
            drained.given_back += executor.give_back_unstarted();
            drained.abandoned += executor.cancel_running();
        }
        join_all(self.lines().map(|line| line.close())).await;
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

    fn lines(&self) -> impl Iterator<Item = &Arc<dyn Subscription>> {
        self.executors.iter().flat_map(|executor| executor.lines())
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

/// Looks after timeouts, threads that are lost, the prefetch, and a database that is away; and says how it goes.
struct Watcher {
    kinds: Vec<Watched>,
    shared: Arc<Shared>,
    health: Arc<Health>,
    settings: Settings,
    failure: Failure,
}

impl Watcher {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut returned, mut many_lost) = (false, false);
        loop {
            ticks.tick().await;
            let share = prefetch::share(self.kinds.iter().map(|kind| kind.prefetch.bytes()).sum());
            let now = std::time::Instant::now();
            for kind in &mut self.kinds {
                kind.tick(share, now);
            }
            self.shared.finished.look(now).into_iter().for_each(|asked| self.shared.gate.owed(asked));
            let away = self.shared.gate.missing_for();
            if away.is_some_and(|away| away >= self.settings.hold) != returned {
                returned = !returned;
                self.hold_or_return(returned);
            }
            let lost = self.shared.lost.load(Relaxed);
            // Twice in a row: one that comes back at once is none.
            if std::mem::replace(&mut many_lost, 2 * lost >= self.shared.threads) && many_lost {
                let threads = self.shared.threads;
                self.failure.set(format!("{lost} of {threads} threads for jobs are kept by jobs whose time was up"));
            }
            self.health.report("worker", self.progress(now));
        }
    }

    /// Gives back what has not started and takes nothing more, or takes in again. Does not wait for a broker, which may
    /// be away too: timeouts are looked after all the while.
    fn hold_or_return(&self, returning: bool) {
        let executors: Vec<_> = self.kinds.iter().map(|kind| kind.executor.clone()).collect();
        if !returning {
            info!("takes jobs again");
            executors.iter().flat_map(|executor| executor.lines()).for_each(|line| line.resume());
            return;
        }
        tokio::spawn(async move {
            join_all(executors.iter().flat_map(|executor| executor.lines()).map(|line| line.stop())).await;
            let given_back: usize = executors.iter().map(|executor| executor.give_back_unstarted()).sum();
            warn!(
                given_back,
                "the database has been away for long: gave back what had not started, takes nothing more"
            );
        });
    }

    fn progress(&self, now: std::time::Instant) -> Result<(), String> {
        if let Some(missing) = self.shared.gate.missing_for() {
            let seconds = missing.as_secs();
            return Err(format!("results cannot be recorded: the database has been away for {seconds} s"));
        }
        let stalled =
            self.kinds.iter().filter(|kind| kind.is_stalled(now)).map(|kind| kind.executor.kind().to_string());
        match stalled.collect::<Vec<_>>() {
            stalled if stalled.is_empty() => Ok(()),
            stalled => Err(format!("no job has ended for too long although there are some: {}", stalled.join(", "))),
        }
    }
}
