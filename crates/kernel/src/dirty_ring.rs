use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_GFN_F_MASK, KVM_DIRTY_LOG_PAGE_OFFSET,
    KVMIO, kvm_dirty_gfn, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use crate::KvmError;

// Numbers of include/uapi/linux/kvm.h.
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
/// KVM: the entry names a page that was written.
const KVM_DIRTY_GFN_F_DIRTY: u32 = 1 << 0;
/// Ours: the entry was read; KVM may write-protect the page and use the entry again.
const KVM_DIRTY_GFN_F_RESET: u32 = 1 << 1;

const _: () = {
    assert!(KVM_DIRTY_GFN_F_DIRTY | KVM_DIRTY_GFN_F_RESET == KVM_DIRTY_GFN_F_MASK);
    assert!(size_of::<kvm_dirty_gfn>() == 16);
    assert!(std::mem::offset_of!(kvm_dirty_gfn, flags) == 0);
    assert!(std::mem::offset_of!(kvm_dirty_gfn, slot) == 4);
    assert!(std::mem::offset_of!(kvm_dirty_gfn, offset) == 8);
    assert!(size_of::<AtomicU32>() == size_of::<u32>());
};

/// One page written, as KVM names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyGfn {
    /// Slot number; its upper 16 bits are the address space, which is 0 outside of SMM.
    pub slot: u32,
    /// Page in the slot.
    pub offset: u64,
}

/// KVM wrote a ring full to its last entry, and perhaps past it.
///
/// It must not come to that: KVM keeps some entries in reserve for what a vCPU writes before it leaves
/// guest mode for a full ring. But a KVM that emulates instructions may run more of them than
/// the reserve is for, and then it overwrites entries that nobody has read. Pages were written
/// that nobody knows, and this side no longer knows where KVM goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("KVM filled a dirty ring to its end, so pages that the guest wrote may be unknown")]
pub struct RingOverrun;

/// A VM whose vCPUs log written pages in rings.
#[derive(Clone, Debug)]
pub struct DirtyRingVm {
    vm: Arc<VmFd>,
    entries: u32,
}

impl DirtyRingVm {
    /// Gives each vCPU of the VM, which has none yet, a ring. For the whole life of the VM: its dirty
    /// log can't be read then.
    ///
    /// # Errors
    /// [`KvmError::Unsupported`] where KVM has no dirty rings, [`KvmError::Call`] when it refuses.
    pub fn enable(vm: Arc<VmFd>, entries: u32) -> Result<Self, KvmError> {
        let Some(cap) = capability(&vm) else {
            return Err(KvmError::Unsupported {
                capability: "KVM_CAP_DIRTY_LOG_RING",
                advice: "use the dirty log, or Linux 5.11 or newer",
            });
        };
        let bytes = u64::from(entries) * size_of::<kvm_dirty_gfn>() as u64;
        let enable = kvm_enable_cap { cap, args: [bytes, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&enable).map_err(|error| {
            KvmError::call(
                "KVM_ENABLE_CAP(KVM_CAP_DIRTY_LOG_RING)",
                error,
                &[
                    (libc::E2BIG, "the ring has more entries than KVM allows"),
                    (
                        libc::EINVAL,
                        "the entries are no power of two or too few, or the VM has a vCPU already",
                    ),
                ],
            )
        })?;
        Ok(Self { vm, entries })
    }

    /// Maps the ring of a vCPU of this VM. To be done once for each vCPU: two mappings don't know
    /// what the other has read.
    ///
    /// # Errors
    /// [`KvmError::Call`] when the kernel has no room for the mapping.
    pub fn map(&self, vcpu: &VcpuFd) -> Result<DirtyRing, KvmError> {
        let length = self.entries as usize * size_of::<kvm_dirty_gfn>();
        // SAFETY: a new shared mapping of a file at an address of the kernel's choice; the mapping
        // itself keeps the file alive.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) * 4096,
            )
        };
        match NonNull::new(address) {
            Some(address) if address.as_ptr() != libc::MAP_FAILED => {
                Ok(DirtyRing { gfns: address.cast(), entries: self.entries, next: 0 })
            }
            _ => Err(KvmError::call("mmap of a vCPU's dirty ring", std::io::Error::last_os_error(), &[])),
        }
    }

    /// Write-protects the pages of all entries that were collected, so that the next write to each is
    /// logged, and gives the entries back to KVM. Returns how many that were: fewer than were
    /// collected when a signal came in between; call again then.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn reset(&self) -> Result<u32, KvmError> {
        // SAFETY: the call has no argument and touches only the rings' kernel side.
        let result = unsafe { ioctl(&*self.vm, KVM_RESET_DIRTY_RINGS()) };
        u32::try_from(result).map_err(|_| {
            KvmError::call(
                "KVM_RESET_DIRTY_RINGS",
                std::io::Error::last_os_error(),
                &[(libc::EINVAL, "the VM has no dirty rings")],
            )
        })
    }
}

