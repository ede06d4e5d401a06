//! What page channels are given to send, and what they say of it.

use std::time::Duration;

use migrated_wire::MAX_DATA_PAGES;

#[cfg(doc)]
use super::Source;

/// Pages in a batch: 1 MiB of payload, enough to make system calls cheap and few enough that a
/// paused guest's last pages spread over all channels.
pub const BATCH_PAGES: u64 = 256;
/// Runs in a batch, so that scattered pages make full batches too.
pub const BATCH_RUNS: usize = 256;
const _: () = assert!(BATCH_PAGES <= MAX_DATA_PAGES);

/// What a page channel does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send these pages (appended to the vector given) as frames of this iteration.
    Pages {
        /// Which iteration.
        iteration: u32,
    },
    /// Send the hashes of these pages.
    Hashes {
        /// Which iteration.
        iteration: u32,
    },
    /// Send an end-of-iteration marker, then call [`Source::marker_sent`].
    Marker {
        /// Which iteration.
        iteration: u32,
        /// Pages sent on this channel in it.
        pages: u64,
    },
    /// Nothing now: wait to be woken.
    Wait,
    /// Nothing before this moment: the bandwidth limit.
    WaitUntil(Duration),
    /// There will be nothing more on this link.
    Ended,
}

/// What a channel sent of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Pages with payload, compressed or not.
    pub data_pages: u64,
    /// Pages found zero.
    pub zero_pages: u64,
    /// Payload bytes as they went.
    pub bytes: u64,
    /// What compressing did.
    pub lz4: Compressed,
    /// From when the batch was handed out until it was sent.
    pub busy: Duration,
    /// Part of that which the transport took.
    pub sending: Duration,
}

/// What compressing did with a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compressed {
    /// Pages that were compressed, also if they went raw because they shrank too little.
    pub tried: u64,
    /// What that took.
    pub took: Duration,
    /// Pages that went compressed.
    pub pages: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
}
