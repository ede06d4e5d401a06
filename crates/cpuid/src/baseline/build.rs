//! A guest's whole table from a baseline. Leaves that are not made here do not exist for the guest.
//!
//! What differs between vCPUs (APIC ids, topology) is left for the VMM to fill in: the lines are there.

use std::collections::BTreeMap;

use super::Level;
use super::level::hazards;
use crate::feature::{WordPlace, named, words};
use crate::xstate::{Layout, TILE_LEAF, TMUL_LEAF};
use crate::{CpuTable, CpuidEntry, Feature, FeatureSet, HostCpu, Register, Registers};

/// CLFLUSH flushes 64 bytes, 8 quadwords, on every CPU of the ladders.
const CLFLUSH: u32 = 8 << 8;
/// The levels whose CPUs stand for those of the psABI, by vendor.
const STAND_INS: [(&str, &str, &str); 4] = [
    ("x86-64-v1", "intel-merom", "amd-rev-f"),
    ("x86-64-v2", "intel-nehalem", "amd-bulldozer"),
    ("x86-64-v3", "intel-haswell", "amd-zen"),
    ("x86-64-v4", "intel-skylake", "amd-zen4"),
];
/// Leaves of a host that a guest of the baseline `host` gets as they are: caches and TLBs, and the name.
const HOST_LEAVES: [u32; 8] =
    [0x2, 0x4, 0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0005, 0x8000_0006, 0x8000_001d];
/// AMX as every CPU that has it: one palette of 8 tiles of 16 rows of 64 bytes, and the multiplier for it
/// (Intel's manual, CPUID leaves 1DH and 1EH).
const PALETTES: [[u32; 4]; 2] = [[1, 0, 0, 0], [0x0400_2000, 0x0008_0040, 0x10, 0]];
const MULTIPLIER: [u32; 4] = [0, 0x4010, 0, 0];

/// The table of a level with these features.
pub(super) fn of_level(level: &Level, vendor: &str, features: FeatureSet, physical_bits: u32) -> CpuTable {
    let stand_in = STAND_INS.iter().find(|(name, ..)| *name == level.name);
    let like = stand_in.map_or(level.name, |(_, intel, amd)| if is_intel(vendor) { intel } else { amd });
    let signature = Level::named(like).map_or(0, |level| level.signature);
    let linear_bits = if has(features, "la57") { 57 } else { 48 };
    let mut builder = Builder::new(vendor, signature, CLFLUSH, features);
    builder.address_bits(physical_bits, linear_bits);
    builder.brand(level.title);
    builder.caches();
    let shown = hazards()
        .iter()
        .filter(|feature| is_intel(vendor) == is_intel_hazard(*feature) || is_common(*feature));
    builder.finish(features | shown.collect(), &Layout::usual(vendor, features))
}

/// The table of everything that a host offers, less what is not in `features`.
pub(super) fn of_host(host: &HostCpu, features: FeatureSet, physical_bits: Option<u32>) -> CpuTable {
    let cpuid = &host.kvm.cpuid;
    let line = cpuid.register(1, 0, Register::Ebx) & 0xff00;
    let mut builder = Builder::new(&host.vendor(), cpuid.register(1, 0, Register::Eax), line, features);
    let physical_bits = physical_bits.unwrap_or_else(|| host.kvm.physical_address_bits());
    let linear_bits = if has(features, "la57") { 57 } else { host.kvm.linear_address_bits().min(48) };
    builder.address_bits(physical_bits, linear_bits);
    for entry in cpuid.entries().filter(|entry| HOST_LEAVES.contains(&entry.leaf)) {
        builder.insert(entry);
    }
    let mut shown: FeatureSet =
        hazards().iter().filter(|hazard| host.kvm.has(*hazard) || is_common(*hazard)).collect();
    // Under enhanced IBRS, RRSBA tells of what RSBA tells of without.
    if host.kvm.has(named("rrsba")) && !has(features, "ibrs_all") {
        shown.insert(named("rsba"));
    }
    builder.finish(features | shown, &Layout::of(cpuid))
}

fn is_intel(vendor: &str) -> bool {
    vendor == "GenuineIntel"
}

fn has(features: FeatureSet, name: &str) -> bool {
    features.contains(named(name))
}

