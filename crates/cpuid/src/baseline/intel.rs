//! Intel's ladder: what VMware's EVC modes of the same names give, and the generations after them.
//!
//! The steps are VMware's as far as its modes are known, checked against QEMU's models
//! (`target/i386/cpu.c`), libvirt's (`src/cpu_map/x86_*.xml`), and CPUID of real machines (`tests/dumps`).
//! Where they disagree:
//! - RDTSCP, PCID and 1 GiB pages are in CPUs before they are in VMware's modes and QEMU's models. Such a
//!   feature is a part of its own from the CPU that brought it, and core from the first of QEMU's models
//!   with it.
//! - TSC_ADJUST has been in CPUs since Haswell. QEMU lists it from Sapphire Rapids, but KVM emulates it
//!   everywhere.
//! - TSC_DEADLINE_TIMER comes with Sandy Bridge, as in CPUs, although KVM emulates it everywhere; X2APIC,
//!   which KVM emulates too, is at the first level, because KVM's guests do without it badly.
//! - TSX, MPX, Intel PT, MONITOR, WAITPKG, VMX and performance counters are at no level (see their rows in
//!   the feature table), although some of QEMU's models have them; TSXLDTRK goes with TSX, and so does
//!   TAA_NO, which KVM takes away where TSX is off.
//! - FLUSH_L1D, which microcode brought, is a part: it is for hypervisors in guests, and KVM of Linux 6.1
//!   does not pass it (`tests/dumps`: 6.18 does).
//! - GDS_NO, RFDS_NO, ITS_NO and the controls of leaf 7.2 are at no level: kernels in use (5.10, 6.1) lack
//!   some or all. `host` has them, and custom baselines can add them.
//! - AMX_COMPLEX is not in Granite Rapids: neither QEMU's model nor the machines have it.
//! - Firecracker's CPUID of Sapphire Rapids (`tests/data/cpu_template_helper`) shows when KVM passes what:
//!   in 5.10 it has neither AVX_VNNI nor AVX512_FP16 nor AMX, in 6.1 all three. So the level begins with
//!   that. The fast strings, which 6.1 lacks, and the trap for bus locks, which 5.10 lacks, are parts.
//!
//! Signatures are of production steppings of Xeons; where QEMU's model has a desktop's or an early one,
//! Intel's list of microcode (`Intel-Linux-Processor-Microcode-Data-Files`, `releasenote.md`) has these.

use super::level::LevelRow;

