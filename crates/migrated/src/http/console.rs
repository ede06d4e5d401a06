use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as ResponseBody;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use migrated_api::{ConsoleHeaders, ConsoleInputQuery, ConsoleQuery, Problem};

use super::ApiError;
use super::extract::{Body, Key, Query};
use crate::daemon::{ConsoleReader, Daemon, Vm, Whereabouts, peer_failed};

/// Reads a VM's console output, as it comes when asked to follow. An answer is without a gap; it ends when the VM
/// ends or leaves this host, and when the reader was so slow that the guest has overwritten what was next. Whoever
/// asks again from where it was gets what goes on, also from the host that the guest went to.
#[utoipa::path(
    get, path = "/v1/vms/{vm}/console", tag = "vms", operation_id = "read_console",
    params(("vm" = String, Path, description = "Name or id of the VM; the id also when it went to a peer"), ConsoleQuery),
    responses(
        (status = 200, description = "The bytes. `x-console-from` is the first one's offset, above the one asked for \
         when older ones are gone; `x-console-host` names the host that the guest is on; `x-console-ended` is `true` \
         when it has ended and this is the last of it",
         body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn read(
    State(daemon): State<Arc<Daemon>>,
    Key(key): Key,
    Query(query): Query<ConsoleQuery>,
) -> Result<Response, ApiError> {
    let onward = match daemon.whereabouts(&key, query.hops)? {
        Whereabouts::Here(vm) => return read_here(daemon, vm, query).await,
        Whereabouts::Gone(onward) => onward,
    };
    let passed_on = ConsoleQuery { hops: onward.hops, ..query };
    let path = format!("/v1/vms/{}/console?{}", onward.id, passed_on.to_query());
    let answer = onward.api.open(&path).await.map_err(|e| peer_failed(&onward.peer, &e))?;
    let (head, body) = answer.into_parts();
    let told = |name: &&str| head.headers.get(*name).cloned();
    let mut headers = HeaderMap::new();
    for name in ConsoleHeaders::ALL.iter().chain(&[header::CONTENT_TYPE.as_str()]) {
        if let Some(value) = told(name) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok((headers, ResponseBody::new(body)).into_response())
}

async fn read_here(daemon: Arc<Daemon>, vm: Arc<Vm>, query: ConsoleQuery) -> Result<Response, ApiError> {
    let idle = query.idle_ms.map(|idle| Duration::from_millis(idle.into()));
    // A name with other than visible characters is told in part.
    let visible = daemon.config.name.chars().filter(char::is_ascii_graphic).collect::<String>();
    let (start, reader) = ConsoleReader::open(daemon, vm, query.from, query.follow, idle).await?;
    let rest = stream::unfold(Some(reader), |reader| async move {
        match reader?.next().await {
            Ok(Some((bytes, reader))) => Some((Ok(bytes), Some(reader))),
            Ok(None) => None,
            Err(e) => Some((Err(std::io::Error::other(e.to_string())), None)),
        }
    });
    let body = futures_util::StreamExt::chain(stream::iter([Ok(start.chunk.bytes)]), rest);
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
        (ConsoleHeaders::FROM, start.chunk.from.to_string()),
        (ConsoleHeaders::HOST, visible),
        (ConsoleHeaders::ENDED, start.ended.to_string()),
    ];
    Ok((headers, ResponseBody::from_stream(body)).into_response())
}

/// Sends bytes to a VM's serial input. Up to 16 KiB are taken together or not at all.
#[utoipa::path(
    post, path = "/v1/vms/{vm}/console", tag = "vms", operation_id = "write_console",
    params(("vm" = String, Path, description = "Name or id of the VM; the id also when it went to a peer"),
        ConsoleInputQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "The bytes are in the serial device's queue"),
        (status = 409, description = "None of them was taken: the guest does not read (`console_input_full`), or is on \
         its way to another host at this moment (`guest_moving`); send them again", body = Problem,
         content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn write(
    State(daemon): State<Arc<Daemon>>,
    Key(key): Key,
    Query(query): Query<ConsoleInputQuery>,
    Body(bytes): Body,
) -> Result<StatusCode, ApiError> {
    match daemon.whereabouts(&key, query.hops)? {
        Whereabouts::Here(vm) => daemon.console_input(&vm, &bytes).await?,
        Whereabouts::Gone(onward) => {
            let path = format!("/v1/vms/{}/console?hops={}", onward.id, onward.hops);
            let sent = onward.api.post_bytes(&path, bytes.to_vec()).await;
            sent.map_err(|e| peer_failed(&onward.peer, &e))?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
