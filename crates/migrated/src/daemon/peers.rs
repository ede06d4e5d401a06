//! Other hosts: whom a name or URL means, and what we show them.

use std::path::Path;

use super::{Daemon, DaemonError};
use crate::client::{ApiClient, ApiClientError, is_unauthorized};
use crate::config::PeerConfig;
use crate::secret::read_token;
use crate::tls::{ClientIdentity, client_config};

/// A question to a peer that came to nothing.
pub fn peer_failed(peer: &str, error: &ApiClientError) -> DaemonError {
    DaemonError::Peer {
        peer: peer.to_owned(),
        code: if is_unauthorized(error) { "peer_unauthorized".into() } else { error.code().to_owned() },
        detail: error.to_string(),
    }
}

impl Daemon {
    /// The API of the host named `to`: one of the configured peers, or a URL.
    pub(super) fn peer(&self, to: &str) -> Result<ApiClient, DaemonError> {
        if let Some(peer) = self.config.peers.get(to) {
            return self.configured_peer(peer).map_err(|e| {
                DaemonError::PeerUnknown(format!("peer {to:?} is not configured right: {e:#}"))
            });
        }
        if !to.contains(':') {
            let known: Vec<_> = self.config.peers.keys().map(String::as_str).collect();
            return Err(DaemonError::PeerUnknown(format!(
                "no peer {to:?} in this host's configuration; give a URL, or add [peers.{to}] (known: {})",
                if known.is_empty() { "none".into() } else { known.join(", ") }
            )));
        }
        // A URL that somebody typed gets no token: it belongs to a host.
        let peer = PeerConfig { url: to.to_owned(), token_file: None, ca: None, server_name: None };
        self.configured_peer(&peer).map_err(|e| DaemonError::PeerUnknown(format!("{e:#}")))
    }

    fn configured_peer(&self, peer: &PeerConfig) -> anyhow::Result<ApiClient> {
        let ours = self.config.api.tls.as_ref();
        let ca: Option<&Path> = peer.ca.as_deref().or_else(|| ours.and_then(|tls| tls.ca.as_deref()));
        let identity = ours.map(|tls| ClientIdentity { cert: &tls.cert, key: &tls.key });
        let tls = match ca {
            Some(ca) if peer.url.starts_with("https:") => Some(client_config(ca, identity)?),
            _ => None,
        };
        let token = peer.token_file.as_deref().map(read_token).transpose()?;
        ApiClient::new(&peer.url, token.as_deref(), tls, peer.server_name.as_deref())
            .map_err(anyhow::Error::msg)
    }
}
