use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::client::ApiClient;
use crate::secret::read_token;
use crate::tls::{ClientIdentity, client_config};

/// Which daemon to talk to, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    /// The daemon's API: http://HOST:PORT, https://HOST:PORT or unix:PATH
    /// [default: unix:/run/migrated/api.sock, or unix:$XDG_RUNTIME_DIR/migrated/api.sock where that is a user's].
    #[arg(long, global = true, env = "MIGRATED_HOST", value_name = "URL")]
    host: Option<String>,
    /// File with the daemon's bearer token; for `serve`, the one that TCP callers must send.
    #[arg(long, global = true, env = "MIGRATED_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Authority that signed the daemon's certificate.
    #[arg(long, global = true, env = "MIGRATED_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Our certificate.
    #[arg(long, global = true, env = "MIGRATED_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Our certificate's key.
    #[arg(long, global = true, env = "MIGRATED_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl ConnectArgs {
    /// The client of that daemon.
    pub fn client(&self) -> Result<ApiClient> {
        let host = match &self.host {
            Some(host) => host.clone(),
            None => format!("unix:{}", default_socket().display()),
        };
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(ClientIdentity { cert, key }),
            _ => None,
        };
        let tls = match &self.ca {
            Some(ca) => Some(client_config(ca, identity)?),
            None if host.starts_with("https:") => {
                bail!("{host} needs --ca, the authority that signed its certificate")
            }
            None => None,
        };
        ApiClient::new(&host, token.as_deref(), tls, None).map_err(anyhow::Error::msg).context("--host")
    }
}

/// The system daemon's socket, or the user's own daemon's where the system has none.
fn default_socket() -> PathBuf {
    let system = PathBuf::from("/run/migrated/api.sock");
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !system.exists() => PathBuf::from(dir).join("migrated/api.sock"),
        _ => system,
    }
}
