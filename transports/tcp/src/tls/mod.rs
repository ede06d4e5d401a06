mod config;
mod explain;
mod stream;

pub use config::{TlsConfig, TlsConfigError};
pub(crate) use stream::{accept, connect};
