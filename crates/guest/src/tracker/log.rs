use std::sync::Arc;

use migrated_kernel::{KvmError, ManualProtect, MemorySlots};
use migrated_pages::{BlockId, PageSet, RamLayout};

use super::{DirtyTracker, VmmWrites};
use crate::GuestError;

/// Words cleared by one call: 16 Ki pages, 64 MiB. KVM holds its MMU lock for all of a call and
/// vCPUs that fault wait for it, so a call must be short; and each call flushes TLBs, so not too short.
const CLEAR_WORDS: usize = 256;

/// KVM's dirty log with manual protect. Slot n is block n. The seam at which tests put a fake kernel.
pub(super) trait DirtyLog: Send {
    /// Switches logging of all slots.
    fn set_logging(&self, on: bool) -> Result<(), KvmError>;
    /// Reads a slot's bitmap; clears nothing.
    fn read(&self, slot: usize, bitmap: &mut [u64]) -> Result<(), KvmError>;
    /// Clears and protects the pages set in `words`, which begin at word `first_word` of the bitmap.
    fn clear(&self, slot: usize, first_word: usize, words: &[u64]) -> Result<(), KvmError>;
}

impl DirtyLog for Arc<MemorySlots> {
    fn set_logging(&self, on: bool) -> Result<(), KvmError> {
        self.set_dirty_logging(on)
    }

    fn read(&self, slot: usize, bitmap: &mut [u64]) -> Result<(), KvmError> {
        self.dirty_log(slot, bitmap)
    }

    fn clear(&self, slot: usize, first_word: usize, words: &[u64]) -> Result<(), KvmError> {
        self.clear_dirty_log(slot, first_word, words)
    }
}

/// Tracks by KVM's dirty bitmap.
///
/// Reading the bitmap and clearing it are two calls here, and only bits that were read are cleared:
/// a write in between is either in the bits read, and its page is read later, or stays in KVM's.
/// When clearing fails, the bits are in the caller's set and in KVM's bitmap: reported twice, not lost.
pub(super) struct DirtyLogTracker {
    kernel: Box<dyn DirtyLog>,
    protect: ManualProtect,
    vmm_writes: VmmWrites,
    /// One bitmap for each block, kept so that a harvest allocates nothing.
    bitmaps: Vec<Vec<u64>>,
}

impl DirtyLogTracker {
    pub(super) fn new(
        kernel: Box<dyn DirtyLog>,
        protect: ManualProtect,
        layout: &RamLayout,
        vmm_writes: VmmWrites,
    ) -> Self {
        let words = |pages: u64| pages.div_ceil(u64::BITS.into()) as usize;
        let bitmaps = layout.blocks().iter().map(|block| vec![0; words(block.pages)]).collect();
        Self { kernel, protect, vmm_writes, bitmaps }
    }

    fn protect_all(&mut self) -> Result<(), KvmError> {
        for (slot, bitmap) in self.bitmaps.iter_mut().enumerate() {
            bitmap.fill(u64::MAX);
            clear_in_pieces(&*self.kernel, slot, bitmap)?;
        }
        Ok(())
    }
}

impl DirtyTracker for DirtyLogTracker {
    fn start(&mut self) -> Result<(), GuestError> {
        // A fresh bitmap comes only from switching logging on.
        self.kernel.set_logging(false)?;
        self.vmm_writes.discard();
        self.kernel.set_logging(true)?;
        match self.protect {
            ManualProtect::ProtectedAtStart => Ok(()),
            ManualProtect::InitiallySet => Ok(self.protect_all()?),
        }
    }

    fn harvest(&mut self, dirty: &mut PageSet) -> Result<u64, GuestError> {
        let mut newly = self.vmm_writes.take_into(dirty);
        for (slot, bitmap) in self.bitmaps.iter_mut().enumerate() {
            self.kernel.read(slot, bitmap)?;
            newly += dirty.insert_words(BlockId(slot as u16), bitmap);
            clear_in_pieces(&*self.kernel, slot, bitmap)?;
        }
        Ok(newly)
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        Ok(self.kernel.set_logging(false)?)
    }
}

fn clear_in_pieces(kernel: &dyn DirtyLog, slot: usize, bitmap: &[u64]) -> Result<(), KvmError> {
    for (piece, words) in bitmap.chunks(CLEAR_WORDS).enumerate() {
        if words.iter().any(|word| *word != 0) {
            kernel.clear(slot, piece * CLEAR_WORDS, words)?;
        }
    }
    Ok(())
}
