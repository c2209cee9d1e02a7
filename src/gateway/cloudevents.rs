//! CloudEvents 1.0 over HTTP: `POST /v1/events`, in binary, structured and batched mode.
//!
//! Reads what the JSON format and the HTTP binding say, and hands each event on as a plain one: `source` and `id` name it,
//! every other attribute is one of its headers. It promises that what breaks the rules is told whole.

mod batch;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use axum::{
    Json as JsonBody,
    extract::{Request, State as Shared},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;
use warren_messages::{
    Bytes, Invalid,
    codec::{self, MAX_BYTES},
    field,
};

use super::{
    Gateway,
    caller::Caller,
    event::{CheckedEvent, Data, Event, INVALID_EVENT, Origin, RESERVED_SOURCE, Taken, TakenJob, is_reserved},
    operation::{EVENTS, Operation, anything, header, text},
    problem::Problem,
    request,
    room::Reading,
};
use crate::{
    job::Trace,
    runtime::registry::{Format, Rejected},
};

const PREFIX: &str = "ce-";
/// What every event has.
const REQUIRED: [&str; 4] = ["id", "source", "specversion", "type"];
/// What is not empty where it is there.
const NOT_EMPTY: [&str; 7] = ["id", "source", "specversion", "type", "subject", "dataschema", "datacontenttype"];

pub(super) fn operations() -> Vec<Operation> {
    let attribute = |name| header(name, "In binary mode, an attribute of the event.", text);
    vec![
        Operation::post("/v1/events", "sendEvents", EVENTS, "Send CloudEvents", receive)
            .text(
                "CloudEvents 1.0: structured, batched (at most 1,000), or binary, with any content type and the attributes in \
                 headers. Of a batch each event is answered for itself. `source` and `id` name an event: a repeat is the same \
                 jobs.",
            )
            .parameter(attribute("ce-id"))
            .parameter(attribute("ce-source"))
            .parameter(attribute("ce-specversion"))
            .parameter(attribute("ce-type"))
            .takes("application/cloudevents+json", event_schema)
            .takes("application/cloudevents-batch+json", batch::schema)
            .takes("application/json", anything)
            .or_nothing()
            .answers(200, "What became of each event of a batch.", SchemaGenerator::subschema_for::<batch::Verdicts>)
            .answers(202, "Every job that it becomes is durable.", SchemaGenerator::subschema_for::<Taken>)
            .with_header(202, "Location", "Where the job is, if there is one only.")
            .refuses(&[400, 408, 409, 413, 415, 422, 503, 507]),
    ]
}

/// The schema of an event in structured mode.
fn event_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "id": { "type": "string", "minLength": 1 },
            "source": { "type": "string", "minLength": 1 },
            "specversion": { "const": "1.0" },
            "type": { "type": "string", "minLength": 1 },
        },
        "required": REQUIRED,
    })
}

async fn receive(Shared(gateway): Shared<Arc<Gateway>>, caller: Caller, request: Request) -> Result<Response, Problem> {
    let caller = caller.begun()?;
    let (head, body) = request.into_parts();
    let headers = &head.headers;
    let mode = Mode::of(headers)?;
    let at_most = if mode == Mode::Batch { batch::MOST_BYTES } else { MAX_BYTES };
    let body = request::read_body(headers, body, at_most).await?;
    let reading = Reading::of(if mode == Mode::Batch { &[] } else { &body }).await;
    let event = match mode {
        Mode::Binary => binary(headers, &body)?,
        Mode::Structured => structured(&body)?,
        Mode::Batch => return gateway.take_batch(caller, headers, &body).await,
    };
    let checked = gateway.check_cloud_event(&caller.counted(1)?, headers, event)?;
    drop((reading, body));
    let taken = gateway.take_event(checked).await?;
    let only = match taken.jobs.as_slice() {
        [TakenJob { id, .. }] => HeaderValue::from_str(&format!("/v1/jobs/{id}")).ok(),
        _ => None,
    };
    let mut response = (StatusCode::ACCEPTED, JsonBody(taken)).into_response();
    if let Some(location) = only {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// How an event stands in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Its attributes in the headers, its data in the body.
    Binary,
    /// All of it in the body.
    Structured,
    /// Many in the body.
    Batch,
}

impl Mode {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let named = headers.get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("?"));
        let media = named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media.as_str() {
            "application/cloudevents+json" => Ok(Self::Structured),
            "application/cloudevents-batch+json" => Ok(Self::Batch),
            _ if !media.starts_with("application/cloudevents")
                && headers.keys().any(|name| name.as_str().starts_with(PREFIX)) =>
            {
                Ok(Self::Binary)
            }
            _ => {
                let detail = format!(
                    "the content type {media:?} is no CloudEvent: send application/cloudevents+json or \
                     application/cloudevents-batch+json, or any other type with the event's attributes in the headers \
                     ce-id, ce-source, ce-specversion and ce-type"
                );
                Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type", detail))
            }
        }
    }
}

