//! Performs `event.received`.

use std::convert::Infallible;

use warren_messages::event::Received;

use crate::{Context, Job, Worker};

/// Keeps an event that no route took: the event is the job's output, for as long as outputs of its kind are kept.
#[derive(Debug, Default)]
pub struct Keep;

impl Worker for Keep {
    type Message = Received;
    type Output = Received;
    type Error = Infallible;

    async fn perform(&self, job: Job<Received>, _cx: &mut Context) -> Result<Received, Infallible> {
        Ok(job.message)
    }
}
