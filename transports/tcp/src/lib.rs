//! Migration channels over TCP: plain, or in mutual TLS 1.3.
//!
//! The page path has no buffer of its own over plain TCP: a frame's head and the guest's pages go to the
//! kernel in one call, and come out of it where they belong.

pub mod certs;
mod plain;
mod socket;
mod sys;
mod tls;
mod transport;

pub use tls::{TlsConfig, TlsConfigError};
pub use transport::TcpTransport;