/// An event as it was sent.
#[derive(Debug, PartialEq)]
struct CloudEvent {
    id: String,
    source: String,
    event_type: String,
    time: Option<Timestamp>,
    /// Every other attribute.
    rest: BTreeMap<String, String>,
    data: Data,
}

impl CloudEvent {
    /// W3C trace context, where its extension holds one.
    fn trace(&self) -> Option<Box<Trace>> {
        request::trace_of(self.rest.get("traceparent")?, self.rest.get("tracestate").map(String::as_str))
    }
}

/// Attributes as they are read, and everything that is wrong with them.
#[derive(Debug, Default)]
struct Attributes {
    values: BTreeMap<String, String>,
    /// Those that are there, but not as they must be.
    bad: HashSet<String>,
    invalid: Invalid,
    /// What their names begin with where they stand, and how a place is written there.
    binary: bool,
}

impl Attributes {
    fn wrong(&mut self, name: &str, code: &'static str, problem: &str) {
        let shown: String = name.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let (pointer, shown) = if self.binary {
            (String::new(), format!("the header {PREFIX}{shown}"))
        } else {
            (format!("/{}", name.replace('~', "~0").replace('/', "~1")), format!("the attribute {shown}"))
        };
        self.invalid.add(pointer, code, format!("{shown} {problem}"));
        self.bad.insert(name.to_owned());
    }

    fn add(&mut self, name: &str, value: String) {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if name.is_empty() || !name.bytes().all(plain) || matches!(name, "data") {
            self.wrong(name, "bad_attribute_name", "has a name that no attribute has: it is a-z and 0-9, and not data");
        } else if value.chars().any(char::is_control) {
            self.wrong(name, "bad_value", "holds a control character, which no attribute does");
        } else if value.is_empty() && NOT_EMPTY.contains(&name) {
            self.wrong(name, "bad_value", "is empty: give it a value, or leave it away if it is optional");
        } else if self.values.insert(name.to_owned(), value).is_some() {
            self.wrong(name, "duplicate_key", "is given twice");
        }
    }

    /// The event that they and its data make.
    fn into_event(mut self, data: Data) -> Result<CloudEvent, Problem> {
        for name in REQUIRED {
            if !self.values.contains_key(name) && !self.bad.contains(name) {
                self.wrong(name, "missing_attribute", "is missing: every CloudEvent has one");
            }
        }
        if self.values.remove("specversion").is_some_and(|version| version != "1.0") {
            self.wrong("specversion", "bad_value", "names another version than 1.0, the one that is taken");
        }
        if self.values.get("source").is_some_and(|source| is_reserved(source)) {
            let problem = "begins with /v1/hooks/, as only that of a signed webhook does: name the place where the event \
                           happened otherwise";
            self.wrong("source", RESERVED_SOURCE, problem);
        }
        let time = self.values.remove("time").and_then(|text| {
            let time = field::any_instant(&text);
            if time.is_none() {
                self.wrong("time", "bad_value", "is no time such as 2026-12-24T18:00:00+01:00 (RFC 3339)");
            }
            time
        });
        let Self { mut values, invalid, .. } = self;
        invalid.into_result().map_err(|invalid| {
            let all = invalid.problems();
            let (code, detail) = match all {
                [only] if only.code == RESERVED_SOURCE => (RESERVED_SOURCE, only.detail.as_str()),
                _ => (INVALID_EVENT, "this is no CloudEvent 1.0"),
            };
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail).listing(all.to_vec())
        })?;
        let mut take = |name| values.remove(name).unwrap_or_default();
        let (id, source, event_type) = (take("id"), take("source"), take("type"));
        Ok(CloudEvent { id, source, event_type, time, rest: values, data })
    }
}

