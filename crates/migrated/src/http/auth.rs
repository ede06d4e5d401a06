use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::ApiError;

/// Who may call.
#[derive(Clone)]
pub enum Auth {
    /// Whoever got the connection: by a socket file's permissions or a client certificate.
    Connected,
    /// Whoever knows this token.
    Token(Arc<str>),
}

impl Auth {
    fn admits(&self, request: &Request) -> bool {
        let Self::Token(token) = self else { return true };
        // An orchestrator's probes carry no token and learn nothing but that the daemon lives.
        if matches!(request.uri().path(), "/healthz" | "/readyz") {
            return true;
        }
        let header = request.headers().get(header::AUTHORIZATION);
        let shown = header.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        shown.is_some_and(|shown| shown.ct_eq(token.as_bytes()).into())
    }
}

/// Turns away callers that may not call.
pub async fn require(State(auth): State<Auth>, request: Request, next: Next) -> Response {
    if auth.admits(&request) {
        return next.run(request).await;
    }
    let detail = "this address wants the host's bearer token: `authorization: Bearer TOKEN` (--token-file)";
    let problem = ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
    ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response()
}