/// The capability to enable. The variant with acquire/release ordering is preferred, though x86 orders
/// stores by itself.
fn capability(vm: &VmFd) -> Option<u32> {
    [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING]
        .into_iter()
        .find(|cap| vm.check_extension_raw((*cap).into()) > 0)
}

/// One vCPU's ring of written pages, mapped.
///
/// KVM produces entries while the vCPU runs; this side consumes them in order. An entry's page stays
/// writable after it was collected: only [`DirtyRingVm::reset`] protects it again. So a page may be
/// read only after the reset that follows its collection.
#[derive(Debug)]
pub struct DirtyRing {
    gfns: NonNull<kvm_dirty_gfn>,
    entries: u32,
    next: u32,
}

// SAFETY: the mapping belongs to this value alone and may be used from any thread, one at a time.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Hands every entry that KVM has published to `each` and marks it collected.
    ///
    /// # Errors
    /// [`RingOverrun`] when the ring was full to the last entry; all of them have been handed on.
    pub fn collect(&mut self, mut each: impl FnMut(DirtyGfn)) -> Result<(), RingOverrun> {
        // A full round at most: KVM can't use an entry again before the reset.
        for _ in 0..self.entries {
            let index = self.next % self.entries;
            // Acquire: `slot` and `offset` were written before KVM set the flag.
            if self.flags(index).load(Ordering::Acquire) & KVM_DIRTY_GFN_F_MASK != KVM_DIRTY_GFN_F_DIRTY {
                return Ok(());
            }
            let gfn = self.gfn(index);
            // SAFETY: a mapped, aligned entry; KVM leaves it alone while it is marked dirty.
            let (slot, offset) =
                unsafe { ((&raw const (*gfn).slot).read(), (&raw const (*gfn).offset).read()) };
            each(DirtyGfn { slot, offset });
            // Release: the entry was read before KVM may use it again.
            self.flags(index).store(KVM_DIRTY_GFN_F_RESET, Ordering::Release);
            self.next = self.next.wrapping_add(1);
        }
        Err(RingOverrun)
    }

    /// Marks everything that KVM has published as collected, unseen, after an overrun: with the reset
    /// that follows, the vCPU can run on. What the ring says later means nothing.
    pub fn abandon(&mut self) {
        for index in 0..self.entries {
            // Entries that KVM has not used must stay so: it would count them as given back.
            let _ = self.flags(index).compare_exchange(
                KVM_DIRTY_GFN_F_DIRTY,
                KVM_DIRTY_GFN_F_RESET,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }

    fn gfn(&self, index: u32) -> *mut kvm_dirty_gfn {
        assert!(index < self.entries);
        self.gfns.as_ptr().wrapping_add(index as usize)
    }

    fn flags(&self, index: u32) -> &AtomicU32 {
        // SAFETY: `gfn` points to an entry that is mapped and aligned while `self` lives; KVM and this
        // side access its flags only atomically.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.gfn(index)).flags) }
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        let length = self.entries as usize * size_of::<kvm_dirty_gfn>();
        // SAFETY: the mapping that `map` made, which nothing else refers to.
        unsafe { libc::munmap(self.gfns.as_ptr().cast(), length) };
    }
}
