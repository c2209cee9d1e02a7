//! Runs the jobs of one kind.
//!
//! Deliveries wait here for a place, run on the runtime for jobs, and leave for a lane with what came of them. A few
//! drivers take them in turn and poll each once: a job that is done by then (most are) costs no task of its own; one
//! that waits for something is spawned and its driver goes on. What a job does to its thread therefore never stops the
//! tasks that receive, record and settle, for those live on another runtime.

use std::{
    collections::{HashSet, VecDeque},
    future::poll_fn,
    iter,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::{runtime::Handle, sync::Notify};
use warren_workers::{Policy, context::Control};

use super::{
    children::{ChildPlace, Children},
    gate::Gate,
    gathering::Gathering,
    inflight::{Copy, Entered, InFlight, Released, RunKey},
    lane::Finished,
    outcome::{self, Ended, Rules},
    registry::{Handler, Registered, Task},
    running::{Lost, Polled, Running, on_own_thread},
    tombstones::Tombstones,
};
use crate::{
    broker::{Delivery, Receipt, Subscription},
    clock, foreign,
    id::Minter,
    job::{Completion, Envelope, Kind, Outcome, Suspicion},
    store::Work,
    telemetry::{CONCURRENCY_LIMIT, KindMetrics},
};

/// How many jobs a driver polls before it lets others on its thread.
const POLLS_BEFORE_YIELD: usize = 32;

/// How often a job must have been given out before to be a suspect: it may have killed as many processes.
const SUSPECT_AFTER: u32 = 2;
/// How many of the jobs of one kind that run are shown to operators.
const WORK_SHOWN: usize = 100;

/// What all executors of a process share.
pub(super) struct Shared {
    /// The runtime for jobs.
    pub(super) jobs: Handle,
    /// How many drivers of one kind may poll at once.
    pub(super) drivers: usize,
    /// How many threads there are for jobs, and how many of them are lost.
    pub(super) threads: usize,
    pub(super) lost: Arc<AtomicUsize>,
    pub(super) finished: Arc<Gathering<Finished>>,
    pub(super) gate: Arc<Gate>,
    pub(super) minter: Arc<Minter>,
    /// Runs suspects in processes of their own, if it can.
    pub(super) children: Option<Children>,
    pub(super) tombstones: Arc<Tombstones>,
    /// How long a job may wait for a build that reads its version.
    pub(super) unknown_version: Duration,
    /// Told whenever something was settled.
    pub(super) settled: Notify,
}

/// A delivery that waits for a place.
#[derive(Clone)]
pub(super) struct Ready {
    pub(super) envelope: Box<Envelope>,
    pub(super) body: Bytes,
    /// How often it had been given out before.
    pub(super) given_before: u32,
}

impl Ready {
    /// Whether it may be what killed the processes that had it.
    fn is_suspect(&self) -> bool {
        self.given_before >= SUSPECT_AFTER || self.envelope.suspicion != Suspicion::None
    }

    pub(super) fn key(&self) -> RunKey {
        (self.envelope.id, self.envelope.run)
    }
}

/// Runs the jobs of one kind.
pub(super) struct Executor {
    kind: Kind,
    policy: Policy,
    handler: Arc<dyn Handler>,
    shared: Arc<Shared>,
    lines: OnceLock<Vec<Arc<dyn Subscription>>>,
    state: Mutex<State>,
    inflight: Mutex<InFlight>,
    metrics: KindMetrics,
    /// Bodies' bytes and jobs that ended, for the prefetch.
    ended: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Ready>,
    /// Those that run in a process of their own.
    suspects: VecDeque<Ready>,
    /// Those that run, each in a place of its own.
    running: Vec<Option<Arc<Running>>>,
    /// Places in `running` that are empty.
    free: Vec<usize>,
    drivers: usize,
    started: u64,
    draining: bool,
}

impl State {
    fn running(&self) -> usize {
        self.running.len() - self.free.len()
    }
}

impl Executor {
    pub(super) fn new(kind: Kind, registered: &Registered, shared: Arc<Shared>) -> Self {
        let metrics = KindMetrics::new(&kind);
        #[expect(clippy::cast_precision_loss, reason = "at most 10,000")]
        metrics::gauge!(CONCURRENCY_LIMIT, "kind" => kind.to_string()).set(registered.policy.concurrency as f64);
        Self {
            kind,
            policy: registered.policy,
            handler: registered.handler.clone(),
            shared,
            lines: OnceLock::new(),
            state: Mutex::default(),
            inflight: Mutex::default(),
            metrics,
            ended: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }

    pub(super) fn tombstones(&self) -> &Tombstones {
        &self.shared.tombstones
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Tells where deliveries are settled. Once, before the first of them.
    pub(super) fn attach(&self, lines: Vec<Arc<dyn Subscription>>) {
        // A second time would be a mistake of the runtime's own start.
        assert!(self.lines.set(lines).is_ok(), "the lines of {} are attached once", self.kind);
    }

    pub(super) fn lines(&self) -> &[Arc<dyn Subscription>] {
        self.lines.get().map_or(&[], Vec::as_slice)
    }

    /// Takes a delivery in. `None` if it was attached to a copy that is in work, or is no job and on its way to be
    /// recorded as what it is.
    pub(super) fn take_in(self: &Arc<Self>, line: usize, delivery: Delivery) -> Option<Ready> {
        let Delivery { envelope, body, receipt, given_before } = delivery;
        let copy = Copy { line, receipt };
        self.bytes.fetch_add(body.len() as u64, Relaxed);
        match envelope {
            Ok(envelope) => self.enter(Ready { envelope, body, given_before }, copy),
            Err(bad) => {
                let key = (bad.id, 1);
                if lock(&self.inflight).enter_refused(key, copy) {
                    self.refuse(foreign::undecodable(clock::now(), body.clone(), bad), body, key);
                }
                None
            }
        }
    }

    fn enter(self: &Arc<Self>, ready: Ready, copy: Copy) -> Option<Ready> {
        let entered = lock(&self.inflight).enter(&ready, copy);
        match entered {
            Entered::First => Some(ready),
            Entered::Attached => None,
            Entered::NoBody => {
                let Ready { envelope, body, .. } = ready;
                let completion = foreign::no_body(envelope, body.clone());
                let key = (completion.envelope.id, completion.envelope.run);
                if lock(&self.inflight).enter_refused(key, copy) {
                    self.refuse(completion, body, key);
                }
                None
            }
        }
    }

    fn refuse(self: &Arc<Self>, completion: Completion, body: Bytes, key: RunKey) {
        self.count(&completion);
        self.hand_over(completion, body, key);
    }

    /// Queues jobs to run.
    pub(super) fn admit(self: &Arc<Self>, jobs: impl IntoIterator<Item = Ready>) {
        let mut state = lock(&self.state);
        match &self.shared.children {
            None => state.ready.extend(jobs),
            Some(_) => {
                for ready in jobs {
                    if ready.is_suspect() { state.suspects.push_back(ready) } else { state.ready.push_back(ready) }
                }
            }
        }
        self.drive_more(&mut state);
    }

    /// Has as many drivers at work as there are places for what waits.
    fn drive_more(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) {
        if state.draining || !self.shared.gate.is_open() {
            return;
        }
        let room = self.policy.concurrency.saturating_sub(state.running());
        let wanted = (state.ready.len() + state.suspects.len()).min(room).min(self.shared.drivers);
        while state.drivers < wanted {
            state.drivers += 1;
            self.shared.jobs.spawn(self.clone().drive());
        }
    }

    async fn drive(self: Arc<Self>) {
        let mut polls = 0;
        while let Some((running, task, place)) = self.start_next() {
            let lost = self.shared.lost.clone();
            let attempt = match (place, &self.shared.children) {
                (Some(place), Some(children)) => {
                    children.perform(&self.kind, task, self.policy.timeout, place, running.clone())
                }
                _ if self.policy.blocking => {
                    let attempt = self.handler.clone().perform(task);
                    Box::pin(on_own_thread(self.shared.jobs.clone(), attempt, running.clone(), lost.clone()))
                }
                _ => self.handler.clone().perform(task),
            };
            let attempt = AssertUnwindSafe(attempt).catch_unwind();
            let elsewhere = self.policy.blocking;
            let mut attempt = Polled { attempt, running: running.clone(), lost, elsewhere };
            let polled = poll_fn(|cx| Poll::Ready(attempt.poll_first(cx))).await;
            let given_up = polled.is_err();
            match polled.unwrap_or_else(|polled| polled) {
                Poll::Ready(ended) => self.end(&running, ended.map_or_else(Ended::Panicked, Ended::Performed)),
                Poll::Pending if given_up => {}
                Poll::Pending => self.let_run(attempt),
            }
            if given_up {
                // Another one drives in its place.
                return;
            }
            polls += 1;
            if polls % POLLS_BEFORE_YIELD == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes the next job from the line, with a place for a child process if it is a suspect, or ends the driver.
    fn start_next(&self) -> Option<(Arc<Running>, Task, Option<ChildPlace>)> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let may_start = !state.draining && self.shared.gate.is_open() && state.running() < self.policy.concurrency;
        let next = may_start.then(|| self.next(&mut state)).flatten();
        let Some((ready, child)) = next else {
            state.drivers -= 1;
            return None;
        };
        let place = state.free.pop().unwrap_or_else(|| {
            state.running.push(None);
            state.running.len() - 1
        });
        let control = Arc::<Control>::default();
        let task = Task {
            id: ready.envelope.id,
            tenant: ready.envelope.tenant.clone(),
            created_at: ready.envelope.created_at,
            version: ready.envelope.version,
            body: ready.body.clone(),
            attempt: ready.envelope.attempt.saturating_add(1),
            deadline: now + self.policy.timeout,
            control: control.clone(),
        };
        let first_wait = (ready.envelope.run == 1).then_some(ready.envelope.created_at);
        let running = Arc::new(Running::new(ready, place, control, now, child.is_some()));
        state.running[place] = Some(running.clone());
        state.started += 1;
        drop(state);
        if let Some(created_at) = first_wait {
            self.metrics
                .queue_wait
                .record(Duration::from_micros(u64::try_from(clock::now() - created_at).unwrap_or(0)));
        }
        Some((running, task, child))
    }

    fn next(&self, state: &mut State) -> Option<(Ready, Option<ChildPlace>)> {
        if !state.suspects.is_empty()
            && let Some(place) = self.shared.children.as_ref().and_then(Children::place)
        {
            return Some((state.suspects.pop_front()?, Some(place)));
        }
        Some((state.ready.pop_front()?, None))
    }

    fn let_run<F>(self: &Arc<Self>, attempt: Polled<F>)
    where
        F: Future<Output = std::thread::Result<super::registry::Performed>> + Send + Unpin + 'static,
    {
        let (executor, running) = (self.clone(), attempt.running.clone());
        let ends = running.clone();
        let task = self.shared.jobs.spawn(async move {
            let ended = attempt.await;
            executor.end(&ends, ended.map_or_else(Ended::Panicked, Ended::Performed));
        });
        _ = running.task.set(task.abort_handle());
        if lock(&running.job).is_none() {
            // Its time was up while it was polled for the first time.
            task.abort();
        }
    }

    /// Ends a job, unless it was ended before.
    fn end(self: &Arc<Self>, running: &Arc<Running>, ended: Ended) {
        let Some(ready) = lock(&running.job).take() else {
            return;
        };
        let mut state = lock(&self.state);
        state.running[running.place] = None;
        state.free.push(running.place);
        if state.drivers == 0 {
            self.drive_more(&mut state);
        }
        drop(state);
        self.metrics.execution.record(running.since.elapsed());
        match ended {
            Ended::TimedOut => self.metrics.timeout.increment(1),
            Ended::Panicked(_) => self.metrics.panic.increment(1),
            Ended::Performed(_) => {}
        }
        let key = ready.key();
        let Ready { envelope, body, .. } = ready;
        let rules =
            Rules { policy: &self.policy, minter: &self.shared.minter, unknown_version: self.shared.unknown_version };
        let completion = outcome::completion(&rules, clock::now(), envelope, body.clone(), ended);
        self.count(&completion);
        self.hand_over(completion, body, key);
    }

    fn count(&self, completion: &Completion) {
        let counter = match completion.outcome {
            Outcome::Succeeded { .. } => &self.metrics.ok,
            Outcome::Retry { .. } => &self.metrics.retry,
            Outcome::Snooze { .. } | Outcome::Parked { .. } => &self.metrics.snooze,
            Outcome::Cancelled { .. } => &self.metrics.cancelled,
            Outcome::Dead { .. } => &self.metrics.dead,
        };
        counter.increment(1);
    }

    fn hand_over(self: &Arc<Self>, completion: Completion, body: Bytes, key: RunKey) {
        self.ended.fetch_add(1, Relaxed);
        self.shared.finished.push(Finished { completion, body, key, executor: self.clone() });
    }

    /// Settles jobs that are recorded, or need not be. Answers the ids of those that were published again with another
    /// body while they were held.
    pub(super) fn settle(jobs: impl IntoIterator<Item = (Arc<Self>, RunKey)>) -> Vec<uuid::Uuid> {
        let mut by_executor: Vec<(Arc<Self>, Vec<RunKey>)> = Vec::new();
        for (executor, key) in jobs {
            match by_executor.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &executor)) {
                Some((_, keys)) => keys.push(key),
                None => by_executor.push((executor, vec![key])),
            }
        }
        let (mut conflicts, mut first_now) = (Vec::new(), Vec::new());
        for (executor, keys) in by_executor {
            let mut receipts: Vec<Vec<Receipt>> = vec![Vec::new(); executor.lines().len()];
            let mut inflight = lock(&executor.inflight);
            for key in keys {
                let Some(Released { first, more, conflict, behind }) = inflight.leave(key) else { continue };
                for copy in iter::once(first).chain(more) {
                    receipts[copy.line].push(copy.receipt);
                }
                if conflict {
                    conflicts.push(key.0);
                }
                first_now.extend(behind);
            }
            drop(inflight);
            let first_now: Vec<_> =
                first_now.drain(..).filter_map(|(ready, copy)| executor.enter(ready, copy)).collect();
            if !first_now.is_empty() {
                executor.admit(first_now);
            }
            for (line, receipts) in executor.lines().iter().zip(receipts) {
                if !receipts.is_empty() {
                    line.settle(&receipts);
                }
            }
            executor.shared.settled.notify_waiters();
        }
        conflicts
    }

    /// Ends what has run for too long, and sees to it that what waits is not stuck behind a job that keeps its thread.
    /// To be called a few times a second. Answers whether anything runs or waits.
    pub(super) fn tick(self: &Arc<Self>, last_started: &mut u64) -> bool {
        let mut state = lock(&self.state);
        #[expect(clippy::cast_precision_loss, reason = "at most 10,000")]
        self.metrics.inflight.set(state.running() as f64);
        self.metrics.queue_wait.flush();
        self.metrics.execution.flush();
        let overdue: Vec<_> =
            state.running.iter().flatten().filter(|running| running.is_overdue(self.policy.timeout)).cloned().collect();
        if state.started == *last_started && state.running() < self.policy.concurrency && !state.ready.is_empty() {
            // There is room and work, and yet nothing has started since the last time: all drivers are stuck in a job,
            // or the gate was closed.
            let stuck = state.drivers > 0 && state.drivers < self.shared.threads;
            if stuck && !state.draining && self.shared.gate.is_open() {
                state.drivers += 1;
                self.shared.jobs.spawn(self.clone().drive());
            }
            self.drive_more(&mut state);
        }
        *last_started = state.started;
        if state.drivers == 0 && !state.suspects.is_empty() {
            // A place for a child process may have become free.
            self.drive_more(&mut state);
        }
        let busy = state.running() > 0 || !state.ready.is_empty() || !state.suspects.is_empty();
        drop(state);
        for running in overdue {
            running.control.cancel();
            if let Some(task) = running.task.get() {
                task.abort();
            }
            if let Some(lost) = running.give_up_thread(&self.shared.lost) {
                self.metrics.lost_thread.increment(1);
                if lost == Lost::Driver {
                    lock(&self.state).drivers -= 1;
                }
            }
            self.end(&running, Ended::TimedOut);
            // It may have been given a task in between, which found it still running.
            if let Some(task) = running.task.get() {
                task.abort();
            }
        }
        busy
    }

    /// Nothing more starts.
    pub(super) fn drain(&self) {
        lock(&self.state).draining = true;
    }

    /// Gives back what has not started. Answers how many.
    pub(super) fn give_back_unstarted(&self) -> usize {
        let mut state = lock(&self.state);
        let mut unstarted = std::mem::take(&mut state.ready);
        unstarted.append(&mut state.suspects);
        drop(state);
        let count = unstarted.len();
        for ready in unstarted {
            let released = lock(&self.inflight).leave(ready.key());
            let Some(Released { first, more, behind, .. }) = released else { continue };
            for copy in iter::once(first).chain(more).chain(behind.into_iter().map(|(_, copy)| copy)) {
                self.lines()[copy.line].give_back(&[copy.receipt]);
            }
        }
        count
    }

    /// Tells those that run and have a tombstone to stop.
    pub(super) fn cancel(&self, called_off: &HashSet<uuid::Uuid>) {
        for running in lock(&self.state).running.iter().flatten() {
            if lock(&running.job).as_ref().is_some_and(|ready| called_off.contains(&ready.envelope.id)) {
                running.control.cancel();
            }
        }
    }

    /// Takes those that wait and may have a tombstone out of the line.
    pub(super) fn take_called_off(&self, called_off: &HashSet<uuid::Uuid>) -> Vec<Ready> {
        let mut state = lock(&self.state);
        let mut taken = Vec::new();
        let State { ready, suspects, .. } = &mut *state;
        for line in [ready, suspects] {
            if line.iter().any(|ready| called_off.contains(&ready.envelope.id)) {
                for ready in std::mem::take(line) {
                    let is_off = called_off.contains(&ready.envelope.id);
                    if is_off { taken.push(ready) } else { line.push_back(ready) }
                }
            }
        }
        taken
    }

    /// Records jobs as called off that have not run.
    pub(super) fn call_off(self: &Arc<Self>, jobs: impl IntoIterator<Item = Ready>) {
        for ready in jobs {
            let key = ready.key();
            let Ready { envelope, body, .. } = ready;
            let completion = outcome::cancelled(envelope);
            self.count(&completion);
            self.hand_over(completion, body, key);
        }
    }

    /// What runs here, for operators.
    pub(super) fn work(&self) -> Vec<Work> {
        let state = lock(&self.state);
        let work = |running: &Arc<Running>| {
            let job = lock(&running.job);
            let ready = job.as_ref()?;
            Some(Work {
                id: ready.envelope.id,
                kind: self.kind.to_string(),
                seconds: running.since.elapsed().as_secs(),
                progress: running.control.progress(),
            })
        };
        state.running.iter().flatten().filter_map(work).take(WORK_SHOWN).collect()
    }

    /// Tells what runs to stop.
    pub(super) fn cancel_running(&self) -> usize {
        let state = lock(&self.state);
        state.running.iter().flatten().for_each(|running| running.control.cancel());
        state.running()
    }

    /// How many deliveries are neither settled nor given back.
    pub(super) fn held(&self) -> usize {
        lock(&self.inflight).len()
    }

    /// How many jobs have ended, and the bytes of all bodies taken in, since the start.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.ended.load(Relaxed), self.bytes.load(Relaxed))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
