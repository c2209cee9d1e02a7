//! The vocabulary of jobs: what travels beside a body, what is recorded of an attempt, and the states in between.
//!
//! Pure: no I/O, no clock. Everything above speaks in these types, and only the adapters know their columns and headers.

use std::{
    borrow::{Borrow, Cow},
    fmt,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

/// What is to be done: `webhook.deliver`. Also the routing key, and the end of the queue's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Kind(Arc<str>);

/// Who a job belongs to.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Tenant(Cow<'static, str>);

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {what} is 1 to {max} of the characters {allowed}")]
pub struct BadName {
    what: &'static str,
    max: usize,
    allowed: &'static str,
}

/// So that one is found by its name.
impl Borrow<str> for Kind {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Kind {
    /// Checks the rule: parts of `a-z 0-9 _ -` joined by single dots, 100 characters in all.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
        };
        if name.len() > 100 || !name.split('.').all(part) {
            return Err(BadName { what: "kind", max: 100, allowed: "a-z 0-9 _ - in parts joined by single dots" });
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, for whoever keeps it: nothing is copied.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl Tenant {
    /// The tenant of an installation that knows only one.
    pub const DEFAULT: Self = Self(Cow::Borrowed("default"));

    /// Checks the rule.
    pub fn new(name: &str) -> Result<Self, BadName> {
        if name == "default" {
            return Ok(Self::DEFAULT);
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if !(1..=64).contains(&name.len()) || !name.bytes().all(allowed) {
            return Err(BadName { what: "tenant", max: 64, allowed: "a-z 0-9 _ -" });
        }
        Ok(Self(Cow::Owned(name.to_owned())))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, out of its type.
    pub fn into_name(self) -> Cow<'static, str> {
        self.0
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Microseconds since the epoch, UTC. The one form of an instant below the edges of the program.
pub type Micros = i64;

/// Everything about a job that is not its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Which job.
    pub id: Uuid,
    /// What is to be done.
    pub kind: Kind,
    /// The layout of the body.
    pub version: u16,
    /// Grows by one at every transition that leads to another publish, from 1. The fence compares it.
    pub run: u32,
    /// How many attempts have failed so far.
    pub attempt: u16,
    /// Who it belongs to.
    pub tenant: Tenant,
    /// Who published it, if it said so.
    pub source: Option<Arc<str>>,
    /// The job at the beginning of the chain of follow-ups; `None` when that is itself.
    pub root: Option<Uuid>,
    /// Whether the id was made from a key.
    pub key: Key,
    /// Whether it is under suspicion of killing the process that runs it.
    pub suspicion: Suspicion,
    /// When it was accepted.
    pub created_at: Micros,
    /// W3C trace context, handed through.
    pub trace: Option<Box<Trace>>,
}

impl Envelope {
    /// The first run of a job, with everything else at its default.
    pub fn new(id: Uuid, kind: Kind, version: u16, created_at: Micros) -> Self {
        Self {
            id,
            kind,
            version,
            run: 1,
            attempt: 0,
            tenant: Tenant::DEFAULT,
            source: None,
            root: None,
            key: Key::None,
            suspicion: Suspicion::None,
            created_at,
            trace: None,
        }
    }
}

/// Whether a job is under suspicion of killing the process that runs it. One that is runs alone, in a process of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Suspicion {
    /// No.
    #[default]
    None,
    /// It has come back from the broker too often.
    Suspected,
    /// Its last run killed the process that ran it.
    Crashed,
}

impl Suspicion {
    /// As it stands in both stores and in headers.
    pub const fn as_number(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Suspected => 1,
            Self::Crashed => 2,
        }
    }

    /// Reads what [`Suspicion::as_number`] wrote; what nobody wrote is a suspicion too.
    pub const fn from_number(number: i64) -> Self {
        match number {
            0 => Self::None,
            2 => Self::Crashed,
            _ => Self::Suspected,
        }
    }
}

/// How an id came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// At random: the id is met once.
    None,
    /// From a key: the same id may be published again and again.
    Keyed,
    /// From an explicit idempotency key, which promises the same body too: this is the body's digest.
    Digest([u8; 32]),
}

impl Key {
    /// Whether the id was made from a key.
    pub fn is_keyed(self) -> bool {
        self != Self::None
    }

    /// The digest of the body that the key stands for.
    pub fn digest(&self) -> Option<&[u8; 32]> {
        match self {
            Self::Digest(digest) => Some(digest),
            Self::None | Self::Keyed => None,
        }
    }
}

/// W3C trace context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// `traceparent`.
    pub parent: String,
    /// `tracestate`.
    pub state: Option<String>,
}

/// Where a job that has a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Due later for the first time in this life.
    Scheduled,
    /// Given to the broker.
    Queued,
    /// Known to run.
    Running,
    /// Has failed or was snoozed; due again.
    Retrying,
    /// Done.
    Succeeded,
    /// Given up.
    Dead,
    /// Called off.
    Cancelled,
    /// A dead letter that someone decided to drop.
    Discarded,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Queued,
        Self::Running,
        Self::Retrying,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
        Self::Discarded,
    ];

    /// As it stands in both stores and in HTTP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Discarded => "discarded",
        }
    }

    /// Reads what [`State::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether nothing but an operator can change it any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled | Self::Discarded)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What came of one run of a job, to be recorded.
