//! What a request says, read with limits and checked before it is believed.

use std::time::Duration;

use axum::{body::Body, extract::FromRequestParts};
use http::{HeaderMap, HeaderName, StatusCode, header::CONTENT_TYPE, request::Parts};
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::{
    body::Incoming,
    problem::Problem,
    room::Stranger,
    submit::{FURTHEST, When},
};
use crate::{config::parse_duration, job::Trace, nearest::shorten, runtime::registry::Format};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const DELAY: HeaderName = HeaderName::from_static("warren-delay");
const RUN_AT: HeaderName = HeaderName::from_static("warren-run-at");
const PREFER: HeaderName = HeaderName::from_static("prefer");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What stands in the path, once it is decoded.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(path)| Self(path)).map_err(|_| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "bad_path",
                "the path is not UTF-8 once its percent signs are decoded",
            )
        })
    }
}

/// Reads a body whole, but no more than so many bytes of it, neither as it comes in nor unpacked.
pub(super) async fn read_body(headers: &HeaderMap, body: Body, at_most: usize) -> Result<bytes::Bytes, Problem> {
    Incoming::whole(headers, body, at_most)?.collect().await
}

/// The same for a body that may repeat itself as often as it likes where it is packed, as a batch of events does that all
/// say where they come from.
pub(super) async fn read_repetitive_body(
    headers: &HeaderMap,
    body: Body,
    at_most: usize,
) -> Result<bytes::Bytes, Problem> {
    Incoming::whole(headers, body, at_most)?.of_any_ratio().collect().await
}

/// The same from someone who has yet to show that he may send: what comes with the body is to be dropped when he has.
pub(super) async fn read_body_of_stranger(
    headers: &HeaderMap,
    body: Body,
    at_most: usize,
) -> Result<(bytes::Bytes, Stranger), Problem> {
    Incoming::whole(headers, body, at_most)?.of_any_ratio().collect_from_stranger().await
}

/// The format that a request names. None is JSON.
pub(super) fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let Some(named) = headers.get(CONTENT_TYPE) else { return Ok(Format::Json) };
    let named = named.to_str().unwrap_or_default();
    // As nearly everyone writes it.
    if named == "application/json" {
        return Ok(Format::Json);
    }
    let media = named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media.as_str() {
        "application/json" => Ok(Format::Json),
        "application/msgpack" | "application/vnd.msgpack" | "application/x-msgpack" => Ok(Format::MessagePack),
        _ => {
            let detail = format!(
                "the content type `{}` is not taken: send application/json or application/msgpack (with curl: --json)",
                shorten(&media)
            );
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type", detail))
        }
    }
}

/// The key that makes a repeat the same job.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = given.next() else { return Ok(None) };
    let key = key.to_str().unwrap_or_default();
    check_key(key)?;
    if given.next().is_some() {
        return Err(Problem::field("bad_idempotency_key", "", "there are two Idempotency-Key headers: send one"));
    }
    Ok(Some(key))
}

/// Whether a key is one.
pub(super) fn check_key(key: &str) -> Result<(), Problem> {
    if (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    let detail = "an Idempotency-Key is 1 to 255 visible ASCII characters, without spaces";
    Err(Problem::field("bad_idempotency_key", "", detail))
}

/// When a job is due.
pub(super) fn when(headers: &HeaderMap) -> Result<When, Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
    when_of(text(DELAY), text(RUN_AT))
}

/// The same, from a delay and a time.
pub(super) fn when_of(delay: Option<&str>, run_at: Option<&str>) -> Result<When, Problem> {
    match (delay, run_at) {
        (None, None) => Ok(When::Now),
        (Some(_), Some(_)) => {
            Err(Problem::field("bad_delay", "", "give either Warren-Delay or Warren-Run-At, not both"))
        }
        (Some(delay), None) => {
            let problem = match parse_duration(delay) {
                Ok(delay) if delay <= FURTHEST => return Ok(When::In(delay)),
                Ok(_) => "it is too long".to_owned(),
                Err(problem) => problem,
            };
            let most = FURTHEST.as_secs() / 86_400;
            let detail =
                format!("Warren-Delay: {problem}. A delay is such as 30s, 5m, 12h or 30d, and at most {most}d");
            Err(Problem::field("bad_delay", "", detail))
        }
        (None, Some(at)) => match at.parse::<Timestamp>() {
            Ok(at) => Ok(When::At(at)),
            Err(_) if at.parse::<jiff::civil::DateTime>().is_ok() => {
                let detail = "Warren-Run-At has no zone: end it with Z or an offset, such as 2026-12-24T18:00:00+01:00";
                Err(Problem::field("zone_required", "", detail))
            }
            Err(_) => {
                let detail = "Warren-Run-At reads 2026-12-24T18:00:00+01:00 (RFC 3339)";
                Err(Problem::field("bad_run_at", "", detail))
            }
        },
    }
}

/// The longest that a request may wait for its job.
pub(super) const LONGEST_WAIT: u64 = 60;

/// How long a request wants to wait for its job: `Prefer: wait=10` (RFC 7240).
pub(super) fn prefer_wait(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    for value in headers.get_all(PREFER) {
        for preference in value.to_str().unwrap_or_default().split([',', ';']) {
            if let Some((name, seconds)) = preference.split_once('=')
                && name.trim().eq_ignore_ascii_case("wait")
            {
                return wait(seconds.trim().trim_matches('"')).map(Some);
            }
        }
    }
    Ok(None)
}

/// The same, as `?wait=10`.
pub(super) fn query_wait(query: Option<&str>) -> Result<Option<Duration>, Problem> {
    let mut pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    match (pairs.next().map(|pair| pair.split_once('=')), pairs.next()) {
        (None, _) => Ok(None),
        (Some(Some(("wait", seconds))), None) => wait(seconds).map(Some),
        _ => {
            let detail = "the only parameter here is wait, once, such as ?wait=10";
            Err(Problem::field("unknown_parameter", "", detail))
        }
    }
}

fn wait(seconds: &str) -> Result<Duration, Problem> {
    match seconds.parse::<u64>() {
        Ok(seconds) if seconds <= LONGEST_WAIT => Ok(Duration::from_secs(seconds)),
        _ => {
            let detail = format!("wait is a whole number of seconds from 0 to {LONGEST_WAIT}");
            Err(Problem::field("bad_wait", "", detail))
        }
    }
}

/// W3C trace context, where a request brings one that is well formed.
pub(super) fn trace(headers: &HeaderMap) -> Option<Box<Trace>> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    trace_of(text(TRACEPARENT)?, text(TRACESTATE))
}

/// The same, from its two parts.
pub(super) fn trace_of(parent: &str, state: Option<&str>) -> Option<Box<Trace>> {
    let parts: Vec<_> = parent.split('-').collect();
    let hex = |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit());
    let [version, trace, span, flags, ..] = parts.as_slice() else { return None };
    if !(hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2) && parent.len() <= 256) {
        return None;
    }
    let state = state.filter(|state| state.len() <= 512);
    Some(Box::new(Trace { parent: parent.to_owned(), state: state.map(str::to_owned) }))
}
