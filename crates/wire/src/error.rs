use thiserror::Error;

/// Why bytes from a peer are not what this protocol sends. Never a panic, never a large allocation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The first bytes are not this protocol's: something else is listening or calling.
    #[error(
        "the peer does not speak the migration protocol (it began with {0:02x?}); check address and port"
    )]
    NotOurs([u8; 4]),
    /// A length field above its limit.
    #[error("{what} of {got} exceeds the limit of {limit}")]
    TooLarge {
        /// Which field.
        what: &'static str,
        /// Its value.
        got: u64,
        /// The most allowed.
        limit: u64,
    },
    /// A field has a value that this version doesn't define.
    #[error("{what} has the undefined value {value:#x}")]
    Undefined {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Fewer bytes than the message needs.
    #[error("{0} is cut short")]
    Truncated(&'static str),
    /// A message that does not decode.
    #[error("{what} does not decode: {reason}")]
    Malformed {
        /// Which message.
        what: &'static str,
        /// What the decoder said.
        reason: String,
    },
}
