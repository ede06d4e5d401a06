//! The PCI bus that a guest's devices are found on: bus 0, configured through ports 0xCF8 and 0xCFC.
//!
//! There is no firmware: functions have their addresses when the guest begins, and may be moved by it.

mod bus;
mod host_bridge;
mod msix;
mod space;

pub(crate) use bus::{CONFIG_PORTS, PciBus};
pub(crate) use msix::{ENTRY_BYTES, Message, Msix, MsixState};
pub(crate) use space::{ConfigSpace, Identity};

/// A function of a PCI device, function 0 of its slot. Called by vCPUs, several at a time.
pub(crate) trait PciFunction: Send + Sync {
    /// Reads `data.len()` bytes of the configuration space, all of one aligned dword.
    fn read_config(&self, register: u8, data: &mut [u8]);

    /// Writes to the configuration space; the bytes lie in one aligned dword.
    fn write_config(&self, register: u8, data: &[u8]);

    /// Reads memory-mapped registers if `address` is among them; `false` if not.
    fn read_memory(&self, address: u64, data: &mut [u8]) -> bool;

    /// Writes memory-mapped registers if `address` is among them; `false` if not.
    fn write_memory(&self, address: u64, data: &[u8]) -> bool;
}
