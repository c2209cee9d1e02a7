//! Events, whatever protocol brings them: each becomes a job for every route that it matches, or is kept.
//!
//! It promises that an event of which one job is refused becomes none, and that a repeat of an event is the same jobs:
//! their ids come from the event's source and id and the name of the route. It promises too that what is sent with a key
//! neither passes for what was signed nor comes before it. It must not know protocols. What an event is read into takes
//! many times its length, so it is gone before its jobs are waited for.

mod data;

use std::{borrow::Cow, collections::BTreeMap};

use http::StatusCode;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;
use warren_messages::{Bytes, Message as _, Problem as FieldProblem, codec, event::Received};

pub(super) use self::data::Data;
use super::{
    Gateway,
    caller::Caller,
    problem::{OUTCOME_UNKNOWN, Problem},
    submit::{Checked, Name, Submission, Submitted, When},
};
use crate::{
    config::Unrouted,
    job::{Kind, State, Trace},
    route::Route,
    runtime::registry::{Format, Rejected},
};

/// The code of an answer to what is no event.
pub(super) const INVALID_EVENT: &str = "invalid_event";
/// The code of an answer to what says that it was signed.
pub(super) const RESERVED_SOURCE: &str = "reserved_source";
/// What the source of every signed webhook begins with, and of nothing else that comes in.
pub(super) const SIGNED_SOURCES: &str = "/v1/hooks/";
/// As a keyed id's source: an event that was sent, and that a route took.
const EVENT: &str = "event";
/// As a keyed id's source: an event that was signed, whatever becomes of it.
const SIGNED_EVENT: &str = "signed-event";

/// How it is known that an event has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Somebody said so who may send events.
    Sent,
    /// It was signed where it happened.
    Signed,
}

impl Origin {
    /// Whose names the events' are. What was signed has names of its own: who knows one beforehand must not be able to send
    /// another event under it, and have the signed one taken for a repeat.
    fn names(self) -> &'static str {
        match self {
            Self::Sent => EVENT,
            Self::Signed => SIGNED_EVENT,
        }
    }
}

/// An event, whatever protocol brought it.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "its type is what everyone calls it, and a word of the language")]
pub(super) struct Event<'a> {
    /// How it is known.
    pub(super) origin: Origin,
    /// What happened: `order.paid`. That of a webhook is `<source>.<event>`.
    pub(super) event_type: &'a str,
    /// Where it happened.
    pub(super) source: &'a str,
    /// Which event of its source: a repeat has the same.
    pub(super) id: &'a str,
    /// When it happened.
    pub(super) time: Option<Timestamp>,
    /// What its sender says beside its data, with names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    /// What it is about.
    pub(super) data: Data,
}

/// Whether only what was signed may come from there.
pub(super) fn is_reserved(source: &str) -> bool {
    source.starts_with(SIGNED_SOURCES)
}

/// Refuses a job that says of itself that it is a signed webhook, and is none. `key` is what its message gives as its key.
pub(super) fn refuse_forged(kind: &Kind, key: Option<&str>, name: Name<'_>) -> Result<(), Problem> {
    if kind.as_str() != Received::KIND || matches!(name, Name::Given { by: SIGNED_EVENT, .. }) {
        return Ok(());
    }
    // The key of an event begins with its source.
    if key.is_none_or(|key| !is_reserved(key)) {
        return Ok(());
    }
    let detail = format!(
        "a source that begins with {SIGNED_SOURCES} is that of a signed webhook, and this is none: name the place where the \
         event happened otherwise"
    );
    Err(Problem::field(RESERVED_SOURCE, "/source", detail))
}

/// What an event became.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Taken {
    /// At least one job.
    pub(super) jobs: Vec<TakenJob>,
}

/// One job that an event became.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TakenJob {
    /// Its id.
    pub(super) id: Uuid,
    /// Its kind.
    pub(super) kind: Kind,
    /// Where it stands.
    pub(super) state: State,
    /// The route that made it; none for an event that was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) route: Option<String>,
}

