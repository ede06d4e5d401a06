//! A guest has the CPU that it was given, and where KVM does otherwise that is known.

mod guest;

use guest::{COUNT, config, counter, migrate, run, wait_for_progress, wait_until};
use migrated_cpuid::{
    BaselineSpec, CpuTable, CpuidEntry, CustomBaseline, Feature, FeatureSet, GuestCpu, HostCpu, Kind, Place,
    Registers,
};
use migrated_testkit::require;
use migrated_vmm::boot::load_workload;
use migrated_vmm::{CpuError, HostKvm, Vm, VmConfig, VmmError, cpu_differences};

/// Leaves that hold features.
const LEAVES: [(u32, u32); 7] =
    [(1, 0), (7, 0), (0xd, 1), (0x8000_0001, 0), (0x8000_0008, 0), (0x8000_0021, 0), (0x4000_0001, 0)];
/// IA32_ARCH_CAPABILITIES.
const ARCH_CAPABILITIES: u32 = 0x10a;

fn host() -> HostCpu {
    HostKvm::open().unwrap().read_cpu("test").unwrap()
}

fn feature(name: &str) -> Feature {
    Feature::named(name).unwrap()
}

/// All that the host offers, but for some features.
fn without(host: &HostCpu, remove: &[&str]) -> GuestCpu {
    let remove = remove.iter().map(|name| (*name).to_owned()).collect();
    let custom = CustomBaseline { base: "host".into(), remove, ..CustomBaseline::default() };
    host.grant(&BaselineSpec::Custom(custom).resolve(host).unwrap()).unwrap()
}

/// A workload guest with that CPU, and what its first vCPU reads at CPL 0.
fn ask(cpu: GuestCpu, vcpus: u32) -> (Vm, CpuTable) {
    let leaves: Vec<_> = LEAVES.iter().map(|(leaf, subleaf)| format!("{leaf:x}:{subleaf:x}")).collect();
    let cmdline = format!("hot=1M cpuid={}", leaves.join(","));
    let config = VmConfig { vcpus, cpu: Some(cpu), ..VmConfig::new("test", 32 << 20) };
    let vm =
        Vm::create(config, |memory, boot| load_workload(memory, &cmdline, boot.vcpus, boot.tsc_khz)).unwrap();
    let console = || String::from_utf8(vm.console().read_from(0, usize::MAX).1).unwrap();
    wait_until("the workload", || console().contains("workload: running"));
    let mut seen = CpuTable::default();
    for line in console().lines().filter_map(|line| line.strip_prefix("workload: cpuid ")) {
        let number = |word: &str| u32::from_str_radix(word.trim_end_matches(':'), 16).unwrap();
        let numbers: Vec<_> = line.split_whitespace().map(number).collect();
        let [leaf, subleaf, eax, ebx, ecx, edx] = numbers[..] else { panic!("{line}") };
        let registers = Registers { eax, ebx, ecx, edx };
        seen.cpuid.insert(CpuidEntry { leaf, subleaf: Some(subleaf), registers }).unwrap();
    }
    assert_eq!(seen.cpuid.entries().count(), LEAVES.len());
    (vm, seen)
}

/// Those of `features` that are in a leaf which the guest was asked for, without its own settings.
fn asked_for(features: FeatureSet) -> FeatureSet {
    let asked = |feature: &Feature| match feature.place() {
        Place::Cpuid(at) => {
            LEAVES.contains(&(at.leaf, at.subleaf))
                && feature.kind() != Kind::Synthetic
                && migrated_cpuid::run_time_bits(at.leaf, at.subleaf, at.register) & 1 << at.bit == 0
        }
        Place::Msr { .. } => false,
    };
    features.iter().filter(asked).collect()
}

#[test]
fn a_guest_lacks_what_its_baseline_lacks() {
    require!(Kvm);
    let host = host();
    let (_vm, all) = ask(without(&host, &[]), 1);
    let hidden: Vec<_> = ["cx16", "lahf_lm", "kvm_pv_unhalt", "kvm_steal_time", "clzero", "misalignsse"]
        .into_iter()
        .filter(|name| host.offered().contains(feature(name)))
        .collect();
    for name in ["cx16", "lahf_lm", "kvm_steal_time"] {
        assert!(hidden.contains(&name) && all.has(feature(name)), "{name}");
    }
    let (vm, seen) = ask(without(&host, &hidden), 1);
    let hidden: FeatureSet = hidden.into_iter().map(feature).collect();
    assert_eq!(asked_for(seen.features()), asked_for(all.features() - hidden));
    assert!(vm.cpu().unmasked.is_empty(), "{}", vm.cpu().unmasked);
}

