//! Events, whatever protocol brings them: each becomes a job for every route that it matches, or is kept.
//!
//! It promises that an event of which one job is refused becomes none, and that a repeat of an event is the same jobs:
//! their ids come from the event's source and id and the name of the route. It must not know protocols.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;
use warren_messages::{Bytes, Json, Message as _, codec, event::Received};

use super::{
    Gateway,
    caller::Caller,
    problem::Problem,
    submit::{Name, Submission, Submitted, When},
};
use crate::{
    job::{Kind, State, Trace},
    runtime::registry::{Format, Rejected},
};

/// An event, whatever protocol brought it.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "its type is what everyone calls it, and a word of the language")]
pub(super) struct Event<'a> {
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

/// The data of an event.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    /// There is none.
    None,
    /// JSON; text is a JSON string.
    Json(Json),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl Data {
    /// Reads data by its content type: JSON is read as such, text is text, anything else stays bytes. Without a content
    /// type it is JSON if it reads as that.
    pub(super) fn read(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, Problem> {
        if bytes.is_empty() {
            return Ok(Self::None);
        }
        let Some(content_type) = content_type else {
            return Ok(codec::any_json(bytes).map_or_else(|_| Self::text_or_bytes(bytes), Self::Json));
        };
        let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let (main, sub) = media.split_once('/').unwrap_or((media.as_str(), ""));
        if sub == "json" || sub.ends_with("+json") {
            let json = codec::any_json(bytes);
            return json.map(Self::Json).map_err(|error| Problem::rejected(&Rejected::Decode(error), Format::Json));
        }
        if main == "text" || sub == "xml" || sub.ends_with("+xml") {
            return Ok(Self::text_or_bytes(bytes));
        }
        Ok(Self::Bytes(bytes.to_vec()))
    }

    /// Text in another encoding than UTF-8 is bytes to us.
    fn text_or_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Json(Json(text.into())),
            Err(_) => Self::Bytes(bytes.to_vec()),
        }
    }
}

/// What an event became.
#[derive(Debug, Serialize)]
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
}

impl Gateway {
    /// Takes an event: `Ok` only when every job that it becomes is durable. Repeated, it becomes the same jobs.
    pub(super) async fn take_event(
        &self,
        caller: &Caller,
        event: Event<'_>,
        trace: Option<Box<Trace>>,
    ) -> Result<Taken, Problem> {
        let received = Received::from(event);
        received.validate().map_err(|invalid| Problem::rejected(&Rejected::Invalid(invalid), Format::Json))?;
        let body = codec::encode(&received).map_err(|_| Problem::rejected(&Rejected::TooLarge, Format::Json))?;
        let submission = Submission {
            tenant: caller.tenant.clone(),
            kind: Received::KIND,
            format: Format::MessagePack,
            body: &body,
            // Its message says by itself which event it is.
            name: Name::None,
            when: When::Now,
            source: None,
            trace,
        };
        let Submitted { id, kind, state, .. } = self.submit(submission).await?;
        Ok(Taken { jobs: vec![TakenJob { id, kind, state }] })
    }
}

impl From<Event<'_>> for Received {
    fn from(event: Event<'_>) -> Self {
        let Event { event_type, source, id, time, headers, data } = event;
        let (data, data_base64) = match data {
            Data::None => (None, None),
            Data::Json(json) => (Some(json), None),
            Data::Bytes(bytes) => (None, Some(Bytes(bytes))),
        };
        let (event_type, source, id) = (event_type.to_owned(), source.to_owned(), id.to_owned());
        Self { event_type, source, id, time, headers, data, data_base64 }
    }
}
