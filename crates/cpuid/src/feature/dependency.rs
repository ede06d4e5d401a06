//! Which features make no sense without others: when one is masked, what builds on it goes too.

use std::sync::LazyLock;

use super::table::ARCH_CAPABILITIES;
use super::{Feature, FeatureSet, Place};

/// A feature, and all that it needs. After Xen's `gen-cpuid.py` and Linux' `cpuid-deps.c`, where the two
/// differ after the one that needs more, as long as every CPU that was made keeps all its features.
/// Features of AMD and of Intel that mean the same thing don't need each other: CPUs have one of them, and
/// KVM adds the other to some.
#[rustfmt::skip] // A table.
const NEEDS: &[(&str, &[&str])] = &[
    // The FPU, and registers of 64 and 128 bits.
    ("mmx", &["fpu"]), ("fxsr", &["fpu"]), ("xsaveerptr", &["fpu"]),
    ("mmxext", &["mmx"]), ("3dnow", &["mmx"]), ("3dnowext", &["3dnow"]),
    ("fxsr_opt", &["fxsr"]), ("sse", &["fxsr"]), ("sse2", &["sse"]), ("misalignsse", &["sse"]),
    ("sse3", &["sse2"]), ("aes", &["sse2"]), ("pclmulqdq", &["sse2"]), ("sha_ni", &["sse2"]),
    ("gfni", &["sse2"]),
    ("ssse3", &["sse3"]), ("sse4a", &["sse3"]), ("sse4_1", &["ssse3"]), ("sse4_2", &["sse4_1"]),
    // Saved state: its instructions, and what is enabled by it.
    ("xsave", &["fxsr"]),
    ("xsaveopt", &["xsave"]), ("xsavec", &["xsave"]), ("xgetbv1", &["xsave"]), ("xsaves", &["xsave"]),
    ("xfd", &["xsaves", "xgetbv1"]),
    ("mpx", &["xsave"]), ("lwp", &["xsave"]), ("pku", &["xsave", "lm"]),
    ("cet_ss", &["xsaves"]), ("enqcmd", &["xsaves"]), ("uintr", &["xsaves", "lm"]),
    ("apx_f", &["xsave", "lm"]),
    ("avx", &["xsave"]),
    ("fma", &["avx"]), ("fma4", &["avx"]), ("xop", &["avx"]), ("f16c", &["avx"]), ("avx2", &["avx"]),
    ("sm3", &["avx"]),
    ("vaes", &["avx2", "aes"]), ("vpclmulqdq", &["avx2", "pclmulqdq"]), ("sha512", &["avx2"]),
    ("sm4", &["avx2"]),
    ("avx_vnni", &["avx2"]), ("avx_ifma", &["avx2"]), ("avx_vnni_int8", &["avx2"]),
    ("avx_ne_convert", &["avx2"]),
    ("avx_vnni_int16", &["avx2"]),
    ("avx512f", &["avx2"]),
    ("avx512dq", &["avx512f"]), ("avx512ifma", &["avx512f"]), ("avx512pf", &["avx512f"]),
    ("avx512er", &["avx512f"]),
    ("avx512cd", &["avx512f"]), ("avx512bw", &["avx512f"]), ("avx512vl", &["avx512f"]),
    ("avx512_4vnniw", &["avx512f"]), ("avx512_4fmaps", &["avx512f"]), ("avx512_vnni", &["avx512f"]),
    ("avx512_vpopcntdq", &["avx512f"]), ("avx512_vp2intersect", &["avx512f"]),
    ("avx512vbmi", &["avx512bw"]), ("avx512_vbmi2", &["avx512bw"]), ("avx512_bitalg", &["avx512bw"]),
    ("avx512_bf16", &["avx512bw"]), ("avx512_fp16", &["avx512bw"]),
    ("avx10", &["avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"]),
    ("avx10_128", &["avx10"]), ("avx10_256", &["avx10"]), ("avx10_512", &["avx10"]),
    ("amx_tile", &["xfd", "lm"]),
    ("amx_bf16", &["amx_tile"]), ("amx_int8", &["amx_tile"]), ("amx_fp16", &["amx_tile"]),
    ("amx_complex", &["amx_tile"]),
    // Paging and 64-bit mode.
    ("pse36", &["pse"]), ("lm", &["pae", "sse2"]), ("nx", &["pae"]), ("smap", &["nx"]),
    ("cx16", &["lm"]), ("lahf_lm", &["lm"]), ("pdpe1gb", &["lm"]), ("pcid", &["lm"]), ("la57", &["lm"]),
    ("lam", &["lm"]), ("fsgsbase", &["lm"]), ("pks", &["lm"]), ("efer_lmsle_mbz", &["lm"]),
    ("invpcid", &["pcid"]),
    ("lkgs", &["lm"]), ("fred", &["lkgs"]),
    // Time and interrupts.
    ("rdtscp", &["tsc"]), ("tsc_adjust", &["tsc"]), ("invtsc", &["tsc"]),
    ("tsc_deadline_timer", &["tsc", "apic"]),
    ("x2apic", &["apic"]), ("extapic", &["apic"]),
    ("tsxldtrk", &["rtm"]),
    ("sgx_lc", &["sgx"]), ("sgx_keys", &["sgx"]),
    // Speculation.
    ("psfd", &["spec_ctrl"]), ("ipred_ctrl", &["spec_ctrl"]), ("rrsba_ctrl", &["spec_ctrl"]),
    ("ddpd_u", &["spec_ctrl"]), ("bhi_ctrl", &["spec_ctrl"]), ("ibrs_all", &["spec_ctrl"]),
    ("rrsba", &["ibrs_all"]),
    ("ibrs_always_on", &["ibrs"]), ("ibrs_preferred", &["ibrs"]), ("ibrs_same_mode", &["ibrs"]),
    ("stibp_always_on", &["amd_stibp"]),
    ("ibpb_ret", &["ibpb"]), ("sbpb", &["ibpb"]), ("ibpb_brtype", &["ibpb"]),
    // KVM's.
    ("kvm_asyncpf_vmexit", &["kvm_asyncpf"]), ("kvm_asyncpf_int", &["kvm_asyncpf"]),
];

