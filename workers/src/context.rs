//! What a running job may ask of the world around it.

use std::{
    borrow::Cow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use warren_messages::{EncodeError, Invalid, Message, codec};

/// What a running job may ask of the world around it.
#[derive(Debug)]
pub struct Context {
    attempt: u16,
    deadline: Instant,
    control: Arc<Control>,
    emissions: Vec<Emission>,
}

/// The line between a running job and whoever runs it.
#[derive(Debug, Default)]
pub struct Control {
    /// Made when someone first asks for it: most jobs are over before anyone does.
    token: OnceLock<CancellationToken>,
    done: AtomicU64,
    total: AtomicU64,
}

/// A follow-up job that a job asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// Its kind.
    pub kind: Cow<'static, str>,
    /// The layout of its body.
    pub version: u16,
    /// Its encoded body.
    pub body: Vec<u8>,
    /// When it is due; `None` is at once.
    pub at: Option<Timestamp>,
    /// The key that makes it one job, however often it is emitted.
    pub dedup_key: Option<String>,
}

/// Why a message was not emitted.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// Its own rules refuse it.
    #[error("the message is not valid")]
    Invalid(#[source] Invalid),
    /// It has no bytes.
    #[error("the message cannot be encoded")]
    Encode(#[source] EncodeError),
}

impl Context {
    /// For whoever runs jobs: a context of the attempt with this number, counted from 1.
    pub fn new(attempt: u16, deadline: Instant, control: Arc<Control>) -> Self {
        Self { attempt, deadline, control, emissions: Vec::new() }
    }

    /// Which attempt this is, from 1. A snooze does not count.
    pub fn attempt(&self) -> u16 {
        self.attempt
    }

    /// How long is left of the policy's timeout.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Cancelled when the job should stop. One that does not listen is dropped at its next await point.
    pub fn cancellation(&self) -> &CancellationToken {
        self.control.token()
    }

    /// Asks for a follow-up job. It comes to be in the transaction that records this job's success, and only then.
    pub fn emit<M: Message>(&mut self, message: &M) -> Result<(), EmitError> {
        self.emit_due(message, None)
    }

    /// Asks for a follow-up job that is due at a given time.
    pub fn emit_at<M: Message>(&mut self, message: &M, at: Timestamp) -> Result<(), EmitError> {
        self.emit_due(message, Some(at))
    }

    fn emit_due<M: Message>(&mut self, message: &M, at: Option<Timestamp>) -> Result<(), EmitError> {
        message.validate().map_err(EmitError::Invalid)?;
        self.emissions.push(Emission {
            kind: M::KIND.into(),
            version: M::VERSION,
            body: codec::encode(message).map_err(EmitError::Encode)?,
            at,
            dedup_key: message.dedup_key(),
        });
        Ok(())
    }

    /// Says how far the job is: `done` of `total`, in whatever unit. Cheap; operators see the last value.
    pub fn progress(&self, done: u64, total: u64) {
        self.control.total.store(total, Relaxed);
        self.control.done.store(done, Relaxed);
    }

    /// For whoever runs jobs: what was emitted.
    pub fn into_emissions(self) -> Vec<Emission> {
        self.emissions
    }
}

impl Control {
    /// Cancelled when the job is to stop: its time is up, someone called it off, or the process must go.
    pub fn token(&self) -> &CancellationToken {
        self.token.get_or_init(CancellationToken::new)
    }

    /// Tells the job to stop.
    pub fn cancel(&self) {
        self.token().cancel();
    }

    /// What the job last said of its progress, as (done, total); `None` if it never did.
    pub fn progress(&self) -> Option<(u64, u64)> {
        let total = self.total.load(Relaxed);
        (total > 0).then(|| (self.done.load(Relaxed), total))
    }
}
