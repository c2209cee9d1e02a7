//! The operations on jobs, as they are described. Their handlers are beside the gateway itself.

use schemars::{Schema, SchemaGenerator, json_schema};
use uuid::Uuid;

use super::{
    Answer, CancelAnswer, batch, cancel_one,
    operation::{JOBS, Operation, header, path, query, text},
    show_one,
    single::submit_one,
    status::JobView,
    submit_many,
};

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::post("/v1/jobs/{kind_or_id}", "submit", JOBS, "Send a job of the kind", submit_one)
            .shown_at("/v1/jobs/{kind}")
            .text("Answered when the job is durable. Other kinds than those that are listed here are a `404`.")
            .parameter(header(
                "Idempotency-Key",
                "The same key is the same job, for 30 days at least; with another body it is a `409`.",
                key,
            ))
            .parameter(header("Warren-Delay", "Run it later: `500ms`, `30s`, `5m`, `12h`, `30d`.", delay))
            .parameter(header("Warren-Run-At", "Run it then; not together with `Warren-Delay`.", instant))
            .parameter(header("Prefer", "`wait=10`: wait so many seconds, at most 60, for its result.", prefer))
            .parameter(header("traceparent", "W3C trace context, handed on to the job.", text))
            .takes_each_kind("application/json")
            .takes_each_kind("application/msgpack")
            .answers(200, "It was waited for, and is over.", SchemaGenerator::subschema_for::<JobView>)
            .with_header(200, "Location", "Where the job is.")
            .answers(202, "It is durable.", SchemaGenerator::subschema_for::<Answer>)
            .with_header(202, "Location", "Where the job is.")
            .refuses(&[400, 408, 409, 413, 415, 422, 503, 507]),
        Operation::post("/v1/jobs", "submitMany", JOBS, "Send many jobs at once", submit_many)
            .text(
                "At most 100,000. Each is answered for itself, in order and with the status that it would have got alone; a \
                 bad one spoils no other. Request and answer are streamed.",
            )
            .takes("application/json", batch::items)
            .takes("application/x-ndjson", text)
            .answers(200, "What became of each.", batch::verdicts)
            .answers_with(200, "What became of each.", "application/x-ndjson", text)
            .refuses(&[400, 408, 413, 415, 422]),
        Operation::get("/v1/jobs/{kind_or_id}", "showJob", JOBS, "See how a job stands", show_one)
            .shown_at("/v1/jobs/{id}")
            .parameter(path("id", "Which job.", SchemaGenerator::subschema_for::<Uuid>))
            .parameter(query("wait", "Wait so many seconds for it to be over.", seconds))
            .answers(200, "How it stands.", SchemaGenerator::subschema_for::<JobView>)
            .refuses(&[400, 404, 410, 422, 503]),
        Operation::delete("/v1/jobs/{kind_or_id}", "cancelJob", JOBS, "Call a job off", cancel_one)
            .shown_at("/v1/jobs/{id}")
            .parameter(path("id", "Which job.", SchemaGenerator::subschema_for::<Uuid>))
            .answers(200, "Nobody had it; it is called off.", SchemaGenerator::subschema_for::<CancelAnswer>)
            .answers(202, "It will not start; if it runs, its outcome is dropped.", SchemaGenerator::subschema_for::<CancelAnswer>)
            .refuses(&[400, 404, 409, 503]),
    ]
}

fn key(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^[!-~]{1,255}$" })
}

fn delay(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "examples": ["30s"] })
}

fn instant(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}

fn prefer(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "examples": ["wait=10"] })
}

fn seconds(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 0, "maximum": super::request::LONGEST_WAIT })
}
