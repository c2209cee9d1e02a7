//! From a delivery to a job that may run.
//!
//! A copy of a job that is in work is attached to it. A job that may have been done before is looked up before it runs:
//! one with a key, which may be an old one, and one that had been given out before, to a process that is gone.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tracing::warn;

use super::executor::{Executor, Ready};
use crate::{
    broker::{Delivery, Sink},
    job::chain,
    retry::Reconnect,
    store::{Store, StoreError},
};

/// How many jobs are looked up at once.
const LOOKUP: usize = 500;

/// One line's way into an executor.
pub(super) struct Intake {
    line: usize,
    executor: Arc<Executor>,
    lookups: Lookups,
}

impl Intake {
    pub(super) fn new(line: usize, executor: Arc<Executor>, lookups: Lookups) -> Self {
        Self { line, executor, lookups }
    }
}

impl Sink for Intake {
    fn deliver(&self, burst: Vec<Delivery>) {
        let tombstones = self.executor.tombstones();
        let is_new = |ready: &Ready| {
            ready.given_before == 0 && !ready.envelope.key.is_keyed() && !tombstones.contains(&ready.envelope.id)
        };
        let (mut new, mut known) = (Vec::with_capacity(burst.len()), Vec::new());
        for ready in burst.into_iter().filter_map(|delivery| self.executor.take_in(self.line, delivery)) {
            let jobs = if is_new(&ready) { &mut new } else { &mut known };
            jobs.push(ready);
        }
        self.executor.admit(new);
        self.lookups.look_up(known);
    }
}

/// Looks jobs up, together with their neighbours.
#[derive(Clone)]
pub(super) struct Lookups(mpsc::UnboundedSender<Ready>);

/// What waits to be looked up. What bounds it is the prefetch.
pub(super) type Waiting = mpsc::UnboundedReceiver<Ready>;

impl Lookups {
    pub(super) fn new() -> (Self, Waiting) {
        let (sender, waiting) = mpsc::unbounded_channel();
        (Self(sender), waiting)
    }

    /// These are looked up before they run.
    pub(super) fn look_up(&self, jobs: impl IntoIterator<Item = Ready>) {
        for ready in jobs {
            // The task behind it lives as long as the executor; at the very end its jobs come again elsewhere.
            _ = self.0.send(ready);
        }
    }
}

/// Looks up what waits for as long as the process runs.
pub(super) async fn look_up(executor: Arc<Executor>, store: Arc<dyn Store>, mut waiting: Waiting) {
    let mut batch = Vec::with_capacity(LOOKUP);
    while waiting.recv_many(&mut batch, LOOKUP).await > 0 {
        let ids: Vec<_> = batch.iter().map(|ready| ready.envelope.id).collect();
        let hinted: Vec<_> = ids.iter().copied().filter(|id| executor.tombstones().contains(id)).collect();
        let known = surely(|| store.lookup(&ids)).await;
        let called_off = if hinted.is_empty() { Vec::new() } else { surely(|| store.called_off(&hinted)).await };
        let is_over = |ready: &Ready| {
            let known = known.iter().find(|known| known.id == ready.envelope.id)?;
            // Another tenant's row is another job; the fence refuses it.
            let same = known.tenant == ready.envelope.tenant;
            let other_body =
                same && ready.envelope.key.digest().is_some() && ready.envelope.key.digest() != known.digest.as_ref();
            (known.state.is_terminal() || known.run > ready.envelope.run || other_body).then_some(other_body)
        };
        let mut conflicts = Vec::new();
        let (mut over, mut off) = (Vec::new(), Vec::new());
        let mut run = Vec::with_capacity(batch.len());
        for ready in batch.drain(..) {
            match is_over(&ready) {
                // Only the run that counts is called off: an older one leaves the tombstone to it.
                None if called_off.contains(&ready.envelope.id) => off.push(ready),
                None => run.push(ready),
                Some(other_body) => {
                    if other_body {
                        conflicts.push(ready.envelope.id);
                    }
                    over.push((executor.clone(), ready.key()));
                }
            }
        }
        executor.admit(run);
        executor.call_off(off);
        conflicts.extend(Executor::settle(over));
        note_conflicts(store.as_ref(), &conflicts).await;
    }
}

/// Asks the store until it answers.
async fn surely<'a, T>(ask: impl Fn() -> BoxFuture<'a, Result<T, StoreError>>) -> T {
    let mut pauses = Reconnect::new();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                let pause = pauses.pause();
                warn!(error = chain(&error), ?pause, "cannot look jobs up; they wait");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Notes that jobs were published again under their key with another body. The note is for people; a job does not wait
/// for it.
pub(super) async fn note_conflicts(store: &dyn Store, ids: &[uuid::Uuid]) {
    if !ids.is_empty()
        && let Err(error) = store.note_conflicts(ids).await
    {
        warn!(?ids, error = chain(&error), "could not note that jobs were published again with another body");
    }
}
