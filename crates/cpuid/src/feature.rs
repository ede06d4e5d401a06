use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Register;
use crate::Register::{Eax, Ebx, Ecx, Edx};

/// One feature bit of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FeatureBit {
    /// The leaf.
    pub leaf: u32,
    /// The subleaf; 0 where the leaf has none.
    pub subleaf: u32,
    /// The register.
    pub register: Register,
    /// The bit, 0 to 31.
    pub bit: u8,
}

impl FeatureBit {
    /// The feature's name as Linux and KVM's users know it, for common ones.
    #[must_use]
    pub fn name(&self) -> Option<&'static str> {
        let word = FEATURE_WORDS.iter().find(|word| {
            (word.leaf, word.subleaf, word.register) == (self.leaf, self.subleaf, self.register)
        })?;
        word.names.iter().find(|(bit, _)| *bit == self.bit).map(|(_, name)| *name)
    }
}

impl fmt::Display for FeatureBit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leaf, subleaf, register, bit } = self;
        write!(
            f,
            "{} (CPUID leaf {leaf:#x} subleaf {subleaf} {register} bit {bit})",
            self.name().unwrap_or("unnamed feature")
        )
    }
}

/// A register full of feature bits.
pub struct FeatureWord {
    pub leaf: u32,
    pub subleaf: u32,
    pub register: Register,
    /// Bits that say nothing about what a guest may use: topology, what the guest enabled itself, mere
    /// performance hints, and hazards, which a guest may believe in where there are none.
    pub ignored: u32,
    names: &'static [(u8, &'static str)],
}

const fn word(
    leaf: u32,
    subleaf: u32,
    register: Register,
    ignored: u32,
    names: &'static [(u8, &'static str)],
) -> FeatureWord {
    FeatureWord { leaf, subleaf, register, ignored, names }
}

// Ignored bits, by their names in the vendors' manuals.
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
const FDP_EXCPTN_ONLY: u32 = 1 << 6;
const ERMS: u32 = 1 << 9;
const ZERO_FCS_FDS: u32 = 1 << 13;
const OSPKE: u32 = 1 << 4;
const MD_CLEAR: u32 = 1 << 10;
const CMP_LEGACY: u32 = 1 << 1;
const NO_EFER_LMSLE: u32 = 1 << 20;
const FS_GS_BASE_WRITE_NOT_SERIALIZING: u32 = 1 << 1;
const VERW_CLEAR: u32 = 1 << 5;