#[derive(Debug, Clone)]
pub struct Completion {
    /// As it was delivered: its `run` and `attempt` are those of this run. Boxed, since it goes from hand to hand.
    pub envelope: Box<Envelope>,
    /// The body, where the outcome or the policy keeps it.
    pub body: Option<Bytes>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How one run ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Done, with its encoded output and the follow-up jobs it asked for.
    Succeeded {
        /// Encoded as a body is; empty where it is not kept at all.
        output: Vec<u8>,
        /// Come to be in the same transaction.
        follow_ups: Vec<NewJob>,
    },
    /// To be tried again, after a failure that counts.
    Retry {
        /// From the database's now.
        delay: Duration,
        /// What went wrong.
        failure: Failure,
        /// What it is now suspected of.
        suspicion: Suspicion,
    },
    /// To wait until something has changed, each time longer, and to be given up after too long.
    Parked {
        /// Why, as a stable code.
        reason: Cow<'static, str>,
        /// The same, for people.
        text: String,
        /// How long.
        parking: Parking,
        /// What it is now suspected of.
        suspicion: Suspicion,
    },
    /// Called off.
    Cancelled {
        /// Whether it had run by then.
        ran: bool,
    },
    /// To be tried again, without a failure.
    Snooze {
        /// From the database's now.
        delay: Duration,
        /// Why, as a stable code.
        reason: Cow<'static, str>,
    },
    /// Given up.
    Dead {
        /// What went wrong.
        failure: Failure,
    },
}

/// How long a job is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parking {
    /// The first time.
    pub first: Duration,
    /// At most: it is parked for as long again as it has been parked so far.
    pub longest: Duration,
    /// For how long in all, before it is given up.
    pub limit: Duration,
}

/// The reason of a job that was called off before it ran, and of one that had run by then.
pub const CANCELLED: [&str; 2] = ["cancelled_before_start", "cancelled_after_start"];

/// What a completion makes of its job's row.
#[derive(Debug, Clone, Copy)]
pub struct After<'a> {
    /// Where the job stands then.
    pub state: State,
    /// Its run: one higher where this leads to another publish.
    pub run: u32,
    /// How many attempts have failed then.
    pub attempt: u16,
    /// When it is due again, from the database's now.
    pub delay: Option<Duration>,
    /// What it leaves behind.
    pub output: Option<&'a [u8]>,
    /// The failure that counts.
    pub failure: Option<&'a Failure>,
    /// Why it is not simply done.
    pub reason: Option<&'a str>,
    /// What it asked for.
    pub follow_ups: &'a [NewJob],
    /// What it is suspected of.
    pub suspicion: Suspicion,
    /// How long it is parked, which only the row can tell.
    pub parking: Option<Parking>,
}

