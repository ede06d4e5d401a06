use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that all channels of a session moved.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    pub(crate) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// Adds what a channel counted since it was last looked at.
#[derive(Debug, Default)]
pub(crate) struct Odometer(u64);

impl Odometer {
    pub(crate) fn advance(&mut self, total: u64) -> u64 {
        total - std::mem::replace(&mut self.0, total)
    }
}
