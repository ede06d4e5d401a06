//! The API's client: what the CLI and a daemon that talks to a peer are made of.

mod probe;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::http::request::Builder;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use migrated_api::Problem;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

pub use probe::Measured;

/// Most bytes of an answer that is read whole. A list of migrations is the longest.
const MAX_ANSWER: usize = 64 << 20;

/// Why a request failed.
#[derive(Debug, Error)]
pub enum ApiClientError {
    /// Nobody answers there.
    #[error(
        "can't reach {target}: {reason}; check that `migrated serve` runs there and that you may connect"
    )]
    Unreachable {
        /// Where.
        target: String,
        /// The system's or TLS's answer.
        reason: String,
    },
    /// TLS does not come about.
    #[error(
        "TLS with {target} failed: {reason}; check its certificate, `ca` and `server_name`, and our certificate"
    )]
    Tls {
        /// Where.
        target: String,
        /// What rustls said.
        reason: String,
    },
    /// Nothing came in time.
    #[error("no answer from {target} within {after:?}")]
    TimedOut {
        /// Where.
        target: String,
        /// How long was waited.
        after: Duration,
    },
    /// What answers is no `migrated`.
    #[error("{target} does not answer as migrated's API does ({reason}); check address and port")]
    NotOurs {
        /// Where.
        target: String,
        /// What was odd.
        reason: String,
    },
    /// It answered with a problem.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
}

impl ApiClientError {
    /// Stable and machine-readable, for the migration record and `--json`.
    pub fn code(&self) -> &str {
        match self {
            Self::Unreachable { .. } => "peer_unreachable",
            Self::Tls { .. } => "peer_tls_failed",
            Self::TimedOut { .. } => "peer_timed_out",
            Self::NotOurs { .. } => "peer_not_migrated",
            Self::Problem(problem) => &problem.code,
        }
    }
}

/// Where an API is.
#[derive(Clone, Debug)]
enum Target {
    Unix(PathBuf),
    Tcp { authority: String, tls: Option<(Arc<ClientConfig>, ServerName<'static>)> },
}

/// A client of one host's API. Cheap to clone. Every request has a connection of its own: there are few.
#[derive(Clone, Debug)]
pub struct ApiClient {
    target: Target,
    token: Option<Arc<str>>,
    name: String,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl ApiClient {
    /// How long a host may take to answer where nothing else is said.
    pub const PATIENCE: Duration = Duration::from_secs(30);
    /// How long connecting may take: a host that is there answers at once.
    const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

    /// The API at a Unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: format!("unix:{}", path.display()), target: Target::Unix(path), token: None }
    }

    /// The API at a URL: `unix:PATH`, `http://HOST:PORT`, or `https://HOST:PORT`, which needs `tls`.
    /// The certificate must carry `server_name`, or the URL's host.
    pub fn new(
        url: &str,
        token: Option<&str>,
        tls: Option<Arc<ClientConfig>>,
        server_name: Option<&str>,
    ) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("unix:") {
            return Ok(Self { token: token.map(Arc::from), ..Self::unix(path) });
        }
        let uri: hyper::Uri = url.parse().map_err(|e| format!("{url:?} is no URL: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("{url:?} names no host"))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("{url:?} must begin with http://, https:// or unix:")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(format!("{url:?} must end after the port"));
        }
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure {
            let config =
                tls.ok_or_else(|| format!("{url} needs the authority that signed its certificate (ca)"))?;
            let name = server_name.unwrap_or(host.trim_matches(['[', ']']));
            let name = ServerName::try_from(name.to_owned())
                .map_err(|e| format!("{name:?} is no host name: {e}"))?;
            Some((config, name))
        } else {
            None
        };
        let authority = format!("{host}:{port}");
        Ok(Self { target: Target::Tcp { authority, tls }, token: token.map(Arc::from), name: url.to_owned() })
    }

    /// Asks, and reads the answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiClientError> {
        self.call(Method::GET, path, None, Self::PATIENCE).await
    }

    /// Posts JSON, and reads the answer; it may take `patience`.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> Result<T, ApiClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.not_ours(e))?;
        self.call(Method::POST, path, Some((body, "application/json")), patience).await
    }

