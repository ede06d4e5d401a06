use std::time::Duration;

use migrated_wire::{Refusal, WireError};
use thiserror::Error;

/// Why a channel could not be opened or broke.
#[derive(Debug, Error)]
pub enum TransportError {
    /// Nobody answers there.
    #[error("can't reach {peer}: {source}; check that migrated runs there and that the port is open")]
    Unreachable {
        /// Address that was dialled.
        peer: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The peer's certificate, or ours, was not accepted.
    #[error("TLS with {peer} failed: {reason}")]
    Tls {
        /// The other end.
        peer: String,
        /// What rustls said, and which file to look at.
        reason: String,
    },
    /// The peer refused the channel.
    #[error("{peer} refused the channel: {refusal}")]
    Refused {
        /// The other end.
        peer: String,
        /// Its reason.
        refusal: Refusal,
    },
    /// The peer sent what the protocol doesn't allow.
    #[error("protocol violation by {peer}: {source}")]
    Protocol {
        /// The other end.
        peer: String,
        /// What was wrong.
        #[source]
        source: WireError,
    },
    /// The channel ended in the middle: by the peer, the network, or [`Hangup`](crate::Hangup).
    #[error("connection to {peer} lost: {reason}")]
    Lost {
        /// The other end.
        peer: String,
        /// How it showed.
        reason: String,
    },
    /// Nothing moved within the time allowed.
    #[error("no answer from {peer} within {after:?}")]
    TimedOut {
        /// The other end.
        peer: String,
        /// How long was waited.
        after: Duration,
    },
    /// A local resource is missing: address in use, file unreadable, no such feature.
    #[error("{what}: {source}")]
    Local {
        /// What was tried.
        what: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}
