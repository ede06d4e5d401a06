//! KVM's own leaf, after Linux' `Documentation/virt/kvm/x86/cpuid.rst`.
//!
//! KVM refuses the MSRs and hypercalls of hidden ones when the VMM enables KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
//! which this one does; [`Masking::Msr`](super::super::Masking::Msr) stands for both.

use super::super::Masking::Msr;
use super::{Word, cpuid, paravirtual};
use crate::Register::Eax;

const ENCRYPTED: &str = "for encrypted guests, which are not supported";

#[rustfmt::skip] // A table.
pub(super) const WORDS: &[Word] = &[
    cpuid(0x4000_0001, 0, Eax, &[
        paravirtual(0, "kvmclock").by(Msr),
        paravirtual(1, "kvm_nop_io_delay").or(&["kvm-nopiodelay"]),
        paravirtual(2, "kvm_mmu_op").or(&["kvm-mmu"]).withheld("KVM took it back in Linux 3.3"),
        paravirtual(3, "kvmclock2").by(Msr),
        // Migrates: KVM wakes all that wait for a page when the destination's MSR is written.
        paravirtual(4, "kvm_asyncpf").or(&["kvm-asyncpf"]).by(Msr),
        paravirtual(5, "kvm_steal_time").or(&["kvm-steal-time"]).by(Msr),
        paravirtual(6, "kvm_pv_eoi").or(&["kvm-pv-eoi"]).by(Msr),
        paravirtual(7, "kvm_pv_unhalt").or(&["kvm-pv-unhalt"]).by(Msr),
        paravirtual(9, "kvm_pv_tlb_flush").or(&["kvm-pv-tlb-flush"]).by(Msr),
        paravirtual(10, "kvm_asyncpf_vmexit").or(&["kvm-asyncpf-vmexit"]),
        paravirtual(11, "kvm_pv_ipi").or(&["kvm-pv-ipi"]).by(Msr),
        paravirtual(12, "kvm_poll_control").or(&["kvm-poll-control"]).by(Msr),
        paravirtual(13, "kvm_pv_sched_yield").or(&["kvm-pv-sched-yield"]).by(Msr),
        paravirtual(14, "kvm_asyncpf_int").or(&["kvm-asyncpf-int"]).by(Msr),
        paravirtual(15, "kvm_msi_ext_dest_id").or(&["kvm-msi-ext-dest-id"]),
        paravirtual(16, "kvm_hc_map_gpa_range").withheld(ENCRYPTED),
        paravirtual(17, "kvm_migration_control").by(Msr).withheld(ENCRYPTED),
        paravirtual(24, "kvmclock_stable").or(&["kvmclock-stable-bit"]),
    ]),
];
