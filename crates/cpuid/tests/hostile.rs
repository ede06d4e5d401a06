//! Tables come from files and peers: nonsense gets an answer, never a panic.

mod common;

use migrated_cpuid::{
    Baseline, BaselineSpec, CpuDump, CpuReport, CpuTable, CpuidEntry, CpuidSet, HostCpu, Level, PoolBaseline,
    Registers, best_name,
};
use proptest::prelude::*;

/// Leaves that something looks at, and a few that nothing does.
fn leaf() -> impl Strategy<Value = u32> {
    let known = vec![0, 1, 2, 4, 6, 7, 0xa, 0xb, 0xd, 0x1d, 0x1e, 0x24, 0x4000_0000, 0x4000_0001];
    let extended = vec![0x8000_0000, 0x8000_0001, 0x8000_0005, 0x8000_0008, 0x8000_001d, 0x8000_0021];
    prop_oneof![8 => prop::sample::select(known), 6 => prop::sample::select(extended), 1 => any::<u32>()]
}

fn register() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(u32::MAX), any::<u32>(), 0..70u32]
}

fn entry() -> impl Strategy<Value = CpuidEntry> {
    let subleaf = prop::option::of(prop_oneof![0..20u32, any::<u32>()]);
    let registers = [register(), register(), register(), register()];
    (leaf(), subleaf, registers).prop_map(|(leaf, subleaf, [eax, ebx, ecx, edx])| CpuidEntry {
        leaf,
        subleaf,
        registers: Registers { eax, ebx, ecx, edx },
    })
}

/// A host whose table is that of a real one with lines replaced, or nothing but made up.
fn host() -> impl Strategy<Value = HostCpu> {
    let bases = prop::sample::select(vec!["intel-sapphirerapids", "amd-zen4", "amd-greyhound"]);
    let msrs =
        prop::collection::btree_map(prop_oneof![Just(0x10a), Just(0xce), any::<u32>()], any::<u64>(), 0..4);
    (bases, prop::collection::vec(entry(), 0..30), any::<bool>(), msrs, any::<u32>()).prop_map(
        |(base, entries, keep, feature_msrs, xsave_size)| {
            let host = common::host(base);
            let mut cpuid = if keep { host.kvm.cpuid.clone() } else { CpuidSet::default() };
            for entry in entries {
                match cpuid.get_mut(entry.leaf, entry.subleaf.unwrap_or(0)) {
                    // The vendor stays: everything stops at another.
                    Some(registers) if entry.leaf != 0 => *registers = entry.registers,
                    // A contradiction, which the table refuses.
                    _ => drop(cpuid.insert(entry)),
                }
            }
            HostCpu {
                hardware: Some(cpuid.clone()),
                kvm: CpuTable { cpuid, feature_msrs },
                xsave_size,
                ..host
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_table_gets_an_answer(a in host(), b in host()) {
        let _ = (best_name(&a), a.accepted(), a.signature());
        let _ = PoolBaseline::of(&[a.clone(), b.clone()]);
        let mut baselines = vec![Baseline::of_host(&a)];
        baselines.extend(Level::all().iter().step_by(5).map(|level| Baseline::level(level.name).unwrap()));
        for baseline in baselines {
            match a.grant(&baseline) {
                Ok(guest) => drop(CpuReport::of(&guest, &b)),
                Err(report) => prop_assert!(!report.mismatches.is_empty() && !report.fix.is_empty()),
            }
        }
    }

    #[test]
    fn a_damaged_dump_is_refused_or_read(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = serde_json::to_vec(&CpuDump::of(&common::host("amd-zen4"))).unwrap();
        let at = at.index(bytes.len());
        if cut { drop(bytes.drain(at..(at + 7).min(bytes.len()))) } else { bytes[at] = byte }
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(host) = CpuDump::parse(&text).and_then(HostCpu::try_from) {
            let _ = BaselineSpec::default().resolve(&host).map(|baseline| host.grant(&baseline));
        }
    }
}
