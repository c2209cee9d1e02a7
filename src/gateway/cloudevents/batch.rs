//! Many CloudEvents in one request.
//!
//! Each is answered for itself, and a bad one spoils no other; but whether the whole is JSON is asked before any is taken.
//! They are read one by one, and of what was read only the jobs are left when they are waited for.

use std::collections::HashSet;

use axum::{
    Json as JsonBody,
    response::{IntoResponse, Response},
};
use futures_util::future::join_all;
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::value::RawValue;
use warren_messages::codec::MAX_BYTES;

use super::structured;
use crate::gateway::{
    Gateway,
    caller::Caller,
    event::Taken,
    problem::{Item, Problem},
    room::Reading,
};

/// How many events one request may hold.
const MOST: usize = 1000;
/// How long such a request may be.
pub(super) const MOST_BYTES: usize = 4 * MAX_BYTES;
/// How many are taken at once.
const AT_ONCE: usize = 250;
/// How long they are together, or else there is one.
const BYTES_AT_ONCE: usize = MAX_BYTES;
/// How long the sender of a batch is to wait before it repeats it.
const PAUSE_SECONDS: u64 = 5;

/// What became of one event of many.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "EventVerdict")]
enum Verdict {
    Taken {
        index: usize,
        status: u16,
        #[serde(flatten)]
        taken: Taken,
    },
    Refused {
        index: usize,
        #[serde(flatten)]
        problem: Item,
    },
}

/// What became of many events.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "EventVerdicts")]
pub(super) struct Verdicts {
    results: Vec<Verdict>,
    accepted: usize,
    refused: usize,
}

/// The schema of many events. A bad one is refused for itself.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array" })
}

impl Gateway {
    /// Takes many events, and answers each. Should one of them find no room for now, the answer as a whole asks for a
    /// repeat: a sender that looks at the status alone must not take it for sent.
    pub(super) async fn take_batch(
        &self,
        caller: Caller,
        headers: &HeaderMap,
        text: &[u8],
    ) -> Result<Response, Problem> {
        let mut events = split(text)?.into_iter().peekable();
        let caller = caller.counted(u32::try_from(events.len()).unwrap_or(u32::MAX))?;
        let mut seen = HashSet::new();
        let mut check = |event: &RawValue| {
            let event = structured(event.get().as_bytes())?;
            if seen.insert((event.source.clone(), event.id.clone())) {
                return self.check_cloud_event(&caller, headers, event);
            }
            let detail = "an event before this one has the same source and id, so it is the same event";
            Err(Problem::new(StatusCode::CONFLICT, "duplicate_in_batch", detail))
        };
        let mut results = Vec::with_capacity(events.len());
        let (mut accepted, mut again) = (0, false);
        while events.peek().is_some() {
            let (mut checked, mut bytes) = (Vec::new(), 0);
            while let Some(event) = events.next_if(|event| {
                bytes += event.get().len();
                checked.is_empty() || checked.len() < AT_ONCE && bytes <= BYTES_AT_ONCE
            }) {
                let reading = Reading::of(event.get().as_bytes()).await;
                checked.push(check(event));
                drop(reading);
            }
            let taken = checked.into_iter().map(async |checked| self.take_event(checked?).await);
            for taken in join_all(taken).await {
                let index = results.len();
                results.push(match taken {
                    Ok(taken) => {
                        accepted += 1;
                        Verdict::Taken { index, status: StatusCode::ACCEPTED.as_u16(), taken }
                    }
                    Err(problem) => {
                        again |= problem.is_ours();
                        Verdict::Refused { index, problem: problem.item() }
                    }
                });
            }
        }
        let refused = results.len() - accepted;
        let status = if again { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let mut response = (status, JsonBody(Verdicts { results, accepted, refused })).into_response();
        if again {
            response.headers_mut().insert(RETRY_AFTER, PAUSE_SECONDS.into());
        }
        Ok(response)
    }
}

/// The events of a batch. One that is no JSON is told before anything is taken.
pub(super) fn split(text: &[u8]) -> Result<Vec<&RawValue>, Problem> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let events: Vec<&RawValue> = serde_json::from_slice(text).map_err(|error| {
        if error.is_data() {
            let detail = "a batch is a JSON array of CloudEvents";
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_an_array", detail)
        } else {
            Problem::new(StatusCode::BAD_REQUEST, "invalid_json", error.to_string())
        }
    })?;
    if events.len() > MOST {
        let detail = format!("one request holds at most {MOST} events, and this one {}: none was taken", events.len());
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "batch_too_large", detail));
    }
    Ok(events)
}
