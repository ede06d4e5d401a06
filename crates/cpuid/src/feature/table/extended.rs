//! Leaves 0x8000_0001 to 0x8000_0021, which AMD defines. Intel's CPUs answer the first of them.
//!
//! Sources and the meaning of masking as in `basic`. KVM sets some of AMD's speculation controls on Intel's
//! CPUs, and Intel's (leaf 7 EDX) on AMD's, from what the host kernel knows of the CPU.

use super::super::Masking::{ControlRegister, Intercept, Msr, Xcr0};
use super::{Word, cpuid, hazard, hint, isa, mitigation, synthetic};
use crate::Register::{Eax, Ebx, Ecx, Edx};

/// Of leaf 0x8000_0001 EDX: the bits of leaf 1 EDX that AMD repeats there: FPU … APIC, MTRR … PSE36, MMX,
/// FXSR.
const REPEATED: u64 = 0x0183_f3ff;

// Why new guests don't get a feature, where it is the same for several.
const HOST_ONLY: &str = "belongs to the host's hardware: KVM does not virtualise it";
const NESTED: &str = "nested virtualisation is not supported";
const NO_PMU: &str = "guests get no performance counters";
const POWER: &str = "power and heat are the host's business";

#[rustfmt::skip] // Tables.
pub(super) const WORDS: &[Word] = &[
    cpuid(0x8000_0001, 0, Ecx, &[
        isa(0, "lahf_lm").or(&["lahf-lm"]),
        synthetic(1, "cmp_legacy").or(&["cmp-legacy"]),
        isa(2, "svm").by(ControlRegister).withheld(NESTED),
        isa(3, "extapic").withheld(HOST_ONLY),
        isa(4, "cr8_legacy").or(&["cr8legacy"]),
        isa(5, "lzcnt").or(&["abm"]),
        isa(6, "sse4a"),
        isa(7, "misalignsse"),
        isa(8, "prefetchw").or(&["3dnowprefetch"]),
        isa(9, "osvw").by(Msr),
        isa(10, "ibs").withheld(NO_PMU),
        isa(11, "xop"),
        isa(12, "skinit").withheld(NESTED),
        isa(13, "wdt").withheld(HOST_ONLY),
        isa(15, "lwp").by(Xcr0).withheld("later CPUs lack LWP"),
        isa(16, "fma4"),
        isa(17, "tce").by(ControlRegister),
        isa(19, "nodeid_msr").or(&["nodeid-msr"]).withheld(HOST_ONLY),
        isa(21, "tbm"),
        // Says that the topology leaves 0x8000_001d and 0x8000_001e are there, and those the VMM makes.
        synthetic(22, "topoext"),
        isa(23, "perfctr_core").or(&["perfctr-core"]).by(Msr).withheld(NO_PMU),
        isa(24, "perfctr_nb").or(&["perfctr-nb"]).by(Msr).withheld(NO_PMU),
        isa(26, "dbext").or(&["bpext"]).withheld(HOST_ONLY),
        isa(27, "ptsc").withheld(HOST_ONLY),
        isa(28, "perfctr_llc").by(Msr).withheld(NO_PMU),
        isa(29, "mwaitx").or(&["monitorx"]).withheld("MWAITX keeps a CPU from all other guests"),
        isa(30, "addr_mask_ext").withheld(HOST_ONLY),
    ]),
    cpuid(0x8000_0001, 0, Edx, &[
        // On AMD's CPUs; Intel's answer it in 64-bit mode alone.
        isa(11, "syscall"),
        isa(19, "mp").withheld(HOST_ONLY),
        isa(20, "nx").or(&["xd"]).by(ControlRegister),
        isa(22, "mmxext"),
        isa(25, "fxsr_opt").or(&["ffxsr", "fxsr-opt"]).by(ControlRegister),
        isa(26, "pdpe1gb").or(&["gbpages"]),
        isa(27, "rdtscp").by(Intercept),
        isa(29, "lm").by(ControlRegister),
        isa(30, "3dnowext"),
        isa(31, "3dnow"),
    ]).ignoring(REPEATED),
    cpuid(0x8000_0007, 0, Edx, &[
        isa(0, "ts").withheld(POWER),
        isa(1, "fid").withheld(POWER),
        isa(2, "vid").withheld(POWER),
        isa(3, "ttp").withheld(POWER),
        isa(4, "htc").withheld(POWER),
        isa(5, "stc").withheld(POWER),
        isa(6, "100mhzsteps").withheld(POWER),
        isa(7, "hwpstate").withheld(POWER),
        isa(8, "invtsc").or(&["constant_tsc"]),
        isa(9, "cpb").withheld(POWER),
        isa(10, "efro").withheld(POWER),
        isa(11, "proc_feedback").withheld(POWER),
        isa(12, "acc_power").withheld(POWER),
        isa(13, "connected_standby").withheld(POWER),
        isa(14, "rapl").withheld(POWER),
    ]),
    cpuid(0x8000_0008, 0, Ebx, &[
        isa(0, "clzero"),
        isa(1, "irperf").withheld(NO_PMU),
        isa(2, "xsaveerptr"),
        isa(3, "invlpgb").withheld(HOST_ONLY),
        isa(4, "rdpru").by(Intercept).withheld(HOST_ONLY),
        isa(6, "mba").withheld(HOST_ONLY),
        isa(8, "mcommit").withheld(HOST_ONLY),
        isa(9, "wbnoinvd"),
        mitigation(12, "ibpb").or(&["amd_ibpb"]),
        isa(13, "int_wbinvd").withheld(HOST_ONLY),
        mitigation(14, "ibrs").or(&["amd_ibrs"]),
        mitigation(15, "amd_stibp").or(&["amd-stibp"]),
        mitigation(16, "ibrs_always_on").withheld("KVM does not offer it"),
        mitigation(17, "stibp_always_on").or(&["stibp-always-on", "amd_stibp_always_on"]),
        mitigation(18, "ibrs_preferred").withheld("KVM does not offer it"),
        mitigation(19, "ibrs_same_mode").or(&["amd_ibrs_same_mode"]),
        hazard(20, "efer_lmsle_mbz").or(&["no_efer_lmsle", "no_lmsl"]),
        isa(21, "invlpgb_nested").withheld(NESTED),
        isa(23, "amd_ppin").by(Msr).withheld("a serial number of the host's CPU"),
        mitigation(24, "amd_ssbd").or(&["amd-ssbd"]),
        mitigation(25, "virt_ssbd").or(&["virt-ssbd"]).by(Msr),
        mitigation(26, "amd_ssb_no").or(&["amd-no-ssb"]),
        isa(27, "cppc").withheld(POWER),
        mitigation(28, "amd_psfd").or(&["amd-psfd"]),
        mitigation(29, "btc_no"),
        mitigation(30, "ibpb_ret").or(&["amd_ibpb_ret"]),
        isa(31, "brs").withheld(NO_PMU),
    ]),
    cpuid(0x8000_0021, 0, Eax, &[
        isa(0, "no_nested_data_bp").or(&["no-nested-data-bp"]),
        hazard(1, "wrmsr_xx_base_ns").or(&["fs_gs_base_ns", "fs-gs-base-ns", "fs_gs_ns"]),
        mitigation(2, "lfence_always_serializing").or(&["lfence-always-serializing", "lfence_rdtsc"]),
        isa(3, "smm_page_cfg_lock").withheld(HOST_ONLY),
        hazard(5, "verw_clear").or(&["verw-clear"]),
        isa(6, "null_sel_clr_base").or(&["null-sel-clr-base"]),
        isa(7, "upper_address_ignore").or(&["uai"]).withheld("KVM does not virtualise it"),
        mitigation(8, "auto_ibrs").or(&["autoibrs", "auto-ibrs"]).by(ControlRegister),
        isa(9, "no_smm_ctl_msr").or(&["no-smm-ctl-msr"]),
        hint(10, "amd_fsrs"),
        hint(11, "amd_fsrc"),
        isa(13, "prefetch_ctl_msr").by(Msr).withheld(HOST_ONLY),
        isa(17, "cpuid_user_dis").or(&["gp_on_user_cpuid"]).by(Msr),
        isa(18, "epsf").withheld(HOST_ONLY),
        hint(20, "amd_prefetchi"),
        mitigation(24, "eraps").withheld("KVM does not offer it"),
        mitigation(27, "sbpb"),
        mitigation(28, "ibpb_brtype").or(&["ibpb-brtype"]),
        mitigation(29, "srso_no"),
        mitigation(30, "srso_user_kernel_no").or(&["srso-user-kernel-no"]),
        mitigation(31, "srso_bp_spec_reduce").or(&["srso_msr_fix"]).withheld(HOST_ONLY),
    ]),
    cpuid(0x8000_0021, 0, Ecx, &[
        mitigation(1, "tsa_sq_no"),
        mitigation(2, "tsa_l1_no"),
    ]),
];
