//! Feature MSRs: registers that a guest only reads, whose value the VMM sets like a leaf of CPUID.
//!
//! ARCH_CAPABILITIES as in Linux' `msr-index.h`; those of its bits that KVM passes on are its
//! KVM_SUPPORTED_ARCH_CAP. The others tell of further MSRs, which KVM does not have.

use super::{Row, Word, WordPlace, hazard, isa, mitigation};

/// IA32_ARCH_CAPABILITIES. There when CPUID says `arch_capabilities`.
pub(crate) const ARCH_CAPABILITIES: u32 = 0x10a;

/// MSR_PLATFORM_INFO. Guests get it with KVM_CAP_MSR_PLATFORM_INFO.
const PLATFORM_INFO: u32 = 0xce;

/// MSR_AMD64_DE_CFG.
const DE_CFG: u32 = 0xc001_1029;

const NO_MSR: &str = "KVM has no such MSR";

#[rustfmt::skip] // Tables.
pub(super) const WORDS: &[Word] = &[
    msr(PLATFORM_INFO, &[
        // KVM makes CPUID fault in user mode by itself, on every host: every CPUID comes to it.
        isa(31, "cpuid_fault"),
    ]),
    msr(ARCH_CAPABILITIES, &[
        mitigation(0, "rdcl_no").or(&["rdctl_no", "rdctl-no"]),
        mitigation(1, "ibrs_all").or(&["ibrs-all", "eibrs"]),
        hazard(2, "rsba"),
        mitigation(3, "skip_l1dfl_vmentry").or(&["skip-l1dfl-vmentry", "skip_l1dfl"]),
        mitigation(4, "ssb_no").or(&["ssb-no"]),
        mitigation(5, "mds_no").or(&["mds-no"]),
        mitigation(6, "pschange_mc_no").or(&["pschange-mc-no"]),
        mitigation(7, "tsx_ctrl").or(&["tsx-ctrl"]).withheld("microcode updates take TSX away"),
        mitigation(8, "taa_no").or(&["taa-no"]),
        mitigation(9, "mcu_control").withheld(NO_MSR),
        mitigation(10, "misc_package_ctls").withheld(NO_MSR),
        mitigation(11, "energy_filtering_ctl").withheld(NO_MSR),
        mitigation(12, "doitm").withheld(NO_MSR),
        mitigation(13, "sbdr_ssdp_no").or(&["sbdr-ssdp-no"]),
        mitigation(14, "fbsdp_no").or(&["fbsdp-no"]),
        mitigation(15, "psdp_no").or(&["psdp-no"]),
        isa(16, "mcu_enum").withheld(NO_MSR),
        hazard(17, "fb_clear").or(&["fb-clear"]),
        mitigation(18, "fb_clear_ctrl").withheld(NO_MSR),
        hazard(19, "rrsba"),
        mitigation(20, "bhi_no").or(&["bhi-no"]),
        isa(21, "xapic_disable_status").withheld(NO_MSR),
        isa(23, "overclocking_status").withheld(NO_MSR),
        mitigation(24, "pbrsb_no").or(&["pbrsb-no"]),
        mitigation(25, "gds_ctrl").withheld(NO_MSR),
        mitigation(26, "gds_no").or(&["gds-no"]),
        mitigation(27, "rfds_no").or(&["rfds-no"]),
        hazard(28, "rfds_clear").or(&["rfds-clear"]),
        isa(29, "ign_umonitor_support").withheld(NO_MSR),
        isa(30, "mon_umon_mitg_support").withheld(NO_MSR),
        mitigation(62, "its_no").or(&["its-no"]),
    ]),
    msr(DE_CFG, &[
        mitigation(1, "lfence_serializing"),
    ]),
];

const fn msr(index: u32, rows: &'static [Row]) -> Word {
    Word { at: WordPlace::Msr(index), ignored: 0, rows }
}
