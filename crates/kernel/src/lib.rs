//! Kernel interfaces that the ecosystem's crates lack or leave unsafe, made safe: this is the
//! workspace's unsafe room. It knows mechanisms, no policy.
//!
//! [`MemorySlots`] owns a VM's memory slots and reads and clears their dirty log; [`DirtyRingVm`] and
//! [`DirtyRing`] are KVM's other way of saying which pages were written. [`Userfaultfd`] lets a guest wait for
//! pages that come later. [`MarkedMemory`] is guest memory as devices write it. [`Event`] is an eventfd for KVM and
//! poll(2). [`Tap`] is the host's end of a guest's network card. [`VcpuStats`] and [`ThreadClock`] tell what a vCPU
//! has done without asking it.

mod advice;
mod dirty_log;
mod dirty_ring;
mod error;
mod event;
mod guest_permission;
mod marked_memory;
mod memory_slots;
mod stage2;
mod tap;
mod thread_clock;
mod userfaultfd;
mod vcpu_state;
mod vcpu_stats;

pub use advice::{MemoryAdvice, advise};
pub use dirty_log::{ManualProtect, PAGES_PER_WORD};
pub use dirty_ring::{DirtyGfn, DirtyRing, DirtyRingVm, RingOverrun};
pub use error::KvmError;
pub use event::Event;
pub use guest_permission::permit_guest_amx;
pub use kvm_ioctls::{VcpuFd, VmFd};
pub use marked_memory::{MarkedMemory, Marks, WriteLog};
pub use memory_slots::{MemorySlot, MemorySlots};
pub use stage2::{can_pre_fault, pre_fault};
pub use tap::{Tap, TapError, TapOffloads, VNET_HEADER};
pub use thread_clock::ThreadClock;
pub use userfaultfd::{FaultEvent, PartlyMapped, Userfaultfd, UserfaultfdError};
pub use vcpu_state::{get_sregs2, get_xsave, set_sregs2, set_xsave, xsave_size};
pub use vcpu_stats::VcpuStats;
