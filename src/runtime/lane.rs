//! Group commit: what is finished is recorded in batches, and only then settled.
//!
//! Lanes share nothing but where what is finished gathers, so that one commit does not wait for another.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tracing::{error, warn};
use warren_workers::{Disposition, Policy};

use super::{
    executor::Executor,
    gate::Gate,
    gathering::{Gathering, Gathers},
    inflight::RunKey,
    intake::note_conflicts,
};
use crate::{
    crash_point,
    job::{Completion, Failure, Outcome, chain},
    retry::{self, Reconnect, Verdict},
    store::{Record, Store, StoreError},
};

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

impl Gathers for Finished {
    fn bytes(&self) -> usize {
        let after = self.completion.after();
        let follow_ups: usize = after.follow_ups.iter().map(|job| job.body.len()).sum();
        self.completion.body.as_ref().map_or(0, Bytes::len) + after.output.map_or(0, <[u8]>::len) + follow_ups
    }
}

/// One lane: a task that records what has gathered.
pub(super) struct Lane {
    pub(super) number: usize,
    pub(super) gathering: Arc<Gathering<Finished>>,
}

impl Lane {
    /// Records for as long as the process runs.
    pub(super) async fn run(self, mut record: Box<dyn Record>, gate: Arc<Gate>, store: Arc<dyn Store>) {
        // What another of the same batch kept out of it, to be looked at first.
        let mut carried = Vec::new();
        loop {
            let batch = self.gathering.take(self.number, std::mem::take(&mut carried)).await;
            let Batch { completions, held, copies } = Batch::of(batch, &mut carried);
            crash_point!("worker: run, not recorded");
            let fenced = self.record_surely(record.as_mut(), completions, &held, &gate).await;
            crash_point!("worker: recorded, not settled");
            if fenced > 0 {
                metrics::counter!(crate::telemetry::FENCED).increment(fenced as u64);
            }
            let conflicts = Executor::settle(held.into_iter().map(|(executor, key, _)| (executor, key)).chain(copies));
            crash_point!("worker: settled");
            if !conflicts.is_empty() {
                self.gathering.held_up(self.number);
                note_conflicts(store.as_ref(), &conflicts).await;
            }
        }
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
            self.gathering.asked(self.number, asked);
            let recorded = record.record(&batch, part.clone()).await;
            self.gathering.answered(self.number);
            if recorded.is_err() {
                // It pauses, or goes on with one part after the other.
                self.gathering.held_up(self.number);
            }
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
}

type Settlement = (Arc<Executor>, RunKey);

/// What one lane records at once, and settles then.
struct Batch {
    /// Sorted by id, one for each.
    completions: Vec<Completion>,
    /// What belongs to each of them.
    held: Vec<(Arc<Executor>, RunKey, Bytes)>,
    /// Others of the same runs, which are settled with them.
    copies: Vec<Settlement>,
}

impl Batch {
    /// Others of another run wait for the next batch, where they meet the fence by themselves.
    fn of(batch: Vec<Finished>, carried: &mut Vec<Finished>) -> Self {
        let mut order: Vec<_> =
            batch.iter().enumerate().map(|(place, finished)| (finished.completion.envelope.id, place)).collect();
        order.sort_unstable();
        // Each is moved straight to where it belongs: with many kinds they come in no order, and are too large to be swapped.
        let mut places: Vec<_> = batch.into_iter().map(Some).collect();
        let mut completions: Vec<Completion> = Vec::with_capacity(places.len());
        let (mut held, mut copies) = (Vec::with_capacity(places.len()), Vec::new());
        for finished in order.into_iter().filter_map(|(_, place)| places[place].take()) {
            let envelope = &finished.completion.envelope;
            match completions.last().map(|last| &last.envelope) {
                Some(last) if last.id == envelope.id && last.run == envelope.run => {
                    copies.push((finished.executor, finished.key));
                }
                Some(last) if last.id == envelope.id => carried.push(finished),
                _ => {
                    completions.push(finished.completion);
                    held.push((finished.executor, finished.key, finished.body));
                }
            }
        }
        Self { completions, held, copies }
    }
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
    use std::{net::TcpListener, sync::atomic::AtomicUsize};

    use tokio::{runtime::Handle, sync::Notify, time::timeout};
    use uuid::Uuid;
    use warren_workers::probe::Probe;

    use super::*;
    use crate::{
        id::{Minter, Secret},
        job::Envelope,
        runtime::{executor::Shared, registry::Registry},
        sqlite::{Database, Use},
        store::{postgres::Postgres, sqlite::Sqlite},
    };

