use std::sync::Arc;

use migrated_kernel::{DirtyRingVm, ManualProtect, MemorySlots, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::log::DirtyLogTracker;
use super::ring::{DirtyRingTracker, KvmRings};
use super::{DirtyTracker, RingHarvester, VmmWrites};
use crate::{GuestError, GuestRam};

/// Entries of a vCPU's dirty ring when nothing else is asked for: 64 KiB of memory.
pub const DEFAULT_RING_ENTRIES: u32 = 4096;

/// How KVM tells which pages a guest writes.
///
/// A harvest of rings costs what was written and nothing for an idle guest; one of the log costs a
/// copy of the bitmap in addition, 32 KiB for each GiB of RAM: microseconds for a small guest, still
/// well under a millisecond for a large one. While the guest writes fast, rings cost it more: each
/// time one is full its vCPU must leave guest mode, and a ring that holds few pages is full often,
/// where the log takes any number. And a log can't overflow. So the log is the default; rings are for
/// very large guests that write little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackerKind {
    /// What is better for most guests: the log.
    #[default]
    Auto,
    /// The dirty log: a bitmap of all pages.
    Log,
    /// Dirty rings: a queue of written pages for each vCPU.
    Ring,
}

/// A VM's way of dirty tracking, which KVM wants to know before the first vCPU and never lets change.
#[derive(Debug)]
pub struct DirtyTracking(Mechanism);

#[derive(Debug)]
enum Mechanism {
    Log(ManualProtect),
    Ring(DirtyRingVm),
}

impl DirtyTracking {
    /// Enables tracking in a VM that has no vCPU yet. `ring_entries` is the size of a vCPU's ring, a
    /// power of two; KVM wants at least 1024 on hosts that log pages in hardware, and at most 65536.
    ///
    /// # Errors
    /// [`GuestError::Kernel`] when KVM has not what is asked for, or a vCPU exists.
    pub fn enable(kind: TrackerKind, vm: &Arc<VmFd>, ring_entries: u32) -> Result<Self, GuestError> {
        Ok(Self(match kind {
            TrackerKind::Ring => Mechanism::Ring(DirtyRingVm::enable(Arc::clone(vm), ring_entries)?),
            TrackerKind::Log | TrackerKind::Auto => Mechanism::Log(ManualProtect::enable(vm)?),
        }))
    }

    /// What was chosen: `Log` or `Ring`.
    #[must_use]
    pub const fn kind(&self) -> TrackerKind {
        match self.0 {
            Mechanism::Log(_) => TrackerKind::Log,
            Mechanism::Ring(_) => TrackerKind::Ring,
        }
    }

    /// The VM's tracker, not started yet, once its memory is registered and all vCPUs are made.
    ///
    /// # Errors
    /// [`GuestError::Kernel`] when a vCPU's ring can't be mapped.
    ///
    /// # Panics
    /// When `ram` is not the memory of `slots`.
    pub fn attach<'a>(
        self,
        slots: &Arc<MemorySlots>,
        ram: &GuestRam,
        vcpus: impl IntoIterator<Item = &'a VcpuFd>,
        vmm_writes: VmmWrites,
    ) -> Result<AttachedTracker, GuestError> {
        let layout = ram.layout();
        let of_slots = slots.slots().iter().map(|slot| (slot.guest_base, slot.pages));
        let of_ram = layout.blocks().iter().map(|block| (block.guest_base, block.pages));
        assert!(of_slots.eq(of_ram), "block n of the RAM is slot n of the VM");
        Ok(match self.0 {
            Mechanism::Log(protect) => {
                let tracker = DirtyLogTracker::new(Box::new(Arc::clone(slots)), protect, layout, vmm_writes);
                AttachedTracker { tracker: Box::new(tracker), ring_full: None }
            }
            Mechanism::Ring(vm) => {
                let rings = vcpus.into_iter().map(|vcpu| vm.map(vcpu)).collect::<Result<_, _>>()?;
                let kernel = Box::new(KvmRings { slots: Arc::clone(slots), vm, rings });
                let tracker = DirtyRingTracker::new(kernel, layout, vmm_writes);
                AttachedTracker { ring_full: Some(tracker.harvester()), tracker: Box::new(tracker) }
            }
        })
    }
}

/// A VM's tracker and what its vCPU threads need of it.
pub struct AttachedTracker {
    /// The tracker.
    pub tracker: Box<dyn DirtyTracker>,
    /// With rings: what a vCPU thread calls when KVM_RUN ends with KVM_EXIT_DIRTY_RING_FULL.
    pub ring_full: Option<RingHarvester>,
}
