use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use migrated_api::{
    MigrationList, MigrationPlan, MigrationRecord, PlanMigration, Problem, RecoverMigration, StartMigration,
    StartedMigration,
};

use super::ApiError;
use super::extract::{Json, Key};
use crate::daemon::Daemon;

/// Begins to move a VM to another host. What this host can check is refused at once; everything else
/// shows in the migration's record.
#[utoipa::path(
    post, path = "/v1/vms/{vm}/migrations", tag = "migrations", operation_id = "start_migration",
    params(("vm" = String, Path, description = "Name or id of the VM")), request_body = StartMigration,
    responses(
        (status = 202, description = "It has begun", body = StartedMigration),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn start(
    State(daemon): State<Arc<Daemon>>,
    Key(key): Key,
    Json(request): Json<StartMigration>,
) -> Result<impl IntoResponse, ApiError> {
    let may_follow = daemon.may_use_postcopy(&request);
    let migration = daemon.migrate(&key, request)?;
    let location = [(header::LOCATION, format!("/v1/migrations/{}", migration.id))];
    Ok((StatusCode::ACCEPTED, location, axum::Json(StartedMigration::new(migration.record(), may_follow))))
}

/// Says what a migration would cost in each mode, which one `auto` would choose, and whether the destination would take
/// the guest. The guest is watched for a moment, and the link is measured; nothing moves and nothing is changed.
#[utoipa::path(
    post, path = "/v1/vms/{vm}/migrations/plan", tag = "migrations", operation_id = "plan_migration",
    params(("vm" = String, Path, description = "Name or id of the VM")), request_body = PlanMigration,
    responses(
        (status = 200, description = "What is to be expected", body = MigrationPlan),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn plan(
    State(daemon): State<Arc<Daemon>>,
    Key(key): Key,
    Json(request): Json<PlanMigration>,
) -> Result<axum::Json<MigrationPlan>, ApiError> {
    Ok(axum::Json(daemon.plan(&key, request).await?))
}

/// Lists the migrations that this host took or takes part in.
#[utoipa::path(
    get, path = "/v1/migrations", tag = "migrations", operation_id = "list_migrations",
    responses(
        (status = 200, description = "All records, newest first", body = MigrationList),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn list(State(daemon): State<Arc<Daemon>>) -> axum::Json<MigrationList> {
    let migrations = daemon.migrations().iter().map(|migration| migration.record()).collect();
    axum::Json(MigrationList { migrations })
}

/// Shows one migration, also after its end.
#[utoipa::path(
    get, path = "/v1/migrations/{id}", tag = "migrations", operation_id = "show_migration",
    params(("id" = String, Path, description = "Id of the migration")),
    responses(
        (status = 200, description = "Its record", body = MigrationRecord),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn show(
    State(daemon): State<Arc<Daemon>>,
    Key(id): Key,
) -> Result<axum::Json<MigrationRecord>, ApiError> {
    Ok(axum::Json(daemon.migration(&id)?.record()))
}

/// Gives a migration up; refused once it is committed.
#[utoipa::path(
    post, path = "/v1/migrations/{id}/cancel", tag = "migrations", operation_id = "cancel_migration",
    params(("id" = String, Path, description = "Id of the migration")),
    responses(
        (status = 202, description = "It is being cancelled", body = MigrationRecord),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn cancel(
    State(daemon): State<Arc<Daemon>>,
    Key(id): Key,
) -> Result<(StatusCode, axum::Json<MigrationRecord>), ApiError> {
    let migration = daemon.migration(&id)?;
    daemon.cancel(&migration).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(migration.record())))
}

/// Tries at once to reach the destination of a guest whose pages follow it, after the link was lost. It is tried by
/// itself too, ever more slowly; this is for whoever knows that it can work now, or by another address.
#[utoipa::path(
    post, path = "/v1/migrations/{id}/recover", tag = "migrations", operation_id = "recover_migration",
    params(("id" = String, Path, description = "Id of the migration")), request_body = RecoverMigration,
    responses(
        (status = 202, description = "It is tried", body = MigrationRecord),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn recover(
    State(daemon): State<Arc<Daemon>>,
    Key(id): Key,
    Json(request): Json<RecoverMigration>,
) -> Result<(StatusCode, axum::Json<MigrationRecord>), ApiError> {
    let migration = daemon.migration(&id)?;
    daemon.recover(&migration, request.via.as_deref()).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(migration.record())))
}
