use migrated_transport::TransportError;
use migrated_wire::WireError;

/// Whether a channel broke or the peer broke the rules: the engine treats them alike before the
/// commit and differently in words.
pub(crate) enum ChannelFault {
    Lost(String),
    Misbehaved(String),
}

impl From<TransportError> for ChannelFault {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Protocol { .. } => Self::Misbehaved(error.to_string()),
            _ => Self::Lost(error.to_string()),
        }
    }
}

impl From<WireError> for ChannelFault {
    fn from(error: WireError) -> Self {
        Self::Misbehaved(error.to_string())
    }
}
