//! Signed webhooks: `POST /v1/hooks/{source}`.
//!
//! Owns which source a webhook is of, whether it is good, and what event it is. A webhook is checked on the bytes that
//! came in, before anything of them is parsed; what is not good is counted and nothing else. It promises that the answer
//! comes after every job of the event is durable: a sender such as GitHub does not send again. Whoever sends is known by
//! the signature and by nothing else, so no key is asked for. It must not know what becomes of events.

mod bearer;
mod github;
mod mac;
mod reading;
mod refused;
mod seen;
mod standard;
mod stripe;
#[cfg(test)]
mod tests;
mod twilio;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    body::Body,
    extract::{Request, State as Shared},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
    request,
};
use jiff::Timestamp;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use tracing::{debug, warn};
use warren_messages::codec::MAX_BYTES;

use self::{refused::Refused, seen::Seen};
use super::{
    Gateway,
    caller::Caller,
    event::{Data, Event, Origin, SIGNED_SOURCES, Taken, TakenJob},
    operation::{EVENTS, Operation, anything, path, text},
    problem::Problem,
    request::{Path, read_body_of_stranger, trace},
    room::{Reading, Stranger},
};
use crate::{
    clock,
    config::{Scheme, Source, SourceSecret},
    nearest::{nearest, shorten},
    telemetry::HOOKS,
};

/// What Twilio takes for "there is nothing to say or to do".
const NO_INSTRUCTIONS: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response/>\n";

/// A webhook as it came in, and what it is checked against.
#[derive(Debug)]
struct Received<'a> {
    headers: &'a HeaderMap,
    query: Option<&'a str>,
    body: &'a [u8],
    secrets: &'a [SourceSecret],
    tolerance: Duration,
    /// Seconds since 1970.
    now: i64,
}

/// What a webhook that is good says of its event.
#[derive(Debug, PartialEq, Eq)]
struct Verified {
    id: String,
    event: String,
    time: Option<Timestamp>,
}

fn verify(scheme: &Scheme, received: &Received<'_>) -> Result<Verified, Refused> {
    match scheme {
        Scheme::StandardWebhooks => standard::verify(received),
        Scheme::GithubSha256 => github::verify(received),
        Scheme::Stripe => stripe::verify(received),
        Scheme::Twilio { url } => twilio::verify(received, url),
        Scheme::Bearer => bearer::verify(received),
    }
}

/// Headers that are kept with an event: those that say something of it, and none that proves anything.
fn kept(scheme: &Scheme, headers: &HeaderMap) -> BTreeMap<String, String> {
    let of_scheme = match scheme {
        Scheme::StandardWebhooks => standard::KEPT,
        Scheme::GithubSha256 => github::KEPT,
        Scheme::Stripe => stripe::KEPT,
        Scheme::Twilio { .. } => twilio::KEPT,
        Scheme::Bearer => bearer::KEPT,
    };
    let names = ["content-type", "user-agent"].into_iter().chain(of_scheme.iter().copied());
    names.filter_map(|name| Some((name.to_owned(), reading::optional(headers, name)?.to_owned()))).collect()
}

/// The sources of webhooks that a gateway knows.
#[derive(Debug)]
pub(super) struct Hooks {
    sources: HashMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    name: String,
    source: Source,
    seen: Seen,
}

impl Hooks {
    pub(super) fn new(sources: BTreeMap<String, Source>) -> Self {
        let known = |(name, source): (String, Source)| {
            let seen = Seen::new(source.tolerance);
            (name.clone(), Known { name, source, seen })
        };
        Self { sources: sources.into_iter().map(known).collect() }
    }

    /// Which name may have been meant, the operator is told. Who asks has shown nothing of himself, and learns no names.
    fn unknown(&self, name: &str) -> Problem {
        let meant = nearest(name, self.sources.keys().map(String::as_str));
        debug!(meant = meant.join(" or "), "a webhook came in for a source that is not configured");
        let detail = format!("no webhooks are taken from {}; a source is configured as [source.NAME]", shorten(name));
        Problem::new(StatusCode::NOT_FOUND, "unknown_source", detail)
    }
}

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::post("/v1/hooks/{source}", "receiveWebhook", EVENTS, "Send a signed webhook", receive)
            .for_everyone()
            .text(
                "Checked on the bytes as they come in, by the scheme that the source is configured with. The answer comes after \
                 every job of the event is durable.",
            )
            .parameter(path("source", "Which source, as it is configured.", text))
            .takes("application/json", anything)
            .takes("application/x-www-form-urlencoded", anything)
            .or_nothing()
            .answers(200, "It had been received before.", SchemaGenerator::subschema_for::<Answer>)
            .answers_with(200, "It had been received before.", "text/xml", text)
            .answers(202, "It is durable.", SchemaGenerator::subschema_for::<Answer>)
            .answers_with(202, "It is durable.", "text/xml", text)
            .refuses(&[400, 401, 404, 408, 413, 415, 422, 503, 507]),
    ]
}

