//! The broker port: jobs that wait, and the way in and out of the waiting line.
//!
//! # The contract
//!
//! - **Publish**: [`Publish::publish`] and [`Publish::publish_all`] answer `Ok` only for a job that is durable. An error that
//!   says "not accepted" is true; what is not known is [`PublishError::OutcomeUnknown`], and a repeat under the same id is
//!   harmless.
//! - **Deliver**: at least once, to one subscription at a time, in bursts. That a job was given out is durable before the
//!   sink sees it: after a crash it comes again with [`Delivery::given_before`] raised.
//! - **Settle**: in any order. A receipt of a connection that is gone is dropped: its job comes again.
//! - A subscription outlives connections: it rebuilds itself until it is closed.
//!
//! The adapters know no role. They are run by one conformance suite, `tests/it/conformance/broker.rs`.

pub mod embedded;
mod publishing;
pub mod rabbitmq;
mod way_in;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

pub use self::publishing::{Count, Publishing, PublishingAll, Verdict};
use crate::job::{Envelope, Kind};

/// A job on its way to the broker.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Everything but the body.
    pub envelope: Envelope,
    /// Encoded, at most 1 MiB.
    pub body: Vec<u8>,
}

/// The way in. To be published on within a tokio runtime.
pub trait Publish: Send + Sync {
    /// Resolves when each job is durable, or with what is known otherwise, within [`CONFIRM_TIMEOUT`]. Answers in their
    /// order. None keeps another from being published.
    fn publish_all(&self, jobs: Vec<Outgoing>) -> PublishingAll;

    /// The same for a single job.
    fn publish(&self, job: Outgoing) -> Publishing;

    /// Whether a publish would be taken now; if not, why.
    fn health(&self) -> Result<(), String>;

    /// Whether the broker takes nothing from anyone for now.
    fn is_blocked(&self) -> bool {
        false
    }
}

/// How long a confirm may take before it counts as lost.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a job was not published, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no broker to give it to. Not accepted.
    #[error("the broker cannot be reached")]
    Unavailable,
    /// The broker takes nothing from anyone for now: it is short of memory or disk. Not accepted.
    #[error("the broker has blocked publishing: {0}")]
    Blocked(String),
    /// The broker's topology is not as it must be, so a job could vanish. Not accepted.
    #[error("the broker's topology is broken: {0}")]
    Broken(String),
    /// More is waiting to be published than there is room for. Not accepted.
    #[error("too much is waiting to be published")]
    Busy,
    /// The broker refused it: the queue is full. Not accepted.
    #[error("the broker refused the job: the queue of its kind is full")]
    Refused,
    /// Earlier jobs of its kind are not confirmed: their queue has no majority, or hangs. Not accepted.
    #[error("the broker confirms no jobs of this kind for now")]
    Stuck,
    /// The disk under the embedded broker is full. Not accepted.
    #[error("the disk is full")]
    NoRoom,
    /// Sent, but the confirm did not come. It may run.
    #[error("the broker did not confirm the job; it may have been accepted")]
    OutcomeUnknown,
}

impl PublishError {
    /// A stable name, for HTTP and for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable => "broker_unavailable",
            Self::Blocked(_) => "broker_blocked",
            Self::Broken(_) => "broker_topology",
            Self::Busy => "busy",
            Self::Refused => "queue_full",
            Self::Stuck => "queue_stuck",
            Self::NoRoom => "disk_full",
            Self::OutcomeUnknown => "outcome_unknown",
        }
    }
}

/// One job given out.
#[derive(Debug)]
pub struct Delivery {
    /// What it says of itself, or why that cannot be believed.
    pub envelope: Result<Box<Envelope>, BadEnvelope>,
    /// Its body, unread.
    pub body: Bytes,
    /// How often it had been given out before.
    pub given_before: u32,
    /// How to settle it.
    pub receipt: Receipt,
}

/// A delivery whose properties are no job's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadEnvelope {
    /// The id of the dead letter that it becomes: made from the message, since it has none to be believed.
    pub id: Uuid,
    /// The kind of the queue that it was in, or that it was published for.
    pub kind: Kind,
    /// What is wrong with it.
    pub problem: String,
}

/// Names one delivery towards the subscription that gave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Which life of the subscription's channel. Those of an older life are dropped.
    pub epoch: u32,
    /// Which delivery of that life.
    pub tag: u64,
}

/// Takes what a subscription gives out. Must not block.
pub trait Sink: Send + Sync {
    /// A burst, never empty, in the broker's order.
    fn deliver(&self, burst: Vec<Delivery>);
}

/// The way out.
pub trait Subscribe: Send + Sync {
    /// Begins to give out jobs of one kind, at most `prefetch` at a time that are not settled. Returns at once; a
    /// broker that is away is waited for.
    fn subscribe(&self, kind: &Kind, prefetch: u16, sink: Arc<dyn Sink>) -> Arc<dyn Subscription>;

    /// Whether there is a broker to give anything out; if not, why.
    fn health(&self) -> Result<(), String>;
}

/// What a broker could not deliver, for whoever keeps it.
pub trait Leftovers: Send + Sync {
    /// Begins to give out what the broker has given up after too many deliveries.
    fn given_up(&self, sink: Arc<dyn Sink>) -> Arc<dyn Subscription>;

    /// Begins to give out what no queue was bound for.
    fn unrouted(&self, sink: Arc<dyn Sink>) -> Arc<dyn Subscription>;

    /// Whether there is a broker to give anything out; if not, why.
    fn health(&self) -> Result<(), String>;
}

/// What can be seen of the waiting lines.
#[async_trait]
pub trait Observe: Send + Sync {
    /// How many jobs of each kind wait to be given out.
    async fn depths(&self, kinds: &[Kind]) -> Result<Vec<u64>, String>;

    /// Whether the lines are bounded; if not, or if that cannot be told, a sentence for an operator.
    async fn limits(&self, kinds: &[Kind]) -> Result<(), String>;
}

/// One line out of the broker.
#[async_trait]
pub trait Subscription: Send + Sync + fmt::Debug {
    /// These are recorded: they will not come again. Returns at once.
    fn settle(&self, receipts: &[Receipt]);

    /// These were not started: they are to go to someone else. Counts as having been given out. Returns at once.
    fn give_back(&self, receipts: &[Receipt]);

    /// Changes how many may be out at a time.
    fn set_prefetch(&self, prefetch: u16);

    /// Nothing more is given out once this has returned; what is out can still be settled.
    async fn stop(&self);

    /// Gives out again after a stop. Returns at once.
    fn resume(&self);

    /// Ends it, after everything settled so far has reached the broker. What is out comes again, elsewhere.
    async fn close(&self);
}
