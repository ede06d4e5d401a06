//! Guest RAM whose pages come while the guest runs.
//!
//! # Two mappings
//!
//! The guest's memfd is mapped twice. The **guest's mapping** is KVM's, and everybody else's who means to
//! see what the guest sees; userfaultfd watches it, so an access to a page that has no page-table
//! entry there waits. The **staging mapping** ([`PreparedPostcopy::staging`]) is the migration's own and
//! never waits. A stale page is one without an entry in the guest's mapping: [`PreparedPostcopy::arm`]
//! removes the entry and leaves the page's memory with the file, so nothing is allocated anew. Its new
//! content is received straight into the staging mapping, then UFFDIO_CONTINUE enters the page into the
//! guest's and wakes who waits. That way a byte is copied once, by the kernel, out of the socket;
//! UFFDIO_COPY copies it once more and costs about three times as much a page (1.4 µs against 0.5 µs
//! in blocks of 1 MiB), except for pages that the file does not have yet, which a prefaulted guest has not.
//!
//! # Who may write what
//!
//! Once a page is in the guest's mapping the guest writes it, and an older content must never go over
//! that. So a page is written here only under a [`Claim`]: whoever gets it first, urgent answer or
//! background push, before or after a lost link, is the only one; others receive into a place that
//! nobody reads. A claim that is dropped (its link died half-way) makes the pages free again,
//! and they stay missing: only [`Claim::place`] ends that.
//!
//! # Faults that are no one's business
//!
//! An access waits for every page without an entry, missing or not: the guest may touch memory for the first
//! time, the host may have swapped a page out after it was placed, and pages may have lost their entries
//! because they were thought to be stale. The fault reader ([`FaultReader`]) provides those pages itself,
//! out of what the file has, and reports only faults on missing pages. So **a reader must run for as long
//! as the RAM is armed**, even when the link is down; else the guest stops for no reason.
//!
//! No wake-up is lost. A thread that faults is queued first and then looks for the entry once more; an
//! entry is made first, and then the queue is woken. A fault may be reported for a page that is placed at that
//! moment; its thread is awake then, and the report can be ignored.
//!
//! # Whose faults
//!
//! vCPUs wait in KVM_RUN, where a kick reaches them: a guest can be paused while it waits for a page. (Not while
//! KVM itself emulates an instruction for it that touches the page: then the kick is seen when the page
//! comes.) Other threads wait in whatever they do: KVM's ioctls that restore state read and write guest memory
//! (kvmclock, steal time, page-directory pointers), and so does a device model. Thus, in this order: arm,
//! start the reader on a thread of its own, restore the state on another, run. A reader that restores
//! state, or receives pages, or takes a lock that somebody holds who touches guest RAM, waits for itself.
//! And the source must answer requests from the moment it told which pages are stale, before the commit.
//!
//! # The end
//!
//! [`PostcopyRam::finish`] lets go of the RAM when nothing is missing. Dropping it while pages are
//! missing lets go of nothing: threads go on waiting for what will not come, as letting them see stale memory
//! would corrupt a guest that runs. [`WatchedRam::abandon`] is for a guest that never runs again.

mod claim;
mod error;
mod faults;
mod pages;
mod prepare;
mod watched;

use std::sync::Arc;

use migrated_kernel::Userfaultfd;
use migrated_pages::{PAGE_SIZE, PageRun, PageSet};
use vm_memory::MmapRegion;

use crate::GuestRam;
use crate::ram::next_data;

pub use claim::Claim;
pub use error::PostcopyError;
use error::kernel;
pub use faults::{FaultReader, FaultStop, PageFault};
pub use pages::MissingPages;
pub use prepare::PreparedPostcopy;
pub use watched::WatchedRam;

/// RAM that is armed for post-copy. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct PostcopyRam {
    armed: Arc<Armed>,
}

#[derive(Debug)]
struct Armed {
    watched: WatchedRam,
    /// The same memory, mapped once more and not watched.
    staging: GuestRam,
    /// Pages that [`PreparedPostcopy::unmap`] took out of the guest's mapping.
    unmapped: PageSet,
    /// Takes bytes that nobody wants.
    discard: MmapRegion<()>,
}

impl PostcopyRam {
    /// Whether post-copy can fill `ram` on this host.
    ///
    /// # Errors
    /// What the host's permissions, its kernel or the RAM's backing lack, in words.
    pub fn support(ram: &GuestRam) -> Result<(), PostcopyError> {
        prepare::check_backing(ram)?;
        Self::permitted()
    }

    /// Whether this process may do post-copy at all, for whatever RAM suits it.
    ///
    /// # Errors
    /// What the host's permissions or its kernel lack, in words.
    pub fn permitted() -> Result<(), PostcopyError> {
        Ok(Userfaultfd::open().map(drop)?)
    }

    /// Maps `ram` a second time, with page tables for all that it has: work that would else fall into the
    /// downtime. It takes about 0.3 µs a page, on all CPUs.
    ///
    /// # Errors
    /// As [`support`](Self::support), or [`PostcopyError::Kernel`].
    pub fn prepare(ram: &GuestRam) -> Result<PreparedPostcopy, PostcopyError> {
        PreparedPostcopy::new(ram)
    }

    /// As [`PreparedPostcopy::arm`], of more pages: those that the guest wrote while its source waited for that.
    /// Only before the guest runs.
    ///
    /// # Errors
    /// [`PostcopyError::Kernel`]; old contents may then be seen, so the guest must never run.
    ///
    /// # Panics
    /// When a page is missing already.
    pub fn arm_more(&self, stale: &PageSet) -> Result<(), PostcopyError> {
        // In this order: who touches a page that was just taken out must find it missing.
        self.missing().add(stale);
        prepare::take_out(self.armed.ram(), stale)
    }

