//! The contract of a worker.

use std::{borrow::Cow, convert::Infallible, error::Error, future::Future, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;
use warren_messages::{Invalid, Message};

use crate::{Context, Policy};

/// Performs one kind of job.
///
/// What it returns and what it emits through [`Context`] is recorded exactly once, in one transaction. What it does to
/// the world outside happens at least once, for a delivery can come twice: hand [`Job::id`] on as the key that lets the
/// other side know a repeat.
pub trait Worker: Send + Sync + 'static {
    /// What it is told.
    type Message: Message;
    /// What it returns: recorded as the job's output, at most 1 MiB encoded.
    type Output: Serialize + Send;
    /// How it fails.
    type Error: WorkError;

    /// Does the job. Implement it as a plain `async fn`.
    ///
    /// Dropped at an await point when its time is up. A panic fails the attempt and harms nothing else.
    fn perform(
        &self,
        job: Job<Self::Message>,
        cx: &mut Context,
    ) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send;

    /// What this installation forbids in a message that keeps the rules of its kind, such as a target within its own
    /// network. Asked when a job comes in, so that its sender is told; it must be quick and ask nobody.
    ///
    /// # Errors
    ///
    /// Every problem at once.
    fn check(&self, message: &Self::Message) -> Result<(), Invalid> {
        _ = message;
        Ok(())
    }

    /// How many at once, how long, how often.
    fn policy(&self) -> Policy {
        Policy::default()
    }
}

/// One job, as its worker sees it.
#[derive(Debug, Clone)]
pub struct Job<M> {
    /// The same over all attempts, and over a replay.
    pub id: Uuid,
    /// The tenant that it belongs to.
    pub tenant: Cow<'static, str>,
    /// When it was accepted, to the precision of its source: milliseconds, or seconds for a keyed one.
    pub created_at: Timestamp,
    /// What is to be done.
    pub message: M,
}

/// A failure that knows what is to become of its job.
///
/// There is no default on purpose: match exhaustively, so that a new failure must choose its fate.
pub trait WorkError: Error + Send + Sync + 'static {
    /// What is to become of the job.
    fn disposition(&self) -> Disposition;

    /// A stable name for this failure, lower case with underscores. Dead letters are grouped by it.
    fn code(&self) -> &'static str {
        "failed"
    }
}

/// What is to become of a job that was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try again after the policy's backoff. Counts as a failed attempt.
    Retry,
    /// Try again after the policy's backoff, but not sooner than after this long. Counts as a failed attempt.
    RetryAfter(Duration),
    /// Not now: try again after this long. Costs no attempt, and is not a failure.
    Snooze(Duration),
    /// No attempt will ever succeed.
    DeadLetter,
}

/// For a worker that cannot fail.
impl WorkError for Infallible {
    fn disposition(&self) -> Disposition {
        match *self {}
    }
}