/// A feature that needs any one of others: bits of SPEC_CTRL. On Intel's CPUs `spec_ctrl` says that the MSR
/// is there. On AMD's each of its bits says so, and where KVM adds Intel's names for them it leaves
/// `spec_ctrl` out when the CPU's IBPB is weaker than Intel's (`tests/dumps`: Zen 3 with Linux 6.18,
/// not with 6.1).
#[rustfmt::skip] // A table.
const NEEDS_ONE_OF: &[(&str, &[&str])] = &[
    ("intel_stibp", &["spec_ctrl", "amd_stibp"]),
    ("ssbd",        &["spec_ctrl", "amd_ssbd"]),
    ("amd_psfd",    &["ibrs", "amd_stibp", "amd_ssbd"]),
];

#[derive(Clone, Copy)]
struct Needs {
    all: FeatureSet,
    /// Empty where it needs none of several.
    one_of: FeatureSet,
}

/// For each feature by number: what it needs itself, without what that needs in turn.
static DIRECT: LazyLock<Vec<Needs>> = LazyLock::new(|| {
    let nothing = Needs { all: FeatureSet::EMPTY, one_of: FeatureSet::EMPTY };
    let mut direct = vec![nothing; Feature::all().count()];
    for (name, needs) in NEEDS {
        direct[named(name).number()].all = FeatureSet::of(needs);
    }
    for (name, needs) in NEEDS_ONE_OF {
        direct[named(name).number()].one_of = FeatureSet::of(needs);
    }
    // The MSR is there when CPUID says so, hence so are all its bits.
    for feature in Feature::all().filter(is_arch_capability) {
        direct[feature.number()].all.insert(named("arch_capabilities"));
    }
    direct
});

fn named(name: &str) -> Feature {
    Feature::named(name).unwrap_or_else(|| panic!("no feature {name}"))
}

fn is_arch_capability(feature: &Feature) -> bool {
    matches!(feature.place(), Place::Msr { msr: ARCH_CAPABILITIES, .. })
}

impl Feature {
    /// What it needs itself, without what that needs in turn.
    #[must_use]
    pub fn needs(self) -> FeatureSet {
        DIRECT[self.number()].all
    }

