use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Most bytes of one message. Below the kernel's default socket buffer, which bounds a packet.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Why a message can't be sent or read.
#[derive(Debug, Error)]
pub enum CodecError {
    /// Above [`MAX_MESSAGE`].
    #[error("a control message of {0} bytes exceeds the limit of {MAX_MESSAGE}")]
    TooLarge(usize),
    /// Not a message of this version.
    #[error("a control message does not decode: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// A message as one packet's bytes.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// The message in one packet.
pub fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, CodecError> {
    if packet.len() > MAX_MESSAGE {
        return Err(CodecError::TooLarge(packet.len()));
    }
    Ok(serde_json::from_slice(packet)?)
}
