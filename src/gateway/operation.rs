//! One operation of the gateway: its route, and what is said of it.
//!
//! A route and its description are one value, from which both the router and `/v1/openapi.json` are made; so neither can be
//! without the other. A protocol's file gives its operations beside its handlers:
//!
//! ```ignore
//! pub(super) fn operations() -> Vec<Operation> {
//!     vec![
//!         Operation::post("/v1/events", "sendEvents", EVENTS, "Send events", receive)
//!             .text("One CloudEvent, or a batch of them.")
//!             .parameter(header("ce-id", "In binary mode: which event.", text))
//!             .takes("application/cloudevents+json", SchemaGenerator::subschema_for::<Event>)
//!             .answers(202, "It is durable.", SchemaGenerator::subschema_for::<Taken>)
//!             .refuses(&[400, 413, 415, 422, 503]),
//!     ]
//! }
//! ```
//!
//! and `operations` in `gateway/mod.rs` names the file. Which key it asks for is `auth::scope_of`'s to say; what asks for none
//! is `for_everyone`. What it takes is described by a type with `JsonSchema`, or by a function that writes a schema
//! (`anything` where the body is someone else's). After a change
//! `WARREN_GOLDEN=write cargo test --test it -- the_description_of_the_interface` writes `tests/golden/openapi.json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Router,
    handler::Handler,
    routing::{self, MethodRouter},
};
use http::Method;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::{Gateway, auth::scope_of};
use crate::keys::Scope;

/// Writes the schema of a type or of a parameter.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What the operations on jobs are listed under.
pub(super) const JOBS: &str = "Jobs";
/// What the operations are listed under by which events come in.
pub(super) const EVENTS: &str = "Events";
/// What the operations about the gateway itself are listed under.
pub(super) const ABOUT: &str = "About";

/// One operation.
pub(super) struct Operation {
    pub(super) method: Method,
    /// Its path, as it is routed.
    pub(super) path: &'static str,
    /// The same, as it is shown: one path may be routed under another name for its parameter.
    pub(super) shown: &'static str,
    /// Where it is routed too, and not shown.
    pub(super) also: Vec<&'static str>,
    pub(super) id: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) text: &'static str,
    pub(super) parameters: Vec<Parameter>,
    pub(super) takes: Vec<(&'static str, Takes)>,
    pub(super) needs_body: bool,
    /// What a key must allow for it; none where no key is asked for.
    pub(super) scope: Option<Scope>,
    pub(super) answers: BTreeMap<u16, Answer>,
    route: MethodRouter<Arc<Gateway>>,
}

/// What a request's body is.
#[derive(Clone, Copy)]
pub(super) enum Takes {
    /// As this schema says.
    This(SchemaOf),
    /// The body of a kind: the operation is shown once for each, with `{kind}` in its path.
    EachKind,
}

/// One answer.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) text: &'static str,
    pub(super) content: Vec<(&'static str, SchemaOf)>,
    pub(super) headers: Vec<(&'static str, &'static str)>,
}

/// A parameter in the path, the query or the headers.
pub(super) struct Parameter {
    pub(super) place: &'static str,
    pub(super) name: &'static str,
    pub(super) text: &'static str,
    pub(super) schema: SchemaOf,
}

/// A parameter in the path.
pub(super) fn path(name: &'static str, text: &'static str, schema: SchemaOf) -> Parameter {
    Parameter { place: "path", name, text, schema }
}

/// A parameter in the query.
pub(super) fn query(name: &'static str, text: &'static str, schema: SchemaOf) -> Parameter {
    Parameter { place: "query", name, text, schema }
}

/// A header.
pub(super) fn header(name: &'static str, text: &'static str, schema: SchemaOf) -> Parameter {
    Parameter { place: "header", name, text, schema }
}

/// Any text.
pub(super) fn text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string" })
}

/// Anything at all: what someone else describes.
pub(super) fn anything(_: &mut SchemaGenerator) -> Schema {
    true.into()
}

impl Operation {
    /// Reads something.
    pub(super) fn get<H: Handler<T, Arc<Gateway>>, T: 'static>(
        path: &'static str,
        id: &'static str,
        tag: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self {
        Self::new(Method::GET, path, id, tag, summary, routing::get(handler))
    }

    /// Sends something.
    pub(super) fn post<H: Handler<T, Arc<Gateway>>, T: 'static>(
        path: &'static str,
        id: &'static str,
        tag: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self {
        Self::new(Method::POST, path, id, tag, summary, routing::post(handler))
    }

