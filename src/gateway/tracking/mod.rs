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

use std::{
    borrow::Cow,
    collections::HashSet,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures_util::future::join_all;
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::value::RawValue;
use tracing::warn;
use warren_messages::{
    Message as _,
    analytics::{Call, Event},
};

use self::read::{Members, Moment};
use super::{
    Gateway,
    caller::Caller,
    operation::Operation,
    problem::{Item, OUTCOME_UNKNOWN, Problem},
    request,
    room::Stranger,
    submit::{Name, Submission, When},
};
use crate::{broker::PublishError, clock, runtime::registry::Format, telemetry::EVENTS_REFUSED};

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
/// The furthest that an event may lie ahead of our clock.
const FURTHEST_AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// The operations of all of them.
pub(super) fn operations() -> Vec<Operation> {
    [segment::operations(), posthog::operations()].into_iter().flatten().collect()
}

/// What each of them refuses.
const REFUSED: &[u16] = &[400, 404, 408, 413, 415, 422, 503];

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
        Ok(Self { at, body: request::read_body(headers, body, MOST_BYTES).await? })
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

/// Counts what was said together against the limits of whoever says it: all of it or nothing.
fn counted(caller: Caller, events: &[Result<Said<'_>, Problem>]) -> Result<Caller, Problem> {
    caller.counted(u32::try_from(events.len()).unwrap_or(u32::MAX))
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

impl Gateway {
    /// Takes events: `Ok` only when each is durable, or refused for good.
    async fn track(&self, together: &Together<'_>) -> Result<Vec<Refused>, Problem> {
        // A fault of the installation and not of any event: none may be dropped for it.
        if self.registry.get(Event::KIND).is_none() {
            let detail = format!("this installation has no worker for {}, so it takes no events", Event::KIND);
            return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_kind", detail));
        }
        let began = Instant::now();
        let (mut taken, mut refused) = (0_usize, Vec::new());
        let mut seen = HashSet::new();
        for (chunk, events) in together.events.chunks(AT_ONCE).enumerate() {
            if began.elapsed() > PATIENCE {
                return Err(later(taken, Problem::publish(&PublishError::Busy).after(PAUSE)));
            }
            let submitted = join_all(events.iter().map(|event| {
                let known = event.as_ref().ok().and_then(|said| said.message_id.as_deref());
                let is_first = known.is_none_or(|id| seen.insert(id));
                async move {
                    let said = event.as_ref().map_err(Problem::again)?;
                    if is_first { self.track_one(together, said).await } else { Err(repeated()) }
                }
            }))
            .await;
            let mut transient = None;
            for (place, (event, submitted)) in events.iter().zip(submitted).enumerate() {
                match submitted {
                    Ok(()) => taken += 1,
                    Err(problem) if problem.pause().is_some() => {
                        taken += usize::from(problem.code() == OUTCOME_UNKNOWN);
                        transient = Some(problem);
                    }
                    Err(problem) => {
                        metrics::counter!(EVENTS_REFUSED, "reason" => problem.code()).increment(1);
                        let message_id = event.as_ref().ok().and_then(|said| said.message_id.clone());
                        refused.push(Refused { index: chunk * AT_ONCE + place, message_id, problem: problem.item() });
                    }
                }
            }
            if let Some(problem) = transient {
                return Err(later(taken, problem));
            }
        }
        if let Some(first) = refused.first() {
            // No SDK looks for this in an answer, so this is where it can be seen.
            let (count, code) = (refused.len(), first.problem.code());
            warn!(count, of = together.events.len(), code, index = first.index, "events were refused");
        }
        Ok(refused)
    }

    async fn track_one(&self, together: &Together<'_>, said: &Said<'_>) -> Result<(), Problem> {
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
        let submission = Submission {
            caller,
            kind: Event::KIND,
            format: Format::Json,
            body: &body,
            name: Name::Given { by: ids_of, name: message_id },
            when: When::Now,
            source: caller.name(),
            trace: None,
        };
        self.submit(submission).await.map(drop)
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
    corrected.min(received.saturating_add(FURTHEST_AHEAD).unwrap_or(received))
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
    Problem::new(StatusCode::CONFLICT, "duplicate_in_batch", detail)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The four times of one event: originalTimestamp, sentAt, receivedAt, timestamp.
    #[test]
    fn a_clock_that_is_off_is_corrected_by_how_far_it_is_off() {
        let cases = [
            // A clock that is right, and an event that waited 4 ms; the answer took 328 ms on its way.
            (
                "2015-12-10T04:08:31.577Z",
                "2015-12-10T04:08:31.581Z",
                "2015-12-10T04:08:31.909Z",
                "2015-12-10T04:08:31.905Z",
            ),
            // An hour fast: sent 30 s after it happened, so it happened 30 s before it came in.
            ("2026-03-01T11:00:00Z", "2026-03-01T11:00:30Z", "2026-03-01T10:00:31Z", "2026-03-01T10:00:01Z"),
            // Ten years slow.
            ("2016-03-01T10:00:00Z", "2016-03-01T10:00:30Z", "2026-03-01T10:00:31Z", "2026-03-01T10:00:01Z"),
            // Imported: a day old when it was sent.
            ("2026-02-28T10:00:00Z", "2026-03-01T10:00:00Z", "2026-03-01T10:00:00.25Z", "2026-02-28T10:00:00.25Z"),
            // Offsets do not matter.
            ("2026-03-01T12:00:00+02:00", "2026-03-01T05:00:30-05:00", "2026-03-01T10:00:30Z", "2026-03-01T10:00:00Z"),
            // Ahead of its own sending, by less than five minutes and by more.
            ("2026-03-01T10:04:59Z", "2026-03-01T10:00:00Z", "2026-03-01T10:00:00Z", "2026-03-01T10:04:59Z"),
            ("2026-03-01T10:05:01Z", "2026-03-01T10:00:00Z", "2026-03-01T10:00:00Z", "2026-03-01T10:05:00Z"),
            ("9999-01-01T00:00:00Z", "-009999-01-03T00:00:00Z", "2026-03-01T10:00:00Z", "2026-03-01T10:05:00Z"),
        ];
        for (original, sent, received, expected) in cases {
            let ts = happened(Some(at(original)), Some(at(sent)), at(received));
            assert_eq!(ts, at(expected), "{original} sent at {sent}");
        }
    }

    #[test]
    fn what_is_not_said_is_not_corrected() {
        let received = at("2026-03-01T10:00:00Z");
        let said = at("2026-03-01T08:00:00Z");
        assert_eq!(happened(Some(said), None, received), said);
        assert_eq!(happened(None, Some(said), received), received);
        assert_eq!(happened(None, None, received), received);
        let ahead = at("2026-03-01T12:00:00Z");
        assert_eq!(happened(Some(ahead), None, received), at("2026-03-01T10:05:00Z"));
    }

    #[test]
    fn events_without_an_id_get_one_each() {
        let ids: HashSet<_> = (0..100).map(|_| new_message_id()).collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| id.parse::<uuid::Uuid>().is_ok_and(|id| id.get_version_num() == 4)));
    }
}
