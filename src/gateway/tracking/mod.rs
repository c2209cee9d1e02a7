//! What people did, as the SDKs that track it send it.
//!
//! Owns what their protocols share: how much one request may hold, when an event happened by our clock, what makes a
//! repeat the same job, and what became of each event. An SDK drops a whole batch at most answers of 4xx and repeats a
//! whole batch at 5xx, so a bad event is refused by name in an answer that is `200` all the same, and an event that
//! cannot be taken for now makes the whole request a `503`: what was taken of it is known by its id when it comes again.
//! It must not know who may send what: that is `caller`'s.

mod mend;
mod posthog;
mod read;
mod segment;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::HashSet,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::value::RawValue;
use tracing::warn;
use warren_messages::{
    Message as _,
    analytics::{Call, Event},
    field::FIRST,
};

use self::read::{Members, Moment};
use super::{
    Gateway,
    caller::Caller,
    operation::Operation,
    problem::{Item, OUTCOME_UNKNOWN, Problem},
    request,
    room::Stranger,
    submit::{Checked, Name, Submission, When},
};
use crate::{
    broker::PublishError,
    clock,
    runtime::registry::Format,
    telemetry::{EVENTS_REFUSED, EVENTS_REPEATED},
};

/// How long the body of a request may be, unpacked. No SDK sends more at its own limits: PostHog's sends 5 MiB and one
/// event of 900 KiB, RudderStack's 4 MiB and one event of 4 MiB.
const MOST_BYTES: usize = 10 << 20;
/// How many events one request may hold. SDKs send 15 to 100.
const MOST_EVENTS: usize = 5_000;
/// How many are submitted at once.
const AT_ONCE: usize = 500;
/// After this long nothing more of a request is submitted. The last of it may still wait for its confirm, and an SDK
/// gives up on an answer after 10 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long an SDK is to wait for a gateway that did not get through its events in time.
const PAUSE: Duration = Duration::from_secs(5);
/// The same for one that has no worker for them: that takes a while to mend.
const LONG_PAUSE: Duration = Duration::from_mins(1);
/// The code of an event that the request holds twice. Nothing is lost by refusing it.
const REPEATED: &str = "duplicate_in_batch";
/// The furthest that an event may lie ahead of our clock.
const FURTHEST_AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// The operations of all of them.
pub(super) fn operations() -> Vec<Operation> {
    [segment::operations(), posthog::operations()].into_iter().flatten().collect()
}

/// What each of them refuses.
const REFUSED: &[u16] = &[400, 408, 413, 415, 422, 503];

/// The schema of many events. What each is, its protocol says; a bad one is refused for itself.
fn batch_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "properties": { "batch": { "type": "array" } }, "required": ["batch"] })
}

/// A request that was not served. The answer repeats its sentence as `message`, which RudderStack's SDK needs: without
/// one it takes any refusal for a broken network, and sends the same again.
#[derive(Debug)]
struct Unserved(Problem);

impl From<Problem> for Unserved {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Unserved {
    fn into_response(self) -> Response {
        self.0.with_message().into_response()
    }
}

/// A request that has come in.
struct Arrival {
    /// When.
    at: Timestamp,
    body: bytes::Bytes,
}

impl Arrival {
    async fn of(headers: &HeaderMap, body: Body) -> Result<Self, Problem> {
        let at = Self::now();
        Ok(Self { at, body: request::read_repetitive_body(headers, body, MOST_BYTES).await? })
    }

    /// The same of someone whose key is in the body.
    async fn of_stranger(headers: &HeaderMap, body: Body) -> Result<(Self, Stranger), Problem> {
        let at = Self::now();
        let (body, stranger) = request::read_body_of_stranger(headers, body, MOST_BYTES).await?;
        Ok((Self { at, body }, stranger))
    }

