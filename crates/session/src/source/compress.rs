//! What a batch's pages become on the wire, in memory that is used again for every batch.

use std::time::Instant;

use migrated_engine::source::{BATCH_PAGES, Compressed, Encoding};
use migrated_guest::{GuestRam, PageClass as ScanClass};
use migrated_pages::{PAGE_SIZE, PageRun};
use migrated_wire::{Compressor, FrameRun, MAX_BLOCK_LEN, MAX_BLOCK_PAGES, PageClass};
use vm_memory::VolatileSlice;

/// A block that saves less than one part in so many goes as it is: it would be copied three times more (out of guest
/// RAM here, into it there, and by the decompressor) for next to nothing.
const SAVES_ONE_IN: usize = 8;

/// The runs of a frame and its compressed blocks.
#[derive(Default)]
pub(super) struct Blocks {
    runs: Vec<FrameRun>,
    compressor: Compressor,
    /// A block's pages: guest memory must never be a Rust slice, which the compressor wants.
    pages: Vec<u8>,
    /// The blocks, one after the other, up to `used`.
    packed: Vec<u8>,
    used: usize,
}

impl Blocks {
    /// Makes the runs of a frame out of a batch that was looked at for zero pages.
    pub(super) fn fill(
        &mut self,
        ram: &GuestRam,
        classes: &[(PageRun, ScanClass)],
        encoding: Encoding,
    ) -> Compressed {
        self.runs.clear();
        self.used = 0;
        let mut done = Compressed::default();
        for (pages, class) in classes {
            match class {
                ScanClass::Zero => self.runs.push(FrameRun { pages: *pages, class: PageClass::Zero }),
                ScanClass::Data => self.fill_data(ram, *pages, encoding, &mut done),
            }
        }
        done
    }

    fn fill_data(&mut self, ram: &GuestRam, run: PageRun, encoding: Encoding, done: &mut Compressed) {
        for pages in run.pieces(MAX_BLOCK_PAGES) {
            let compresses = match encoding {
                Encoding::Raw => false,
                Encoding::Probe => done.tried == 0,
                Encoding::Lz4 => true,
            };
            match compresses.then(|| self.compress(ram, pages, done)).flatten() {
                Some(len) => self.runs.push(FrameRun { pages, class: PageClass::Lz4 { len } }),
                None => self.push_raw(pages),
            }
        }
    }

    /// Adds pages that go as they are, to the last run if they follow it.
    fn push_raw(&mut self, pages: PageRun) {
        match self.runs.last_mut() {
            Some(FrameRun { pages: last, class: PageClass::Data })
                if last.block == pages.block && last.end() == Some(pages.first) =>
            {
                last.count += pages.count;
            }
            _ => self.runs.push(FrameRun { pages, class: PageClass::Data }),
        }
    }

    /// Adds a block, unless it saves too little. The guest may write its pages meanwhile: what is in the block is what
    /// was copied, and the page comes again.
    fn compress(&mut self, ram: &GuestRam, run: PageRun, done: &mut Compressed) -> Option<u32> {
        let began = Instant::now();
        if self.packed.is_empty() {
            // Blocks that are kept are smaller than their pages, so only the last one needs more room than they have.
            self.packed.resize(BATCH_PAGES as usize * PAGE_SIZE + Compressor::room(MAX_BLOCK_LEN), 0);
            self.pages.resize(MAX_BLOCK_LEN, 0);
        }
        let pages = &mut self.pages[..run.bytes() as usize];
        ram.slice(run).copy_to(pages);
        let size = self.compressor.compress(pages, &mut self.packed[self.used..]);
        done.tried += run.count;
        done.took += began.elapsed();
        let size = size.filter(|size| *size <= pages.len() - pages.len() / SAVES_ONE_IN)?;
        self.used += size;
        done.pages += run.count;
        done.bytes += size as u64;
        u32::try_from(size).ok()
    }

    /// The frame's runs.
    pub(super) fn runs(&self) -> &[FrameRun] {
        &self.runs
    }

    /// The compressed blocks of all runs, in their order.
    pub(super) fn payload(&mut self) -> Option<VolatileSlice<'_>> {
        (self.used > 0).then(|| VolatileSlice::from(&mut self.packed[..self.used]))
    }
}
