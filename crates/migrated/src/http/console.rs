use std::sync::Arc;

use axum::body::Body as ResponseBody;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use migrated_api::{ConsoleQuery, Problem};

use super::ApiError;
use super::extract::{Body, Key, Query};
use crate::daemon::{ConsoleReader, Daemon};

/// Offset of the first byte of a console's answer.
const FROM: &str = "x-console-from";

/// Reads a VM's console output, as it comes when asked to follow.
#[utoipa::path(
    get, path = "/v1/vms/{vm}/console", tag = "vms", operation_id = "read_console",
    params(("vm" = String, Path, description = "Name or id of the VM"), ConsoleQuery),
    responses(
        (status = 200, description = "The bytes; `x-console-from` is the first one's offset",
         body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn read(
    State(daemon): State<Arc<Daemon>>,
    Key(key): Key,
    Query(query): Query<ConsoleQuery>,
) -> Result<Response, ApiError> {
    let reader = ConsoleReader::new(daemon.vm(&key)?, query.from, query.follow);
    let (first, reader) = reader.next().await?;
    let from = first.from.to_string();
    let rest = stream::unfold(Some(reader), |reader| async move {
        match reader?.next().await {
            Ok((chunk, _)) if chunk.bytes.is_empty() => None,
            Ok((chunk, reader)) => Some((Ok(chunk.bytes), Some(reader))),
            Err(e) => Some((Err(std::io::Error::other(e.to_string())), None)),
        }
    });
    let body = futures_util::StreamExt::chain(stream::iter([Ok(first.bytes)]), rest);
    let headers = [(header::CONTENT_TYPE.as_str(), "application/octet-stream"), (FROM, from.as_str())];
    Ok((headers, ResponseBody::from_stream(body)).into_response())
}

/// Sends bytes to a VM's serial input.
#[utoipa::path(
    post, path = "/v1/vms/{vm}/console", tag = "vms", operation_id = "write_console",
    params(("vm" = String, Path, description = "Name or id of the VM")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "The bytes are in the serial device's queue"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn write(
    State(daemon): State<Arc<Daemon>>,
    Key(key): Key,
    Body(bytes): Body,
) -> Result<StatusCode, ApiError> {
    let vm = daemon.vm(&key)?;
    daemon.console_input(&vm, &bytes).await?;
    Ok(StatusCode::NO_CONTENT)
}