/// Reads an event whose attributes stand in the headers.
fn binary(headers: &HeaderMap, body: &[u8]) -> Result<CloudEvent, Problem> {
    let mut attributes = Attributes { binary: true, ..Attributes::default() };
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(PREFIX) else { continue };
        if name == "datacontenttype" {
            attributes.wrong(name, "bad_attribute_name", "is not taken: it is the header content-type");
            continue;
        }
        match header_text(value.as_bytes()) {
            Some(value) => attributes.add(name, value),
            None => attributes.wrong(name, "bad_value", "is not UTF-8 once its percent-encoding is undone"),
        }
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if let Some(content_type) = content_type {
        attributes.add("datacontenttype", content_type.to_owned());
    }
    // Whether the data can be read is told after whether there is an event at all.
    let event = attributes.into_event(Data::None)?;
    Ok(CloudEvent { data: Data::read(content_type, body)?, ..event })
}

/// The text of a header: without quotes around it, and with its percent-encoding undone, once.
fn header_text(bytes: &[u8]) -> Option<String> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        // Such bytes should not be here, but some clients send what HTTP once meant by them: ISO 8859-1.
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    };
    let text = unquoted(&text).unwrap_or(text);
    percent_decode_str(&text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// What stands within quotes, if the whole of it does.
fn unquoted(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut plain = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return None,
            '\\' => plain.push(chars.next()?),
            c => plain.push(c),
        }
    }
    Some(plain)
}

/// Reads an event that stands in JSON.
fn structured(text: &[u8]) -> Result<CloudEvent, Problem> {
    let value = codec::any_json(text).map_err(|error| {
        let problem = Problem::rejected(&Rejected::Decode(error), Format::Json);
        if problem.code() == "invalid_body" {
            problem.saying(INVALID_EVENT, "this is no CloudEvent 1.0")
        } else {
            problem
        }
    })?;
    let Value::Object(members) = value else {
        let detail = "an event is a JSON object of its attributes and its data";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_a_map", detail));
    };
    let mut attributes = Attributes::default();
    let (mut data, mut bytes) = (None, None);
    for (name, value) in members {
        match (name.as_str(), value) {
            ("data", value) => data = Some(value),
            ("data_base64", value @ Value::String(_)) => match serde_json::from_value::<Bytes>(value) {
                Ok(decoded) => bytes = Some(decoded.0),
                Err(_) => attributes.wrong(&name, "bad_value", "is not base64 (RFC 4648, padded)"),
            },
            // As if it were not there.
            (_, Value::Null) => {}
            ("data_base64", _) => attributes.wrong(&name, "wrong_type", "must be base64 text"),
            (_, Value::String(value)) => attributes.add(&name, value),
            // Only what others have added may be anything but text.
            (known, Value::Bool(_) | Value::Number(_)) if known == "time" || NOT_EMPTY.contains(&known) => {
                attributes.wrong(&name, "wrong_type", "must be text");
            }
            (_, Value::Bool(value)) => attributes.add(&name, value.to_string()),
            (_, Value::Number(value)) if value.as_i64().is_some_and(|value| i32::try_from(value).is_ok()) => {
                attributes.add(&name, value.to_string());
            }
            _ => attributes.wrong(&name, "wrong_type", "must be text, true, false or a whole number of 32 bits"),
        }
    }
    let data = match (data, bytes) {
        (Some(_), Some(_)) => {
            attributes.invalid.add("/data_base64", "one_of", "give either data or data_base64, not both");
            Data::None
        }
        (Some(data), None) => Data::Json(data),
        (None, Some(bytes)) => Data::Bytes(bytes),
        (None, None) => Data::None,
    };
    attributes.into_event(data)
}

impl Gateway {
    fn check_cloud_event(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        event: CloudEvent,
    ) -> Result<CheckedEvent, Problem> {
        let trace = event.trace().or_else(|| request::trace(headers));
        let CloudEvent { id, source, event_type, time, rest, data } = event;
        let (event_type, source, id) = (&event_type, &source, &id);
        let event = Event { origin: Origin::Sent, event_type, source, id, time, headers: rest, data };
        self.check_event(caller, event, trace)
    }
}

#[cfg(test)]
mod tests;
