use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use migrated_api::{BalloonTarget, Problem, Vm, VmList, VmSpec};

use super::extract::{Json, Key};
use super::{ApiError, to_its_end};
use crate::daemon::Daemon;

/// Lists the VMs on this host.
#[utoipa::path(
    get, path = "/v1/vms", tag = "vms", operation_id = "list_vms",
    responses(
        (status = 200, description = "All VMs, by name", body = VmList),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn list(State(daemon): State<Arc<Daemon>>) -> axum::Json<VmList> {
    axum::Json(VmList { vms: daemon.vms().iter().map(|vm| daemon.outline(vm)).collect() })
}

/// Makes a VM and boots it.
#[utoipa::path(
    post, path = "/v1/vms", tag = "vms", operation_id = "create_vm", request_body = VmSpec,
    responses(
        (status = 201, description = "It boots", body = Vm),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn create(
    State(daemon): State<Arc<Daemon>>,
    Json(spec): Json<VmSpec>,
) -> Result<(StatusCode, axum::Json<Vm>), ApiError> {
    let vm = to_its_end({
        let daemon = Arc::clone(&daemon);
        async move { daemon.create_vm(spec).await }
    })
    .await?;
    Ok((StatusCode::CREATED, axum::Json(daemon.show(&vm).await)))
}

/// Shows one VM, with what it is doing at the moment.
#[utoipa::path(
    get, path = "/v1/vms/{vm}", tag = "vms", operation_id = "show_vm",
    params(("vm" = String, Path, description = "Name or id of the VM")),
    responses(
        (status = 200, description = "The VM", body = Vm),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn show(State(daemon): State<Arc<Daemon>>, Key(key): Key) -> Result<axum::Json<Vm>, ApiError> {
    let vm = daemon.vm(&key)?;
    Ok(axum::Json(daemon.show(&vm).await))
}

/// Ends a VM and removes everything of it.
#[utoipa::path(
    delete, path = "/v1/vms/{vm}", tag = "vms", operation_id = "delete_vm",
    params(("vm" = String, Path, description = "Name or id of the VM")),
    responses(
        (status = 204, description = "It is gone"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn delete(State(daemon): State<Arc<Daemon>>, Key(key): Key) -> Result<StatusCode, ApiError> {
    let vm = daemon.vm(&key)?;
    to_its_end(async move { daemon.delete(&vm).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Presses a VM's power button (ACPI). The guest decides what comes of it; the VM is `stopped` when it has shut down.
#[utoipa::path(
    post, path = "/v1/vms/{vm}/shutdown", tag = "vms", operation_id = "shut_down_vm",
    params(("vm" = String, Path, description = "Name or id of the VM")),
    responses(
        (status = 202, description = "The button is pressed", body = Vm),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn shut_down(
    State(daemon): State<Arc<Daemon>>,
    Key(key): Key,
) -> Result<(StatusCode, axum::Json<Vm>), ApiError> {
    let vm = daemon.vm(&key)?;
    daemon.shut_down(&vm).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(daemon.show(&vm).await)))
}

/// Asks a guest to give up RAM to its host, or to take it again. It takes its time: `balloon` of the VM says how far
/// it is. The target moves with the guest, and ends with its boot.
#[utoipa::path(
    put, path = "/v1/vms/{vm}/balloon", tag = "vms", operation_id = "set_balloon", request_body = BalloonTarget,
    params(("vm" = String, Path, description = "Name or id of the VM")),
    responses(
        (status = 200, description = "The guest is asked", body = Vm),
        (status = 409, description = "Nobody can be asked: the VM is not running (`wrong_vm_state`, `guest_not_running`), \
         its guest is the workload (`guest_without_balloon`) or has no driver yet (`balloon_without_driver`)",
         body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "More than the guest can spare (`balloon_too_large`)", body = Problem,
         content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn set_balloon(
    State(daemon): State<Arc<Daemon>>,
    Key(key): Key,
    Json(target): Json<BalloonTarget>,
) -> Result<axum::Json<Vm>, ApiError> {
    let vm = daemon.vm(&key)?;
    daemon.set_balloon(&vm, target.bytes).await?;
    Ok(axum::Json(daemon.show(&vm).await))
}

/// Stops a VM's vCPUs.
#[utoipa::path(
    post, path = "/v1/vms/{vm}/pause", tag = "vms", operation_id = "pause_vm",
    params(("vm" = String, Path, description = "Name or id of the VM")),
    responses(
        (status = 200, description = "It stands still", body = Vm),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn pause(State(daemon): State<Arc<Daemon>>, Key(key): Key) -> Result<axum::Json<Vm>, ApiError> {
    let vm = daemon.vm(&key)?;
    daemon.pause(&vm).await?;
    Ok(axum::Json(daemon.show(&vm).await))
}

/// Runs a paused VM's vCPUs.
#[utoipa::path(
    post, path = "/v1/vms/{vm}/resume", tag = "vms", operation_id = "resume_vm",
    params(("vm" = String, Path, description = "Name or id of the VM")),
    responses(
        (status = 200, description = "It runs", body = Vm),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn resume(State(daemon): State<Arc<Daemon>>, Key(key): Key) -> Result<axum::Json<Vm>, ApiError> {
    let vm = daemon.vm(&key)?;
    daemon.resume(&vm).await?;
    Ok(axum::Json(daemon.show(&vm).await))
}
