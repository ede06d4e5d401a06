use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use migrated_api::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// No answer takes this long: making a large guest takes longest.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why a request failed.
#[derive(Debug, Error)]
pub enum ApiError {
    /// Nobody answers there.
    #[error("{}: {reason}", socket.display())]
    Unreachable {
        /// The daemon's socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// The daemon answered with a problem.
    #[error("{} [{}]", .0.detail, .0.code)]
    Problem(Box<Problem>),
    /// The answer is not what it should be.
    #[error("{path} answers {answer:?}: {source}; is the program of the same build?")]
    Odd {
        /// What was asked.
        path: String,
        /// The answer.
        answer: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// A daemon's API at its Unix socket. Every request blocks, and has a connection of its own.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    runtime: Runtime,
}

impl Api {
    /// The API at this socket.
    ///
    /// # Errors
    /// The system gives no more descriptors.
    pub fn at(socket: &Path) -> std::io::Result<Self> {
        Ok(Self { socket: socket.to_owned(), runtime: Builder::new_current_thread().enable_all().build()? })
    }

    /// The same API for another thread.
    ///
    /// # Errors
    /// As of [`at`](Self::at).
    pub fn another(&self) -> std::io::Result<Self> {
        Self::at(&self.socket)
    }

    /// Asks, and reads the answer.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::GET, path, Vec::new()).and_then(|body| read(path, &body))
    }

    /// Posts JSON, and reads the answer.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        let odd = |source| ApiError::Odd { path: path.to_owned(), answer: String::new(), source };
        let body = serde_json::to_vec(body).map_err(odd)?;
        self.call(Method::POST, path, body).and_then(|body| read(path, &body))
    }

    /// Deletes.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn delete(&self, path: &str) -> Result<(), ApiError> {
        self.call(Method::DELETE, path, Vec::new()).map(drop)
    }

    fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, ApiError> {
        let asked = async { tokio::time::timeout(PATIENCE, self.send(method, path, body)).await };
        let answered = self.runtime.block_on(asked).unwrap_or_else(|_| Err("no answer".into()));
        let (status, body) = answered.map_err(|reason| ApiError::Unreachable {
            socket: self.socket.clone(),
            reason: reason.to_string(),
        })?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        Err(ApiError::Problem(Box::new(read(path, &body)?)))
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(u16, Bytes), Failure> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let response = sender.send_request(request.body(Full::from(body))?).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn read<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|source| ApiError::Odd {
        path: path.to_owned(),
        answer: String::from_utf8_lossy(body).into_owned(),
        source,
    })
}