/// The jobs that an event becomes, each with its route. Nothing else of the event is left.
#[derive(Debug)]
pub(super) struct CheckedEvent(Vec<(Option<String>, Checked)>);

impl Gateway {
    /// Checks an event, and makes every job of it that it becomes. Repeated, it becomes the same jobs. Its caller has
    /// counted it: an event is one, however many jobs it becomes.
    pub(super) fn check_event(
        &self,
        caller: &Caller,
        event: Event<'_>,
        trace: Option<Box<Trace>>,
    ) -> Result<CheckedEvent, Problem> {
        let origin = event.origin;
        let received = Received::from(event);
        received.validate().map_err(|invalid| {
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, INVALID_EVENT, "the event breaks the rules");
            problem.listing(invalid.problems().to_vec())
        })?;
        let takes = |route: &&Route| route.takes(&caller.tenant, &received.event_type, &received.source);
        let routes: Vec<_> = self.events.routes.iter().filter(takes).collect();
        Ok(CheckedEvent(if routes.is_empty() {
            vec![(None, self.check_kept(caller, origin, received, trace)?)]
        } else {
            self.check_routed(caller, origin, &routes, received, trace.as_deref())?
        }))
    }

    /// Takes an event that was checked: `Ok` only when every job that it becomes is durable. Nothing of it was published
    /// so far, and nothing is refused from here on.
    pub(super) async fn take_event(&self, CheckedEvent(checked): CheckedEvent) -> Result<Taken, Problem> {
        let (routes, checked): (Vec<_>, Vec<_>) =
            checked.into_iter().map(|(route, checked)| (route, Ok(checked))).unzip();
        let (mut jobs, mut problems) = (Vec::new(), Vec::new());
        for (route, taken) in routes.into_iter().zip(self.take_all(checked).await) {
            match taken {
                Ok(Submitted { id, kind, state, .. }) => jobs.push(TakenJob { id, kind, state, route }),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(Taken { jobs }) } else { Err(unfinished(jobs.len(), problems)) }
    }

    fn check_kept(
        &self,
        caller: &Caller,
        origin: Origin,
        event: Received,
        trace: Option<Box<Trace>>,
    ) -> Result<Checked, Problem> {
        if self.events.unrouted == Unrouted::Refuse || self.registry.get(Received::KIND).is_none() {
            let detail = format!(
                "no route takes an event of type `{}` from `{}`, and such events are not kept here",
                event.event_type, event.source
            );
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "no_route", detail));
        }
        let body = codec::encode(&event).map_err(|_| Problem::rejected(&Rejected::TooLarge, Format::MessagePack))?;
        let key = event.dedup_key();
        // It is about to be read a second time.
        drop(event);
        let name = match (origin, &key) {
            (Origin::Signed, Some(key)) => Name::Given { by: origin.names(), name: key },
            // Its message says by itself which event it is.
            _ => Name::None,
        };
        self.check(submission(caller, Received::KIND, (Format::MessagePack, &body), name, trace))
    }

    /// One job for each route, or everything for which there cannot be one.
    fn check_routed(
        &self,
        caller: &Caller,
        origin: Origin,
        routes: &[&Route],
        mut event: Received,
        trace: Option<&Trace>,
    ) -> Result<Vec<(Option<String>, Checked)>, Problem> {
        // Who may not send this kind is told so, and not what the route would have made of the event.
        for (kind, _) in routes.iter().filter_map(|route| self.registry.get(&route.kind)) {
            caller.may_send(kind)?;
        }
        let data = event.data.take();
        // Text, numbers and maps of them: it cannot fail.
        let mut parts = serde_json::to_value(&event).unwrap_or_default();
        if let Some(data) = data {
            parts["data"] = data.to_value();
        }
        // Written before the first is read again, so that never more than two forms of the event are there.
        let bodies: Vec<_> = routes.iter().map(|route| route.body(&parts).map(|body| body.to_string())).collect();
        drop(parts);
        let (mut checked, mut errors) = (Vec::new(), Vec::new());
        for (route, body) in routes.iter().zip(bodies) {
            let wrong = |pointer: &str, code: Cow<'static, str>, detail: String| {
                let detail = format!("the route `{}`: {detail}", route.name);
                FieldProblem { pointer: pointer.to_owned(), code, detail }
            };
            let body = match body {
                Ok(body) => body,
                Err(missing) => {
                    errors.push(wrong(&missing.pointer, "missing_part".into(), missing.to_string()));
                    continue;
                }
            };
            // None of them holds a control character, so this is no other event's name.
            let name = [&route.name, &event.source, &event.id].map(String::as_str).join("\n");
            let name = Name::Given { by: origin.names(), name: &name };
            let body = (Format::Json, body.as_bytes());
            match self.check(submission(caller, &route.kind, body, name, trace.cloned().map(Box::new))) {
                Ok(job) => checked.push((Some(route.name.clone()), job)),
                Err(problem) => errors.extend(problem.problems().into_iter().map(|problem| {
                    let place = if problem.pointer.is_empty() { String::new() } else { problem.pointer + ": " };
                    let detail = format!("its body is no {}: {place}{}", route.kind, problem.detail);
                    wrong("", problem.code, detail)
                })),
            }
        }
        if errors.is_empty() {
            return Ok(checked);
        }
        let detail = "a route takes this event and cannot make a job of it; nothing was accepted";
        Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "route_failed", detail).listing(errors))
    }
}

