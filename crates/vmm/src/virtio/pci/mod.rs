//! Virtio over PCI (virtio 1.3, section 4.1): modern devices with MSI-X and without INTx.

mod common;
mod doorbells;
mod interrupts;
mod registers;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use migrated_kernel::Event;
use parking_lot::Mutex;

use super::endpoint::{Endpoint, StatusChange};
use super::{DeviceKind, DeviceMemory, Shared, VirtioDevice};
use crate::layout::PCI_WINDOW;
use crate::pci::{ConfigSpace, Identity, PciFunction};
use common::{Common, Selectors};
use doorbells::Doorbells;
pub(in crate::virtio) use interrupts::MsixInterrupts;
use registers::{BAR_BYTES, COMMON, Capabilities, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY};

/// The vendor id of virtio devices.
const VENDOR: u16 = 0x1af4;
/// The device id of a modern device is this and virtio's own number.
const FIRST_DEVICE: u16 = 0x1040;
/// The subsystem id of modern devices, as QEMU has it; at least 0x40 says that it is none of the old ones.
const SUBSYSTEM: u16 = 0x1100;

/// A virtio device as a function on the PCI bus.
///
/// `selectors` is locked before the endpoint, and the interrupts after all others. `space` is never held with
/// the endpoint, which may wait for a page in post-copy: every access to any device asks all spaces.
pub(crate) struct VirtioPci {
    space: Mutex<Placed>,
    selectors: Mutex<Selectors>,
    shared: Arc<Shared>,
    kind: DeviceKind,
    capabilities: Capabilities,
}

/// The configuration space, and what follows it.
struct Placed {
    space: ConfigSpace,
    doorbells: Doorbells,
}

impl Placed {
    /// The BAR may have moved, or answer no longer.
    fn follow(&mut self) {
        let base = self.space.bar().map(|bar| bar.start + NOTIFY);
        self.doorbells.place(base);
    }
}

impl VirtioPci {
    /// The device in that slot, counted from 1.
    ///
    /// # Errors
    /// The kernel's, when there are too many descriptors.
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        slot: usize,
        vm: Arc<VmFd>,
        memory: Arc<DeviceMemory>,
    ) -> io::Result<Self> {
        let kind = device.kind();
        let identity = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + kind.id,
            revision: 1,
            class: kind.pci_class,
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
        };
        let queues = device.queue_sizes().len();
        let events = (0..queues).map(|_| Event::new()).collect::<io::Result<Arc<[_]>>>()?;
        let bar = PCI_WINDOW.start as u32 + (slot as u32 - 1) * BAR_BYTES;
        let mut space = ConfigSpace::new(identity).with_bar(bar, BAR_BYTES);
        let capabilities = Capabilities::add(&mut space, queues);
        let mut placed = Placed { space, doorbells: Doorbells::new(vm.clone(), events.clone()) };
        placed.follow();
        Ok(Self {
            space: Mutex::new(placed),
            selectors: Mutex::default(),
            shared: Arc::new(Shared {
                endpoint: Mutex::new(Endpoint::new(device)),
                memory,
                interrupts: MsixInterrupts::new(vm, queues),
                doorbells: events,
                wake: Arc::new(Event::new()?),
            }),
            kind,
            capabilities,
        })
    }

    pub(crate) fn kind(&self) -> DeviceKind {
        self.kind
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where in the BAR an address is.
    fn offset(&self, address: u64) -> Option<u64> {
        let bar = self.space.lock().space.bar()?;
        bar.contains(&address).then(|| address - bar.start)
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Shared { endpoint, memory, interrupts, .. } = &*self.shared;
        match offset {
            COMMON.. if offset < ISR => {
                let selectors = &mut self.selectors.lock();
                let endpoint = &mut endpoint.lock();
                Common { endpoint, selectors, interrupts, memory }.read(offset, data);
            }
            ISR => data[0] = interrupts.take_isr(),
            DEVICE.. if offset < NOTIFY => endpoint.lock().device.read_config(offset - DEVICE, data),
            MSIX_TABLE.. if offset < MSIX_PENDING => {
                interrupts.with_msix(|msix, _| msix.read_table((offset - MSIX_TABLE) as usize, data));
            }
            MSIX_PENDING.. => {
                interrupts.with_msix(|msix, _| msix.read_pending((offset - MSIX_PENDING) as usize, data));
            }
            _ => {}
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        let Shared { endpoint, memory, interrupts, doorbells, wake } = &*self.shared;
        match offset {
            COMMON.. if offset < ISR => {
                let selectors = &mut self.selectors.lock();
                let endpoint = &mut endpoint.lock();
                let change = Common { endpoint, selectors, interrupts, memory }.write(offset, data);
                if change == StatusChange::Activated {
                    wake.signal();
                }
            }
            DEVICE.. if offset < NOTIFY => endpoint.lock().device.write_config(offset - DEVICE, data),
            NOTIFY.. if offset < MSIX_TABLE => {
                let (queue, rest) =
                    ((offset - NOTIFY) / Doorbells::STRIDE, (offset - NOTIFY) % Doorbells::STRIDE);
                if let (Some(doorbell), 0) = (doorbells.get(queue as usize), rest) {
                    doorbell.signal();
                }
            }
            MSIX_TABLE.. if offset < MSIX_PENDING => {
                interrupts.with_msix(|msix, due| msix.write_table((offset - MSIX_TABLE) as usize, data, due));
            }
            _ => {}
        }
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, register: u8, data: &mut [u8]) {
        let target = {
            let placed = self.space.lock();
            placed.space.read(register, data);
            self.capabilities.window_target(&placed.space)
        };
        let Some(at) = register.checked_sub(self.capabilities.window()).filter(|at| *at < 4) else { return };
        if let Some((offset, bytes)) = target {
            let mut window = [0; 4];
            self.read_bar(offset, &mut window[..bytes]);
            data.copy_from_slice(&window[usize::from(at)..usize::from(at) + data.len()]);
        }
    }

    fn write_config(&self, register: u8, data: &[u8]) {
        let target = {
            let mut placed = self.space.lock();
            placed.space.write(register, data);
            placed.follow();
            let control = placed.space.word(self.capabilities.msix_control);
            self.shared.interrupts.with_msix(|msix, due| msix.set_control(control, due));
            self.capabilities.window_target(&placed.space)
        };
        let Some((offset, bytes)) = target.filter(|_| register == self.capabilities.window()) else { return };
        if let Some(data) = data.get(..bytes) {
            self.write_bar(offset, data);
        }
    }

    fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        let offset = self.offset(address);
        offset.inspect(|offset| self.read_bar(*offset, data)).is_some()
    }

    fn write_memory(&self, address: u64, data: &[u8]) -> bool {
        let offset = self.offset(address);
        offset.inspect(|offset| self.write_bar(*offset, data)).is_some()
    }
}
