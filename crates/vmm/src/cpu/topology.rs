//! What CPUID says differently on each vCPU: its APIC id, and how many there are; and bits with a meaning.
//!
//! Every guest is one package of as many single-threaded cores as it has vCPUs, with APIC ids 0, 1, ….

use kvm_bindings::kvm_cpuid_entry2;

/// Leaf 1 ECX: the APIC's timer can wait for a TSC value.
pub(super) const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: the guest switched XSAVE on, which is its own doing.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 1 ECX: MONITOR/MWAIT, which IA32_MISC_ENABLE governs.
const MONITOR: u32 = 1 << 3;
/// Leaf 1 EDX: the APIC is on, which IA32_APIC_BASE governs.
const APIC: u32 = 1 << 9;
/// Leaf 1 EDX: EBX tells the number of vCPUs.
const HTT: u32 = 1 << 28;
/// Leaf 7 ECX: the guest switched protection keys on, which is its own doing.
const OSPKE: u32 = 1 << 4;

/// Level types of leaf 0xb and 0x1f, ECX bits 15:8.
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// ECX of a leaf: bits for VMX and SVM, by which a guest runs guests of its own.
pub(super) fn nested_virtualization(leaf: u32) -> u32 {
    match leaf {
        1 => 1 << 5,
        0x8000_0001 => 1 << 2,
        _ => 0,
    }
}

/// Bits that KVM shows as the guest's state has them, whatever the table says.
pub(super) fn run_time_bits(leaf: u32, subleaf: u32, register: &str) -> u32 {
    match (leaf, subleaf, register) {
        (1, _, "ecx") => OSXSAVE | MONITOR,
        (1, _, "edx") => APIC,
        (7, 0, "ecx") => OSPKE,
        // Size of the XSAVE area for what the guest switched on so far.
        (0xd, 0 | 1, "ebx") => u32::MAX,
        _ => 0,
    }
}

/// The table as vCPU `index` of `vcpus` must see it.
pub(super) fn of_vcpu(table: &[kvm_cpuid_entry2], index: u32, vcpus: u32) -> Vec<kvm_cpuid_entry2> {
    // Bits of an APIC id that number a core in its package.
    let id_bits = vcpus.next_power_of_two().trailing_zeros();
    table
        .iter()
        .map(|entry| {
            let mut entry = *entry;
            match entry.function {
                1 => leaf_1(&mut entry, index, vcpus),
                4 => intel_cache(&mut entry, vcpus),
                0xb | 0x1f => levels(&mut entry, index, vcpus, id_bits),
                0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (vcpus - 1).min(0xff) | id_bits << 12,
                0x8000_001d => amd_cache(&mut entry, vcpus),
                0x8000_001e => {
                    entry.eax = index;
                    entry.ebx = index & 0xff;
                    entry.ecx = 0;
                }
                _ => {}
            }
            entry
        })
        .collect()
}

fn leaf_1(entry: &mut kvm_cpuid_entry2, index: u32, vcpus: u32) {
    let count = vcpus.next_power_of_two().min(0xff);
    entry.ebx = entry.ebx & 0x0000_ffff | index << 24 | count << 16;
    entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
}

/// Caches below the third level belong to one core, the rest to the package.
fn intel_cache(entry: &mut kvm_cpuid_entry2, vcpus: u32) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = entry.eax >> 5 & 0x7;
    let cores = vcpus.next_power_of_two() - 1;
    let sharing = if level >= 3 { cores.min(0xfff) } else { 0 };
    entry.eax = entry.eax & 0x3fff | cores.min(0x3f) << 26 | sharing << 14;
}

fn amd_cache(entry: &mut kvm_cpuid_entry2, vcpus: u32) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = entry.eax >> 5 & 0x7;
    let sharing = if level >= 3 { (vcpus - 1).min(0xfff) } else { 0 };
    entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
}

/// Extended topology: one thread a core, all cores in one package.
fn levels(entry: &mut kvm_cpuid_entry2, index: u32, vcpus: u32, id_bits: u32) {
    // KVM gives AMD guests an empty leaf: it stays so, they use leaf 0x8000001e.
    if entry.eax | entry.ebx | entry.ecx & !0xff == 0 && entry.edx == 0 {
        return;
    }
    let (shift, count, kind) = match entry.index {
        0 => (0, 1, LEVEL_SMT),
        1 => (id_bits, vcpus, LEVEL_CORE),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = count & 0xffff;
    entry.ecx = entry.index & 0xff | kind;
    entry.edx = index;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *table.iter().find(|e| (e.function, e.index) == (function, index)).unwrap()
    }

    #[test]
    fn each_vcpu_sees_its_own_id_in_one_package() {
        let raw =
            |function, index, eax, ebx| kvm_cpuid_entry2 { function, index, eax, ebx, ..Default::default() };
        let table = [
            raw(1, 0, 0x00b0_0f21, 0x1708_0800),
            raw(4, 2, 0x143, 0x3c0_003f),
            raw(4, 3, 0x163, 0x3c0_003f),
            raw(0xb, 0, 1, 2),
            raw(0xb, 1, 7, 64),
            raw(0x8000_0008, 0, 0x3030, 0),
            raw(0x8000_001e, 0, 9, 9),
        ];
        let seen = of_vcpu(&table, 2, 3);
        assert_eq!(find(&seen, 1, 0).ebx, 0x0204_0800);
        assert_eq!(find(&seen, 1, 0).edx, HTT);
        assert_eq!((find(&seen, 4, 2).eax, find(&seen, 4, 3).eax), (0x0c00_0143, 0x0c00_c163));
        let (smt, core) = (find(&seen, 0xb, 0), find(&seen, 0xb, 1));
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (0, 1, LEVEL_SMT, 2));
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, LEVEL_CORE | 1, 2));
        assert_eq!(find(&seen, 0x8000_0008, 0).ecx, 0x2002);
        assert_eq!(find(&seen, 0x8000_001e, 0).eax, 2);
    }
}
