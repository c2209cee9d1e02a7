//! Segment's HTTP API, which RudderStack's SDKs speak as well.
//!
//! `POST /v1/batch` with many events, and `/v1/track`, `identify`, `page`, `screen`, `group` and `alias` with one. Content
//! types are not looked at: some of these SDKs send gzipped JSON as a form.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Json,
    extract::{Request, State as Shared},
};
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use warren_messages::analytics::Call;

use super::{
    Arrival, Props, REFUSED, Refused, Said, Together, Unserved, batch_schema,
    mend::mend,
    read::{self, Events, Id, Moment},
};
use crate::gateway::{
    Gateway,
    caller::Caller,
    operation::{EVENTS, Operation, anything},
    problem::Problem,
};

/// Whose message ids these are.
const IDS_OF: &str = "tracking:segment";

pub(super) fn operations() -> Vec<Operation> {
    const TAKEN: &str = "Each event is durable, or refused by name.";
    let single = |(call, id, path, slashed): (Call, _, _, _)| {
        let handler = move |gateway, caller, request| one(call, gateway, caller, request);
        Operation::post(path, id, EVENTS, "Send one event as Segment's SDKs do", handler)
            .also(slashed)
            .takes("application/json", anything)
            .answers(200, TAKEN, SchemaGenerator::subschema_for::<Answer>)
            .refuses(REFUSED)
    };
    let many = Operation::post("/v1/batch", "segmentBatch", EVENTS, "Send events as Segment's SDKs do", batch)
        .also("/v1/batch/")
        .text("RudderStack's SDKs as well.")
        .takes("application/json", batch_schema)
        .answers(200, TAKEN, SchemaGenerator::subschema_for::<Answer>)
        .refuses(REFUSED);
    [many].into_iter().chain(SINGLE.map(single)).collect()
}

/// A page for each call.
const SINGLE: [(Call, &str, &str, &str); Call::ALL.len()] = [
    (Call::Track, "segmentTrack", "/v1/track", "/v1/track/"),
    (Call::Identify, "segmentIdentify", "/v1/identify", "/v1/identify/"),
    (Call::Page, "segmentPage", "/v1/page", "/v1/page/"),
    (Call::Screen, "segmentScreen", "/v1/screen", "/v1/screen/"),
    (Call::Group, "segmentGroup", "/v1/group", "/v1/group/"),
    (Call::Alias, "segmentAlias", "/v1/alias", "/v1/alias/"),
];

#[derive(Deserialize)]
struct Sending<'a> {
    #[serde(borrow)]
    batch: Events<'a>,
    #[serde(default, rename = "sentAt")]
    sent_at: Moment,
}

/// What is read of an event. What else stands in it (`integrations`, `channel`, `_metadata`) is for Segment's own servers.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(default, rename = "type")]
    call: Option<String>,
    #[serde(default)]
    event: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    category: Option<String>,
    #[serde(default, rename = "userId")]
    user_id: Id,
    #[serde(default, rename = "anonymousId")]
    anonymous_id: Id,
    #[serde(default, rename = "previousId")]
    previous_id: Id,
    #[serde(default, rename = "groupId")]
    group_id: Id,
    #[serde(default, rename = "messageId")]
    message_id: Id,
    #[serde(default)]
    timestamp: Moment,
    #[serde(default, rename = "originalTimestamp")]
    original_timestamp: Moment,
    #[serde(default, rename = "sentAt")]
    sent_at: Moment,
    #[serde(borrow, default)]
    properties: Option<&'a RawValue>,
    #[serde(borrow, default)]
    traits: Option<&'a RawValue>,
    #[serde(borrow, default)]
    context: Option<&'a RawValue>,
}

/// What is read of a context.
#[derive(Deserialize)]
struct Context<'a> {
    #[serde(borrow, default)]
    traits: Option<&'a RawValue>,
}

/// `success` says that the request is dealt with and need not come again, as these SDKs want to hear it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SegmentAnswer")]
struct Answer {
    success: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<Refused>,
}

