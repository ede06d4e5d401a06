//! What travels between two hosts: the hello that opens every channel, control messages, page
//! frames, their limits and their errors; and what is known of the path under a channel. No I/O: decoders take bytes, encoders give bytes.

mod error;
mod frame;
mod hello;
mod late;
mod lz4;
mod message;
mod path;
mod pieces;

pub use error::WireError;
pub use frame::{
    FRAME_HEAD_LEN, FrameHead, FrameKind, FrameRun, MAX_DATA_PAGES, MAX_HASH_PAGES, MAX_RUNS, PageClass,
    RUN_LEN, decode_table, encode_run,
};
pub use hello::{
    ChannelRole, HELLO_LEN, HELLO_REPLY_MAX, Hello, HelloReply, MigrationId, PROTOCOL, Refusal, RefusalCode,
    Token, VersionRange,
};
pub use late::{LATE_INPUT_SINCE, LateInput, LateInputs, MAX_LATE_BYTES, MAX_LATE_INPUT, MAX_LATE_INPUTS};
pub use lz4::{Compressor, LZ4_SINCE, MAX_BLOCK_LEN, MAX_BLOCK_PAGES, decompress_block};
pub use message::{
    CommitOutcome, FIRST_PACKET_SINCE, GuestIdentity, MAX_MESSAGE, MAX_OUTSTANDING, MAX_SECTION,
    MAX_SECTIONS, MAX_TEXT, PostcopyUse, Section, SectionName, ToDestination, ToSource, VerifyWhen,
    bounded_text, decode_message, encode_message,
};
pub use path::{PathSample, SendPace};
pub use pieces::{MAX_PIECE_PAGES, PageSetPiece, PieceBits};
