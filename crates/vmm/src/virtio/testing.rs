//! Memory, interrupts and a driver's hand for tests of devices.

use std::mem;

use migrated_guest::{GuestRam, VmmWrites};
use parking_lot::Mutex;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{DeviceMemory, Interrupts};

/// Guest RAM of a few MiB from address 0 on, with the log of what devices write to it.
pub(crate) struct Ram {
    pub memory: DeviceMemory,
    pub guest: GuestRam,
    pub writes: VmmWrites,
}

impl Ram {
    pub(crate) fn new(bytes: usize) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap();
        let guest = GuestRam::new(memory.clone()).unwrap();
        let writes = VmmWrites::new(guest.layout());
        Self { memory: DeviceMemory::new(memory, writes.clone()), guest, writes }
    }
}

/// An interrupt that a device sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    Queue(usize),
    Config,
}

/// All interrupts that were sent.
#[derive(Debug, Default)]
pub(crate) struct Sent(Mutex<Vec<Interrupt>>);

impl Sent {
    pub(crate) fn take(&self) -> Vec<Interrupt> {
        mem::take(&mut *self.0.lock())
    }
}

impl Interrupts for Sent {
    fn queue(&self, queue: usize) {
        self.0.lock().push(Interrupt::Queue(queue));
    }

    fn config(&self) {
        self.0.lock().push(Interrupt::Config);
    }
}