fn submission<'a>(
    caller: &'a Caller,
    kind: &'a str,
    (format, body): (Format, &'a [u8]),
    name: Name<'a>,
    trace: Option<Box<Trace>>,
) -> Submission<'a> {
    Submission { caller, kind, format, body, name, when: When::Now, source: caller.name(), trace }
}

/// What is answered when not every job could be published. Its sender is to repeat the event, which is harmless.
fn unfinished(accepted: usize, problems: Vec<Problem>) -> Problem {
    let all = accepted + problems.len();
    let unknown = problems.iter().position(|problem| problem.code() == OUTCOME_UNKNOWN);
    let Some(problem) = problems.into_iter().nth(unknown.unwrap_or(0)) else {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, OUTCOME_UNKNOWN, "send the event again");
    };
    if unknown.is_some() {
        let detail = "the broker did not confirm in time what becomes of this event; it may have been accepted. Send the \
                      event again: with the same source and id it is the same";
        problem.saying(OUTCOME_UNKNOWN, detail)
    } else if accepted > 0 {
        let detail = format!(
            "{accepted} of the {all} jobs that this event becomes were accepted, the others were not. Send the event \
             again: with the same source and id it becomes the same jobs"
        );
        problem.saying("partly_accepted", detail)
    } else {
        problem
    }
}

impl From<Event<'_>> for Received {
    fn from(event: Event<'_>) -> Self {
        let Event { origin: _, event_type, source, id, time, headers, data } = event;
        let (data, data_base64) = match data {
            Data::None => (None, None),
            Data::Json(json) => (Some(json.into()), None),
            Data::Bytes(bytes) => (None, Some(Bytes(bytes))),
        };
        let (event_type, source, id) = (event_type.to_owned(), source.to_owned(), id.to_owned());
        Self { event_type, source, id, time, headers, data, data_base64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PublishError::{Busy, OutcomeUnknown, Refused, Unavailable};

    #[test]
    fn what_is_answered_says_of_no_job_that_it_was_refused_if_it_was_not() {
        let answer = |accepted, errors: &[_]| unfinished(accepted, errors.iter().map(Problem::publish).collect());
        assert_eq!(answer(0, &[Unavailable, Busy]).code(), "broker_unavailable");
        assert_eq!(answer(1, &[Refused]).code(), "partly_accepted");
        assert_eq!(answer(0, &[Unavailable, OutcomeUnknown]).code(), OUTCOME_UNKNOWN);
        assert_eq!(answer(2, &[Busy, OutcomeUnknown]).code(), OUTCOME_UNKNOWN);
        let detail = answer(2, &[Refused]).problems().remove(0).detail;
        assert!(detail.starts_with("2 of the 3 jobs"), "{detail}");
    }
}
