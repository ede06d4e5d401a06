//! The levels of the x86-64 psABI, for pools with CPUs of both vendors' like.
//!
//! The psABI (`x86-64-ABI/low-level-sys-info.tex`) lists instructions of user mode. A kernel needs more to
//! boot, which no CPU with 64-bit mode lacks, and the first level has that too. X2APIC is there because KVM
//! emulates it. A guest stays with its vendor all the same: its CPUID names one, and its kernel does what
//! that one needs.

use super::level::LevelRow;

pub(crate) const LEVELS: &[LevelRow] = &[
    LevelRow {
        name: "x86-64-v1",
        title: "x86-64 v1 (every 64-bit CPU)",
        on: None,
        core: &[
            "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge",
            "mca", "cmov", "pat", "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "x2apic", "syscall",
            "nx", "lm",
        ],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0,
    },
    LevelRow {
        name: "x86-64-v2",
        title: "x86-64 v2 (Nehalem, Bulldozer)",
        on: Some("x86-64-v1"),
        core: &["sse3", "ssse3", "cx16", "sse4_1", "sse4_2", "popcnt", "lahf_lm"],
        drops: &[],
        spec: &[],
        // With `aes`, it is Proxmox' x86-64-v2-AES.
        parts: &[("aes", &["aes"]), ("rdtscp", &["rdtscp"]), ("invtsc", &["invtsc"])],
        signature: 0,
    },
    LevelRow {
        name: "x86-64-v3",
        title: "x86-64 v3 (Haswell, Zen)",
        on: Some("x86-64-v2"),
        core: &["fma", "movbe", "xsave", "avx", "f16c", "bmi1", "avx2", "bmi2", "lzcnt"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0,
    },
    LevelRow {
        name: "x86-64-v4",
        title: "x86-64 v4 (Skylake, Zen 4)",
        on: Some("x86-64-v3"),
        core: &["avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0,
    },
];

#[cfg(test)]
mod tests {
    use super::super::level::Level;
    use crate::{Feature, FeatureSet, Kind};

    /// The core of a level.
    fn core_of(name: &str) -> FeatureSet {
        Level::named(name).unwrap_or_else(|| panic!("no level {name}")).core
    }

    fn within(lower: &str, higher: &str) {
        let lack = core_of(lower) - core_of(higher);
        assert!(lack.is_empty(), "{higher} lacks {lack} of {lower}");
    }

    #[test]
    fn each_level_is_possible_with_and_without_its_parts() {
        for level in Level::all() {
            assert_eq!(level.core.unmet().collect::<Vec<_>>(), [], "{}", level.name);
            assert_eq!(level.everything().unmet().collect::<Vec<_>>(), [], "{}", level.name);
            for (part, features) in &level.parts {
                let with = level.core | *features;
                assert_eq!(with.unmet().collect::<Vec<_>>(), [], "{}+{part}", level.name);
            }
        }
    }

    #[test]
    fn no_level_has_what_guests_do_not_get_and_what_is_not_a_baseline_s_to_say() {
        for level in Level::all() {
            let wrong: FeatureSet = level.everything().iter().filter(|f| is_none_of_a_baseline(*f)).collect();
            assert!(wrong.is_empty(), "{}: {wrong}", level.name);
        }
    }

    fn is_none_of_a_baseline(feature: Feature) -> bool {
        feature.withheld().is_some() || matches!(feature.kind(), Kind::Or | Kind::Synthetic)
    }

    #[test]
    fn each_level_is_told_from_all_others_of_its_ladder_by_its_core() {
        for level in Level::all() {
            assert!(!level.adds.is_empty() || !level.drops.is_empty(), "{}", level.name);
            let best = Level::best(level.vendor, level.core).map(|best| best.name);
            assert!(best == Some(level.name) || level.name == "amd-greyhound", "{}: {best:?}", level.name);
        }
    }

    #[test]
    fn the_generic_levels_are_within_those_of_the_vendors() {
        within("x86-64-v1", "intel-merom");
        within("x86-64-v1", "amd-rev-e");
        within("x86-64-v2", "intel-nehalem");
        within("x86-64-v2", "amd-bulldozer");
        within("x86-64-v3", "intel-haswell");
        within("x86-64-v3", "amd-zen");
        within("x86-64-v4", "intel-skylake");
        within("x86-64-v4", "amd-zen4");
    }

    #[test]
    fn intel_s_levels_only_add_and_amd_s_drop_twice() {
        let dropping: Vec<_> = Level::all().iter().filter(|level| !level.drops.is_empty()).collect();
        assert_eq!(
            dropping.iter().map(|level| level.name).collect::<Vec<_>>(),
            ["amd-greyhound-no3dnow", "amd-zen"]
        );
        assert_eq!(dropping[0].drops, FeatureSet::of(&["3dnow", "3dnowext"]));
        assert_eq!(dropping[1].drops, FeatureSet::of(&["xop", "fma4", "tbm"]));
    }
}
