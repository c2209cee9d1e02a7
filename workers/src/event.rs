//! Performs `event.received`.

use std::{convert::Infallible, time::Duration};

use warren_messages::event::Received;

use crate::{Context, Job, Policy, Retention, Worker};

/// Keeps an event that no route took: the event is the job's output.
#[derive(Debug, Default)]
pub struct Keep;

impl Worker for Keep {
    type Message = Received;
    type Output = Received;
    type Error = Infallible;

    async fn perform(&self, job: Job<Received>, _cx: &mut Context) -> Result<Received, Infallible> {
        Ok(job.message)
    }

    /// Kept as long as its key is known.
    fn policy(&self) -> Policy {
        let retention = Retention { output: Duration::from_hours(24 * 30), ..Retention::default() };
        Policy { retention, ..Policy::default() }
    }
}
