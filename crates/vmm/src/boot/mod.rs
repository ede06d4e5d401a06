//! Boot: a kernel and its initramfs into RAM, and what the kernel is told.
//!
//! Two kinds of kernels boot, told apart by their content: an ELF image (vmlinux) that carries Xen's note of its 32-bit
//! entry point, by the PVH protocol; and a bzImage (vmlinuz), by Linux's own 32-bit protocol.
//!
//! Everything is checked before anything is written, then: the kernel where it asks to be, the
//! initramfs at the end of low RAM, and below 1 MiB what the protocol hands over, the table of processors and ACPI's tables.
//! What is left to do is data, a [`BootPlan`]: which registers the vCPUs begin with.

mod bzimage;
mod elf;
mod error;
mod handover;
mod image;
mod mptable;
mod plan;
mod pvh;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use handover::Handover;
use image::Image;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

pub use error::{BootError, BzImageFault};
pub use plan::{BootPlan, BootProtocol};

use crate::acpi;
use crate::workload::{self, WorkloadParams};

/// Guest RAM as the VMM maps it.
type Memory = GuestMemoryMmap<()>;

/// Loads a kernel from a file into `memory`, which must be zero still.
///
/// # Errors
/// [`BootError`] names the file or the size that does not fit. Nothing was written then.
pub fn load_kernel_file(
    memory: &Memory,
    kernel: &Path,
    initramfs: Option<&Path>,
    cmdline: &str,
    vcpus: u32,
) -> Result<BootPlan, BootError> {
    let ram = total_bytes(memory);
    let kernel_name = kernel.display().to_string();
    let Some(image) = read_file(kernel, ram)? else {
        return Err(BootError::KernelTooLarge { kernel: kernel_name, ram });
    };
    let Some(path) = initramfs else {
        return load(memory, (&kernel_name, &image), None, cmdline, vcpus);
    };
    let initramfs = path.display().to_string();
    let Some(data) = read_file(path, ram)? else {
        return Err(BootError::InitramfsTooLarge { initramfs, ram });
    };
    load(memory, (&kernel_name, &image), Some((&initramfs, &data)), cmdline, vcpus)
}

/// Loads the built-in workload guest into `memory`, which must be zero still.
///
/// `tsc_khz` is the frequency of the guest's TSC in kHz (KVM_GET_TSC_KHZ).
///
/// # Errors
/// [`BootError::Workload`] when the command line asks for what is unknown or does not fit into RAM.
pub fn load_workload(
    memory: &Memory,
    cmdline: &str,
    vcpus: u32,
    tsc_khz: u32,
) -> Result<BootPlan, BootError> {
    let cmdline = format!("{cmdline} vcpus={vcpus} tsc_khz={tsc_khz}");
    let params: WorkloadParams = cmdline.parse()?;
    workload::check_fit(&params, handover::ram(memory).map(|range| (range.start, range.end)))?;
    let plan = load(memory, ("the workload guest", workload::image()), None, cmdline.trim(), vcpus)?;
    // Its vCPUs all begin at one place, see `entry.s`.
    Ok(BootPlan { ap_entry: Some(plan.entry), ..plan })
}

/// `kernel` and `initramfs` are each a name for messages and the bytes.
fn load(
    memory: &Memory,
    (name, image): (&str, &[u8]),
    initramfs: Option<(&str, &[u8])>,
    cmdline: &str,
    vcpus: u32,
) -> Result<BootPlan, BootError> {
    let ram = total_bytes(memory);
    let kernel = Image::parse(name, image)?;
    kernel.check_place(memory, name, ram)?;
    handover::check_cmdline(cmdline, kernel.cmdline_max())?;
    let module = match initramfs {
        None => None,
        Some((name, data)) => {
            let size = data.len() as u64;
            let address = handover::initramfs_address(memory, kernel.end(), kernel.initramfs_end(), size);
            let too_large = || BootError::InitramfsTooLarge { initramfs: name.into(), ram };
            Some((address.ok_or_else(too_large)?, data))
        }
    };

    kernel.load(memory, name)?;
    if let Some((address, data)) = module {
        memory.write_slice(data, GuestAddress(address)).map_err(BootError::GuestMemory)?;
    }
    mptable::write(memory, vcpus).map_err(BootError::GuestMemory)?;
    let rsdp = acpi::write(memory, vcpus).map_err(BootError::GuestMemory)?;
    handover::write(memory, cmdline).map_err(BootError::GuestMemory)?;
    let initramfs = module.map(|(address, data)| (address, data.len() as u64));
    let info = kernel.hand_over(memory, &Handover { rsdp, initramfs })?;
    Ok(BootPlan { entry: kernel.entry(), protocol: kernel.protocol(), info, ap_entry: None })
}

fn total_bytes(memory: &Memory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// The file's bytes, or `None` when it has more than `limit`.
fn read_file(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, BootError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        File::open(path)?.take(limit + 1).read_to_end(&mut data)?;
        Ok(data)
    };
    let data = read().map_err(|source| BootError::File { path: path.display().to_string(), source })?;
    Ok((data.len() as u64 <= limit).then_some(data))
}
