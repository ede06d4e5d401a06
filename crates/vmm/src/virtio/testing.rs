//! Memory, interrupts and a driver's hand for tests of devices.

mod driver;

use std::mem;

use migrated_guest::{GuestRam, VmmWrites};
use migrated_pages::PageSet;
use parking_lot::Mutex;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{DeviceMemory, Interrupts};

pub(crate) use driver::{Buffer, Driver};

/// Guest RAM of a few MiB from address 0 on, with the log of what devices write to it.
pub(crate) struct Ram {
    pub memory: DeviceMemory,
    pub guest: GuestRam,
    pub writes: VmmWrites,
}

impl Ram {
    pub(crate) fn new(bytes: usize) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap();
        Self::of(GuestRam::new(memory).unwrap())
    }

    pub(crate) fn of(guest: GuestRam) -> Self {
        let writes = VmmWrites::new(guest.layout());
        Self { memory: DeviceMemory::new(guest.memory().clone(), writes.clone()), guest, writes }
    }

    /// The pages that devices have written since the last time, by index in the first block.
    pub(crate) fn written(&self) -> Vec<u64> {
        let mut written = PageSet::empty(self.guest.layout());
        self.writes.take_into(&mut written);
        written.runs().flat_map(|run| run.first..run.first + run.count).collect()
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
