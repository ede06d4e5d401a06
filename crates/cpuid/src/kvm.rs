//! CPUID tables as KVM takes and gives them, and a host's CPU as KVM shows it.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use thiserror::Error;

use crate::feature::{WordPlace, words};
use crate::{
    CpuTable, CpuidEntry, CpuidSet, CpuidSetError, FeatureSet, HostCpu, HostIdentity, Register, Registers,
};

/// Leaf 1 ECX, TSC_DEADLINE: KVM emulates it with its APIC timer and says so by a capability.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: the guest switched XSAVE on, which is its own doing.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 1 ECX: MONITOR/MWAIT, which IA32_MISC_ENABLE governs.
const MONITOR: u32 = 1 << 3;
/// Leaf 1 EDX: the APIC is on, which IA32_APIC_BASE governs.
const APIC: u32 = 1 << 9;
/// Leaf 7 ECX: the guest switched protection keys on, which is its own doing.
const OSPKE: u32 = 1 << 4;
/// IA32_UCODE_REV; the revision is its high half on Intel's CPUs, and all of it on AMD's.
const MICROCODE: u32 = 0x8b;

/// Bits that KVM shows as the guest's state has them, whatever table it was given.
#[must_use]
pub fn run_time_bits(leaf: u32, subleaf: u32, register: Register) -> u32 {
    match (leaf, subleaf, register) {
        (1, _, Register::Ecx) => OSXSAVE | MONITOR,
        (1, _, Register::Edx) => APIC,
        (7, 0, Register::Ecx) => OSPKE,
        // Size of the XSAVE area for what the guest switched on so far.
        (0xd, 0 | 1, Register::Ebx) => u32::MAX,
        _ => 0,
    }
}

impl TryFrom<&CpuId> for CpuidSet {
    type Error = CpuidSetError;

    fn try_from(table: &CpuId) -> Result<Self, CpuidSetError> {
        let mut set = Self::default();
        for entry in table.as_slice() {
            let kvm_cpuid_entry2 { function: leaf, index, flags, eax, ebx, ecx, edx, .. } = *entry;
            let subleaf = (flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(index);
            set.insert(CpuidEntry { leaf, subleaf, registers: Registers { eax, ebx, ecx, edx } })?;
        }
        Ok(set)
    }
}

impl From<&CpuidSet> for Vec<kvm_cpuid_entry2> {
    fn from(set: &CpuidSet) -> Self {
        let entry = |entry: CpuidEntry| {
            let Registers { eax, ebx, ecx, edx } = entry.registers;
            kvm_cpuid_entry2 {
                function: entry.leaf,
                index: entry.subleaf.unwrap_or(0),
                flags: entry.subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            }
        };
        set.entries().map(entry).collect()
    }
}

/// Why the host's CPU could not be read.
#[derive(Debug, Error)]
pub enum HostCpuError {
    /// KVM refused a call.
    #[error("{call} failed: {source}; is another hypervisor using this host's CPU?")]
    Kvm {
        /// The call, as KVM's API names it.
        call: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// KVM's own table contradicts itself.
    #[error("KVM_GET_SUPPORTED_CPUID: {0}; report this with the kernel's version")]
    Table(#[from] CpuidSetError),
}

fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> HostCpuError {
    move |error| HostCpuError::Kvm { call, source: error.into() }
}

impl HostCpu {
    /// Asks KVM and the CPU. Makes a VM with one vCPU for a moment: what KVM lists as supported is not
    /// always what a vCPU then has, and only that counts.
    ///
    /// # Errors
    /// [`HostCpuError`].
    pub fn read(kvm: &Kvm, name: &str) -> Result<Self, HostCpuError> {
        let supported = supported(kvm)?;
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        let cpuid = given(&vcpu, &supported)?;
        let hardware = crate::hardware::read();
        let list = kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        let mut msr_indices = list.as_slice().to_vec();
        msr_indices.sort_unstable();
        let intel = cpuid.vendor() == "GenuineIntel";
        Ok(Self {
            identity: HostIdentity {
                name: name.to_owned(),
                model_name: hardware.brand(),
                kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                    .ok()
                    .map(|r| r.trim().to_owned()),
                microcode: system_msr(kvm, MICROCODE).map(|value| if intel { value >> 32 } else { value }),
            },
            kvm: CpuTable { feature_msrs: feature_msrs(kvm, &vcpu)?, cpuid },
            hardware: Some(hardware),
            tsc_khz: vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?,
            tsc_scaling: kvm.check_extension(Cap::TscControl),
            // Without KVM_CAP_XSAVE2 the area is the old struct kvm_xsave.
            xsave_size: u32::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(4096),
            msr_indices: Some(msr_indices),
            hidden: FeatureSet::EMPTY,
            lost: Vec::new(),
        })
    }
}

fn supported(kvm: &Kvm) -> Result<CpuidSet, HostCpuError> {
    let table = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let mut supported = CpuidSet::try_from(&table)?;
    if let (true, Some(leaf)) = (kvm.check_extension(Cap::TscDeadlineTimer), supported.get_mut(1, 0)) {
        *leaf.get_mut(Register::Ecx) |= TSC_DEADLINE;
    }
    Ok(supported)
}

/// What a vCPU has that was given all that KVM supports.
fn given(vcpu: &VcpuFd, supported: &CpuidSet) -> Result<CpuidSet, HostCpuError> {
    let entries: Vec<kvm_cpuid_entry2> = supported.into();
    let table = CpuId::from_entries(&entries).expect("KVM gave no more than KVM_MAX_CPUID_ENTRIES");
    vcpu.set_cpuid2(&table).map_err(failed("KVM_SET_CPUID2"))?;
    let table = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_CPUID2"))?;
    let mut given = CpuidSet::try_from(&table)?;
    given.keep_run_time_bits(supported);
    Ok(given)
}

impl CpuidSet {
    /// Takes what KVM shows as a guest's state has it from another table: the one that KVM was given.
    pub fn keep_run_time_bits(&mut self, from: &Self) {
        for (leaf, subleaf) in [(1, 0), (7, 0), (0xd, 0), (0xd, 1)] {
            let Some(registers) = self.get_mut(leaf, subleaf) else { continue };
            for register in Register::ALL {
                let bits = run_time_bits(leaf, subleaf, register);
                let value = registers.get_mut(register);
                *value = *value & !bits | from.register(leaf, subleaf, register) & bits;
            }
        }
    }
}

/// The feature MSRs that this crate knows, as a vCPU has them at its start.
fn feature_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<std::collections::BTreeMap<u32, u64>, HostCpuError> {
    let listed = kvm.get_msr_feature_index_list().map_err(failed("KVM_GET_MSR_FEATURE_INDEX_LIST"))?;
    let known = words().filter_map(|word| match word.at {
        WordPlace::Msr(msr) => Some(msr),
        WordPlace::Cpuid(..) => None,
    });
    let known = known.filter(|msr| listed.as_slice().contains(msr));
    Ok(known.filter_map(|msr| Some((msr, read_msr(msr, |msrs| vcpu.get_msrs(msrs))?))).collect())
}

fn system_msr(kvm: &Kvm, msr: u32) -> Option<u64> {
    read_msr(msr, |msrs| kvm.get_msrs(msrs))
}

fn read_msr(msr: u32, get: impl Fn(&mut Msrs) -> Result<usize, kvm_ioctls::Error>) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: msr, ..Default::default() }]).ok()?;
    (get(&mut msrs).ok()? == 1).then(|| msrs.as_slice()[0].data)
}