    fn executor(gathering: Arc<Gathering<Finished>>, gate: Arc<Gate>) -> Arc<Executor> {
        let registry = Registry::default().register(Probe).expect("a worker");
        let (kind, registered) = registry.iter().next().expect("a kind");
        let secret = |digit: &str| digit.repeat(64).parse::<Secret>().expect("64 digits");
        let shared = Shared {
            jobs: Handle::current(),
            drivers: 1,
            threads: 1,
            lost: Arc::new(AtomicUsize::new(0)),
            finished: gathering,
            gate,
            minter: Arc::new(Minter::new(&secret("1"), &[secret("2")]).expect("random start")),
            children: None,
            tombstones: Arc::default(),
            unknown_version: Duration::ZERO,
            settled: Notify::new(),
        };
        Arc::new(Executor::new(kind.clone(), registered, Arc::new(shared)))
    }

    fn finish(executor: &Arc<Executor>, gathering: &Gathering<Finished>, id: Uuid) {
        let envelope = Envelope::new(id, executor.kind().clone(), 1, 0);
        let key = (id, envelope.run);
        let outcome = Outcome::Succeeded { output: Vec::new(), follow_ups: Vec::new() };
        let completion = Completion { envelope: envelope.into(), body: None, outcome };
        gathering.push(Finished { completion, body: Bytes::new(), key, executor: executor.clone() });
    }

    /// Waits for something that comes by itself.
    async fn until<T>(what: impl AsyncFn() -> Option<T>) -> T {
        let comes = async {
            loop {
                match what().await {
                    Some(come) => return come,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        timeout(Duration::from_secs(20), comes).await.expect("it comes")
    }

    #[tokio::test]
    async fn a_batch_is_in_the_order_of_its_ids_with_one_run_of_each_and_others_are_settled_with_it_or_wait() {
        let gathering = Arc::new(Gathering::new(1));
        let executor = executor(gathering.clone(), Arc::default());
        let runs = [(3, 1), (1, 2), (2, 1), (1, 2), (1, 3), (3, 1)].map(|(id, run)| (Uuid::from_u128(id), run));
        let finished = runs.map(|key @ (id, run)| {
            let envelope = Envelope { run, ..Envelope::new(id, executor.kind().clone(), 1, 0) }.into();
            let outcome = Outcome::Succeeded { output: Vec::new(), follow_ups: Vec::new() };
            let completion = Completion { envelope, body: None, outcome };
            Finished { completion, body: Bytes::copy_from_slice(id.as_bytes()), key, executor: executor.clone() }
        });
        let mut carried = Vec::new();
        let Batch { completions, held, copies } = Batch::of(finished.into(), &mut carried);
        let key = |completion: &Completion| (completion.envelope.id, completion.envelope.run);
        let [first, second, third] = [1, 2, 3].map(Uuid::from_u128);
        assert_eq!(completions.iter().map(key).collect::<Vec<_>>(), [(first, 2), (second, 1), (third, 1)]);
        assert!(held.iter().map(|(_, key, _)| *key).eq(completions.iter().map(key)), "each beside its own");
        assert!(held.iter().all(|(_, (id, _), body)| body[..] == id.as_bytes()[..]));
        assert_eq!(copies.into_iter().map(|(_, key)| key).collect::<Vec<_>>(), [(first, 2), (third, 1)]);
        assert_eq!(carried.iter().map(|finished| finished.key).collect::<Vec<_>>(), [(first, 3)]);
    }

    #[tokio::test]
    async fn a_lane_that_does_not_reach_its_database_keeps_no_other_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = Database::open(folder.path(), Use::Owner).await.expect("a database");
        let store: Arc<dyn Store> = Arc::new(Sqlite::new(Arc::new(database)));
        store.migrate().await.expect("a schema");
        // Nobody listens there any more.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let away = Postgres::new(format!("postgres://nobody@127.0.0.1:{port}/none").parse().expect("a URL"));
        let (gathering, gate) = (Arc::new(Gathering::new(2)), Arc::<Gate>::default());
        let executor = executor(gathering.clone(), gate.clone());
        let begin = |number, record: &dyn Store| {
            let lane = Lane { number, gathering: gathering.clone() };
            tokio::spawn(lane.run(record.lane(), gate.clone(), store.clone()))
        };
        let [held, next] = [1, 2].map(Uuid::from_u128);
        finish(&executor, &gathering, held);
        begin(0, &away);
        until(async || gate.missing_for()).await;
        finish(&executor, &gathering, next);
        begin(1, store.as_ref());
        let known = until(async || store.lookup(&[held, next]).await.expect("it answers").pop()).await;
        assert_eq!(known.id, next);
    }
}
