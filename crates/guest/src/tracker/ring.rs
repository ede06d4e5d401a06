use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use migrated_kernel::{DirtyGfn, DirtyRing, DirtyRingVm, KvmError, MemorySlots, RingOverrun};
use migrated_pages::{BlockId, PageRun, PageSet, RamLayout};

use super::{DirtyTracker, VmmWrites};
use crate::GuestError;

/// How often in a row a reset may give back nothing, because a signal came in, before it counts as an
/// overrun: KVM stops at an entry that was collected and then overwritten.
const MAX_IDLE_RESETS: u32 = 64;

/// KVM's dirty rings of all vCPUs of a VM. The seam at which tests put a fake kernel.
pub(super) trait Rings: Send {
    /// Switches logging of all slots.
    fn set_logging(&mut self, on: bool) -> Result<(), KvmError>;
    /// Takes all published entries of all rings.
    fn collect(&mut self, into: &mut Vec<DirtyGfn>) -> Result<(), RingOverrun>;
    /// Protects the pages of collected entries and frees them, some or all; returns how many.
    fn reset(&mut self) -> Result<u32, KvmError>;
    /// After an overrun: throws away all entries, so that vCPUs can run on.
    fn abandon(&mut self);
}

/// The rings of a real VM.
pub(super) struct KvmRings {
    pub(super) slots: Arc<MemorySlots>,
    pub(super) vm: DirtyRingVm,
    pub(super) rings: Vec<DirtyRing>,
}

impl Rings for KvmRings {
    fn set_logging(&mut self, on: bool) -> Result<(), KvmError> {
        self.slots.set_dirty_logging(on)
    }

    fn collect(&mut self, into: &mut Vec<DirtyGfn>) -> Result<(), RingOverrun> {
        self.rings.iter_mut().try_for_each(|ring| ring.collect(|gfn| into.push(gfn)))
    }

    fn reset(&mut self) -> Result<u32, KvmError> {
        self.vm.reset()
    }

    fn abandon(&mut self) {
        self.rings.iter_mut().for_each(DirtyRing::abandon);
        // An error changes nothing: the rings are not used any more, and a full one is abandoned again.
        while self.vm.reset().is_ok_and(|given_back| given_back > 0) {}
    }
}

/// Tracks by KVM's dirty rings.
///
/// A page is writable unseen from its entry's collection until the reset, so no one may learn of
/// the page from a harvest, read it, and forget it before the reset. Hence the lock: a page collected
/// by a vCPU thread whose ring was full is out of reach of a harvest until that thread has reset it.
/// And hence `unreset`: when a reset fails, its pages are reported again and again until one succeeds.
///
/// After a ring's overrun nobody knows what was written. Then tracking fails for good, and with it a
/// migration; the guest goes on.
pub(super) struct DirtyRingTracker {
    shared: Arc<Mutex<State>>,
    vmm_writes: VmmWrites,
}

struct State {
    kernel: Box<dyn Rings>,
    /// Pages per block, to check entries against.
    pages: Vec<u64>,
    /// Entries collected since the last complete reset.
    unreset: Vec<DirtyGfn>,
    /// How many of `unreset` KVM has not given back.
    awaiting_reset: usize,
    /// Pages that full rings made vCPU threads collect, for the next harvest.
    drained: PageSet,
    /// A ring's overrun ends tracking for the life of the VM.
    overrun: bool,
}

impl DirtyRingTracker {
    pub(super) fn new(kernel: Box<dyn Rings>, layout: &RamLayout, vmm_writes: VmmWrites) -> Self {
        let state = State {
            kernel,
            pages: layout.blocks().iter().map(|block| block.pages).collect(),
            unreset: Vec::new(),
            awaiting_reset: 0,
            drained: PageSet::empty(layout),
            overrun: false,
        };
        Self { shared: Arc::new(Mutex::new(state)), vmm_writes }
    }

    pub(super) fn harvester(&self) -> RingHarvester {
        RingHarvester { shared: Arc::clone(&self.shared) }
    }
}

