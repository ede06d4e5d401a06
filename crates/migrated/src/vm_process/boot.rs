use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use migrated_control::{BootPlan, BootSource, MemoryBacking, NetworkPlan, VmDir, VmSpec};
use migrated_cpuid::GuestCpu;
use migrated_vmm::{DeviceConfig, NetworkConfig, Vm, VmConfig, VmmError, boot};

use super::{errors, process::Process};

/// Makes the VM and boots it.
pub fn start(process: &Arc<Process>, plan: &BootPlan) {
    match boot(process, plan) {
        Ok(vm) => process.ready(&vm, Vec::new()),
        Err(error) if plan.again => process.cannot_again(errors::of_vmm(&error)),
        Err(error) => process.cannot(errors::of_vmm(&error)),
    }
}

fn boot(process: &Process, plan: &BootPlan) -> Result<Vm, VmmError> {
    let cpu = process.cpu.to_run(&plan.cpu, plan.simulated);
    let config = config(&process.dir, &plan.spec, &plan.networks, cpu)?;
    Vm::create(config, |memory, context| match &plan.spec.boot {
        BootSource::Kernel { kernel, initramfs, cmdline } => {
            let initramfs = initramfs.as_deref().map(Path::new);
            boot::load_kernel_file(memory, Path::new(kernel), initramfs, cmdline, context.vcpus)
        }
        BootSource::Workload { cmdline } => {
            boot::load_workload(memory, cmdline, context.vcpus, context.tsc_khz)
        }
    })
}

/// The VM that `spec` asks for, with these interfaces and that CPU.
pub fn config(
    dir: &VmDir,
    spec: &VmSpec,
    networks: &[NetworkPlan],
    cpu: Option<GuestCpu>,
) -> Result<VmConfig, VmmError> {
    let mut config = VmConfig::new(&spec.name, spec.memory_bytes);
    config.vcpus = spec.vcpus;
    config.backing = match spec.backing {
        MemoryBacking::Memfd => migrated_vmm::MemoryBacking::Memfd,
        MemoryBacking::Thp => migrated_vmm::MemoryBacking::Thp,
        MemoryBacking::Hugetlb2m => migrated_vmm::MemoryBacking::Hugetlb2m,
    };
    config.prefault = spec.prefault;
    config.cpu = cpu;
    config.console = Some(console(dir).map_err(VmmError::Console)?);
    config.networks = networks.iter().map(network).collect();
    config.devices = devices(dir, &spec.boot);
    Ok(config)
}

fn network(plan: &NetworkPlan) -> NetworkConfig {
    NetworkConfig {
        mac: plan.mac.octets(),
        bridge: plan.bridge.clone(),
        tap: plan.tap.clone(),
        mtu: plan.mtu,
    }
}

/// What a guest's system expects to find. The workload guest has no drivers.
fn devices(dir: &VmDir, boot: &BootSource) -> Vec<DeviceConfig> {
    match boot {
        BootSource::Kernel { .. } => {
            let agent = DeviceConfig::Agent { socket: dir.agent_socket() };
            vec![DeviceConfig::Rng, DeviceConfig::Balloon, agent]
        }
        BootSource::Workload { .. } => Vec::new(),
    }
}

fn console(dir: &VmDir) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.console())
}
