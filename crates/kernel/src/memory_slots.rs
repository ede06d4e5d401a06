use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::{KvmError, PAGES_PER_WORD};

/// KVM's page size on x86, in bytes.
const PAGE_SIZE: u64 = 4096;

/// One memory slot of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySlot {
    /// KVM's number of the slot: the position of its region in guest-physical order.
    pub number: u32,
    /// Guest-physical address of the first byte.
    pub guest_base: u64,
    /// Length in 4 KiB pages.
    pub pages: u64,
    host_base: u64,
}

impl MemorySlot {
    /// Words that the slot's dirty bitmap has.
    #[must_use]
    pub const fn bitmap_words(&self) -> usize {
        self.pages.div_ceil(PAGES_PER_WORD as u64) as usize
    }
}

/// The memory slots of one VM, one for each region of its memory, numbered in guest-physical order.
///
/// KVM keeps a slot's host address and not the memory behind it: were that unmapped and something
/// else mapped there, the guest would own it. So the slots keep the memory mapped for as long as
/// they exist, and are deleted in KVM before it is let go.
#[derive(Debug)]
pub struct MemorySlots {
    vm: Arc<VmFd>,
    slots: Vec<MemorySlot>,
    memory: GuestMemoryMmap<()>,
}

impl MemorySlots {
    /// Gives the VM all regions of `memory`, with dirty logging off.
    ///
    /// # Errors
    /// [`KvmError::Call`] when KVM refuses a region; the VM then has none of them.
    pub fn register(vm: Arc<VmFd>, memory: GuestMemoryMmap<()>) -> Result<Self, KvmError> {
        let slots: Vec<MemorySlot> = memory
            .iter()
            .zip(0..)
            .map(|(region, number)| MemorySlot {
                number,
                guest_base: region.start_addr().0,
                pages: region.len() / PAGE_SIZE,
                host_base: region.get_mmap().as_ptr() as u64,
            })
            .collect();
        let mut registered = Self { vm, slots: Vec::with_capacity(slots.len()), memory };
        for slot in slots {
            set_region(&registered.vm, region(&slot, 0))?;
            registered.slots.push(slot);
        }
        Ok(registered)
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The slots, in order of their numbers.
    #[must_use]
    pub fn slots(&self) -> &[MemorySlot] {
        &self.slots
    }

    /// The memory behind the slots.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// Switches KVM's dirty logging on or off for all slots (KVM_MEM_LOG_DIRTY_PAGES). Setting what
    /// is set already changes nothing.
    ///
    /// # Errors
    /// [`KvmError::Call`]; slots before the refused one have changed.
    pub fn set_dirty_logging(&self, on: bool) -> Result<(), KvmError> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        self.slots.iter().try_for_each(|slot| set_region(&self.vm, region(slot, flags)))
    }
}

impl Drop for MemorySlots {
    fn drop(&mut self) {
        for slot in &self.slots {
            let gone = kvm_userspace_memory_region { memory_size: 0, ..region(slot, 0) };
            if set_region(&self.vm, gone).is_err() {
                // The guest may still reach the memory, so it must stay mapped for good.
                std::mem::forget(self.memory.clone());
            }
        }
    }
}

const fn region(slot: &MemorySlot, flags: u32) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot: slot.number,
        flags,
        guest_phys_addr: slot.guest_base,
        memory_size: slot.pages * PAGE_SIZE,
        userspace_addr: slot.host_base,
    }
}

fn set_region(vm: &VmFd, region: kvm_userspace_memory_region) -> Result<(), KvmError> {
    // SAFETY: KVM lets the guest use host memory at `userspace_addr`. Only this file calls this, with
    // the whole or none of a region that `MemorySlots` keeps mapped until it has deleted the slot.
    unsafe { vm.set_user_memory_region(region) }.map_err(|error| {
        KvmError::call(
            "KVM_SET_USER_MEMORY_REGION",
            error,
            &[
                (libc::EEXIST, "the region overlaps another in guest-physical space"),
                (libc::EINVAL, "the region is not page-aligned, past MAXPHYADDR, or the slot is in use"),
            ],
        )
    })
}