async fn receive(
    Shared(gateway): Shared<Arc<Gateway>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let Some(known) = gateway.hooks.sources.get(&name) else {
        return Err(gateway.hooks.unknown(&name));
    };
    let (head, body) = request.into_parts();
    let (body, stranger) = known.read(&head.headers, body).await?;
    known.take(&gateway, &head, &body, stranger).await
}

impl Known {
    fn count(&self, outcome: &'static str) {
        metrics::counter!(HOOKS, "source" => self.name.clone(), "outcome" => outcome).increment(1);
    }

    /// Reads a body as it was signed. Nothing is unpacked for one that is still to show who it is.
    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<(bytes::Bytes, Stranger), Problem> {
        let read = match reading::optional(headers, CONTENT_ENCODING.as_str()) {
            None | Some("identity") => read_body_of_stranger(headers, body, MAX_BYTES).await,
            Some(_) => {
                let detail = "a webhook is signed as it is: send it without a content-encoding";
                Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", detail).closing())
            }
        };
        read.inspect_err(|problem| {
            self.count("unreadable");
            // No louder: so far it may be from anyone.
            debug!(source = self.name, code = problem.code(), "a webhook could not be read");
        })
    }

    async fn take(
        &self,
        gateway: &Gateway,
        head: &request::Parts,
        body: &[u8],
        stranger: Stranger,
    ) -> Result<Response, Problem> {
        let Source { scheme, secrets, tolerance, tenant } = &self.source;
        let received = Received {
            headers: &head.headers,
            query: head.uri.query(),
            body,
            secrets,
            tolerance: *tolerance,
            now: clock::now() / 1_000_000,
        };
        let Verified { id, event, time } = verify(scheme, &received).map_err(|refused| {
            self.count(refused.code());
            debug!(source = self.name, code = refused.code(), "a webhook was refused");
            Problem::from(refused)
        })?;
        drop(stranger);
        let event_type = format!("{}.{event}", self.name);
        if self.seen.knows(&id) {
            self.count("already_received");
            return Ok(self.answer(StatusCode::OK, "already_received", id, event_type, Vec::new()));
        }
        let reading = Reading::of(body).await;
        let event = Event {
            origin: Origin::Signed,
            event_type: &event_type,
            source: &format!("{SIGNED_SOURCES}{}", self.name),
            id: &id,
            time,
            headers: kept(scheme, &head.headers),
            // Whatever its content type says, which as a rule is not signed.
            data: Data::guess(body),
        };
        let checked = gateway.check_event(&Caller::of(tenant.clone()), event, trace(&head.headers));
        drop(reading);
        let taken = match checked {
            Ok(checked) => gateway.take_event(checked).await,
            Err(problem) => Err(problem),
        };
        let Taken { jobs } = taken.inspect_err(|problem| self.lost(&id, problem))?;
        // Only now: what was not taken must be taken when it is sent again.
        self.seen.taken(&id);
        self.count("accepted");
        Ok(self.answer(StatusCode::ACCEPTED, "accepted", id, event_type, jobs))
    }

    /// Notes a good webhook of which no job was made.
    fn lost(&self, id: &str, problem: &Problem) {
        // What fails on our side is logged with its answer.
        if problem.is_ours() {
            return self.count("not_taken");
        }
        self.count("refused");
        // As a rule its sender neither reads the answer nor sends it again, so who runs this must learn of it here.
        warn!(source = self.name, code = problem.code(), id, "a webhook is good, and was refused");
    }

    fn answer(
        &self,
        status: StatusCode,
        code: &'static str,
        id: String,
        event_type: String,
        jobs: Vec<TakenJob>,
    ) -> Response {
        if !matches!(self.source.scheme, Scheme::Twilio { .. }) {
            return (status, Json(Answer { code, id, event_type, jobs })).into_response();
        }
        // Twilio reads every answer as instructions, and reports one that is none as an error.
        let ids: Vec<_> = jobs.iter().map(|job| job.id.to_string()).collect();
        let mut response = NO_INSTRUCTIONS.into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
        response.headers_mut().insert("warren-outcome", HeaderValue::from_static(code));
        if let Ok(ids) = HeaderValue::from_str(&ids.join(", ")) {
            response.headers_mut().insert("warren-jobs", ids);
        }
        response
    }
}

/// What became of a webhook.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "WebhookTaken")]
struct Answer {
    code: &'static str,
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    jobs: Vec<TakenJob>,
}
