//! The admin listener: is it alive, is it ready, and what has it counted.
//!
//! On a loopback address everyone may look. On any other, what says more than "yes" or "no" needs a key: supervisors and load
//! balancers send none, and Prometheus sends one as a bearer token.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{
    StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

use crate::{
    gateway::{
        around::Around,
        auth::{Asking, Door},
        problem::Problem,
        serve::Pages,
    },
    health::{Condition, Health},
    keys::Scope,
};

/// What the pages show, and to whom.
#[derive(Clone)]
pub struct Admin {
    /// What is ready.
    pub health: Arc<Health>,
    /// What was counted.
    pub metrics: PrometheusHandle,
    /// Who is let in, where not everyone is.
    pub door: Option<Arc<Door>>,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<BTreeMap<&'static str, Condition>>,
}

impl Admin {
    fn admit(&self, request: &Request) -> Result<(), Problem> {
        let Some(door) = &self.door else { return Ok(()) };
        let asking = Asking::of(request.uri(), request.headers(), request.extensions());
        door.admit(asking, None, Scope::MetricsRead).map(drop)
    }

    /// Whether it may see why something is not ready. A supervisor brings no key and is none the worse for that, so it is not
    /// counted as refused.
    fn may_see(&self, request: &Request) -> bool {
        self.door.is_none() || request.headers().contains_key(AUTHORIZATION) && self.admit(request).is_ok()
    }
}

/// The pages.
pub fn routes(admin: Admin) -> impl Pages {
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "not_found", "see /livez, /readyz and /metrics"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "these pages are only read, see Allow")
        })
        .with_state(admin);
    Around(router)
}

async fn readyz(State(admin): State<Admin>, request: Request) -> Response {
    let (ready, parts) = admin.health.read();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // A key that is not good changes nothing of whether it is ready.
    let parts = admin.may_see(&request).then_some(parts);
    (status, Json(Readiness { ready, parts })).into_response()
}

async fn metrics(State(admin): State<Admin>, request: Request) -> Result<impl IntoResponse, Problem> {
    admin.admit(&request)?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render()))
}