    /// What it lacks in `set`: everything of which it needs one, when none is there.
    fn lacks(self, set: &FeatureSet) -> FeatureSet {
        let Needs { all, one_of } = DIRECT[self.number()];
        let lack = all - *set;
        if (one_of & *set).is_empty() { lack | one_of } else { lack }
    }
}

impl FeatureSet {
    /// Without the features that lack something they need, until nothing more lacks anything.
    #[must_use]
    pub fn closed(mut self) -> Self {
        loop {
            let kept: Self = self.iter().filter(|feature| feature.lacks(&self).is_empty()).collect();
            if kept == self {
                return self;
            }
            self = kept;
        }
    }

    /// The features in it that lack something, with what they lack.
    pub fn unmet(&self) -> impl Iterator<Item = (Feature, FeatureSet)> + use<> {
        let set = *self;
        set.iter().map(move |feature| (feature, feature.lacks(&set))).filter(|(_, lack)| !lack.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_without(name: &str) -> FeatureSet {
        let mut set: FeatureSet = Feature::all().collect();
        set.remove(named(name));
        set.closed()
    }

    fn falls_with(name: &str, gone: &[&str], stays: &[&str]) {
        let set = all_without(name);
        assert!(
            (FeatureSet::of(gone) & set).is_empty(),
            "without {name} there is {}",
            FeatureSet::of(gone) & set
        );
        assert!(
            FeatureSet::of(stays).is_subset(&set),
            "without {name} there is no {}",
            FeatureSet::of(stays) - set
        );
    }

    #[test]
    fn each_feature_has_one_line_and_nothing_needs_itself() {
        let lines: Vec<_> = NEEDS.iter().chain(NEEDS_ONE_OF).map(|(name, _)| named(name)).collect();
        assert_eq!(lines.iter().copied().collect::<FeatureSet>().len(), lines.len());
        let all: FeatureSet = Feature::all().collect();
        assert_eq!(all.closed(), all);
        // Built up from what needs nothing, everything is reached: there is no circle.
        let mut reached = FeatureSet::EMPTY;
        while let Some(next) = (all - reached).iter().find(|feature| feature.lacks(&reached).is_empty()) {
            reached.insert(next);
        }
        assert_eq!(reached, all);
    }

    #[test]
    fn what_builds_on_a_masked_feature_goes_with_it() {
        falls_with(
            "xsave",
            &["avx", "avx2", "avx512f", "avx512_fp16", "vaes", "pku", "amx_int8", "cet_ss"],
            &["aes"],
        );
        falls_with(
            "avx2",
            &["avx512f", "avx512_vnni", "avx512_bf16", "vpclmulqdq", "avx_vnni"],
            &["fma", "f16c"],
        );
        falls_with("avx512bw", &["avx512vbmi", "avx512_bitalg", "avx10"], &["avx512_vnni", "avx512f"]);
        falls_with("xfd", &["amx_tile", "amx_fp16"], &["xsaves"]);
        falls_with("nx", &["smap"], &["smep", "lm"]);
        falls_with("pcid", &["invpcid"], &["la57"]);
        falls_with("sse3", &["ssse3", "sse4_2", "sse4a"], &["aes", "avx", "popcnt"]);
    }

    #[test]
    fn arch_capabilities_takes_its_whole_msr_with_it() {
        let set = all_without("arch_capabilities");
        assert!(Feature::all().filter(is_arch_capability).all(|feature| !set.contains(feature)));
        assert!(set.contains(named("cpuid_fault")));
    }

    #[test]
    fn a_bit_of_spec_ctrl_needs_either_vendor_s_name_for_it() {
        falls_with("spec_ctrl", &["ibrs_all", "rrsba", "bhi_ctrl"], &["ssbd", "intel_stibp"]);
        let intel = FeatureSet::of(&["spec_ctrl", "ssbd", "intel_stibp"]);
        assert_eq!(intel.closed(), intel);
        let alone = FeatureSet::of(&["ssbd"]);
        assert!(alone.closed().is_empty());
        let lack = FeatureSet::of(&["spec_ctrl", "amd_ssbd"]);
        assert_eq!(alone.unmet().collect::<Vec<_>>(), [(named("ssbd"), lack)]);
    }
}
