use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use migrated_api::Problem;

use super::ApiError;
use crate::daemon::Daemon;

/// Says that the daemon lives.
#[utoipa::path(
    get, path = "/healthz", tag = "host", operation_id = "healthz",
    responses((status = 200, description = "It lives", body = String))
)]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Says whether guests can be made here: KVM can be opened.
#[utoipa::path(
    get, path = "/readyz", tag = "host", operation_id = "readyz",
    responses(
        (status = 200, description = "They can", body = String),
        (status = 503, description = "They can't", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn readyz(State(daemon): State<Arc<Daemon>>) -> Result<&'static str, ApiError> {
    daemon.kvm()?;
    Ok("ok\n")
}

/// The metrics, as Prometheus reads them.
#[utoipa::path(
    get, path = "/metrics", tag = "host", operation_id = "metrics",
    responses((status = 200, description = "Text exposition format", body = String))
)]
pub async fn metrics(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], daemon.render_metrics().await)
}

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "host", operation_id = "openapi",
    responses((status = 200, description = "An OpenAPI document", body = serde_json::Value))
)]
pub async fn document() -> impl IntoResponse {
    axum::Json(super::openapi())
}