    /// The pages that have not come yet.
    #[must_use]
    pub fn missing(&self) -> &MissingPages {
        self.armed.watched.missing()
    }

    /// What the VMM keeps of it, to know what is missing and to end a guest that waits.
    #[must_use]
    pub fn watched(&self) -> &WatchedRam {
        &self.armed.watched
    }

    /// The staging mapping, to read pages that are claimed or placed without waiting for anything. Not to be
    /// written but through a [`Claim`].
    #[must_use]
    pub fn staging(&self) -> &GuestRam {
        &self.armed.staging
    }

    /// A reader of faults. One thread is enough; several share the faults.
    ///
    /// # Errors
    /// [`PostcopyError::Kernel`] when there are too many open files.
    pub fn faults(&self) -> Result<FaultReader, PostcopyError> {
        FaultReader::new(self.armed.clone())
    }

    /// Claims the pages of `runs` that are missing and nobody else has claimed, to receive them.
    ///
    /// # Panics
    /// On a run outside the layout: a peer's runs are checked first.
    pub fn claim(&self, runs: impl IntoIterator<Item = PageRun>) -> Claim<'_> {
        Claim::new(&self.armed, runs)
    }

    /// Makes the missing pages of a run zero and lets the guest have them; appends those that had been
    /// missing until now to `placed`. Long stretches that the file has no memory for get none until the
    /// guest touches them.
    ///
    /// # Errors
    /// [`PostcopyError::Userfaultfd`]; `placed` is right all the same.
    ///
    /// # Panics
    /// On a run outside the layout.
    pub fn place_zero(&self, run: PageRun, placed: &mut Vec<PageRun>) -> Result<(), PostcopyError> {
        self.claim([run]).place_zero(placed)
    }

    /// Maps the pages that were [unmapped](PreparedPostcopy::unmap) beforehand and turned out not to be
    /// stale, before the guest faults on each of them. To be called when the guest runs.
    ///
    /// # Errors
    /// [`PostcopyError::Userfaultfd`].
    pub fn map_present(&self) -> Result<(), PostcopyError> {
        let armed = &*self.armed;
        for run in armed.unmapped.runs() {
            let (mut at, end) = (run.first, run.first + run.count);
            while at < end {
                at = armed.next_data(PageRun { block: run.block, first: at, count: end - at });
                let is_present = |page: &u64| !armed.missing().contains(run.block, *page);
                let count = (at..end).take_while(is_present).take(MAP_AT_ONCE).count() as u64;
                if count > 0 {
                    let present = PageRun { block: run.block, first: at, count };
                    at += armed.map_while_there(present)?;
                }
                at += 1;
            }
        }
        Ok(())
    }

    /// Lets go of the RAM, which is an ordinary guest's from now on.
    ///
    /// # Errors
    /// [`PostcopyError::Missing`] while pages are missing: nothing is let go of then.
    pub fn finish(&self) -> Result<(), PostcopyError> {
        match self.missing().count() {
            0 => self.armed.watched.release(),
            pages => Err(PostcopyError::Missing { pages }),
        }
    }

    /// As [`WatchedRam::abandon`].
    ///
    /// # Errors
    /// [`PostcopyError::Userfaultfd`].
    pub fn abandon(&self) -> Result<(), PostcopyError> {
        self.armed.watched.abandon()
    }
}

/// Pages that [`PostcopyRam::map_present`] maps with one call: the kernel holds a lock meanwhile.
const MAP_AT_ONCE: usize = 512;

impl Armed {
    fn missing(&self) -> &MissingPages {
        self.watched.missing()
    }

    fn uffd(&self) -> &Userfaultfd {
        self.watched.watch.uffd()
    }

    /// The guest's mapping.
    fn ram(&self) -> &GuestRam {
        &self.watched.watch.ram
    }

    /// Enters pages that the file has into the guest's mapping.
    fn map(&self, run: PageRun) -> Result<(), migrated_kernel::PartlyMapped> {
        let (offset, length) = bytes(run);
        self.uffd().map(self.ram().mapping(run.block), offset, length)
    }

    /// As [`map`](Self::map), up to the first page that the file doesn't have; returns how many.
    fn map_while_there(&self, run: PageRun) -> Result<u64, PostcopyError> {
        match self.map(run) {
            Ok(()) => Ok(run.count),
            Err(partly) if partly.is_hole() => Ok((partly.bytes / PAGE_SIZE) as u64),
            Err(partly) => Err(partly.error.into()),
        }
    }

    fn wake(&self, run: PageRun) -> Result<(), PostcopyError> {
        let (offset, length) = bytes(run);
        Ok(self.uffd().wake(self.ram().mapping(run.block), offset, length)?)
    }

    /// First page of the run that the file may have, or the run's end.
    fn next_data(&self, run: PageRun) -> u64 {
        let end = run.first + run.count;
        self.ram().file_of(run.block).map_or(run.first, |file| next_data(file, run.first).min(end))
    }

    /// Lets the guest have a page that is not missing: what the file has, or zeros.
    fn provide(&self, page: PageRun) -> Result<(), PostcopyError> {
        // Reading a page that the file doesn't have gives it one.
        self.staging.slice(page).copy_to(&mut [0u8]);
        self.map(page).map_err(|partly| partly.error.into())
    }
}

/// Offset and length of a run in its block, in bytes.
fn bytes(run: PageRun) -> (usize, usize) {
    (run.first as usize * PAGE_SIZE, run.bytes() as usize)
}
