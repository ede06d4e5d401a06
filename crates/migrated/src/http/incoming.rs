use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use migrated_api::{Admission, PrepareIncoming, Prepared, Problem, ResolveAnswer, ResolveRequest};

use super::extract::{Json, Key};
use super::{ApiError, to_its_end};
use crate::daemon::Daemon;

/// Gets ready for a guest, or refuses it with every reason.
#[utoipa::path(
    post, path = "/v1/incoming", tag = "incoming", operation_id = "prepare_incoming", request_body = PrepareIncoming,
    responses(
        (status = 201, description = "An empty VM listens for the guest", body = Prepared),
        (status = 409, description = "The guest can't come here; `reasons` has all of why", body = Problem,
         content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn prepare(
    State(daemon): State<Arc<Daemon>>,
    Json(request): Json<PrepareIncoming>,
) -> Result<(StatusCode, axum::Json<Prepared>), ApiError> {
    let prepared = to_its_end(async move { daemon.prepare(request).await }).await?;
    Ok((StatusCode::CREATED, axum::Json(prepared)))
}

/// Tells whether a guest would be taken, and everything against it. Nothing begins.
#[utoipa::path(
    post, path = "/v1/incoming/check", tag = "incoming", operation_id = "check_incoming", request_body = PrepareIncoming,
    responses(
        (status = 200, description = "What would come of it", body = Admission),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn check(
    State(daemon): State<Arc<Daemon>>,
    Json(request): Json<PrepareIncoming>,
) -> axum::Json<Admission> {
    axum::Json(daemon.check_incoming(&request))
}

/// The source gave up: clears away what was prepared. Refused once the guest is committed.
#[utoipa::path(
    delete, path = "/v1/incoming/{id}", tag = "incoming", operation_id = "give_up_incoming",
    params(("id" = String, Path, description = "Id of the migration")),
    responses(
        (status = 204, description = "Nothing is left of it"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn give_up(State(daemon): State<Arc<Daemon>>, Key(id): Key) -> Result<StatusCode, ApiError> {
    to_its_end(async move { daemon.give_up_incoming(&id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells a source what became of its commit. The answer `never_ran` binds this host never to run it.
#[utoipa::path(
    post, path = "/v1/incoming/{id}/resolve", tag = "incoming", operation_id = "resolve_incoming",
    params(("id" = String, Path, description = "Id of the migration")), request_body = ResolveRequest,
    responses(
        (status = 200, description = "What became of it", body = ResolveAnswer),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn resolve(
    State(daemon): State<Arc<Daemon>>,
    Key(id): Key,
    Json(request): Json<ResolveRequest>,
) -> Result<axum::Json<ResolveAnswer>, ApiError> {
    let answer = daemon.answer_resolve(&id, request.epoch).await?;
    Ok(axum::Json(ResolveAnswer { answer }))
}