    fn now() -> Timestamp {
        Timestamp::from_microsecond(clock::now()).unwrap_or(Timestamp::MAX)
    }
}

/// One event, as its protocol says it.
#[derive(Debug)]
struct Said<'a> {
    call: Call,
    event: Cow<'a, str>,
    category: Option<String>,
    user_id: Option<String>,
    anonymous_id: Option<String>,
    previous_id: Option<String>,
    group_id: Option<String>,
    /// When it happened by the sender's clock.
    at: Option<Timestamp>,
    /// When it was sent by the sender's clock, where the event says so itself.
    sent_at: Moment,
    /// The sender's clock is right.
    is_exact: bool,
    props: Option<Props<'a>>,
    ctx: Option<&'a RawValue>,
    message_id: Option<String>,
}

/// What is known of what happened. Not read here: that the body of a job is read strictly is the business of its kind.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Props<'a> {
    Raw(&'a RawValue),
    Members(Members<'a>),
}

/// The JSON of an [`Event`].
#[derive(Serialize)]
struct Written<'a> {
    call: Call,
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    category: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    anonymous_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_id: Option<&'a str>,
    ts: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    orig_ts: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_at: Option<Timestamp>,
    received_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    props: Option<&'a Props<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx: Option<&'a RawValue>,
    message_id: &'a str,
}

/// An event that was not taken, and will not be if it comes again.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RefusedEvent")]
struct Refused {
    /// Its place in the request, from 0.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    #[serde(flatten)]
    problem: Item,
}

/// What was said together.
struct Together<'a> {
    caller: Caller,
    /// Whose ids the events have: equal ones of another protocol are other events.
    ids_of: &'static str,
    /// When it came in.
    received: Timestamp,
    /// When it was sent by the sender's clock.
    sent: Moment,
    events: Vec<Result<Said<'a>, Problem>>,
}

impl<'a> Together<'a> {
    /// Counts it against the limits of whoever says it: all of it or nothing. An SDK cannot send less at once than it does,
    /// and repeats nothing after a `413`.
    fn of(
        caller: Caller,
        ids_of: &'static str,
        received: Timestamp,
        sent: Moment,
        events: Vec<Result<Said<'a>, Problem>>,
    ) -> Result<Self, Problem> {
        let caller = caller.counted_as_held(u32::try_from(events.len()).unwrap_or(u32::MAX))?;
        Ok(Self { caller, ids_of, received, sent: sent.by_a_clock(), events })
    }
}

impl Gateway {
    /// Takes events: `Ok` only when each is durable, or refused for good.
    async fn track(&self, together: &Together<'_>) -> Result<Vec<Refused>, Problem> {
        // Neither is a fault of any event, so none may be dropped for it.
        let Some((kind, _)) = self.registry.get(Event::KIND) else {
            let detail = format!("this installation has no worker for {}, so it takes no events for now", Event::KIND);
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unknown_kind", detail).after(LONG_PAUSE));
        };
        together.caller.may_send(kind)?;
        let began = Instant::now();
        let (mut taken, mut refused, mut lost) = (0_usize, Vec::new(), None);
        let mut seen = HashSet::new();
        for (chunk, events) in together.events.chunks(AT_ONCE).enumerate() {
            if began.elapsed() > PATIENCE {
                return Err(later(taken, Problem::publish(&PublishError::Busy).after(PAUSE)));
            }
            // An id is taken by the first event that is good: one that is refused is nothing that another could repeat.
            let checked: Vec<_> = events
                .iter()
                .map(|event| {
                    let said = event.as_ref().map_err(Problem::clone)?;
                    let id = said.message_id.as_deref();
                    if id.is_some_and(|id| seen.contains(id)) {
                        return Err(repeated());
                    }
                    let checked = self.check_one(together, said)?;
                    seen.extend(id);
                    Ok(checked)
                })
                .collect();
            let submitted = self.take_all(checked).await;
            let mut transient = None;
            for (place, (event, submitted)) in events.iter().zip(submitted).enumerate() {
                match submitted {
                    Ok(_) => taken += 1,
                    Err(problem) if problem.pause().is_some() => {
                        taken += usize::from(problem.code() == OUTCOME_UNKNOWN);
                        transient = Some(problem);
                    }
                    Err(problem) => {
                        let index = chunk * AT_ONCE + place;
                        let code = problem.code();
                        if code == REPEATED {
                            metrics::counter!(EVENTS_REPEATED).increment(1);
                        } else {
                            metrics::counter!(EVENTS_REFUSED, "reason" => code).increment(1);
                            lost = lost.or(Some((index, code)));
                        }
                        let message_id = event.as_ref().ok().and_then(|said| said.message_id.clone());
                        refused.push(Refused { index, message_id, problem: problem.item() });
                    }
                }
            }
            if let Some(problem) = transient {
                return Err(later(taken, problem));
            }
        }
        if let Some((index, code)) = lost {
            // No SDK looks for this in an answer, so this is where it can be seen.
            let count = refused.iter().filter(|refused| refused.problem.code() != REPEATED).count();
            warn!(count, of = together.events.len(), code, index, "events were refused");
        }
        Ok(refused)
    }

