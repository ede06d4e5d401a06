//! Giving free pages back to the host, at any moment of a guest's life.
//!
//! # What a page that was given back is
//!
//! A zero page. Its memory is gone from the memfd (a hole is punched) or from the anonymous mapping, so it reads
//! as zero, a migration finds it without touching it and sends its name, and verification hashes it as zero. The
//! guest waits for the device's answer before it uses the page, so nothing is lost that anybody wants, *unless*
//! the guest relies on what it wrote into free pages; the balloon knows that and doesn't call here then.
//!
//! Huge pages of hugetlbfs are the exception: they are reserved for the guest, and a hole that is punched gives up
//! the reservation. Whoever asks first would have the page, and a guest that finds none when it wants its own
//! back dies. So they stay, and are made zero: the host gains nothing, a migration does.
//!
//! # While a migration is under way
//!
//! *Pre-copy, at the source.* A page may have been sent with content in an earlier round. That it is zero now is a
//! change like any other, so it is **marked as written** after it was given back and is sent once more, as a part
//! of a run without bytes. Without the mark the destination would keep the old content: no sane guest would mind, but
//! one that clears pages as it frees them takes them for zero, and memory that differs without anybody's writing can't
//! be told from a lost dirty page. KVM has no part in it: taking the page away removes its entry in the second-level
//! page tables and leaves its bit in the dirty log (or its entry in a ring) as it is, so at worst the page is sent
//! twice, and the guest's next write faults and is logged as the first write to any page. A page that
//! is being sent out of RAM at the same moment goes half with content and half without; it is dirty and comes again.
//!
//! *From the pause on, at the source.* No device runs. What follows the guest is read out of RAM that stays still.
//!
//! *Post-copy, at the destination.* As long as the RAM is [watched](WatchedRam) nothing is given back: the request is
//! answered and the page stays. A page that is missing must not count as zero before it was placed, since the
//! placement would go over what the guest writes next. One that was placed has its memory in the file and an entry
//! that userfaultfd made, while another thread is placing its neighbours through a second mapping: taking it away
//! there would be one more way in which a page comes to be without an entry. And the guest will hardly report much in
//! its first seconds. It does not report these pages again until it has used them; that much is not given back. Once
//! the watch has ended it never begins again, so looking once before each piece is enough.
//!
//! *Pre-copy, at the destination.* No device runs before the commit, and then all RAM is there.

use std::io;
use std::sync::{Arc, OnceLock};

use migrated_guest::{GuestRam, VmmWrites, WatchedRam};
use migrated_pages::PAGE_SIZE;
use vm_memory::GuestAddress;

use crate::{MemoryBacking, memory};

/// A guest's RAM, pages of which can be given back to the host. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct FreePages {
    ram: GuestRam,
    backing: MemoryBacking,
    writes: VmmWrites,
    /// The RAM, once it is armed for post-copy.
    watched: Arc<OnceLock<WatchedRam>>,
}

impl FreePages {
    pub(crate) const fn new(
        ram: GuestRam,
        backing: MemoryBacking,
        writes: VmmWrites,
        watched: Arc<OnceLock<WatchedRam>>,
    ) -> Self {
        Self { ram, backing, writes, watched }
    }

    /// Pages that the guest has in all.
    pub(super) fn total(&self) -> u64 {
        self.ram.layout().total_pages()
    }

    /// Gives the whole pages of RAM among `len` bytes from `address` on back to the host, if now is a time for that.
    /// Returns how many bytes the host has more.
    ///
    /// # Errors
    /// The kernel's; pages that are not given back keep their content.
    pub(super) fn give_back(&self, address: GuestAddress, len: u64) -> io::Result<u64> {
        if self.watched.get().is_some_and(|watched| !watched.is_released()) {
            return Ok(0);
        }
        let mut given_back = 0;
        for run in self.ram.layout().whole_pages(address.0, len) {
            let result = if self.backing == MemoryBacking::Hugetlb2m {
                self.ram.zero(run);
                Ok(0)
            } else {
                memory::give_back(&self.ram, run).map(|()| run.bytes())
            };
            // After the change, whatever came of it.
            let base = self.ram.layout().blocks()[run.block.index()].guest_base;
            self.writes.mark(base + run.first * PAGE_SIZE as u64, run.bytes());
            given_back += result?;
        }
        Ok(given_back)
    }
}