/// Hazards of x87 state, which every guest is told of: no software of this century minds.
fn is_common(hazard: Feature) -> bool {
    matches!(hazard.name(), "fdp_excptn_only" | "zero_fcs_fds")
}

/// AMD tells its hazards in leaves that it made.
fn is_intel_hazard(hazard: Feature) -> bool {
    !matches!(WordPlace::of(hazard.place()).0, WordPlace::Cpuid(0x8000_0000.., ..))
}

struct Builder {
    table: CpuTable,
    intel: bool,
}

impl Builder {
    /// The lines that every guest has, and those that hold features, still empty.
    fn new(vendor: &str, signature: u32, clflush: u32, features: FeatureSet) -> Self {
        let intel = is_intel(vendor);
        let mut builder = Self { table: CpuTable::default(), intel };
        let last = [(0x1e, "amx_tile"), (0xd, "xsave")].iter().find(|(_, name)| has(features, name));
        let last = last.map_or(0xb, |(leaf, _)| *leaf);
        let [ebx, edx, ecx] = name_registers(vendor);
        builder.plain(0, [last, ebx, ecx, edx]);
        builder.plain(1, [signature, clflush, 0, 0]);
        builder.indexed(7, 0, [0; 4]);
        // Two levels of topology, which the VMM fills in.
        builder.indexed(0xb, 0, [0, 1, 0x100, 0]);
        builder.indexed(0xb, 1, [0, 1, 0x201, 0]);
        let extended = if intel { 0x8000_0008 } else { 0x8000_0021 };
        builder.plain(
            0x8000_0000,
            [extended, if intel { 0 } else { ebx }, if intel { 0 } else { ecx }, if intel { 0 } else { edx }],
        );
        builder.plain(0x8000_0001, [if intel { 0 } else { signature }, 0, 0, 0]);
        builder.plain(0x8000_0007, [0; 4]);
        builder.plain(0x8000_0008, [0; 4]);
        if !intel {
            builder.plain(0x8000_001e, [0; 4]);
            builder.plain(0x8000_0021, [0; 4]);
        }
        if has(features, "amx_tile") {
            builder.indexed(TILE_LEAF, 0, PALETTES[0]);
            builder.indexed(TILE_LEAF, 1, PALETTES[1]);
            builder.indexed(TMUL_LEAF, 0, MULTIPLIER);
        }
        let [ebx, ecx, edx] = name_registers("KVMKVMKVM\0\0\0");
        builder.plain(0x4000_0000, [0x4000_0001, ebx, ecx, edx]);
        builder.plain(0x4000_0001, [0; 4]);
        builder
    }

    fn insert(&mut self, entry: CpuidEntry) {
        self.table.cpuid.insert(entry).expect("each line of a guest's table is made once");
    }

    fn plain(&mut self, leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.insert(CpuidEntry { leaf, subleaf: None, registers: Registers { eax, ebx, ecx, edx } });
    }

    fn indexed(&mut self, leaf: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        let registers = Registers { eax, ebx, ecx, edx };
        self.insert(CpuidEntry { leaf, subleaf: Some(subleaf), registers });
    }

    fn address_bits(&mut self, physical: u32, linear: u32) {
        if let Some(registers) = self.table.cpuid.get_mut(0x8000_0008, 0) {
            registers.eax = physical | linear << 8;
        }
    }

    /// What the guest's user reads in `/proc/cpuinfo`.
    fn brand(&mut self, title: &str) {
        let mut text = [0; 48];
        let name = format!("{title}-like CPU");
        // The last byte stays zero.
        for (byte, letter) in text.iter_mut().take(47).zip(name.bytes()) {
            *byte = letter;
        }
        let registers: Vec<u32> =
            text.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        for (leaf, four) in (0x8000_0002..).zip(registers.chunks_exact(4)) {
            self.plain(leaf, [four[0], four[1], four[2], four[3]]);
        }
    }

