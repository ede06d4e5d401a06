use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use crate::{KvmError, MemorySlots};

// Numbers of include/uapi/linux/kvm.h.
ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

// An ioctl's number contains its argument's size: another size would be another, unknown call.
const _: () = {
    assert!(size_of::<kvm_dirty_log>() == 16);
    assert!(std::mem::offset_of!(kvm_dirty_log, __bindgen_anon_1) == 8);
    assert!(size_of::<kvm_clear_dirty_log>() == 24);
    assert!(std::mem::offset_of!(kvm_clear_dirty_log, num_pages) == 4);
    assert!(std::mem::offset_of!(kvm_clear_dirty_log, first_page) == 8);
    assert!(std::mem::offset_of!(kvm_clear_dirty_log, __bindgen_anon_1) == 16);
};

/// Pages in one word of a dirty bitmap; KVM clears in multiples of it.
pub const PAGES_PER_WORD: usize = u64::BITS as usize;

/// How the VM's dirty log behaves once manual protect is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManualProtect {
    /// Switching logging on write-protects a slot at once, under one hold of KVM's lock.
    ProtectedAtStart,
    /// Switching logging on is cheap: all pages begin as dirty, and clearing them protects them, piece
    /// by piece.
    InitiallySet,
}

impl ManualProtect {
    /// Makes reading the dirty log and clearing it two calls (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), with
    /// KVM_DIRTY_LOG_INITIALLY_SET where KVM has it. For the whole life of the VM.
    ///
    /// # Errors
    /// [`KvmError::Unsupported`] before Linux 5.2, [`KvmError::Call`] when KVM refuses.
    pub fn enable(vm: &VmFd) -> Result<Self, KvmError> {
        let offered = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
        let offered = u32::try_from(offered).unwrap_or(0);
        if offered & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE == 0 {
            return Err(KvmError::Unsupported {
                capability: "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
                advice: "guests can be migrated from Linux 5.2 or newer",
            });
        }
        let wanted = offered & (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
        let cap = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [wanted.into(), 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&cap).map_err(|error| {
            KvmError::call("KVM_ENABLE_CAP(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)", error, &[])
        })?;
        Ok(if wanted & KVM_DIRTY_LOG_INITIALLY_SET == 0 {
            Self::ProtectedAtStart
        } else {
            Self::InitiallySet
        })
    }
}

impl MemorySlots {
    /// Reads a slot's dirty bitmap; with manual protect on this changes nothing in KVM.
    ///
    /// # Errors
    /// [`KvmError::Call`], as when logging is off or dirty rings took the log's place.
    ///
    /// # Panics
    /// When there is no such slot or `bitmap` is not exactly as long as its bitmap.
    pub fn dirty_log(&self, slot: usize, bitmap: &mut [u64]) -> Result<(), KvmError> {
        let slot = &self.slots()[slot];
        assert_eq!(bitmap.len(), slot.bitmap_words(), "dirty bitmap of slot {}", slot.number);
        let log = kvm_dirty_log {
            slot: slot.number,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
        };
        // SAFETY: KVM writes one bit for each page of the slot, rounded up to words: `bitmap`, which is
        // exclusively borrowed, is that long. A slot's length never changes while `self` exists.
        let result = unsafe { ioctl_with_ref(&**self.vm(), KVM_GET_DIRTY_LOG(), &log) };
        check("KVM_GET_DIRTY_LOG", result)
    }

    /// Clears the pages whose bits are set in `words` and write-protects them, so that the next write
    /// to each is logged. `first_word` is the position of `words` in the slot's bitmap.
    ///
    /// # Errors
    /// [`KvmError::Call`], as when logging is off.
    ///
    /// # Panics
    /// When there is no such slot or `words` reach past its bitmap.
    pub fn clear_dirty_log(&self, slot: usize, first_word: usize, words: &[u64]) -> Result<(), KvmError> {
        let slot = &self.slots()[slot];
        let end = first_word.checked_add(words.len()).expect("a bitmap's length");
        assert!(end <= slot.bitmap_words(), "words {first_word}..{end} of slot {}", slot.number);
        let first_page = (first_word * PAGES_PER_WORD) as u64;
        let pages = ((words.len() * PAGES_PER_WORD) as u64).min(slot.pages - first_page);
        let log = kvm_clear_dirty_log {
            slot: slot.number,
            num_pages: u32::try_from(pages).expect("a piece of a bitmap has under 2^32 pages"),
            first_page,
            // KVM only reads the bitmap; its struct has no const pointer.
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_ptr().cast_mut().cast(),
            },
        };
        // SAFETY: KVM reads one bit for each of `num_pages`, rounded up to words: `words` has them.
        let result = unsafe { ioctl_with_ref(&**self.vm(), KVM_CLEAR_DIRTY_LOG(), &log) };
        check("KVM_CLEAR_DIRTY_LOG", result)
    }
}

fn check(call: &'static str, result: i32) -> Result<(), KvmError> {
    if result == 0 {
        return Ok(());
    }
    let meanings = [
        (libc::ENOENT, "dirty logging is off for the slot; tracking was not started"),
        (libc::ENXIO, "the VM has dirty rings, which take the dirty log's place"),
        (libc::EINVAL, "KVM knows no such slot or range, or manual protect is off"),
    ];
    Err(KvmError::call(call, std::io::Error::last_os_error(), &meanings))
}