    /// Puts JSON, and reads the answer.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.not_ours(e))?;
        self.call(Method::PUT, path, Some((body, "application/json")), Self::PATIENCE).await
    }

    /// Posts without a body, and reads the answer.
    pub async fn post_empty<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiClientError> {
        self.call(Method::POST, path, None, Self::PATIENCE).await
    }

    /// Posts bytes; there is no answer but that they were taken.
    pub async fn post_bytes(&self, path: &str, bytes: Vec<u8>) -> Result<(), ApiClientError> {
        let body = Some((bytes, "application/octet-stream"));
        self.within(Self::PATIENCE, self.send(Method::POST, path, body)).await.map(drop)
    }

    /// Deletes.
    pub async fn delete(&self, path: &str) -> Result<(), ApiClientError> {
        self.within(Self::PATIENCE, self.send(Method::DELETE, path, None)).await.map(drop)
    }

    /// Asks, and gives the answer's body to be read as it comes.
    pub async fn stream(&self, path: &str) -> Result<Incoming, ApiClientError> {
        self.open(path).await.map(Response::into_body)
    }

    /// As [`stream`](Self::stream), with the answer's headers.
    pub async fn open(&self, path: &str) -> Result<Response<Incoming>, ApiClientError> {
        self.within(Self::PATIENCE, self.send(Method::GET, path, None)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<(Vec<u8>, &'static str)>,
        patience: Duration,
    ) -> Result<T, ApiClientError> {
        let asked = async {
            let response = self.send(method, path, body).await?;
            let body = self.read(response.into_body()).await?;
            serde_json::from_slice(&body).map_err(|e| self.not_ours(e))
        };
        self.within(patience, asked).await
    }

    async fn within<T>(
        &self,
        patience: Duration,
        asked: impl Future<Output = Result<T, ApiClientError>>,
    ) -> Result<T, ApiClientError> {
        let timed_out = || ApiClientError::TimedOut { target: self.name.clone(), after: patience };
        tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Sends a request on a new connection. An answer that is a problem becomes an error.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(Vec<u8>, &'static str)>,
    ) -> Result<Response<Incoming>, ApiClientError> {
        let (mut sender, connection) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(self.connect().await?))
                .await
                .map_err(|e| self.not_ours(e))?;
        // It ends with the request's last byte, or with the body when that is dropped.
        tokio::spawn(connection);
        let mut request = self.head(method, path);
        let (bytes, kind) = body.unzip();
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let request = request.body(Full::from(bytes.unwrap_or_default())).map_err(|e| self.not_ours(e))?;
        let response = sender.send_request(request).await.map_err(|e| self.not_ours(e))?;
        if response.status().is_success() { Ok(response) } else { Err(self.problem(response).await) }
    }

    /// A request without its body, from whoever we are.
    fn head(&self, method: Method, path: &str) -> Builder {
        let host = match &self.target {
            Target::Unix(_) => "localhost",
            Target::Tcp { authority, .. } => authority,
        };
        let request = Request::builder().method(method).uri(path).header(HOST, host);
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    async fn problem(&self, response: Response<Incoming>) -> ApiClientError {
        let status = response.status();
        match self.read(response.into_body()).await {
            Ok(body) => match serde_json::from_slice(&body) {
                Ok(problem) => ApiClientError::Problem(Box::new(problem)),
                Err(_) => self.not_ours(format!("{status} without a problem document")),
            },
            Err(e) => e,
        }
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, ApiClientError> {
        Ok(Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| self.not_ours(e))?.to_bytes())
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ApiClientError> {
        let late = |_| self.unreachable(format!("no connection within {:?}", Self::CONNECT_PATIENCE));
        tokio::time::timeout(Self::CONNECT_PATIENCE, self.connect_slowly()).await.map_err(late)?
    }

    async fn connect_slowly(&self) -> Result<Box<dyn Stream>, ApiClientError> {
        match &self.target {
            Target::Unix(path) => {
                Ok(Box::new(UnixStream::connect(path).await.map_err(|e| self.unreachable(e))?))
            }
            Target::Tcp { authority, tls } => {
                let stream = TcpStream::connect(authority.as_str()).await.map_err(|e| self.unreachable(e))?;
                stream.set_nodelay(true).map_err(|e| self.unreachable(e))?;
                let Some((config, name)) = tls else { return Ok(Box::new(stream)) };
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                let secured = connector.connect(name.clone(), stream).await;
                let failed = |e: std::io::Error| ApiClientError::Tls {
                    target: self.name.clone(),
                    reason: e.to_string(),
                };
                Ok(Box::new(secured.map_err(failed)?))
            }
        }
    }

    fn unreachable(&self, reason: impl std::fmt::Display) -> ApiClientError {
        ApiClientError::Unreachable { target: self.name.clone(), reason: reason.to_string() }
    }

    fn not_ours(&self, reason: impl std::fmt::Display) -> ApiClientError {
        ApiClientError::NotOurs { target: self.name.clone(), reason: reason.to_string() }
    }
}

/// Whether a problem says that the caller is not known there.
pub fn is_unauthorized(error: &ApiClientError) -> bool {
    matches!(error, ApiClientError::Problem(problem) if problem.status == StatusCode::UNAUTHORIZED.as_u16())
}
