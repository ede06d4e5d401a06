use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use migrated_api::Problem;
use migrated_control::ErrorKind;

use crate::daemon::DaemonError;

/// An error as the API tells it: a problem document.
#[derive(Debug)]
pub struct ApiError(Problem);

impl ApiError {
    /// A problem of those parts.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self(Problem {
            kind: format!("urn:migrated:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail: detail.into(),
            reasons: Vec::new(),
            cpu: None,
        })
    }

    /// The document itself.
    pub fn into_problem(self) -> Problem {
        self.0
    }

    /// A fault of ours.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail)
    }
}

impl From<DaemonError> for ApiError {
    fn from(error: DaemonError) -> Self {
        let mut problem = Self::new(status(&error), error.code(), error.to_string());
        problem.0.reasons = error.reasons();
        problem.0.cpu = error.cpu().cloned();
        problem
    }
}

fn status(error: &DaemonError) -> StatusCode {
    match error {
        DaemonError::VmNotFound(_) | DaemonError::MigrationNotFound(_) => StatusCode::NOT_FOUND,
        DaemonError::NameTaken(_)
        | DaemonError::IdTaken(_)
        | DaemonError::NoRoom(_)
        | DaemonError::Network(_)
        | DaemonError::WrongState { .. }
        | DaemonError::NoPowerButton(_)
        | DaemonError::NoBalloon(_)
        | DaemonError::MigrationInProgress { .. }
        | DaemonError::NotCancellable { .. }
        | DaemonError::RunsElsewhere { .. }
        | DaemonError::NotRecoverable { .. }
        | DaemonError::AdmissionRefused(_) => StatusCode::CONFLICT,
        DaemonError::Invalid(_)
        | DaemonError::PeerUnknown(_)
        | DaemonError::Transport(_)
        | DaemonError::Baseline(_)
        | DaemonError::CpuNotGiven { .. }
        | DaemonError::NoCommonBaseline(_)
        | DaemonError::InvalidDump { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        DaemonError::TooManyReaders { .. } => StatusCode::TOO_MANY_REQUESTS,
        DaemonError::Peer { .. } => StatusCode::BAD_GATEWAY,
        DaemonError::Kvm(_) | DaemonError::VmUnreachable { .. } | DaemonError::Unresolved { .. } => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        DaemonError::Local { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        DaemonError::Vm(refusal) => match refusal.kind {
            ErrorKind::InvalidInput => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::Json(self.0).into_response().into_body();
        (status, [(header::CONTENT_TYPE, Problem::MEDIA_TYPE)], body).into_response()
    }
}

/// For paths that don't exist.
pub async fn not_found(uri: axum::http::Uri) -> ApiError {
    let detail = format!("there is nothing at {}; /openapi.json lists all paths", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "not_found", detail)
}

/// For methods that a path doesn't have.
pub async fn method_not_allowed(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let detail = format!("{} does not take {method}; /openapi.json lists what it takes", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
