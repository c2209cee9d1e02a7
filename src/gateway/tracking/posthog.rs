//! PostHog's capture API: `POST /batch/`.
//!
//! Its key is in the body and not in a header; where there is one in a header all the same, it is asked for before the body
//! is read. The SDKs take nothing but `200` for taken.

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
    read::{self, Events, Id, Members, Moment},
};
use crate::{
    gateway::{
        Gateway,
        caller::Caller,
        operation::{EVENTS, Operation},
        problem::Problem,
        room::Stranger,
    },
    keys::Scope,
};

/// Whose ids these are.
const IDS_OF: &str = "tracking:posthog";

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::post("/batch", "posthogBatch", EVENTS, "Send events as PostHog's SDKs do", batch)
            .also("/batch/")
            .takes("application/json", batch_schema)
            .answers(200, "Each event is durable, or refused by name.", SchemaGenerator::subschema_for::<Answer>)
            .refuses(REFUSED),
    ]
}

#[derive(Deserialize)]
struct Sending<'a> {
    #[serde(default)]
    api_key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    batch: Events<'a>,
    #[serde(default)]
    sent_at: Moment,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(default)]
    event: Option<String>,
    #[serde(default)]
    distinct_id: Id,
    #[serde(default)]
    uuid: Id,
    #[serde(default)]
    timestamp: Moment,
    #[serde(borrow, default)]
    properties: Option<Members<'a>>,
    #[serde(borrow, default, rename = "$set")]
    set: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "$set_once")]
    set_once: Option<&'a RawValue>,
}

/// What became of events.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PosthogAnswer")]
struct Answer {
    status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<Refused>,
}

async fn batch(Shared(gateway): Shared<Arc<Gateway>>, request: Request) -> Result<Json<Answer>, Unserved> {
    let (head, body) = request.into_parts();
    let known = gateway.caller_by_headers(&head, Scope::EventsWrite)?.map(Caller::begun).transpose()?;
    let (Arrival { at: received, body }, stranger) = match known {
        Some(_) => (Arrival::of(&head.headers, body).await?, Stranger::default()),
        None => Arrival::of_stranger(&head.headers, body).await?,
    };
    let body = mend(&body);
    let Sending { api_key, batch, sent_at: sent } = read::body(&body)?;
    let by_body = || gateway.caller(&head, api_key.as_deref(), Scope::EventsWrite)?.begun();
    let caller = known.map_or_else(by_body, Ok)?;
    drop(stranger);
    batch.check()?;
    let events: Vec<_> = batch.events.iter().map(|event| said(event)).collect();
    let together = Together::of(caller, IDS_OF, received, sent, events)?;
    Ok(Json(Answer { status: "Ok", refused: gateway.track(&together).await? }))
}

fn said(event: &RawValue) -> Result<Said<'_>, Problem> {
    let item: Item<'_> = read::event(event)?;
    let Some(event) = item.event else {
        return Err(Problem::field("missing_field", "/event", "an event says what happened in `event`"));
    };
    let call = match event.as_str() {
        "$identify" | "$set" => Call::Identify,
        "$pageview" => Call::Page,
        "$screen" => Call::Screen,
        "$groupidentify" => Call::Group,
        "$create_alias" => Call::Alias,
        _ => Call::Track,
    };
    let mut props = item.properties.unwrap_or_default();
    let is = |name: &str, value: &str| props.get(name).is_some_and(|said| said.get() == value);
    // Someone of whom no profile is to be made is nobody who is known.
    let is_anonymous = is("$process_person_profile", "false");
    let is_exact = is("$ignore_sent_at", "true");
    let distinct_id = item.distinct_id.0;
    let (user_id, anonymous_id) =
        if is_anonymous { (None, distinct_id) } else { (distinct_id, props.id("$anon_distinct_id")) };
    let group_id = props.id("$group_key").filter(|_| call == Call::Group);
    // The SDKs have these beside the properties, and PostHog's own servers within them.
    props.add("$set", item.set);
    props.add("$set_once", item.set_once);
    Ok(Said {
        call,
        event: Cow::Owned(event),
        category: None,
        user_id,
        anonymous_id,
        previous_id: None,
        group_id,
        at: item.timestamp.readable("timestamp")?,
        sent_at: Moment::Unsaid,
        is_exact,
        props: Some(Props::Members(props)),
        ctx: None,
        message_id: item.uuid.0,
    })
}
