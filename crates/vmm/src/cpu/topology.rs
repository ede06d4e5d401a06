//! What CPUID says differently on each vCPU: its APIC id, and how many there are.
//!
//! Every guest is one package of as many single-threaded cores as it has vCPUs, with APIC ids 0, 1, ….

use migrated_cpuid::{CpuidEntry, CpuidSet, Registers};

/// Leaf 1 EDX: EBX tells the number of vCPUs.
const HTT: u32 = 1 << 28;
/// Level types of leaf 0xb and 0x1f, ECX bits 15:8.
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The table as vCPU `index` of `vcpus` must see it. What another vCPU of the guest sees will do as `table`.
pub(super) fn of_vcpu(table: &CpuidSet, index: u32, vcpus: u32) -> CpuidSet {
    let mut seen = table.clone();
    for CpuidEntry { leaf, subleaf, .. } in table.entries() {
        let subleaf = subleaf.unwrap_or(0);
        let Some(registers) = seen.get_mut(leaf, subleaf) else { continue };
        match leaf {
            1 => leaf_1(registers, index, vcpus),
            4 => intel_cache(registers, vcpus),
            0xb | 0x1f => level(registers, subleaf, index, vcpus),
            0x8000_0008 => {
                registers.ecx = registers.ecx & !0xf0ff | (vcpus - 1).min(0xff) | id_bits(vcpus) << 12;
            }
            0x8000_001d => amd_cache(registers, vcpus),
            0x8000_001e => {
                registers.eax = index;
                registers.ebx = index & 0xff;
                registers.ecx = 0;
            }
            _ => {}
        }
    }
    seen
}

/// Bits of an APIC id that number a core in its package.
fn id_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

fn leaf_1(registers: &mut Registers, index: u32, vcpus: u32) {
    let count = vcpus.next_power_of_two().min(0xff);
    registers.ebx = registers.ebx & 0x0000_ffff | index << 24 | count << 16;
    registers.edx = if vcpus > 1 { registers.edx | HTT } else { registers.edx & !HTT };
}

/// Caches below the third level belong to one core, the rest to the package.
fn intel_cache(registers: &mut Registers, vcpus: u32) {
    if registers.eax & 0x1f == 0 {
        return;
    }
    let level = registers.eax >> 5 & 0x7;
    let cores = vcpus.next_power_of_two() - 1;
    let sharing = if level >= 3 { cores.min(0xfff) } else { 0 };
    registers.eax = registers.eax & 0x3fff | cores.min(0x3f) << 26 | sharing << 14;
}

fn amd_cache(registers: &mut Registers, vcpus: u32) {
    if registers.eax & 0x1f == 0 {
        return;
    }
    let level = registers.eax >> 5 & 0x7;
    let sharing = if level >= 3 { (vcpus - 1).min(0xfff) } else { 0 };
    registers.eax = registers.eax & !(0xfff << 14) | sharing << 14;
}

/// Extended topology: one thread a core, all cores in one package.
fn level(registers: &mut Registers, subleaf: u32, index: u32, vcpus: u32) {
    // KVM gives AMD guests an empty leaf: it stays so, they use leaf 0x8000001e.
    if registers.eax | registers.ebx | registers.ecx & !0xff == 0 && registers.edx == 0 {
        return;
    }
    let (shift, count, kind) = match subleaf {
        0 => (0, 1, LEVEL_SMT),
        1 => (id_bits(vcpus), vcpus, LEVEL_CORE),
        _ => (0, 0, 0),
    };
    *registers = Registers { eax: shift, ebx: count & 0xffff, ecx: subleaf & 0xff | kind, edx: index };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_sees_its_own_id_in_one_package() {
        let raw = |leaf, subleaf, eax, ebx| CpuidEntry {
            leaf,
            subleaf,
            registers: Registers { eax, ebx, ..Default::default() },
        };
        let table = CpuidSet::try_from(vec![
            raw(1, None, 0x00b0_0f21, 0x1708_0800),
            raw(4, Some(2), 0x143, 0x3c0_003f),
            raw(4, Some(3), 0x163, 0x3c0_003f),
            raw(0xb, Some(0), 1, 2),
            raw(0xb, Some(1), 7, 64),
            raw(0x8000_0008, None, 0x3030, 0),
            raw(0x8000_001e, None, 9, 9),
        ])
        .unwrap();
        let seen = of_vcpu(&table, 2, 3);
        let find = |leaf, subleaf| *seen.get(leaf, subleaf).unwrap();
        assert_eq!((find(1, 0).ebx, find(1, 0).edx), (0x0204_0800, HTT));
        assert_eq!((find(4, 2).eax, find(4, 3).eax), (0x0c00_0143, 0x0c00_c163));
        let (smt, core) = (find(0xb, 0), find(0xb, 1));
        assert_eq!(smt, Registers { eax: 0, ebx: 1, ecx: LEVEL_SMT, edx: 2 });
        assert_eq!(core, Registers { eax: 2, ebx: 3, ecx: LEVEL_CORE | 1, edx: 2 });
        assert_eq!(find(0x8000_0008, 0).ecx, 0x2002);
        assert_eq!(find(0x8000_001e, 0).eax, 2);
        for (index, vcpus) in [(0, 1), (2, 3), (254, 255)] {
            assert_eq!(of_vcpu(&seen, index, vcpus), of_vcpu(&table, index, vcpus));
        }
    }
}
