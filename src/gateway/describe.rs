//! What the gateway says of itself: its kinds, their schemas, and the whole of its interface.
//!
//! For everyone who can reach it: a sender's tools read this before they have a key, and nothing of any tenant is in it.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State as Shared, response::Response};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;

use super::{
    Gateway,
    operation::{ABOUT, Operation, anything, header, path, text},
    page::Page,
    problem::Problem,
    request::Path,
};
use crate::{
    job::Kind,
    nearest::shorten,
    runtime::registry::{Registered, Registry},
};

#[derive(Serialize, JsonSchema)]
struct Index {
    /// Always `warren`.
    service: &'static str,
    /// Which build.
    version: &'static str,
    /// Its time.
    time: Timestamp,
    /// What it takes.
    kinds: Vec<Kind>,
}

#[derive(Serialize, JsonSchema)]
struct Kinds {
    kinds: Vec<KindView>,
}

/// A kind of job.
#[derive(Serialize, JsonSchema)]
struct KindView {
    /// Its name.
    kind: Kind,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// The layouts that are taken.
    versions: Vec<u16>,
    /// How its jobs are run.
    policy: PolicyView,
    links: Links,
}

/// How jobs of a kind are run.
#[derive(Serialize, JsonSchema)]
struct PolicyView {
    /// How long one attempt may take.
    timeout_ms: u64,
    /// How many attempts may fail before the job is a dead letter.
    attempts: u16,
    /// How many run at once in one process.
    concurrency: usize,
    /// How long it waits before the second attempt, at most.
    backoff_base_ms: u64,
    /// How much longer each further wait is.
    backoff_factor: f64,
    /// The longest wait.
    backoff_cap_ms: u64,
    /// How long its output is kept.
    keep_output_s: u64,
}

/// Where to go on.
#[derive(Serialize, JsonSchema)]
struct Links {
    /// Where its jobs are sent.
    submit: String,
    /// What their bodies look like.
    schema: String,
}

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::get("/", "index", ABOUT, "See who answers", index)
            .for_everyone()
            .answers(200, "This is warren.", SchemaGenerator::subschema_for::<Index>),
        Operation::get("/v1/kinds", "listKinds", ABOUT, "List the kinds of jobs", kinds)
            .for_everyone()
            .answers(200, "Every kind, by name.", SchemaGenerator::subschema_for::<Kinds>),
        Operation::get("/v1/schemas/{kind}/{version}", "showSchema", ABOUT, "Show the JSON Schema of a kind", schema)
            .for_everyone()
            .text(
                "Draft 2020-12. It accepts what the gateway takes; what a schema cannot say (a key given twice, an integer \
                 of more than 64 bits, depth and length, and the kind's own rules) is told at submission.",
            )
            .parameter(path("kind", "Which kind.", kind_name))
            .parameter(path("version", "Which layout of its body.", version_number))
            .parameter(header("If-None-Match", "The `ETag` of what the sender has.", text))
            .answers_with(200, "The schema.", "application/schema+json", anything)
            .with_header(200, "ETag", "Changes with the schema.")
            .answers_empty(304, "It has not changed.")
            .refuses(&[400, 404, 422]),
        Operation::get("/v1/openapi.json", "showInterface", ABOUT, "Show this description", openapi)
            .for_everyone()
            .parameter(header("If-None-Match", "The `ETag` of what the sender has.", text))
            .answers(200, "OpenAPI 3.1.", anything)
            .with_header(200, "ETag", "Changes with the description.")
            .answers_empty(304, "It has not changed."),
    ]
}

fn kind_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^[a-z0-9_-]+(\\.[a-z0-9_-]+)*$", "maxLength": 100, "examples": ["warren.probe"] })
}

fn version_number(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 1, "maximum": 65535, "examples": [1] })
}

async fn index(Shared(gateway): Shared<Arc<Gateway>>) -> Json<Index> {
    let kinds = gateway.registry.kinds();
    Json(Index { service: "warren", version: env!("CARGO_PKG_VERSION"), time: Timestamp::now(), kinds })
}

async fn kinds(Shared(gateway): Shared<Arc<Gateway>>) -> Json<Kinds> {
    Json(Kinds { kinds: views(&gateway.registry) })
}

fn views(registry: &Registry) -> Vec<KindView> {
    let view = |(kind, registered): (&Kind, &Registered)| {
        let (policy, schema) = (registered.policy, registered.handler.schema());
        let version = schema.version();
        KindView {
            kind: kind.clone(),
            description: schema.document()["description"].as_str().map(|text| text.replace('\n', " ")),
            versions: vec![version],
            policy: PolicyView {
                timeout_ms: millis(policy.timeout),
                attempts: policy.attempts,
                concurrency: policy.concurrency,
                backoff_base_ms: millis(policy.backoff.base),
                backoff_factor: policy.backoff.factor,
                backoff_cap_ms: millis(policy.backoff.cap),
                keep_output_s: policy.retention.output.as_secs(),
            },
            links: Links { submit: format!("/v1/jobs/{kind}"), schema: format!("/v1/schemas/{kind}/{version}") },
        }
    };
    registry.iter().map(view).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn schema(
    Shared(gateway): Shared<Arc<Gateway>>,
    Path((kind, version)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (kind, registered) = gateway.registry.get(&kind).ok_or_else(|| gateway.unknown_kind(&kind))?;
    let schema = registered.handler.schema();
    if version != schema.version().to_string() {
        let detail = format!(
            "there is no version `{}` of {kind} here; there is {}: see /v1/schemas/{kind}/{}",
            shorten(&version),
            schema.version(),
            schema.version()
        );
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_version", detail));
    }
    Ok(Page::json("application/schema+json", schema.document()).answer(&headers))
}

async fn openapi(Shared(gateway): Shared<Arc<Gateway>>, headers: HeaderMap) -> Response {
    gateway.description.answer(&headers)
}
