//! Performs `analytics.event`.

use std::convert::Infallible;

use warren_messages::analytics::Event;

use crate::{Context, Job, Worker};

/// Keeps what people did: the event is the job's output, for as long as outputs of its kind are kept.
#[derive(Debug, Default)]
pub struct Keep;

impl Worker for Keep {
    type Message = Event;
    type Output = Event;
    type Error = Infallible;

    async fn perform(&self, job: Job<Event>, _cx: &mut Context) -> Result<Event, Infallible> {
        Ok(job.message)
    }
}
