//! From what came of an attempt to what is recorded of it. Pure.

use std::{any::Any, time::Duration};

use bytes::Bytes;
use warren_messages::{DecodeError, codec};
use warren_workers::{Disposition, Policy, context::Emission};

use super::registry::Performed;
use crate::{
    broker::BadEnvelope,
    id::{self, Minter},
    job::{Completion, Due, Envelope, Failure, Key, Kind, Micros, NewJob, Outcome},
    retry::{self, Verdict},
};

/// How long a job waits for a build that reads its version.
const PARKED: Duration = Duration::from_mins(3);

/// How an attempt ended.
pub(super) enum Ended {
    /// By itself.
    Performed(Performed),
    /// By a panic.
    Panicked(Box<dyn Any + Send>),
    /// Its time was up.
    TimedOut,
}

/// What is recorded of an attempt.
pub(super) fn completion(
    policy: &Policy,
    minter: &Minter,
    now: Micros,
    envelope: Envelope,
    body: Bytes,
    ended: Ended,
) -> Completion {
    let (disposition, failure) = match ended {
        Ended::Performed(Performed::Done { output, emissions }) => {
            let follow_ups =
                emissions.into_iter().filter_map(|emission| follow_up(minter, now, &envelope, emission)).collect();
            let output = if policy.retention.output.is_zero() { Vec::new() } else { output };
            let kept = !policy.retention.body.is_zero();
            let outcome = Outcome::Succeeded { output, follow_ups };
            return Completion { envelope, body: kept.then_some(body), outcome };
        }
        Ended::Performed(Performed::Unreadable(error)) => return unreadable(envelope, body, &error),
        Ended::Performed(Performed::Failed { disposition, failure }) => (disposition, failure),
        Ended::Panicked(payload) => {
            let text = payload.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
            let text = text.unwrap_or_else(|| "with something that is no text".into());
            (Disposition::Retry, Failure::new("panicked", format!("the worker panicked: {text}")))
        }
        Ended::TimedOut => {
            let text = format!("the attempt did not end within {:?}", policy.timeout);
            (Disposition::Retry, Failure::new("timed_out", text))
        }
    };
    let outcome = match retry::decide(policy, envelope.attempt.saturating_add(1), disposition) {
        Verdict::Again(delay) => Outcome::Retry { delay, failure },
        Verdict::Later(delay) => Outcome::Snooze { delay, reason: failure.code },
        Verdict::Dead => Outcome::Dead { failure },
    };
    Completion { envelope, body: Some(body), outcome }
}

/// What is recorded of a message whose properties are no job's.
pub(super) fn undecodable(kind: &Kind, now: Micros, body: Bytes, bad: BadEnvelope) -> Completion {
    let failure = Failure::new("undecodable", bad.problem);
    let envelope = Envelope::new(bad.id, kind.clone(), 1, now);
    Completion { envelope, body: Some(body), outcome: Outcome::Dead { failure } }
}

fn unreadable(envelope: Envelope, body: Bytes, error: &DecodeError) -> Completion {
    let outcome = match error {
        DecodeError::UnknownVersion { .. } => Outcome::Snooze { delay: PARKED, reason: "unknown_version".into() },
        // It is a job, only not one that this kind can do.
        DecodeError::Unfit(_) => Outcome::Dead { failure: Failure::from_error("invalid_body", error) },
        _ => return disbelieved(envelope, body, Failure::from_error("undecodable", error)),
    };
    Completion { envelope, body: Some(body), outcome }
}

/// What is recorded of bytes that are no body at all.
pub(super) fn no_body(envelope: Envelope, body: Bytes) -> Completion {
    let failure = match codec::check(&body) {
        Err(error) => Failure::from_error("undecodable", &error),
        Ok(()) => Failure::new("undecodable", "these bytes are no body"),
    };
    disbelieved(envelope, body, failure)
}

/// It is no body at all, so the id that it claims is not believed either: it may be another job's.
fn disbelieved(envelope: Envelope, body: Bytes, failure: Failure) -> Completion {
    let id = id::derived(&[
        envelope.kind.as_str().as_bytes(),
        envelope.id.as_bytes(),
        &envelope.run.to_le_bytes(),
        &envelope.created_at.to_le_bytes(),
        &body,
    ]);
    let envelope = Envelope { id, run: 1, attempt: 0, key: Key::None, ..envelope };
    Completion { envelope, body: Some(body), outcome: Outcome::Dead { failure } }
}

fn follow_up(minter: &Minter, now: Micros, parent: &Envelope, emission: Emission) -> Option<NewJob> {
    // A kind that is no kind cannot have been registered; it would be found at the first test of its worker.
    let kind = Kind::new(emission.kind).ok()?;
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