/// The registers whose bits a guest may have only where the host has them, with their bits' names.
#[rustfmt::skip] // Names as columns, not one a line.
pub const FEATURE_WORDS: &[FeatureWord] = &[
    word(0x1, 0, Ecx, OSXSAVE | HYPERVISOR, &[
        (0, "sse3"), (1, "pclmulqdq"), (2, "dtes64"), (3, "monitor"), (4, "ds_cpl"), (5, "vmx"), (6, "smx"),
        (7, "est"), (8, "tm2"), (9, "ssse3"), (12, "fma"), (13, "cx16"), (14, "xtpr"), (15, "pdcm"),
        (17, "pcid"), (18, "dca"), (19, "sse4_1"), (20, "sse4_2"), (21, "x2apic"), (22, "movbe"),
        (23, "popcnt"), (24, "tsc_deadline_timer"), (25, "aes"), (26, "xsave"), (28, "avx"), (29, "f16c"),
        (30, "rdrand"),
    ]),
    word(0x1, 0, Edx, HTT, &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"),
        (8, "cx8"), (9, "apic"), (11, "sep"), (12, "mtrr"), (13, "pge"), (14, "mca"), (15, "cmov"),
        (16, "pat"), (17, "pse36"), (18, "pn"), (19, "clflush"), (21, "ds"), (22, "acpi"), (23, "mmx"),
        (24, "fxsr"), (25, "sse"), (26, "sse2"), (27, "ss"), (29, "tm"), (31, "pbe"),
    ]),
    word(0x7, 0, Ebx, FDP_EXCPTN_ONLY | ERMS | ZERO_FCS_FDS, &[
        (0, "fsgsbase"), (1, "tsc_adjust"), (2, "sgx"), (3, "bmi1"), (4, "hle"), (5, "avx2"), (7, "smep"),
        (8, "bmi2"), (10, "invpcid"), (11, "rtm"), (12, "cqm"), (14, "mpx"), (15, "rdt_a"),
        (16, "avx512f"), (17, "avx512dq"), (18, "rdseed"), (19, "adx"), (20, "smap"), (21, "avx512ifma"),
        (23, "clflushopt"), (24, "clwb"), (25, "intel_pt"), (26, "avx512pf"), (27, "avx512er"),
        (28, "avx512cd"), (29, "sha_ni"), (30, "avx512bw"), (31, "avx512vl"),
    ]),
    word(0x7, 0, Ecx, OSPKE, &[
        (0, "prefetchwt1"), (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (5, "waitpkg"),
        (6, "avx512_vbmi2"), (7, "cet_ss"), (8, "gfni"), (9, "vaes"), (10, "vpclmulqdq"),
        (11, "avx512_vnni"), (12, "avx512_bitalg"), (13, "tme"), (14, "avx512_vpopcntdq"), (16, "la57"),
        (22, "rdpid"), (24, "bus_lock_detect"), (25, "cldemote"), (27, "movdiri"), (28, "movdir64b"),
        (29, "enqcmd"), (30, "sgx_lc"), (31, "pks"),
    ]),
    word(0x7, 0, Edx, MD_CLEAR, &[
        (2, "avx512_4vnniw"), (3, "avx512_4fmaps"), (4, "fsrm"), (5, "uintr"), (8, "avx512_vp2intersect"),
        (9, "srbds_ctrl"), (11, "rtm_always_abort"), (14, "serialize"), (15, "hybrid_cpu"),
        (16, "tsxldtrk"), (18, "pconfig"), (19, "arch_lbr"), (20, "cet_ibt"), (22, "amx_bf16"),
        (23, "avx512_fp16"), (24, "amx_tile"), (25, "amx_int8"), (26, "spec_ctrl"), (27, "intel_stibp"),
        (28, "flush_l1d"), (29, "arch_capabilities"), (30, "core_capabilities"), (31, "ssbd"),
    ]),
    word(0x7, 1, Eax, 0, &[
        (0, "sha512"), (1, "sm3"), (2, "sm4"), (4, "avx_vnni"), (5, "avx512_bf16"), (6, "lass"),
        (7, "cmpccxadd"), (10, "fzrm"), (11, "fsrs"), (12, "fsrcs"), (17, "fred"), (18, "lkgs"),
        (19, "wrmsrns"), (21, "amx_fp16"), (22, "hreset"), (23, "avx_ifma"), (26, "lam"),
    ]),
    word(0x7, 1, Ebx, 0, &[]),
    word(0x7, 1, Ecx, 0, &[]),
    word(0x7, 1, Edx, 0, &[
        (4, "avx_vnni_int8"), (5, "avx_ne_convert"), (8, "amx_complex"), (10, "avx_vnni_int16"),
        (14, "prefetchi"), (19, "avx10"),
    ]),
    word(0xd, 1, Eax, 0, &[
        (0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd"),
    ]),
    word(0x4000_0001, 0, Eax, 0, &[
        (0, "kvmclock"), (1, "kvm_nop_io_delay"), (2, "kvm_mmu_op"), (3, "kvmclock2"), (4, "kvm_asyncpf"),
        (5, "kvm_steal_time"), (6, "kvm_pv_eoi"), (7, "kvm_pv_unhalt"), (9, "kvm_pv_tlb_flush"),
        (10, "kvm_asyncpf_vmexit"), (11, "kvm_pv_ipi"), (12, "kvm_poll_control"),
        (13, "kvm_pv_sched_yield"), (14, "kvm_asyncpf_int"), (15, "kvm_msi_ext_dest_id"),
        (16, "kvm_hc_map_gpa_range"), (17, "kvm_migration_control"), (24, "kvmclock_stable"),
    ]),
    word(0x8000_0001, 0, Ecx, CMP_LEGACY, &[
        (0, "lahf_lm"), (2, "svm"), (3, "extapic"), (4, "cr8_legacy"), (5, "lzcnt"), (6, "sse4a"),
        (7, "misalignsse"), (8, "prefetchw"), (9, "osvw"), (10, "ibs"), (11, "xop"), (12, "skinit"),
        (13, "wdt"), (15, "lwp"), (16, "fma4"), (17, "tce"), (21, "tbm"), (22, "topoext"),
        (23, "perfctr_core"), (24, "perfctr_nb"), (26, "dbext"), (28, "perfctr_llc"), (29, "mwaitx"),
    ]),
    word(0x8000_0001, 0, Edx, 0, &[
        (11, "syscall"), (19, "mp"), (20, "nx"), (22, "mmxext"), (25, "fxsr_opt"), (26, "pdpe1gb"),
        (27, "rdtscp"), (29, "lm"), (30, "3dnowext"), (31, "3dnow"),
    ]),
    word(0x8000_0007, 0, Edx, 0, &[(8, "invtsc")]),
    word(0x8000_0008, 0, Ebx, NO_EFER_LMSLE, &[
        (0, "clzero"), (1, "irperf"), (2, "xsaveerptr"), (4, "rdpru"), (9, "wbnoinvd"), (12, "ibpb"),
        (14, "ibrs"), (15, "amd_stibp"), (17, "stibp_always_on"), (24, "amd_ssbd"), (25, "virt_ssbd"),
        (26, "amd_ssb_no"), (28, "amd_psfd"), (29, "btc_no"), (30, "ibpb_ret"),
    ]),
    word(0x8000_0021, 0, Eax, FS_GS_BASE_WRITE_NOT_SERIALIZING | VERW_CLEAR, &[
        (0, "no_nested_data_bp"), (2, "lfence_always_serializing"), (6, "null_sel_clr_base"),
        (8, "auto_ibrs"), (9, "no_smm_ctl_msr"), (17, "cpuid_user_dis"), (27, "sbpb"), (28, "ibpb_brtype"),
        (29, "srso_no"),
    ]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_word_and_name_is_there_once() {
        let words: BTreeSet<_> = FEATURE_WORDS.iter().map(|w| (w.leaf, w.subleaf, w.register)).collect();
        assert_eq!(words.len(), FEATURE_WORDS.len());
        let mut names = BTreeSet::new();
        for word in FEATURE_WORDS {
            let mut bits = 0u32;
            for (bit, name) in word.names {
                assert!(bits & 1 << bit == 0 && word.ignored & 1 << bit == 0, "{name}");
                assert!(names.insert(name), "{name}");
                bits |= 1 << bit;
            }
        }
    }

    #[test]
    fn a_feature_is_named_with_its_place() {
        let feature = FeatureBit { leaf: 7, subleaf: 0, register: Ecx, bit: 11 };
        assert_eq!(feature.to_string(), "avx512_vnni (CPUID leaf 0x7 subleaf 0 ecx bit 11)");
        let unnamed = FeatureBit { bit: 15, ..feature };
        assert_eq!(unnamed.to_string(), "unnamed feature (CPUID leaf 0x7 subleaf 0 ecx bit 15)");
    }
}
