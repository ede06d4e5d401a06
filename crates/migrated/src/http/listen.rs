//! The sockets that the API is served on.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::serve::{Listener, ListenerExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Auth, router};
use crate::config::HostConfig;
use crate::daemon::Daemon;
use crate::secret::read_token;
use crate::tls::server_config;

/// How long a caller may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes in work at once; more callers wait in the kernel's queue.
const HANDSHAKES: usize = 64;

/// The sockets, bound, and what they serve with.
pub struct Listeners {
    unix: UnixListener,
    tcp: Option<(TcpListener, Auth, Option<TlsAcceptor>)>,
}

/// Binds everything that the configuration names.
pub async fn bind(config: &HostConfig) -> Result<Listeners> {
    let unix = bind_unix(&config.api.socket, config.socket_mode()?)
        .await
        .with_context(|| format!("can't serve the API on {}", config.api.socket.display()))?;
    let Some(address) = config.api.listen else { return Ok(Listeners { unix, tcp: None }) };
    let auth = match &config.api.token_file {
        Some(file) => Auth::Token(read_token(file)?.into()),
        None => Auth::Connected,
    };
    let acceptor = config.api.tls.as_ref().map(server_config).transpose()?.map(TlsAcceptor::from);
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("can't serve the API on {address}"))?;
    Ok(Listeners { unix, tcp: Some((listener, auth, acceptor)) })
}

async fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another daemon answers there already"),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e.into()),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

impl Listeners {
    /// The TCP address, with the port that the system chose where 0 was asked for.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|(listener, ..)| listener.local_addr().ok())
    }

    /// Serves, until one of the servers breaks.
    pub async fn serve(self, daemon: Arc<Daemon>) -> io::Result<()> {
        let unix = axum::serve(self.unix, router(Arc::clone(&daemon), Auth::Connected)).into_future();
        match self.tcp {
            None => unix.await,
            Some((listener, auth, acceptor)) => {
                let tcp = serve_tcp(listener, router(daemon, auth), acceptor);
                tokio::try_join!(unix, tcp).map(drop)
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, router: Router, acceptor: Option<TlsAcceptor>) -> io::Result<()> {
    let address = listener.local_addr()?;
    // An answer's last packet must not wait for the caller to acknowledge the one before it.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    match acceptor {
        None => axum::serve(listener, router).await,
        Some(acceptor) => {
            let (sender, receiver) = mpsc::channel(HANDSHAKES);
            let accepting = tokio::spawn(shake_hands(listener, acceptor, sender));
            let served = axum::serve(TlsListener { receiver, address }, router).await;
            accepting.abort();
            served
        }
    }
}

/// Accepts TLS connections. Each shakes hands on its own, so that a slow caller holds up nobody.
async fn shake_hands(
    mut listener: impl Listener<Io = TcpStream, Addr = SocketAddr>,
    acceptor: TlsAcceptor,
    done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, peer) = listener.accept().await;
        let (acceptor, done) = (acceptor.clone(), done.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    // The server may be gone.
                    let _ = done.send((stream, peer)).await;
                }
                Ok(Err(e)) => tracing::info!(%peer, "TLS handshake failed: {e}"),
                Err(_) => tracing::info!(%peer, "no TLS handshake within {HANDSHAKE:?}"),
            }
            drop(permit);
        });
    }
}

struct TlsListener {
    receiver: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.receiver.recv().await {
            Some(accepted) => accepted,
            // Nothing accepts any more; the server is being dropped.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
