use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use migrated_control::{BootSource, MemoryBacking, VmDir, VmSpec};
use migrated_vmm::{CpuModel, Vm, VmConfig, VmmError, boot};

use super::{errors, process::Process};

/// Makes the VM and boots it.
pub fn start(process: &Arc<Process>, spec: &VmSpec) {
    match boot(&process.dir, spec) {
        Ok(vm) => process.ready(&vm, Vec::new()),
        Err(error) => process.cannot(errors::of_vmm(&error)),
    }
}

fn boot(dir: &VmDir, spec: &VmSpec) -> Result<Vm, VmmError> {
    let config = config(dir, spec, None)?;
    Vm::create(config, |memory, context| match &spec.boot {
        BootSource::Kernel { kernel, initramfs, cmdline } => {
            let initramfs = initramfs.as_deref().map(Path::new);
            boot::load_pvh_file(memory, Path::new(kernel), initramfs, cmdline, context.vcpus)
        }
        BootSource::Workload { cmdline } => {
            boot::load_workload(memory, cmdline, context.vcpus, context.tsc_khz)
        }
    })
}

/// The VM that `spec` asks for, with the CPU it had where it comes from.
pub fn config(dir: &VmDir, spec: &VmSpec, cpu: Option<CpuModel>) -> Result<VmConfig, VmmError> {
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
    Ok(config)
}

fn console(dir: &VmDir) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.console())
}