impl Completion {
    /// What this makes of the row.
    pub fn after(&self) -> After<'_> {
        let Envelope { run, attempt, .. } = *self.envelope;
        let plain = After {
            state: State::Succeeded,
            run,
            attempt,
            delay: None,
            output: None,
            failure: None,
            reason: None,
            follow_ups: &[],
            suspicion: Suspicion::None,
            parking: None,
        };
        match &self.outcome {
            Outcome::Succeeded { output, follow_ups } => {
                After { output: Some(output.as_slice()).filter(|output| !output.is_empty()), follow_ups, ..plain }
            }
            Outcome::Retry { delay, failure, suspicion } => After {
                state: State::Retrying,
                run: run + 1,
                attempt: attempt.saturating_add(1),
                delay: Some(*delay),
                failure: Some(failure),
                reason: Some(&failure.code),
                suspicion: *suspicion,
                ..plain
            },
            Outcome::Parked { reason, parking, suspicion, .. } => After {
                state: State::Retrying,
                run: run + 1,
                delay: Some(parking.first),
                reason: Some(reason),
                suspicion: *suspicion,
                parking: Some(*parking),
                ..plain
            },
            Outcome::Cancelled { ran } => {
                After { state: State::Cancelled, reason: Some(CANCELLED[usize::from(*ran)]), ..plain }
            }
            Outcome::Snooze { delay, reason } => {
                // What did not run, or not to an end, neither clears a suspicion nor raises one.
                let suspicion = self.envelope.suspicion;
                After {
                    state: State::Retrying,
                    run: run + 1,
                    delay: Some(*delay),
                    reason: Some(reason),
                    suspicion,
                    ..plain
                }
            }
            Outcome::Dead { failure } => After {
                state: State::Dead,
                attempt: attempt.saturating_add(1),
                failure: Some(failure),
                reason: Some(&failure.code),
                ..plain
            },
        }
    }

    /// The same, called off, if its id is among these (which are sorted).
    pub(crate) fn called_off(&self, met: &[Uuid]) -> Option<Self> {
        met.binary_search(&self.envelope.id).ok()?;
        let ran = !matches!(self.outcome, Outcome::Cancelled { ran: false });
        Some(Self { envelope: self.envelope.clone(), body: None, outcome: Outcome::Cancelled { ran } })
    }

    /// Whether this does nothing but store a success, of which nobody needs to know whether it won the fence.
    pub fn is_plain_success(&self) -> bool {
        // The loser of two with a digest may have promised another body, which must be noted.
        matches!(&self.outcome, Outcome::Succeeded { follow_ups, .. } if follow_ups.is_empty())
            && self.envelope.key.digest().is_none()
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A stable code: a dead letter's reason.
    pub code: Cow<'static, str>,
    /// For people: the whole chain of causes, at most [`Failure::MAX_TEXT`] bytes.
    pub text: String,
}

impl Failure {
    /// How long the text may be, in bytes.
    pub const MAX_TEXT: usize = 8 * 1024;

    /// Cuts the text and takes out what Postgres cannot store in text.
    pub fn new(code: impl Into<Cow<'static, str>>, text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        if text.len() > Self::MAX_TEXT {
            const MARK: &str = " … (cut)";
            let end = text.floor_char_boundary(Self::MAX_TEXT - MARK.len());
            text.truncate(end);
            text.push_str(MARK);
        }
        if text.contains('\0') {
            text = text.replace('\0', "\u{fffd}");
        }
        Self { code: code.into(), text }
    }

    /// From an error and all its causes.
    pub fn from_error(code: impl Into<Cow<'static, str>>, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(code, chain(error))
    }
}

/// An error and all its causes, on one line. For whoever logs or records an error; an error's own text never repeats
/// its cause.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries do repeat their cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A job that begins its life in the store and not in the broker: delayed, or a follow-up.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its first run.
    pub envelope: Envelope,
    /// Encoded.
    pub body: Vec<u8>,
    /// When it is due.
    pub due: Due,
    /// The job that asked for it.
    pub parent: Option<Uuid>,
}

/// When a job is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// So long after the database's now.
    In(Duration),
    /// At an instant of its own.
    At(Micros),
}
