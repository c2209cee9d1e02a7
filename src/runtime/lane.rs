//! Group commit: what is finished is recorded in batches, and only then settled.
//!
//! A lane gathers a batch while the one before it commits: the commit in flight is the batching window, and no timer
//! ever waits for more. Lanes share nothing, so that one commit does not wait for another.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;
use tracing::{error, warn};
use warren_workers::{Disposition, Policy};

use super::{executor::Executor, gate::Gate, inflight::RunKey, intake::note_conflicts};
use crate::{
    crash_point,
    job::{Completion, Failure, Outcome, chain},
    retry::{self, Reconnect, Verdict},
    store::{Record, Store, StoreError},
};

/// How much one commit takes at most.
const MAX_ROWS: usize = 500;
const MAX_BYTES: usize = 4 << 20;
/// With so many rows a lane's next commit is worth its while: fewer are better together than each with a commit of its own,
/// which costs the same however few it holds.
const ENOUGH: usize = 64;
/// A row counts once more for each so many bytes.
const A_ROW: usize = MAX_BYTES / ENOUGH;
/// Whoever has waited so long for the database is passed over while others do not wait.
const SLOW: Duration = Duration::from_millis(100);
/// Before a batch that met others at its rows is tried again.
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);

/// Something to be recorded, and what is to be settled with it.
pub(super) struct Finished {
    pub(super) completion: Completion,
    /// The body, should the outcome have to be another one after all.
    pub(super) body: Bytes,
    /// Under which it is held: the id in the completion is another one where the message's own is not believed.
    pub(super) key: RunKey,
    pub(super) executor: Arc<Executor>,
}

/// One lane: a queue of what is finished, and a task that records it.
#[derive(Default)]
pub(super) struct Lane {
    finished: Mutex<Vec<Finished>>,
    /// How many those are, large ones counted more than once.
    waiting: AtomicUsize,
    /// Whether its commit takes long.
    slow: AtomicBool,
    wake: Notify,
    /// Since when the database has owed an answer.
    asked: Mutex<Option<Instant>>,
}

