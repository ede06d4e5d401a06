//! CPUID's answers on the CPU that this runs on.

use std::arch::x86_64::__cpuid_count;

use crate::{CpuidEntry, CpuidSet, Register, Registers};

/// Leaves that look at ECX, by the vendors' manuals. The rest answer the same for each subleaf.
const INDEXED: [u32; 18] = [
    0x4,
    0x7,
    0xb,
    0xd,
    0xf,
    0x10,
    0x12,
    0x14,
    0x17,
    0x18,
    0x1d,
    0x1e,
    0x1f,
    0x20,
    0x24,
    0x8000_001d,
    0x8000_0020,
    0x8000_0026,
];
/// XSAVE has a subleaf for each bit of XCR0; other leaves have fewer than this.
const SUBLEAVES: u32 = 64;

/// The whole table.
pub(crate) fn read() -> CpuidSet {
    let mut set = CpuidSet::default();
    for first in [0, 0x8000_0000] {
        let last = __cpuid_count(first, 0).eax;
        // A CPU without extended leaves answers anything here.
        if last & 0xffff_0000 != first {
            continue;
        }
        for leaf in first..=last {
            read_leaf(&mut set, leaf);
        }
    }
    set
}

fn read_leaf(set: &mut CpuidSet, leaf: u32) {
    let indexed = INDEXED.contains(&leaf);
    for subleaf in 0..if indexed { SUBLEAVES } else { 1 } {
        let answer = __cpuid_count(leaf, subleaf);
        let registers = Registers { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx };
        // Topology leaves repeat the subleaf in ECX behind their last one.
        let empty = registers.eax | registers.ebx | registers.edx == 0 && registers.ecx & !0xff == 0;
        if subleaf == 0 || !empty {
            let entry = CpuidEntry { leaf, subleaf: indexed.then_some(subleaf), registers };
            set.insert(entry).expect("each leaf and subleaf is read once");
        }
    }
}

impl CpuidSet {
    /// The CPU's name in leaves 0x80000002 to 4; `None` when there is none.
    #[must_use]
    pub fn brand(&self) -> Option<String> {
        let registers = (0x8000_0002..=0x8000_0004)
            .flat_map(|leaf| Register::ALL.map(|register| self.register(leaf, 0, register)));
        let bytes: Vec<u8> = registers.flat_map(u32::to_le_bytes).take_while(|byte| *byte != 0).collect();
        let brand = String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ");
        (!brand.is_empty()).then_some(brand)
    }
}
