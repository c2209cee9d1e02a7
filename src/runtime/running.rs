//! A job that runs, and the thread that it may be keeping.
//!
//! A job's future is polled by threads of the runtime for jobs. One that does not return from a poll keeps its thread for
//! as long as it likes; when its time is up it is recorded as timed out all the same, and its thread counts as lost until
//! it comes back.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicU8, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, task::AbortHandle};
use warren_workers::context::Control;

use super::executor::Ready;

/// How long the start of a process may take on a machine that is busy.
const START_OF_A_PROCESS: Duration = Duration::from_secs(30);

/// One job that runs.
pub(super) struct Running {
    /// Taken by whoever ends it first: its own end, or its timeout. The other comes too late.
    pub(super) job: Mutex<Option<Ready>>,
    pub(super) place: usize,
    pub(super) control: Arc<Control>,
    pub(super) since: Instant,
    /// When it really began, where a process had to be started for it first.
    begun: Option<OnceLock<Instant>>,
    /// Its task, once it has one.
    pub(super) task: OnceLock<AbortHandle>,
    thread: AtomicU8,
}

/// No thread is in it.
const NONE: u8 = 0;
/// A driver polls it for the first time.
const DRIVER: u8 = 1;
/// Its own task polls it.
const TASK: u8 = 2;
/// Its time was up while a thread was in it.
const LOST: u8 = 3;

/// Which thread a job had not given back when its time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// That of a driver, which will drive no more.
    Driver,
    /// That of its own task.
    Task,
}

impl Running {
    /// `alone`: in a process of its own, whose start is not its time.
    pub(super) fn new(job: Ready, place: usize, control: Arc<Control>, since: Instant, alone: bool) -> Self {
        Self {
            job: Mutex::new(Some(job)),
            place,
            control,
            since,
            begun: alone.then(OnceLock::new),
            task: OnceLock::new(),
            thread: AtomicU8::new(NONE),
        }
    }

    /// The process that was started for it has begun.
    pub(super) fn has_begun(&self) {
        if let Some(begun) = &self.begun {
            _ = begun.set(Instant::now());
        }
    }

    /// Whether its time is up.
    pub(super) fn is_overdue(&self, timeout: Duration) -> bool {
        match &self.begun {
            None => self.since.elapsed() >= timeout,
            Some(begun) => match begun.get() {
                Some(begun) => begun.elapsed() >= timeout,
                None => self.since.elapsed() >= timeout + START_OF_A_PROCESS,
            },
        }
    }

    /// Its time is up: counts its thread as lost, if one is in it.
    pub(super) fn give_up_thread(&self, lost: &AtomicUsize) -> Option<Lost> {
        for (by, kind) in [(DRIVER, Lost::Driver), (TASK, Lost::Task)] {
            if self.thread.compare_exchange(by, LOST, AcqRel, Acquire).is_ok() {
                lost.fetch_add(1, Relaxed);
                return Some(kind);
            }
        }
        None
    }

    /// True if the thread that leaves it had been given up.
    fn leave(&self, lost: &AtomicUsize) -> bool {
        let was_lost = self.thread.swap(NONE, AcqRel) == LOST;
        if was_lost {
            lost.fetch_sub(1, Relaxed);
        }
        was_lost
    }
}

/// Runs a job to its end on a thread of its own.
pub(super) async fn on_own_thread<T: Send + 'static>(
    jobs: Handle,
    attempt: impl Future<Output = T> + Send + 'static,
    running: Arc<Running>,
    lost: Arc<AtomicUsize>,
) -> T {
    let within = jobs.clone();
    let thread = jobs.spawn_blocking(move || {
        // Its time may have been up before there was a thread for it; then it must not run behind its record.
        if running.job.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return None;
        }
        running.thread.store(TASK, Release);
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| within.block_on(attempt)));
        running.leave(&lost);
        Some(ended)
    });
    match thread.await {
        Ok(Some(Ok(ended))) => ended,
        Ok(Some(Err(panic))) => std::panic::resume_unwind(panic),
        // Nobody takes an answer any more: its time is up, or the runtime ends.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// A job's future, which knows whether a thread is in it.
pub(super) struct Polled<F> {
    pub(super) attempt: F,
    pub(super) running: Arc<Running>,
    pub(super) lost: Arc<AtomicUsize>,
    /// It has a thread of its own, so those that poll it only look whether it has ended.
    pub(super) elsewhere: bool,
}

impl<F: Future + Unpin> Polled<F> {
    /// The first poll, by a driver. `Err` if the driver was given up meanwhile.
    pub(super) fn poll_first(&mut self, cx: &mut Context<'_>) -> Result<Poll<F::Output>, Poll<F::Output>> {
        if self.elsewhere {
            return Ok(Pin::new(&mut self.attempt).poll(cx));
        }
        self.running.thread.store(DRIVER, Release);
        let polled = Pin::new(&mut self.attempt).poll(cx);
        if self.running.leave(&self.lost) { Err(polled) } else { Ok(polled) }
    }
}

impl<F: Future + Unpin> Future for Polled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if self.elsewhere {
            return Pin::new(&mut self.attempt).poll(cx);
        }
        self.running.thread.store(TASK, Release);
        let polled = Pin::new(&mut self.attempt).poll(cx);
        self.running.leave(&self.lost);
        polled
    }
}