impl Lane {
    /// Takes one in. Returns at once; what bounds the queue is the prefetch.
    pub(super) fn push(&self, finished: Finished) {
        let weight = weight(&finished);
        let mut queue = self.lock();
        queue.push(finished);
        let was_empty = queue.len() == 1;
        self.waiting.fetch_add(weight, Relaxed);
        drop(queue);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// Records for as long as the process runs.
    pub(super) async fn run(self: Arc<Self>, mut record: Box<dyn Record>, gate: Arc<Gate>, store: Arc<dyn Store>) {
        // What another of the same batch kept out of it, to be looked at first.
        let mut carried = Vec::new();
        loop {
            let batch = self.gather(&mut carried).await;
            let (batch, copies) = one_for_each_id(batch, &mut carried);
            let mut completions = Vec::with_capacity(batch.len());
            let mut held = Vec::with_capacity(batch.len());
            for Finished { completion, body, key, executor } in batch {
                completions.push(completion);
                held.push((executor, key, body));
            }
            crash_point!("worker: run, not recorded");
            let fenced = self.record_surely(record.as_mut(), completions, &held, &gate).await;
            crash_point!("worker: recorded, not settled");
            if fenced > 0 {
                metrics::counter!(crate::telemetry::FENCED).increment(fenced as u64);
            }
            let conflicts = Executor::settle(held.into_iter().map(|(executor, key, _)| (executor, key)).chain(copies));
            crash_point!("worker: settled");
            note_conflicts(store.as_ref(), &conflicts).await;
        }
    }

    async fn gather(&self, carried: &mut Vec<Finished>) -> Vec<Finished> {
        let mut batch = std::mem::take(carried);
        loop {
            batch = self.take(batch);
            if !batch.is_empty() {
                return batch;
            }
            self.wake.notified().await;
            // Tokio runs a task at once that another has woken. What is about to end too ends before the batch is taken, which
            // is not the first of them alone then.
            tokio::task::yield_now().await;
        }
    }

    fn take(&self, mut batch: Vec<Finished>) -> Vec<Finished> {
        let mut queue = self.lock();
        if batch.is_empty() && queue.len() <= MAX_ROWS {
            batch = std::mem::take(&mut *queue);
        } else {
            let room = MAX_ROWS.saturating_sub(batch.len()).min(queue.len());
            batch.extend(queue.drain(..room));
        }
        cut(&mut batch, &mut queue);
        self.waiting.store(queue.iter().map(weight).sum(), Relaxed);
        batch
    }

    /// Whether another lane should take what comes: so much waits here, or for so long.
    pub(super) fn has_enough(&self) -> bool {
        self.waiting.load(Relaxed) >= ENOUGH || self.slow.load(Relaxed)
    }

    /// Looks whether the database takes long. Answers since when it has owed an answer.
    pub(super) fn look(&self, now: Instant) -> Option<Instant> {
        let asked = self.asked();
        // While nothing can be answered: a mark that came after the answer would stay until the next one.
        self.slow.store(asked.is_some_and(|asked| now.saturating_duration_since(asked) >= SLOW), Relaxed);
        *asked
    }

    fn answered(&self) {
        let mut asked = self.asked();
        *asked = None;
        self.slow.store(false, Relaxed);
    }

    /// Records a batch, however long it takes. Answers how many lost the fence.
    async fn record_surely(
        &self,
        record: &mut dyn Record,
        batch: Vec<Completion>,
        held: &[(Arc<Executor>, RunKey, Bytes)],
        gate: &Gate,
    ) -> usize {
        let whole = 0..batch.len();
        let mut parts = Vec::from_iter([whole]);
        let mut batch = Arc::new(batch);
        let mut fenced = 0;
        let mut pauses = Reconnect::new();
        while let Some(part) = parts.pop() {
            let (rows, asked) = (part.len(), Instant::now());
            *self.asked() = Some(asked);
            let recorded = record.record(&batch, part.clone()).await;
            self.answered();
            match recorded {
                Ok(lost) => {
                    fenced += lost;
                    pauses.reset();
                    gate.reached();
                }
                Err(StoreError::Conflict(cause)) => {
                    warn!(rows, cause = chain(cause.as_ref()), "recording met others at its rows; once more");
                    tokio::time::sleep(CONFLICT_PAUSE).await;
                    parts.push(part);
                }
                Err(StoreError::Unavailable(cause) | StoreError::NotReached(cause) | StoreError::NoRoom(cause)) => {
                    let pause = pauses.pause();
                    warn!(rows, cause = chain(cause.as_ref()), ?pause, "cannot record; what is finished is held");
                    gate.missed(asked);
                    tokio::time::sleep(pause).await;
                    parts.push(part);
                }
                Err(StoreError::Data(cause)) if rows == 1 => {
                    let (culprit, (executor, _, body)) =
                        (&mut Arc::make_mut(&mut batch)[part.start], &held[part.start]);
                    let cause = chain(cause.as_ref());
                    error!(job = %culprit.envelope.id, kind = %culprit.envelope.kind, cause, "the outcome cannot be recorded");
                    *culprit = unrecordable(culprit, body.clone(), executor.policy(), &cause);
                    parts.push(part);
                }
                // One row among many: halve until it stands alone.
                Err(StoreError::Data(_)) => {
                    let middle = part.start + rows / 2;
                    parts.extend([middle..part.end, part.start..middle]);
                }
            }
        }
        fenced
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Finished>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts back what would make the batch too many bytes.
fn cut(batch: &mut Vec<Finished>, queue: &mut Vec<Finished>) {
    let mut bytes = 0;
    let fits = batch.iter().take_while(|finished| {
        bytes += size(&finished.completion);
        bytes <= MAX_BYTES
    });
    // One alone always fits: it is bounded by itself.
    let fits = fits.count().max(1);
    if fits < batch.len() {
        queue.splice(0..0, batch.drain(fits..));
    }
}

fn weight(finished: &Finished) -> usize {
    1 + size(&finished.completion) / A_ROW
}

fn size(completion: &Completion) -> usize {
    let after = completion.after();
    let follow_ups: usize = after.follow_ups.iter().map(|job| job.body.len()).sum();
    completion.body.as_ref().map_or(0, Bytes::len) + after.output.map_or(0, <[u8]>::len) + follow_ups
}

type Settlement = (Arc<Executor>, RunKey);

/// Sorts by id and keeps one for each. Others of the same run are settled with it; others of another run wait for the
/// next batch, where they meet the fence by themselves.
fn one_for_each_id(mut batch: Vec<Finished>, carried: &mut Vec<Finished>) -> (Vec<Finished>, Vec<Settlement>) {
    // By their keys alone: a completion is too large to be moved about.
    batch.sort_by_cached_key(|finished| finished.completion.envelope.id);
    let repeats = |pair: &[Finished]| pair[0].completion.envelope.id == pair[1].completion.envelope.id;
    if !batch.windows(2).any(repeats) {
        return (batch, Vec::new());
    }
    let mut kept: Vec<Finished> = Vec::with_capacity(batch.len());
    let mut copies = Vec::new();
    for finished in batch {
        let envelope = &finished.completion.envelope;
        match kept.last().map(|last| &last.completion.envelope) {
            Some(last) if last.id == envelope.id && last.run == envelope.run => {
                copies.push((finished.executor, finished.key));
            }
            Some(last) if last.id == envelope.id => carried.push(finished),
            _ => kept.push(finished),
        }
    }
    (kept, copies)
}

/// What is recorded instead of an outcome that the database refuses: a failed attempt.
fn unrecordable(culprit: &Completion, body: Bytes, policy: &Policy, cause: &str) -> Completion {
    let failure = Failure::new(UNRECORDABLE, format!("the database refuses the outcome: {cause}"));
    let mut envelope = culprit.envelope.clone();
    let was = culprit.after();
    if was.reason == Some(UNRECORDABLE) {
        // It is not the outcome, so it is what came with the message: keep its identity and its bytes.
        envelope.source = None;
        envelope.trace = None;
        envelope.root = None;
        return Completion { envelope, body: Some(body), outcome: Outcome::Dead { failure } };
    }
    let outcome = match retry::decide(policy, envelope.attempt.saturating_add(1), Disposition::Retry) {
        Verdict::Again(delay) | Verdict::Later(delay) => {
            Outcome::Retry { delay, failure, suspicion: envelope.suspicion }
        }
        Verdict::Dead => Outcome::Dead { failure },
    };
    Completion { envelope, body: Some(body), outcome }
}

const UNRECORDABLE: &str = "unrecordable";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_waits_long_for_the_database_is_passed_over_until_it_is_answered() {
        let lane = Lane::default();
        let asked = Instant::now();
        *lane.asked() = Some(asked);
        assert_eq!(lane.look(asked + SLOW / 2), Some(asked));
        assert!(!lane.has_enough());
        assert_eq!(lane.look(asked + SLOW), Some(asked));
        assert!(lane.has_enough());
        lane.answered();
        assert!(!lane.has_enough());
        assert_eq!(lane.look(asked + SLOW), None);
    }
}