    /// Caches that are no host's: 32 KiB of L1 of each kind, 1 MiB of L2, 16 MiB of L3, all of 64-byte lines.
    fn caches(&mut self) {
        // (type and level, ways, sets): the type is 1 data, 2 code, 3 both.
        let all = [(1 | 1 << 5, 8, 64), (2 | 1 << 5, 8, 64), (3 | 2 << 5, 16, 1024), (3 | 3 << 5, 16, 16384)];
        let leaf = if self.intel { 0x4 } else { 0x8000_001d };
        for (subleaf, (kind, ways, sets)) in (0..).zip(all) {
            // Bit 8: needs no initialising.
            self.indexed(leaf, subleaf, [kind | 1 << 8, 63 | (ways - 1) << 22, sets - 1, 0]);
        }
        self.indexed(leaf, 4, [0; 4]);
        // L2: KiB, 16-way (code 8), one line a tag on AMD's, 64-byte lines.
        let l2 = 1024 << 16 | 8 << 12 | 64;
        if self.intel {
            // A count, and "see leaf 4".
            self.plain(0x2, [0xff01, 0, 0, 0]);
            self.plain(0x8000_0006, [0, 0, l2, 0]);
        } else {
            let l1 = 32 << 24 | 8 << 16 | 1 << 8 | 64;
            self.plain(0x8000_0005, [0, 0, l1, l1]);
            // L3 in units of 512 KiB.
            self.plain(0x8000_0006, [0, 0, l2 | 1 << 8, 32 << 18 | 8 << 12 | 1 << 8 | 64]);
        }
    }

    /// Sets the features, with the lines and MSRs that hold them.
    fn finish(mut self, features: FeatureSet, layout: &Layout) -> CpuTable {
        for feature in features.iter() {
            match WordPlace::of(feature.place()).0 {
                WordPlace::Cpuid(leaf, subleaf, _) => self.make_line(leaf, subleaf),
                WordPlace::Msr(msr) => {
                    self.table.feature_msrs.entry(msr).or_insert(0);
                }
            }
        }
        self.table.set_layout(layout);
        self.table.set(features);
        // AMD's topology leaves are announced by a bit of their own.
        let made = if self.intel { &["hypervisor"][..] } else { &["hypervisor", "topoext"] };
        self.table.set(FeatureSet::of(made));
        self.table.prune();
        self.finish_leaves();
        self.table
    }

    fn make_line(&mut self, leaf: u32, subleaf: u32) {
        // Leaf 0xD is made of the layout. AMD's leaves are none of Intel's business.
        if leaf == 0xd || self.table.cpuid.get(leaf, subleaf).is_some() {
            return;
        }
        match leaf {
            7 => self.indexed(leaf, subleaf, [0; 4]),
            6 => self.plain(leaf, [0; 4]),
            _ => {}
        }
    }

    /// The numbers that follow from which lines are there.
    fn finish_leaves(&mut self) {
        let last = (0..).take_while(|subleaf| self.table.cpuid.get(7, *subleaf).is_some()).last();
        if let Some(registers) = self.table.cpuid.get_mut(7, 0) {
            registers.eax = last.unwrap_or(0);
        }
        if !self.intel {
            self.mirror();
        }
        // What guests are never told of is not a row: those MSRs read zero.
        let all: BTreeMap<_, _> = words()
            .filter_map(|word| match word.at {
                WordPlace::Msr(msr) => Some((msr, self.table.word(word.at))),
                WordPlace::Cpuid(..) => None,
            })
            .collect();
        self.table.feature_msrs = all;
    }

    /// AMD's CPUs repeat in leaf 0x80000001 what leaf 1 says.
    fn mirror(&mut self) {
        let at = WordPlace::Cpuid(0x8000_0001, 0, Register::Edx);
        let repeated = words().find(|word| word.at == at).map_or(0, |word| word.ignored);
        let original = self.table.word(WordPlace::Cpuid(1, 0, Register::Edx));
        self.table.set_word(at, self.table.word(at) & !repeated | original & repeated);
    }
}

/// Twelve letters as EBX, EDX, ECX of leaf 0 hold them; other leaves hold them as EBX, ECX, EDX.
fn name_registers(name: &str) -> [u32; 3] {
    let bytes = name.as_bytes();
    std::array::from_fn(|n| {
        let four = bytes.get(4 * n..4 * n + 4).unwrap_or(&[0; 4]);
        u32::from_le_bytes([four[0], four[1], four[2], four[3]])
    })
}