#[test]
fn what_kvm_can_not_hide_is_known() {
    require!(Kvm);
    let host = host();
    // Some that other KVMs than the software ones hide, too.
    let remove = ["cx16", "popcnt", "rdrand", "movbe", "bmi2", "adx", "clflushopt", "umip", "fsrm"];
    let remove: Vec<_> = remove.into_iter().filter(|name| host.offered().contains(feature(name))).collect();
    for vcpus in [1, 2] {
        let cpu = without(&host, &remove);
        let given = cpu.table.features();
        let (vm, seen) = ask(cpu, vcpus);
        let effective = vm.cpu();
        assert_eq!(asked_for(seen.features()), asked_for(effective.table.features()));
        assert_eq!(asked_for(effective.unmasked), asked_for(seen.features() - given));
        assert!(!effective.unmasked.contains(feature("cx16")));
        for (leaf, subleaf) in [(0x8000_0008, 0), (0x8000_0021, 0), (0x4000_0001, 0)] {
            let effective = effective.table.cpuid.get(leaf, subleaf).copied().unwrap_or_default();
            assert_eq!(seen.cpuid.get(leaf, subleaf), Some(&effective), "{leaf:#x}");
        }
    }
}

#[test]
fn a_feature_that_kvm_drops_is_refused_by_name() {
    require!(Kvm);
    let mut cpu = without(&host(), &[]);
    let foreign = feature("waitpkg");
    let Place::Cpuid(at) = foreign.place() else { panic!("{foreign} is a bit of CPUID") };
    let registers = cpu.table.cpuid.get_mut(at.leaf, at.subleaf).unwrap();
    *registers.get_mut(at.register) |= 1 << at.bit;
    match Vm::incoming(VmConfig { cpu: Some(cpu), ..config(1) }) {
        // Other KVMs believe what they are told; admission comes before.
        Ok(vm) => assert!(vm.vm().cpu().table.has(foreign)),
        Err(error) => {
            assert!(matches!(error, VmmError::Cpu(CpuError::Differs(_))), "{error}");
            let text = error.to_string();
            assert!(text.contains("waitpkg (CPUID leaf 0x7 subleaf 0 ecx bit 5)"), "{text}");
        }
    }
}

#[test]
fn a_feature_msr_that_kvm_does_not_set_is_refused_with_its_value() {
    require!(Kvm);
    let mut cpu = without(&host(), &[]);
    let value = cpu.table.feature_msrs.get(&ARCH_CAPABILITIES).copied().unwrap_or(0) ^ 1;
    cpu.table.feature_msrs.insert(ARCH_CAPABILITIES, value);
    match Vm::incoming(VmConfig { cpu: Some(cpu), ..config(1) }) {
        Ok(vm) => assert_eq!(vm.vm().cpu().table.feature_msrs[&ARCH_CAPABILITIES], value),
        Err(error) => {
            assert!(matches!(error, VmmError::Cpu(CpuError::FeatureMsr { .. })), "{error}");
            let text = error.to_string();
            assert!(text.contains(&format!("0x10a must be {value:#x}")), "{text}");
            assert!(text.contains("rdcl_no"), "{text}");
        }
    }
}

#[test]
fn a_guest_takes_its_cpu_along() {
    require!(Kvm);
    let host = host();
    for vcpus in [1, 2] {
        let cpu = without(&host, &["cx16", "kvm_steal_time", "lahf_lm", "movbe"]);
        let mut vm = run(VmConfig { cpu: Some(cpu), ..config(vcpus) }, COUNT);
        let effective = vm.cpu().clone();
        for _ in 0..2 {
            wait_for_progress(&vm, vcpus);
            let before = counter(&vm, 0);
            vm = migrate(&vm, VmConfig { cpu: Some(effective.clone()), ..config(vcpus) });
            wait_for_progress(&vm, vcpus);
            assert!(counter(&vm, 0) > before);
            assert_eq!(vm.cpu(), &effective);
            assert_eq!(cpu_differences(&effective.table, &vm.cpu().table), []);
        }
    }
}

#[test]
fn a_table_that_is_not_run_is_found() {
    require!(Kvm);
    let vm = run(config(1), COUNT);
    let claimed = |change: fn(&mut CpuTable)| {
        let mut cpu = vm.cpu().clone();
        change(&mut cpu.table);
        let here = Vm::incoming(VmConfig { cpu: Some(cpu.clone()), ..config(1) }).unwrap();
        let differing = cpu_differences(&cpu.table, &here.vm().cpu().table);
        differing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(claimed(|_| ()), "");
    // Two cores, where there is one.
    let two_cores = claimed(|table| table.cpuid.get_mut(1, 0).unwrap().ebx |= 2 << 16);
    assert!(two_cores.contains("leaf 0x1 subleaf 0 ebx"), "{two_cores}");
}
