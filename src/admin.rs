//! The admin listener: is it alive, is it ready, and what has it counted.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header::CONTENT_TYPE};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

use crate::{
    gateway::problem::Problem,
    health::{Condition, Health},
};

/// What the pages show.
#[derive(Clone)]
pub struct Admin {
    /// What is ready.
    pub health: Arc<Health>,
    /// What was counted.
    pub metrics: PrometheusHandle,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    parts: std::collections::BTreeMap<&'static str, Condition>,
}

/// The pages.
pub fn routes(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "not_found", "see /livez, /readyz and /metrics"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "these pages are only read, see Allow")
        })
        .with_state(admin)
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let (ready, parts) = admin.health.read();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, parts })).into_response()
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}
