use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, stream};
use migrated_api::{MigrationRecord, MigrationState, Problem};
use tokio::sync::watch;

use super::ApiError;
use super::extract::Key;
use crate::daemon::Daemon;

/// Follows a migration: its record as server-sent events, now and as it goes on, until its end. An
/// event's name is the state. A slow reader misses figures, never the end.
#[utoipa::path(
    get, path = "/v1/migrations/{id}/events", tag = "migrations", operation_id = "follow_migration",
    params(("id" = String, Path, description = "Id of the migration")),
    responses(
        (status = 200, description = "Records, as they go on", body = MigrationRecord, content_type = "text/event-stream"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn follow(
    State(daemon): State<Arc<Daemon>>,
    Key(id): Key,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let mut records = daemon.migration(&id)?.watch();
    records.mark_changed();
    Ok(Sse::new(stream::unfold(Some(records), next)).keep_alive(KeepAlive::default()))
}

type Records = watch::Receiver<MigrationRecord>;

async fn next(records: Option<Records>) -> Option<(Result<Event, Infallible>, Option<Records>)> {
    let mut records = records?;
    records.changed().await.ok()?;
    let record = records.borrow_and_update().clone();
    let state = record.state.unwrap_or(MigrationState::Negotiating);
    let data = serde_json::to_string(&record).ok()?;
    let event = Event::default().event(state.name()).data(data);
    Some((Ok(event), (!state.is_final()).then_some(records)))
}
