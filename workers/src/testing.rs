//! Tests a worker with no queue.

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    Context, Job, Worker,
    context::{Control, Emission},
};

/// What came of one attempt.
#[derive(Debug)]
pub struct Performed<O, E> {
    /// What the worker returned.
    pub result: Result<O, E>,
    /// The follow-up jobs that it asked for, in order. They count only if `result` is `Ok`.
    pub emissions: Vec<Emission>,
    /// What it last said of its progress, as (done, total).
    pub progress: Option<(u64, u64)>,
}

/// Performs the first attempt of a job.
pub async fn perform<W: Worker>(worker: &W, message: W::Message) -> Performed<W::Output, W::Error> {
    perform_attempt(worker, message, 1).await
}

/// Performs the attempt with this number, counted from 1.
pub async fn perform_attempt<W: Worker>(
    worker: &W,
    message: W::Message,
    attempt: u16,
) -> Performed<W::Output, W::Error> {
    let control = Arc::new(Control::default());
    let mut cx = Context::new(attempt, Instant::now() + worker.policy().timeout, control.clone());
    let job = Job {
        id: Uuid::from_u128(0x0190_0000_0000_8000_8000_0000_0000_0001),
        tenant: "default".into(),
        created_at: Timestamp::now(),
        message,
    };
    let result = worker.perform(job, &mut cx).await;
    Performed { result, emissions: cx.into_emissions(), progress: control.progress() }
}
