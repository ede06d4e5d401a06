use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// No answer takes this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A daemon's API at its Unix socket.
pub struct Api {
    socket: PathBuf,
}

/// What an API answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

impl Answer {
    /// The body as what it must be.
    #[track_caller]
    pub fn read<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The body of a success.
    #[track_caller]
    pub fn ok<T: DeserializeOwned>(&self) -> T {
        assert!((200..300).contains(&self.status), "{self:?}");
        self.read()
    }

    /// The problem's code, with the status.
    #[track_caller]
    pub fn problem(&self) -> (u16, String) {
        let problem: migrated_api::Problem = self.read();
        assert_eq!(problem.status, self.status);
        assert!(!problem.detail.is_empty());
        (problem.status, problem.code)
    }
}

impl Api {
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Vec::new()).unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, body.to_string().into_bytes()).unwrap()
    }

    pub fn post_empty(&self, path: &str) -> Answer {
        self.call(Method::POST, path, Vec::new()).unwrap()
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, Vec::new()).unwrap()
    }

    /// Asks; an error when no daemon answers.
    pub fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, String> {
        within(async {
            let response = send(&self.socket, method, path, body).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok(Answer { status, body })
        })
    }

    /// Server-sent events of a migration.
    pub fn follow(&self, migration: &str) -> Events {
        let path = format!("/v1/migrations/{migration}/events");
        let runtime = runtime();
        let response = runtime.block_on(send(&self.socket, Method::GET, &path, Vec::new())).unwrap();
        assert_eq!(response.status(), 200);
        Events { runtime, body: response.into_body(), text: String::new() }
    }
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Response<Incoming>, String> {
    let stream = UnixStream::connect(socket).await.map_err(|e| e.to_string())?;
    let handshake = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    sender.send_request(request.body(Full::from(body)).unwrap()).await.map_err(|e| e.to_string())
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn within<T>(asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let asked = async { tokio::time::timeout(PATIENCE, asked).await };
    runtime().block_on(asked).unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

/// The states of a migration, as they come.
pub struct Events {
    runtime: Runtime,
    body: Incoming,
    text: String,
}

impl Iterator for Events {
    type Item = String;

    /// The next event's state; `None` when the stream ends, or breaks off.
    fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                if let Some(state) = event.lines().find_map(|line| line.strip_prefix("event:")) {
                    return Some(state.trim().to_owned());
                }
                continue;
            }
            let frame = async { tokio::time::timeout(PATIENCE, self.body.frame()).await };
            let frame = self.runtime.block_on(frame).expect("an event, or the end of the stream")?.ok()?;
            self.text.push_str(std::str::from_utf8(frame.data_ref()?).unwrap());
        }
    }
}
