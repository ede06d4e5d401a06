//! MSRs that hold a guest's state because of its features. KVM saves and restores those that it lists; what
//! one host's KVM saves and another's does not know would be lost, so that is found before anything moves.

use super::{Cause, GuestCpu, Mismatch};
use crate::{CpuTable, Feature, HostCpu, Kind};

/// A feature, and an MSR that a guest with it may write. (KVM: arch/x86/kvm/x86.c, `msrs_to_save_base`
/// and `emulated_msrs_all`.)
#[rustfmt::skip] // A table.
const WRITTEN: [(&str, u32); 22] = [
    ("tsc_adjust", 0x3b), ("spec_ctrl", 0x48), ("amd_ssbd", 0x48), ("ibrs", 0x48), ("tsx_ctrl", 0x122),
    ("xfd", 0x1c4), ("xfd", 0x1c5), ("cet_ss", 0x6a0), ("cet_ss", 0x6a2), ("cet_ss", 0x6a4), ("tsc_deadline_timer", 0x6e0),
    ("xsaves", 0xda0), ("kvmclock2", 0x4b56_4d00), ("kvmclock2", 0x4b56_4d01), ("kvm_asyncpf", 0x4b56_4d02),
    ("kvm_steal_time", 0x4b56_4d03), ("kvm_pv_eoi", 0x4b56_4d04), ("kvm_poll_control", 0x4b56_4d05),
    ("kvm_asyncpf_int", 0x4b56_4d06), ("syscall", 0xc000_0081), ("rdtscp", 0xc000_0103), ("virt_ssbd", 0xc001_011f),
];

/// The MSRs that a guest of that table may write and this host's KVM saves, in ascending order.
pub(super) fn saved_here(table: &CpuTable, host: &HostCpu) -> Vec<u32> {
    let listed = host.msr_indices.as_deref().unwrap_or_default();
    let has = |name: &str| Feature::named(name).is_some_and(|feature| table.has(feature));
    let written = WRITTEN.iter().filter(|(name, msr)| has(name) && listed.contains(msr));
    let mut saved: Vec<u32> = written.map(|(_, msr)| *msr).collect();
    saved.sort_unstable();
    saved.dedup();
    saved
}

/// Those of the guest's that `host` can't restore.
pub(super) fn unknown(guest: &GuestCpu, host: &HostCpu, found: &mut Vec<Mismatch>) {
    let Some(listed) = &host.msr_indices else { return };
    let unknown = guest.saved_msrs.iter().filter(|msr| !listed.contains(msr));
    found
        .extend(unknown.map(|msr| {
            Mismatch::field(format!("msr[{msr:#x}]"), true, false, Kind::And, Cause::MaskedByKvm)
        }));
}
