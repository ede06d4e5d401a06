//! AMD's ladder: what VMware's EVC modes of the same names give, and the generations after them.
//!
//! Two tracks, because AMD took instructions back. The first keeps 3DNow! to its end at Greyhound. The
//! second begins with Greyhound without 3DNow!; there Zen drops XOP, FMA4 and TBM, so a pool with
//! Steamroller and Zen meets at Greyhound without 3DNow! and what `add` in a custom baseline puts on it.
//!
//! Checked against QEMU's models (Opteron_G1 … EPYC-Turin, `target/i386/cpu.c`), libvirt's
//! (`src/cpu_map/x86_*.xml`), and CPUID of real machines (`tests/dumps`). Where they disagree:
//! - XSAVES is a part at Zen and Zen 2, and core from Zen 3: Linux takes it away from CPUs of family 17h
//!   whose microcode has erratum 1386, and QEMU's EPYC-Rome-v4 has none.
//! - RDSEED is a part: Linux takes it away from Zen 5 whose microcode has AMD-SB-7055.
//! - IBRS and SSBD are Zen 2's (EPYC-Rome-v2 and the servers themselves), not only Zen 3's.
//! - VIRT_SSBD is at no level: it is KVM's own, for CPUs without SSBD. Custom baselines for Zen can add it.
//! - ERMS and FSRM are a part at Zen 3: firmware turns them off on some servers (AWS' in `tests/dumps`).
//! - NO_NESTED_DATA_BP and NULL_SEL_CLR_BASE are Zen 3's, as in EPYC-Milan-v2 and in CPUs, not Zen 4's.
//!   They are in `spec` because the kernel decides: KVM of 5.10 has no leaf 0x8000_0021, that of 6.1 has.
//!   AUTO_IBRS is there for the same reason.
//! - PCID is in all EPYCs since Zen 3; desktop CPUs of the same generations lack it.
//! - PREFETCHW and ALTMOVCR8 are in all CPUs since Rev. F, and here from the first of QEMU's models with
//!   them, as 1 GiB pages are, which are a part at Greyhound; XSAVEERPTR is in Zen, QEMU's EPYC-v4 has it
//!   too.
//! - BMI1 is in Piledriver, though not in Opteron_G5.
//! - SVM, performance counters, OSVW, MONITOR and RDPRU are at no level. Nor is TSC_DEADLINE_TIMER, which
//!   AMD's CPUs don't have: KVM emulates it, and `host` has it.
//!
//! Signatures are of Opterons and EPYCs.

use super::level::LevelRow;

#[rustfmt::skip] // Tables.
pub(crate) const LEVELS: &[LevelRow] = &[
    LevelRow {
        name: "amd-rev-e",
        title: "AMD Opteron, 1st generation (Rev. E)",
        on: None,
        core: &[
            "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca",
            "cmov", "pat", "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "x2apic", "syscall", "nx", "lm",
            "sse3", "mmxext", "fxsr_opt", "3dnow", "3dnowext",
        ],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x20f12,
    },
    LevelRow {
        name: "amd-rev-f",
        title: "AMD Opteron, 2nd generation (Rev. F)",
        on: Some("amd-rev-e"),
        core: &["cx16", "rdtscp", "lahf_lm"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x40f13,
    },
    LevelRow {
        name: "amd-greyhound",
        title: "AMD Opteron, 3rd generation (Greyhound)",
        on: Some("amd-rev-f"),
        core: &["lzcnt", "popcnt", "sse4a", "misalignsse"],
        drops: &[],
        spec: &[],
        parts: &[("invtsc", &["invtsc"]), ("pdpe1gb", &["pdpe1gb"])],
        signature: 0x100f23,
    },
    LevelRow {
        name: "amd-greyhound-no3dnow",
        title: "AMD Opteron, 3rd generation without 3DNow! (Greyhound)",
        on: Some("amd-greyhound"),
        core: &[],
        drops: &["3dnow", "3dnowext"],
        spec: &[],
        parts: &[],
        signature: 0x100f23,
    },
    LevelRow {
        name: "amd-bulldozer",
        title: "AMD Opteron 6200 (Bulldozer)",
        on: Some("amd-greyhound-no3dnow"),
        core: &[
            "ssse3", "sse4_1", "sse4_2", "aes", "pclmulqdq", "xsave", "avx", "xop", "fma4", "prefetchw",
            "pdpe1gb",
        ],
        drops: &[],
        // By microcode for family 15h of 2018.
        spec: &["ibpb"],
        parts: &[],
        signature: 0x600f12,
    },
    LevelRow {
        name: "amd-piledriver",
        title: "AMD Opteron 6300 (Piledriver)",
        on: Some("amd-bulldozer"),
        core: &["fma", "f16c", "bmi1", "tbm"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x600f20,
    },
    LevelRow {
        name: "amd-steamroller",
        title: "AMD Opteron X (Steamroller)",
        on: Some("amd-piledriver"),
        core: &["fsgsbase", "xsaveopt"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x630f01,
    },
    LevelRow {
        name: "amd-zen",
        title: "AMD EPYC 7001 (Zen)",
        on: Some("amd-steamroller"),
        core: &[
            "avx2", "bmi2", "movbe", "rdrand", "adx", "smep", "smap", "clflushopt", "sha_ni", "xsavec",
            "xgetbv1",
            "clzero", "xsaveerptr", "cr8_legacy", "arat",
        ],
        drops: &["xop", "fma4", "tbm"],
        spec: &[],
        parts: &[("rdseed", &["rdseed"]), ("xsaves", &["xsaves"])],
        signature: 0x800f12,
    },
    LevelRow {
        name: "amd-zen2",
        title: "AMD EPYC 7002 (Zen 2)",
        on: Some("amd-zen"),
        core: &["clwb", "umip", "rdpid", "wbnoinvd"],
        drops: &[],
        spec: &["ibrs", "amd_stibp", "amd_ssbd"],
        parts: &[],
        signature: 0x830f10,
    },
    LevelRow {
        name: "amd-zen3",
        title: "AMD EPYC 7003 (Zen 3)",
        on: Some("amd-zen2"),
        core: &["pcid", "invpcid", "vaes", "vpclmulqdq", "xsaves"],
        drops: &[],
        spec: &[
            "stibp_always_on", "amd_psfd", "lfence_always_serializing", "no_nested_data_bp",
            "null_sel_clr_base",
        ],
        parts: &[("pku", &["pku"]), ("cet", &["cet_ss"]), ("fast_strings", &["erms", "fsrm"])],
        signature: 0xa00f11,
    },
    LevelRow {
        name: "amd-zen4",
        title: "AMD EPYC 9004 (Zen 4)",
        on: Some("amd-zen3"),
        core: &[
            "avx512f", "avx512dq", "avx512ifma", "avx512cd", "avx512bw", "avx512vl", "avx512vbmi",
            "avx512_vbmi2",
            "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq", "avx512_bf16", "gfni",
        ],
        drops: &[],
        spec: &["auto_ibrs"],
        parts: &[("la57", &["la57"])],
        signature: 0xa10f11,
    },
    LevelRow {
        name: "amd-zen5",
        title: "AMD EPYC 9005 (Zen 5)",
        on: Some("amd-zen4"),
        core: &["avx_vnni", "movdiri", "movdir64b", "avx512_vp2intersect"],
        drops: &[],
        spec: &["sbpb", "ibpb_brtype"],
        parts: &[("prefetchi", &["amd_prefetchi"])],
        signature: 0xb00f21,
    },
];