impl DirtyTracker for DirtyRingTracker {
    fn start(&mut self) -> Result<(), GuestError> {
        self.stop()?;
        self.vmm_writes.discard();
        let mut state = lock(&self.shared);
        state.check()?;
        Ok(state.kernel.set_logging(true)?)
    }

    fn harvest(&mut self, dirty: &mut PageSet) -> Result<u64, GuestError> {
        let mut state = lock(&self.shared);
        let mut newly = self.vmm_writes.take_into(dirty);
        if !state.drained.is_empty() {
            newly += dirty.union(&state.drained);
            state.drained.clear();
        }
        state.collect();
        let (known, unknown) = report(&state.pages, &state.unreset, dirty);
        newly += known;
        state.reset()?;
        state.check()?;
        unknown.map_or(Ok(newly), Err)
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        let mut state = lock(&self.shared);
        // Logging ends first: entries can't come after the last collection then.
        state.kernel.set_logging(false)?;
        state.collect();
        state.drained.clear();
        Ok(state.reset()?)
    }
}

/// Empties full dirty rings, for the vCPU threads of a guest with ring tracking.
#[derive(Clone)]
pub struct RingHarvester {
    shared: Arc<Mutex<State>>,
}

impl fmt::Debug for RingHarvester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingHarvester").finish_non_exhaustive()
    }
}

impl RingHarvester {
    /// Makes room in the rings after KVM_EXIT_DIRTY_RING_FULL; the pages wait for the next harvest.
    ///
    /// # Errors
    /// [`GuestError::Kernel`]; no page is lost, but KVM_RUN will say that the ring is full again.
    pub fn drain(&self) -> Result<(), GuestError> {
        let mut guard = lock(&self.shared);
        let state = &mut *guard;
        state.collect();
        let (_, unknown) = report(&state.pages, &state.unreset, &mut state.drained);
        state.reset()?;
        unknown.map_or(Ok(()), Err)
    }
}

impl State {
    fn collect(&mut self) {
        let before = self.unreset.len();
        let result = self.kernel.collect(&mut self.unreset);
        self.awaiting_reset += self.unreset.len() - before;
        self.overrun |= result.is_err();
    }

    /// A signal may cut a reset short, so KVM is asked until it has given all entries back.
    fn reset(&mut self) -> Result<(), KvmError> {
        let mut idle = 0;
        while self.awaiting_reset > 0 && !self.overrun {
            let given_back = self.kernel.reset()? as usize;
            self.awaiting_reset = self.awaiting_reset.saturating_sub(given_back);
            idle = if given_back == 0 { idle + 1 } else { 0 };
            self.overrun = idle == MAX_IDLE_RESETS;
        }
        if self.overrun {
            self.kernel.set_logging(false)?;
            self.kernel.abandon();
            self.awaiting_reset = 0;
        }
        self.unreset.clear();
        Ok(())
    }

    fn check(&self) -> Result<(), GuestError> {
        if !self.overrun {
            return Ok(());
        }
        Err(GuestError::Kernel {
            operation: "tracking by dirty rings".into(),
            source: io::Error::other(format!("{RingOverrun}; make the VM with the dirty log instead")),
        })
    }
}

/// Adds the pages of `entries` to `into`: how many are new there, and an error if KVM named pages
/// that the guest does not have. Those can't be migrated, but that must be known.
fn report(pages: &[u64], entries: &[DirtyGfn], into: &mut PageSet) -> (u64, Option<GuestError>) {
    let (mut newly, mut unknown) = (0, None);
    for gfn in entries {
        match pages.get(gfn.slot as usize) {
            Some(pages) if gfn.offset < *pages => {
                newly +=
                    into.insert(PageRun { block: BlockId(gfn.slot as u16), first: gfn.offset, count: 1 });
            }
            _ => unknown = Some(*gfn),
        }
    }
    let error = unknown.map(|gfn| GuestError::Kernel {
        operation: "harvest of dirty rings".into(),
        source: io::Error::new(
            io::ErrorKind::InvalidData,
            format!("KVM named page {} of slot {}, which guest RAM doesn't have", gfn.offset, gfn.slot),
        ),
    });
    (newly, error)
}

/// No holder of the lock leaves the state half-changed, so one that panicked is no reason to stop.
fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