#[rustfmt::skip] // Tables.
pub(crate) const LEVELS: &[LevelRow] = &[
    LevelRow {
        name: "intel-merom",
        title: "Intel Xeon 5100 (Merom)",
        on: None,
        core: &[
            "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca",
            "cmov", "pat", "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "x2apic", "syscall", "nx", "lm",
            "sse3", "ssse3", "cx16", "lahf_lm",
        ],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x6fb,
    },
    LevelRow {
        name: "intel-penryn",
        title: "Intel Xeon 5400 (Penryn)",
        on: Some("intel-merom"),
        core: &["sse4_1"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x1067a,
    },
    LevelRow {
        name: "intel-nehalem",
        title: "Intel Xeon 5500 (Nehalem)",
        on: Some("intel-penryn"),
        core: &["sse4_2", "popcnt"],
        drops: &[],
        // The oldest generation that Intel gave microcode against Spectre.
        spec: &["spec_ctrl", "intel_stibp", "ssbd"],
        parts: &[("rdtscp", &["rdtscp"]), ("invtsc", &["invtsc"]), ("flush_l1d", &["flush_l1d"])],
        signature: 0x106a5,
    },
    LevelRow {
        name: "intel-westmere",
        title: "Intel Xeon 5600 (Westmere)",
        on: Some("intel-nehalem"),
        core: &["aes", "pclmulqdq", "arat"],
        drops: &[],
        spec: &[],
        parts: &[("pcid", &["pcid"]), ("pdpe1gb", &["pdpe1gb"])],
        signature: 0x206c2,
    },
    LevelRow {
        name: "intel-sandybridge",
        title: "Intel Xeon E5 (Sandy Bridge)",
        on: Some("intel-westmere"),
        core: &["xsave", "xsaveopt", "avx", "tsc_deadline_timer", "rdtscp"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x206d7,
    },
    LevelRow {
        name: "intel-ivybridge",
        title: "Intel Xeon v2 (Ivy Bridge)",
        on: Some("intel-sandybridge"),
        core: &["f16c", "rdrand", "fsgsbase", "smep", "erms"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x306e4,
    },
    LevelRow {
        name: "intel-haswell",
        title: "Intel Xeon v3 (Haswell)",
        on: Some("intel-ivybridge"),
        core: &["fma", "movbe", "bmi1", "avx2", "bmi2", "pcid", "invpcid", "lzcnt", "tsc_adjust"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x306f2,
    },
    LevelRow {
        name: "intel-broadwell",
        title: "Intel Xeon v4 (Broadwell)",
        on: Some("intel-haswell"),
        core: &["rdseed", "adx", "smap", "prefetchw"],
        drops: &[],
        spec: &[],
        parts: &[],
        signature: 0x406f1,
    },
    LevelRow {
        name: "intel-skylake",
        title: "Intel Xeon Scalable (Skylake)",
        on: Some("intel-broadwell"),
        core: &[
            "avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl", "clflushopt", "clwb",
            "xsavec", "xgetbv1", "xsaves", "pdpe1gb",
        ],
        drops: &[],
        spec: &[],
        parts: &[("pku", &["pku"])],
        signature: 0x50654,
    },
    LevelRow {
        name: "intel-cascadelake",
        title: "Intel Xeon Scalable, 2nd generation (Cascade Lake)",
        on: Some("intel-skylake"),
        core: &["avx512_vnni"],
        drops: &[],
        spec: &[
            "arch_capabilities", "rdcl_no", "ibrs_all", "skip_l1dfl_vmentry", "mds_no", "pschange_mc_no",
        ],
        parts: &[],
        signature: 0x50657,
    },
    LevelRow {
        name: "intel-icelake",
        title: "Intel Xeon Scalable, 3rd generation (Ice Lake)",
        on: Some("intel-cascadelake"),
        core: &[
            "avx512ifma", "avx512vbmi", "avx512_vbmi2", "avx512_bitalg", "avx512_vpopcntdq", "sha_ni", "gfni",
            "vaes", "vpclmulqdq", "umip", "rdpid", "fsrm", "wbnoinvd",
        ],
        drops: &[],
        spec: &[],
        parts: &[("la57", &["la57"])],
        signature: 0x606a6,
    },
    LevelRow {
        name: "intel-sapphirerapids",
        title: "Intel Xeon Scalable, 4th generation (Sapphire Rapids)",
        on: Some("intel-icelake"),
        core: &[
            "avx_vnni", "avx512_bf16", "avx512_fp16", "serialize", "cldemote", "movdiri", "movdir64b",
        ],
        drops: &[],
        spec: &["sbdr_ssdp_no", "fbsdp_no", "psdp_no"],
        parts: &[
            ("amx", &["xfd", "amx_tile", "amx_bf16", "amx_int8"]),
            ("cet", &["cet_ss", "cet_ibt"]),
            ("bus_lock_detect", &["bus_lock_detect"]),
            ("fast_strings", &["fzrm", "fsrs", "fsrcs"]),
        ],
        signature: 0x806f8,
    },
    LevelRow {
        name: "intel-graniterapids",
        title: "Intel Xeon 6 (Granite Rapids)",
        on: Some("intel-sapphirerapids"),
        core: &["prefetchi"],
        drops: &[],
        spec: &["mcdt_no", "pbrsb_no"],
        parts: &[("amx", &["amx_fp16"])],
        signature: 0xa06d1,
    },
];
