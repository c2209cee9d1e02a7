//! From what came of an attempt to what is recorded of it. Pure.

use std::{any::Any, time::Duration};

use bytes::Bytes;
use warren_messages::DecodeError;
use warren_workers::{Disposition, Policy, context::Emission};

use super::registry::Performed;
use crate::{
    foreign,
    id::{self, Minter},
    job::{Completion, Due, Envelope, Failure, Key, Kind, Micros, NewJob, Outcome, Parking, Suspicion},
    retry::{self, Verdict},
};

/// How long a job waits for a build that reads its version.
const UNKNOWN_VERSION: Parking =
    Parking { first: Duration::from_mins(3), longest: Duration::from_mins(3), limit: Duration::ZERO };

/// The code of an attempt that panicked.
pub(super) const PANICKED: &str = "panicked";

/// What a panic said.
pub(super) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "with something that is no text".into())
}

/// How an attempt ended.
pub(super) enum Ended {
    /// By itself.
    Performed(Performed),
    /// By a panic.
    Panicked(Box<dyn Any + Send>),
    /// Its time was up.
    TimedOut,
}

/// By what an attempt is judged.
pub(super) struct Rules<'a> {
    pub(super) policy: &'a Policy,
    pub(super) minter: &'a Minter,
    /// How long a job may wait for a build that reads its version.
    pub(super) unknown_version: Duration,
}

/// What is recorded of an attempt.
pub(super) fn completion(
    rules: &Rules<'_>,
    now: Micros,
    envelope: Box<Envelope>,
    body: Bytes,
    ended: Ended,
) -> Completion {
    let Rules { policy, minter, unknown_version } = *rules;
    let (disposition, failure) = match ended {
        Ended::Performed(Performed::Done { output, emissions }) => {
            let follow_ups =
                emissions.into_iter().filter_map(|emission| follow_up(minter, now, &envelope, emission)).collect();
            let output = if policy.retention.output.is_zero() { Vec::new() } else { output };
            let kept = !policy.retention.body.is_zero();
            let outcome = Outcome::Succeeded { output, follow_ups };
            return Completion { envelope, body: kept.then_some(body), outcome };
        }
        Ended::Performed(Performed::Unreadable(error)) => {
            return unreadable(envelope, body, &error, unknown_version);
        }
        Ended::Performed(Performed::Failed { disposition, failure }) => (disposition, failure),
        Ended::Panicked(payload) => {
            let text = panic_text(payload.as_ref());
            (Disposition::Retry, Failure::new(PANICKED, format!("the worker panicked: {text}")))
        }
        Ended::TimedOut => {
            let text = format!("the attempt did not end within {:?}", policy.timeout);
            (Disposition::Retry, Failure::new("timed_out", text))
        }
        Ended::Performed(Performed::Crashed { how }) => return crashed(policy, envelope, body, &how),
    };
    let outcome = match retry::decide(policy, envelope.attempt.saturating_add(1), disposition) {
        Verdict::Again(delay) => Outcome::Retry { delay, failure, suspicion: Suspicion::None },
        Verdict::Later(delay) => Outcome::Snooze { delay, reason: failure.code },
        Verdict::Dead => Outcome::Dead { failure },
    };
    Completion { envelope, body: Some(body), outcome }
}

/// Two in a row are enough: it would go on killing what runs it.
fn crashed(policy: &Policy, envelope: Box<Envelope>, body: Bytes, how: &str) -> Completion {
    let text = format!("it ended the process that ran it, alone: {how}");
    let verdict = retry::decide(policy, envelope.attempt.saturating_add(1), Disposition::Retry);
    let outcome = match (envelope.suspicion, verdict) {
        (Suspicion::Crashed, _) => Outcome::Dead { failure: Failure::new("crash_loop", text) },
        (_, Verdict::Dead) => Outcome::Dead { failure: Failure::new("crashed", text) },
        (_, Verdict::Again(delay) | Verdict::Later(delay)) => {
            Outcome::Retry { delay, failure: Failure::new("crashed", text), suspicion: Suspicion::Crashed }
        }
    };
    Completion { envelope, body: Some(body), outcome }
}

/// What is recorded of a job that is called off before it runs.
pub(super) fn cancelled(envelope: Box<Envelope>) -> Completion {
    Completion { envelope, body: None, outcome: Outcome::Cancelled { ran: false } }
}

fn unreadable(envelope: Box<Envelope>, body: Bytes, error: &DecodeError, limit: Duration) -> Completion {
    let outcome = match error {
        DecodeError::UnknownVersion { .. } => Outcome::Parked {
            reason: "unknown_version".into(),
            text: error.to_string(),
            parking: Parking { limit, ..UNKNOWN_VERSION },
            suspicion: envelope.suspicion,
        },
        // It is a job, only not one that this kind can do.
        DecodeError::Unfit(_) => Outcome::Dead { failure: Failure::from_error("invalid_body", error) },
        _ => return foreign::disbelieved(envelope, body, Failure::from_error("undecodable", error)),
    };
    Completion { envelope, body: Some(body), outcome }
}

fn follow_up(minter: &Minter, now: Micros, parent: &Envelope, emission: Emission) -> Option<NewJob> {
    // A kind that is no kind cannot have been registered; it would be found at the first test of its worker.
    let kind = Kind::new(&emission.kind).ok()?;
    let (id, key) = match emission.dedup_key {
        Some(key) => (minter.keyed(&parent.tenant, id::DEDUP_KEY, &kind, &key), Key::Keyed),
        None => (minter.mint(&parent.tenant, now), Key::None),
    };
    let envelope = Envelope {
        tenant: parent.tenant.clone(),
        root: Some(parent.root.unwrap_or(parent.id)),
        key,
        trace: parent.trace.clone(),
        ..Envelope::new(id, kind, emission.version, now)
    };
    let due = emission.at.map_or(Due::In(Duration::ZERO), |at| Due::At(at.as_microsecond()));
    Some(NewJob { envelope, body: emission.body, due, parent: Some(parent.id) })
}