    /// Takes something back.
    pub(super) fn delete<H: Handler<T, Arc<Gateway>>, T: 'static>(
        path: &'static str,
        id: &'static str,
        tag: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self {
        Self::new(Method::DELETE, path, id, tag, summary, routing::delete(handler))
    }

    fn new(
        method: Method,
        path: &'static str,
        id: &'static str,
        tag: &'static str,
        summary: &'static str,
        route: MethodRouter<Arc<Gateway>>,
    ) -> Self {
        let (also, parameters, takes, answers) = (Vec::new(), Vec::new(), Vec::new(), BTreeMap::new());
        Self {
            scope: Some(scope_of(&method, path)),
            method,
            path,
            shown: path,
            also,
            id,
            tag,
            summary,
            text: "",
            parameters,
            takes,
            needs_body: true,
            answers,
            route,
        }
    }

    /// Shown under another path than it is routed under.
    pub(super) fn shown_at(self, shown: &'static str) -> Self {
        Self { shown, ..self }
    }

    /// Routed under another path too, for senders that write it so.
    pub(super) fn also(mut self, path: &'static str) -> Self {
        self.also.push(path);
        self
    }

    /// More than its summary says.
    pub(super) fn text(self, text: &'static str) -> Self {
        Self { text, ..self }
    }

    /// Heeds a parameter.
    pub(super) fn parameter(mut self, parameter: Parameter) -> Self {
        self.parameters.push(parameter);
        self
    }

    /// Takes a body of this media type.
    pub(super) fn takes(mut self, media: &'static str, schema: SchemaOf) -> Self {
        self.takes.push((media, Takes::This(schema)));
        self
    }

    /// Takes the body of any kind.
    pub(super) fn takes_each_kind(mut self, media: &'static str) -> Self {
        self.takes.push((media, Takes::EachKind));
        self
    }

    /// Asks for no key. Said before what it refuses.
    pub(super) fn for_everyone(self) -> Self {
        Self { scope: None, ..self }
    }

    /// What it takes may be left away.
    pub(super) fn or_nothing(self) -> Self {
        Self { needs_body: false, ..self }
    }

    /// Answers with JSON.
    pub(super) fn answers(self, status: u16, text: &'static str, schema: SchemaOf) -> Self {
        self.answers_with(status, text, "application/json", schema)
    }

    /// Answers with something else.
    pub(super) fn answers_with(
        mut self,
        status: u16,
        text: &'static str,
        media: &'static str,
        schema: SchemaOf,
    ) -> Self {
        let answer = self.answers.entry(status).or_default();
        answer.text = text;
        answer.content.push((media, schema));
        self
    }

    /// Answers without a body.
    pub(super) fn answers_empty(mut self, status: u16, text: &'static str) -> Self {
        self.answers.entry(status).or_default().text = text;
        self
    }

    /// Sets a header in one of its answers.
    pub(super) fn with_header(mut self, status: u16, name: &'static str, text: &'static str) -> Self {
        self.answers.entry(status).or_default().headers.push((name, text));
        self
    }

    /// Refuses with problems of these statuses; and with those of the door, where a key is asked for.
    pub(super) fn refuses(mut self, statuses: &[u16]) -> Self {
        let door: &[u16] = if self.scope.is_some() { &[400, 401, 403, 429, 503] } else { &[] };
        let statuses: BTreeSet<_> = statuses.iter().chain(door).collect();
        for status in statuses {
            let answer = self.answers.entry(*status).or_default();
            answer.text = match status {
                400 => "The request cannot be read.",
                401 => "It is not known who sends it, or it is not signed as it must be.",
                403 => "Whoever sends it may not do this.",
                404 => "There is no such thing, or it is not this caller's.",
                408 => "The request did not come in in time.",
                409 => "It contradicts what was accepted before, or comes too late.",
                410 => "It is so old that nothing is kept of it.",
                413 => "It is longer than what is taken.",
                415 => "Another content type is needed.",
                422 => "It can be read and breaks a rule. Every problem that can be found is listed.",
                429 => "Too many requests.",
                503 => "Not accepted, or with the code `outcome_unknown`: not known. Send it again.",
                507 => "Not accepted: the disk is full.",
                _ => "A problem.",
            };
            answer.content.push(("application/problem+json", super::problem::schema));
            if matches!(status, 429 | 503 | 507) {
                answer.headers.push(("Retry-After", "When to send it again, in seconds."));
            }
        }
        self
    }
}

/// The router of these operations.
pub(super) fn router(operations: Vec<Operation>) -> Router<Arc<Gateway>> {
    operations.into_iter().fold(Router::new(), |router, Operation { path, also, route, .. }| {
        also.into_iter().fold(router, |router, path| router.route(path, route.clone())).route(path, route)
    })
}