    /// Checks one event. Nothing of it is taken yet.
    fn check_one(&self, together: &Together<'_>, said: &Said<'_>) -> Result<Checked, Problem> {
        let Together { ref caller, ids_of, received, .. } = *together;
        let sent_at = said.sent_at.known().or_else(|| together.sent.known());
        let made_up;
        let message_id = match &said.message_id {
            Some(id) => id,
            None => {
                made_up = new_message_id();
                &made_up
            }
        };
        let written = Written {
            call: said.call,
            event: &said.event,
            category: said.category.as_deref(),
            user_id: said.user_id.as_deref(),
            anonymous_id: said.anonymous_id.as_deref(),
            previous_id: said.previous_id.as_deref(),
            group_id: said.group_id.as_deref(),
            ts: happened(said.at, sent_at.filter(|_| !said.is_exact), received),
            orig_ts: said.at,
            sent_at,
            received_at: received,
            props: said.props.as_ref(),
            ctx: said.ctx,
            message_id,
        };
        // Text, times and JSON that was read before: it cannot fail.
        let body = serde_json::to_vec(&written).unwrap_or_default();
        self.check(Submission {
            caller,
            kind: Event::KIND,
            format: Format::Json,
            body: &body,
            name: Name::Given { by: ids_of, name: message_id },
            when: When::Now,
            source: caller.name(),
            trace: None,
        })
    }
}

/// When an event happened by our clock: `timestamp - (sentAt - received)`, as Segment specifies it. What is sent and what
/// is received are taken for the same moment, so what lies between them is how far the sender's clock is off.
fn happened(said: Option<Timestamp>, sent: Option<Timestamp>, received: Timestamp) -> Timestamp {
    let corrected = match (said, sent) {
        (Some(said), Some(sent)) => received.saturating_add(said.duration_since(sent)).unwrap_or(received),
        (Some(said), None) => said,
        (None, _) => received,
    };
    // What happened "never" by a clock that is ahead happened before the first instant that is taken.
    corrected.min(received.saturating_add(FURTHEST_AHEAD).unwrap_or(received)).max(FIRST)
}

/// The id of an event whose sender has none for it: a repeat of it is another event.
fn new_message_id() -> String {
    let mut bytes = [0; 16];
    // Without randomness all of them would be the same event; the time tells them apart then.
    if getrandom::fill(&mut bytes).is_err() {
        bytes[..8].copy_from_slice(&clock::now().to_be_bytes());
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

fn repeated() -> Problem {
    let detail = "an event before this one in the request has the same id, so this is the same event";
    Problem::new(StatusCode::CONFLICT, REPEATED, detail)
}

/// A request of which something can be taken only later.
fn later(taken: usize, problem: Problem) -> Problem {
    if taken == 0 {
        return problem.unavailable();
    }
    let detail = "some of these events were accepted, or may have been, and others were not: send all of them again. Those \
                  that were accepted are known by their ids";
    let pause = problem.pause().unwrap_or(PAUSE);
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, OUTCOME_UNKNOWN, detail).after(pause)
}
