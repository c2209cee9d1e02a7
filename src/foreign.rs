//! What is recorded of messages that are no jobs. Pure.
//!
//! Anyone may publish to the broker. What cannot be read becomes a dead letter with its exact bytes, under an id that is
//! made from the message: the id that it claims may be another job's, and is not believed.

use bytes::Bytes;
use warren_messages::codec;

use crate::{
    broker::BadEnvelope,
    id,
    job::{Completion, Envelope, Failure, Key, Micros, Outcome},
};

/// What is recorded of a message whose properties are no job's.
pub(crate) fn undecodable(now: Micros, body: Bytes, bad: BadEnvelope) -> Completion {
    let failure = Failure::new("undecodable", bad.problem);
    let envelope = Box::new(Envelope::new(bad.id, bad.kind, 1, now));
    Completion { envelope, body: Some(body), outcome: Outcome::Dead { failure } }
}

/// What is recorded of bytes that are no body at all.
pub(crate) fn no_body(envelope: Box<Envelope>, body: Bytes) -> Completion {
    let failure = match codec::check(&body) {
        Err(error) => Failure::from_error("undecodable", &error),
        Ok(()) => Failure::new("undecodable", "these bytes are no body"),
    };
    disbelieved(envelope, body, failure)
}

/// It is no body at all, so the id that it claims is not believed either: it may be another job's.
pub(crate) fn disbelieved(mut envelope: Box<Envelope>, body: Bytes, failure: Failure) -> Completion {
    envelope.id = id::derived(&[
        envelope.kind.as_str().as_bytes(),
        envelope.id.as_bytes(),
        &envelope.run.to_le_bytes(),
        &envelope.created_at.to_le_bytes(),
        &body,
    ]);
    (envelope.run, envelope.attempt, envelope.key) = (1, 0, Key::None);
    Completion { envelope, body: Some(body), outcome: Outcome::Dead { failure } }
}
