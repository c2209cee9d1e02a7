//! The gateway role: takes jobs over HTTP.
//!
//! Owns the routes, what a request may say, and the answers. It promises that a `202` is durable, that an answer which
//! says "not accepted" is true, and that a body was checked whole before anything was published. It needs no database
//! to accept a job that is due at once. It must not know which broker or store it works on.

pub(crate) mod around;
pub mod auth;
mod batch;
mod body;
pub mod caller;
mod cloudevents;
mod describe;
mod docs;
mod event;
mod gunzip;
mod hooks;
mod jobs;
mod openapi;
mod operation;
mod origin;
mod page;
pub mod problem;
mod recent;
mod request;
mod room;
pub mod serve;
mod single;
pub mod status;
pub mod submit;
mod tracking;
mod wait;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{RawQuery, Request, State as Shared},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use self::{
    around::Around, auth::Door, caller::Caller, hooks::Hooks, operation::Operation, page::Page, problem::Problem,
    recent::Recent, request::Path, serve::Pages, single::Shortcut, wait::Waiters,
};
use crate::{
    broker::Publish,
    config::{Events, Source},
    id::Minter,
    job::{Kind, Micros, State},
    runtime::registry::Registry,
    store::Store,
};

/// Takes jobs over HTTP.
pub struct Gateway {
    registry: Registry,
    broker: Arc<dyn Publish>,
    store: Arc<dyn Store>,
    minter: Arc<Minter>,
    recent: Recent,
    hooks: Hooks,
    waiters: Waiters,
    /// Which events become which jobs.
    events: Events,
    door: Door,
    /// How long a job without a key is remembered.
    remembered: Micros,
    /// What it says of itself.
    description: Page,
}

/// What a gateway works on.
pub struct Parts {
    /// The kinds that it takes.
    pub registry: Registry,
    /// Where jobs go.
    pub broker: Arc<dyn Publish>,
    /// Where jobs with a delay go, and what is asked how jobs stand.
    pub store: Arc<dyn Store>,
    /// Makes ids.
    pub minter: Arc<Minter>,
    /// Where signed webhooks come in from, by name.
    pub sources: BTreeMap<String, Source>,
    /// Which events become which jobs.
    pub events: Events,
    /// Who is let in.
    pub door: Door,
    /// How long a job without a key is remembered: one that has no row and is older is over.
    pub remembered: Duration,
}

impl Gateway {
    /// Must be called within a tokio runtime.
    pub fn new(parts: Parts) -> Self {
        let Parts { registry, broker, store, minter, sources, events, door, remembered } = parts;
        let remembered = Micros::try_from(remembered.as_micros()).unwrap_or(Micros::MAX);
        let waiters = Waiters::new(store.clone());
        let description = Page::json("application/json", &openapi::document(&operations(), &registry));
        Self {
            registry,
            broker,
            store,
            minter,
            recent: Recent::default(),
            hooks: Hooks::new(sources),
            waiters,
            events,
            door,
            remembered,
            description,
        }
    }

    /// Its routes.
    pub fn routes(self) -> impl Pages {
        let gateway = Arc::new(self);
        let router = router().fallback(no_such_page).method_not_allowed_fallback(no_such_method);
        Shortcut { router: Around(router.with_state(gateway.clone())), gateway }
    }
}

/// Everything that it offers, in the order in which it is described.
fn operations() -> Vec<Operation> {
    [
        jobs::operations(),
        cloudevents::operations(),
        hooks::operations(),
        tracking::operations(),
        describe::operations(),
        docs::operations(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn router() -> Router<Arc<Gateway>> {
    operation::router(operations())
}

/// A job that was accepted.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Accepted")]
struct Answer {
    id: Uuid,
    kind: Kind,
    state: State,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
}

async fn submit_many(
    Shared(gateway): Shared<Arc<Gateway>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    gateway.submit_many(caller, &head.headers, body).await
}

async fn show_one(
    Shared(gateway): Shared<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let caller = caller.counted(1)?;
    let wait = request::query_wait(query.as_deref())?;
    let job = gateway.status(&caller.tenant, &id).await?;
    let job = match wait {
        Some(at_most) if !job.state.is_terminal() => {
            gateway.waiters.wait(&caller.tenant, job.id, at_most).await;
            gateway.status(&caller.tenant, &id).await?
        }
        _ => job,
    };
    room::json(&job)
}

/// A job that was called off, or is to be.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Cancelled")]
struct CancelAnswer {
    id: Uuid,
    state: &'static str,
}

async fn cancel_one(
    Shared(gateway): Shared<Arc<Gateway>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let caller = caller.counted(1)?;
    let (id, at_once) = gateway.cancel(&caller.tenant, &id).await?;
    Ok(if at_once {
        Json(CancelAnswer { id, state: State::Cancelled.as_str() }).into_response()
    } else {
        (StatusCode::ACCEPTED, Json(CancelAnswer { id, state: "cancel_requested" })).into_response()
    })
}

async fn no_such_page() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here; jobs go to POST /v1/jobs/{kind}")
}

async fn no_such_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this page has other methods, see Allow")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_description() {
        // axum tells its routes only to those who debug it.
        let routes = format!("{:?}", router());
        let is_ours = |piece: &&str| piece.starts_with('/') && !piece.contains("__private");
        let routed: BTreeSet<_> = routes.split('"').filter(is_ours).map(str::to_owned).collect();
        let operations = operations();
        let described: BTreeSet<_> =
            operations.iter().flat_map(|it| it.also.iter().chain([&it.path])).map(|path| (*path).to_owned()).collect();
        assert!(described.contains("/v1/jobs/{kind_or_id}"), "{described:?}");
        assert_eq!(routed, described, "give it an operation, as gateway/operation.rs says");
        let ids: BTreeSet<_> = operations.iter().map(|operation| operation.id).collect();
        assert_eq!(ids.len(), operations.len(), "each has a name of its own");
    }
}
