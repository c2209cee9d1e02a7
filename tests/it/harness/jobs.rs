//! Jobs to test with.

use std::{borrow::Cow, time::Duration};

use uuid::Uuid;
use warren::{
    clock,
    job::{Completion, Due, Envelope, Failure, Key, Kind, NewJob, Outcome, Suspicion, Tenant, Trace},
};

pub(crate) fn kind(name: &str) -> Kind {
    Kind::new(name).expect("a good name")
}

/// A job that nobody else has.
pub(crate) fn envelope() -> Envelope {
    envelope_of(&kind("test.kind"))
}

pub(crate) fn envelope_of(kind: &Kind) -> Envelope {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("randomness");
    // As precise as every broker is.
    let now = clock::now() / 1_000_000 * 1_000_000;
    Envelope::new(Uuid::new_v8(bytes), kind.clone(), 1, now)
}

/// A job of which everything that an envelope keeps for good is said.
pub(crate) fn full_envelope_of(kind: &Kind) -> Envelope {
    Envelope {
        version: 7,
        run: 3,
        attempt: 2,
        tenant: Tenant::new("acme").expect("a good name"),
        source: Some("shop".into()),
        root: Some(Uuid::from_u128(9)),
        key: Key::Digest([7; 32]),
        trace: Some(Box::new(Trace { parent: "00-ab-cd-01".into(), state: Some("x=y".into()) })),
        ..envelope_of(kind)
    }
}

/// `{"n": 1}` as MessagePack.
pub(crate) const BODY: &[u8] = &[0x81, 0xa1, b'n', 1];
/// `{"ok": true}` as MessagePack.
pub(crate) const OUTPUT: &[u8] = &[0x81, 0xa2, b'o', b'k', 0xc3];

pub(crate) fn success(envelope: &Envelope) -> Completion {
    success_with(envelope, Vec::new())
}

pub(crate) fn success_with(envelope: &Envelope, follow_ups: Vec<NewJob>) -> Completion {
    let outcome = Outcome::Succeeded { output: OUTPUT.to_vec(), follow_ups };
    Completion { envelope: envelope.clone().into(), body: None, outcome }
}

pub(crate) fn failure(code: &'static str) -> Failure {
    Failure::new(Cow::Borrowed(code), "it went wrong")
}

fn failed(envelope: &Envelope, outcome: Outcome) -> Completion {
    Completion { envelope: envelope.clone().into(), body: Some(BODY.into()), outcome }
}

pub(crate) fn retry(envelope: &Envelope, delay: Duration) -> Completion {
    failed(envelope, Outcome::Retry { delay, failure: failure("oops"), suspicion: Suspicion::None })
}

pub(crate) fn snooze(envelope: &Envelope, delay: Duration) -> Completion {
    failed(envelope, Outcome::Snooze { delay, reason: "busy".into() })
}

pub(crate) fn dead(envelope: &Envelope) -> Completion {
    failed(envelope, Outcome::Dead { failure: failure("gone") })
}

pub(crate) fn new_job(envelope: &Envelope, delay: Duration) -> NewJob {
    NewJob { envelope: envelope.clone(), body: BODY.to_vec(), due: Due::In(delay), parent: None }
}
