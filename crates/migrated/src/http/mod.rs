//! The HTTP API: routes, who may call, and what an error looks like.
//!
//! Each handler declares its path and its documentation; the router is built from those
//! declarations, so the OpenAPI document can't tell of another API than the one that answers.

mod auth;
mod console;
mod cpu;
mod events;
mod extract;
mod health;
mod incoming;
mod listen;
mod migrations;
mod probe;
mod problem;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use auth::Auth;
pub use listen::bind;
pub use problem::ApiError;

use crate::daemon::{Daemon, DaemonError};

/// Most bytes of a request's body. A guest's description with its CPU table is the longest.
const MAX_BODY: usize = 1 << 20;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "migrated",
        description = "Hosts KVM guests and moves them, running, to other hosts. Errors are RFC 9457 problem \
                       documents with a stable `code`."
    ),
    tags(
        (name = "vms", description = "Guests on this host"),
        (name = "migrations", description = "Guests on their way"),
        (name = "incoming", description = "For peers: a source's daemon talks to a destination's"),
        (name = "cpu", description = "CPUs: what hosts give, what they have in common, who can run where"),
        (name = "host", description = "The daemon itself")
    )
)]
struct Description;

fn declared() -> OpenApiRouter<Arc<Daemon>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(vms::list, vms::create))
        .routes(routes!(vms::show, vms::delete))
        .routes(routes!(vms::shut_down))
        .routes(routes!(vms::set_balloon))
        .routes(routes!(vms::pause))
        .routes(routes!(vms::resume))
        .routes(routes!(console::read, console::write))
        .routes(routes!(migrations::start))
        .routes(routes!(migrations::plan))
        .routes(routes!(migrations::list))
        .routes(routes!(migrations::show))
        .routes(routes!(migrations::cancel))
        .routes(routes!(migrations::recover))
        .routes(routes!(events::follow))
        .routes(routes!(incoming::prepare))
        .routes(routes!(incoming::check))
        .routes(routes!(probe::probe))
        .routes(routes!(incoming::give_up))
        .routes(routes!(incoming::resolve))
        .routes(routes!(cpu::host))
        .routes(routes!(cpu::baseline))
        .routes(routes!(cpu::check))
        .routes(routes!(cpu::baselines))
        .routes(routes!(health::metrics))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::document))
}

/// The API's description.
pub fn openapi() -> Document {
    declared().into_openapi()
}

/// Everything that answers, to callers that `auth` lets in.
pub fn router(daemon: Arc<Daemon>, auth: Auth) -> Router {
    let (router, _) = declared().split_for_parts();
    router
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(auth, auth::require))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(daemon)
}

/// Does something to its end even when the caller hangs up in the middle: a VM half made would stay behind.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, DaemonError>> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(e) => Err(ApiError::internal(format!("the daemon has a fault; please report it: {e}"))),
    }
}