async fn batch(
    Shared(gateway): Shared<Arc<Gateway>>,
    caller: Result<Caller, Problem>,
    request: Request,
) -> Result<Json<Answer>, Unserved> {
    let caller = caller?.begun()?;
    let (head, body) = request.into_parts();
    let Arrival { at: received, body } = Arrival::of(&head.headers, body).await?;
    let body = mend(&body);
    let Sending { batch, sent_at: sent } = read::body(&body)?;
    batch.check()?;
    let events: Vec<_> = batch.events.iter().map(|event| said(event, None)).collect();
    let together = Together::of(caller, IDS_OF, received, sent, events)?;
    Ok(Json(Answer { success: true, refused: gateway.track(&together).await? }))
}

async fn one(
    call: Call,
    Shared(gateway): Shared<Arc<Gateway>>,
    caller: Result<Caller, Problem>,
    request: Request,
) -> Result<Json<Answer>, Unserved> {
    let caller = caller?.begun()?;
    let (head, body) = request.into_parts();
    let Arrival { at: received, body } = Arrival::of(&head.headers, body).await?;
    let body = mend(&body);
    let events = vec![said(read::body(&body)?, Some(call))];
    let together = Together::of(caller, IDS_OF, received, Moment::Unsaid, events)?;
    Ok(Json(Answer { success: true, refused: gateway.track(&together).await? }))
}

/// Reads an event. A call that the path names is that, whatever the event says.
fn said(event: &RawValue, call: Option<Call>) -> Result<Said<'_>, Problem> {
    let item: Item<'_> = read::event(event)?;
    let call = call.map_or_else(|| call_of(item.call.as_deref()), Ok)?;
    let event = match call {
        Call::Track => item.event.map(Cow::Owned),
        Call::Page | Call::Screen => item.name.filter(|name| !name.is_empty()).map(Cow::Owned),
        Call::Identify | Call::Group | Call::Alias => None,
    };
    let event = match (event, call) {
        (Some(event), _) => event,
        (None, Call::Track) => {
            return Err(Problem::field("missing_field", "/event", "a track says what happened in `event`"));
        }
        (None, call) => Cow::Borrowed(call.as_str()),
    };
    let props = match call {
        Call::Track | Call::Page | Call::Screen => item.properties,
        // RudderStack's SDKs have the traits of an identify in its context.
        Call::Identify => match item.traits.filter(|traits| !is_empty(traits)) {
            None => item.context.and_then(traits_of),
            traits => traits,
        },
        Call::Group => item.traits,
        Call::Alias => None,
    };
    // RudderStack's name for what a sender says; where there are both, `timestamp` has been corrected already.
    let at = match item.original_timestamp.readable("originalTimestamp")? {
        None => item.timestamp.readable("timestamp")?,
        at => at,
    };
    Ok(Said {
        call,
        event,
        category: item.category.filter(|category| !category.is_empty()),
        user_id: item.user_id.0,
        anonymous_id: item.anonymous_id.0,
        previous_id: item.previous_id.0,
        group_id: item.group_id.0,
        at,
        sent_at: item.sent_at.by_a_clock(),
        is_exact: false,
        props: props.map(Props::Raw),
        ctx: item.context,
        message_id: item.message_id.0,
    })
}

fn call_of(name: Option<&str>) -> Result<Call, Problem> {
    let names = Call::ALL.map(Call::as_str).join(", ");
    match name {
        None => Err(Problem::field("missing_field", "/type", format!("`type` is missing: one of {names}"))),
        Some(name) => {
            Call::of(name).ok_or_else(|| Problem::field("unknown_value", "/type", format!("`type` is one of {names}")))
        }
    }
}

fn traits_of(context: &RawValue) -> Option<&RawValue> {
    serde_json::from_str::<Context<'_>>(context.get()).ok()?.traits
}

fn is_empty(object: &RawValue) -> bool {
    object.get().bytes().filter(|byte| !byte.is_ascii_whitespace()).eq(*b"{}")
}
