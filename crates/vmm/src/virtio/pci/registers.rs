//! What lies where in a device's BAR, and the capabilities that tell a driver so.

use super::doorbells::Doorbells;
use super::interrupts::vectors;
use crate::pci::{ConfigSpace, ENTRY_BYTES, Msix};

// A page for each, so that a guest can protect them from each other.
pub(super) const COMMON: u64 = 0x0000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const MSIX_TABLE: u64 = 0x4000;
pub(super) const MSIX_PENDING: u64 = 0x5000;
/// Bytes of the BAR.
pub(super) const BAR_BYTES: u32 = 0x8000;
/// Bytes of each of them but the last.
const PAGE: u64 = 0x1000;
const _: () = assert!(Msix::MAX_VECTORS * ENTRY_BYTES <= PAGE as usize);

const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
/// The sorts of virtio's capability (virtio 1.3, section 4.1.4).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Where in the configuration space the capabilities are that are more than a note.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capabilities {
    /// Message control of MSI-X.
    pub msix_control: u8,
    pci_cfg: u8,
}

impl Capabilities {
    /// Adds those of a device with that many queues.
    pub(super) fn add(space: &mut ConfigSpace, queues: usize) -> Self {
        let (body, writable) = Msix::capability(vectors(queues), MSIX_TABLE as u32, MSIX_PENDING as u32);
        let msix = space.add_capability(CAP_MSIX, &body, &writable);
        let stride = Doorbells::STRIDE as u32;
        space.add_capability(CAP_VENDOR, &virtio(COMMON_CFG, COMMON, 0x1000, None), &[]);
        space.add_capability(CAP_VENDOR, &virtio(ISR_CFG, ISR, 1, None), &[]);
        space.add_capability(CAP_VENDOR, &virtio(DEVICE_CFG, DEVICE, 0x1000, None), &[]);
        space.add_capability(CAP_VENDOR, &virtio(NOTIFY_CFG, NOTIFY, 0x1000, Some(stride)), &[]);
        let body = virtio(PCI_CFG, 0, 0, Some(0));
        let mut writable = vec![0; body.len()];
        // The BAR; offset, length and data.
        writable[2] = 0xff;
        writable[6..].fill(0xff);
        let pci_cfg = space.add_capability(CAP_VENDOR, &body, &writable);
        Self { msix_control: msix + 2, pci_cfg }
    }

    /// Where the data of VIRTIO_PCI_CAP_PCI_CFG is, a way to the BAR for those who can't map it.
    pub(super) const fn window(self) -> u8 {
        self.pci_cfg + 16
    }

    /// What that window shows now: offset in the BAR, and bytes. `None` when the driver has asked for what a
    /// driver must not (virtio 1.3, section 4.1.4.9.2).
    pub(super) fn window_target(self, space: &ConfigSpace) -> Option<(u64, usize)> {
        let mut bar = [0];
        space.read(self.pci_cfg + 4, &mut bar);
        let offset = space.dword(self.pci_cfg + 8);
        let bytes = space.dword(self.pci_cfg + 12);
        let fits = matches!(bytes, 1 | 2 | 4) && offset.is_multiple_of(bytes) && offset < BAR_BYTES;
        (bar == [0] && fits).then_some((offset.into(), bytes as usize))
    }
}

/// The body of a virtio capability: length, sort, BAR, id, padding, offset, length, and for some one dword more.
fn virtio(sort: u8, offset: u64, length: u32, more: Option<u32>) -> Vec<u8> {
    let bytes = if more.is_some() { 20 } else { 16 };
    let mut body = vec![bytes, sort, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more.into_iter().flat_map(u32::to_le_bytes));
    body
}
