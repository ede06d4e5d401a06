use std::sync::Arc;

use axum::extract::State;
use migrated_api::{
    BaselineList, BaselineRequest, CpuCheck, CpuReport, HostCpuReport, PoolBaseline, Problem,
};

use super::ApiError;
use super::extract::Json;
use crate::daemon::Daemon;

/// Shows this host's CPU: what it offers to new guests and accepts of incoming ones, its best baseline, and what the
/// next one lacks.
#[utoipa::path(
    get, path = "/v1/host/cpu", tag = "cpu", operation_id = "show_host_cpu",
    responses(
        (status = 200, description = "The CPU", body = HostCpuReport),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn host(State(daemon): State<Arc<Daemon>>) -> Result<axum::Json<HostCpuReport>, ApiError> {
    Ok(axum::Json(daemon.host_cpu_report()?))
}

/// Finds the highest common baseline of live hosts and dumps, what each loses by it, and who limits it.
#[utoipa::path(
    post, path = "/v1/cpu/baseline", tag = "cpu", operation_id = "find_cpu_baseline", request_body = BaselineRequest,
    responses(
        (status = 200, description = "The baseline", body = PoolBaseline),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn baseline(
    State(daemon): State<Arc<Daemon>>,
    Json(request): Json<BaselineRequest>,
) -> Result<axum::Json<PoolBaseline>, ApiError> {
    Ok(axum::Json(daemon.pool_baseline(request).await?))
}

/// Checks whether a guest can run on a host. A guest that can't is an answer too, with every reason.
#[utoipa::path(
    post, path = "/v1/cpu/check", tag = "cpu", operation_id = "check_cpu", request_body = CpuCheck,
    responses(
        (status = 200, description = "Whether it can, and why not", body = CpuReport),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn check(
    State(daemon): State<Arc<Daemon>>,
    Json(request): Json<CpuCheck>,
) -> Result<axum::Json<CpuReport>, ApiError> {
    Ok(axum::Json(daemon.check_cpu(request).await?))
}

/// Lists the named baselines.
#[utoipa::path(
    get, path = "/v1/cpu/baselines", tag = "cpu", operation_id = "list_cpu_baselines",
    responses((status = 200, description = "All of them, ladder by ladder", body = BaselineList))
)]
pub async fn baselines() -> axum::Json<BaselineList> {
    axum::Json(BaselineList::all())
}
