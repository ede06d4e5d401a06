//! What travels between two hosts: the hello that opens every channel, control messages, page
//! frames, their limits and their errors. No I/O: decoders take bytes, encoders give bytes.

mod hello;

pub use hello::{
    ChannelRole, HELLO_LEN, HELLO_REPLY_MAX, Hello, HelloReply, MigrationId, PROTOCOL, Refusal, RefusalCode,
    Token, VersionRange,
};
mod error;
pub use error::WireError;
