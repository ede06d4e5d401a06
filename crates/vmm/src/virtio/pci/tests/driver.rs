//! A driver as a guest has one: it knows ports, memory and what virtio's specification says.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::pci::PciBus;

pub const ACKNOWLEDGE: u8 = 1;
pub const DRIVER: u8 = 2;
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 0x40;
pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
/// Entries of the queues that it sets up.
pub const SIZE: u16 = 16;
/// What a request's buffer holds.
pub const BUFFER: u64 = 64;
const WRITE: u16 = 2;

/// A driver of the device in one slot.
pub struct Driver<'a> {
    pub bus: &'a PciBus,
    memory: &'a GuestMemoryMmap<()>,
    slot: u32,
    common: u64,
    pub isr: u64,
    pub device: u64,
    notify: u64,
    stride: u64,
    table: u64,
    pub pending: u64,
    msix: u8,
    pub window: u8,
}

impl<'a> Driver<'a> {
    /// Finds the device's registers by its BAR and its capabilities.
    pub fn new(bus: &'a PciBus, memory: &'a GuestMemoryMmap<()>, slot: u32) -> Self {
        let bar = Self::at(bus, memory, slot, 0).dword(0x10);
        Self::at(bus, memory, slot, bar.into())
    }

    /// The same, with a BAR that lies there if anywhere.
    pub fn at(bus: &'a PciBus, memory: &'a GuestMemoryMmap<()>, slot: u32, bar: u64) -> Self {
        let mut driver = Self {
            bus,
            memory,
            slot,
            common: 0,
            isr: 0,
            device: 0,
            notify: 0,
            stride: 0,
            table: 0,
            pending: 0,
            msix: 0,
            window: 0,
        };
        let mut at = driver.config::<1>(0x34)[0];
        while at != 0 {
            let [id, next, _, sort] = driver.config(at);
            let place = bar + u64::from(driver.dword(at + 8));
            match (id, sort) {
                (0x11, _) => {
                    driver.msix = at;
                    driver.table = bar + u64::from(driver.dword(at + 4));
                    driver.pending = place;
                }
                (0x09, 1) => driver.common = place,
                (0x09, 2) => (driver.notify, driver.stride) = (place, driver.dword(at + 16).into()),
                (0x09, 3) => driver.isr = place,
                (0x09, 4) => driver.device = place,
                (0x09, 5) => driver.window = at,
                other => panic!("{other:x?}"),
            }
            at = next;
        }
        driver
    }

    pub fn config<const N: usize>(&self, register: u8) -> [u8; N] {
        self.select(register);
        let mut data = [0; N];
        self.bus.read_port(0xcfc + u16::from(register & 3), &mut data);
        data
    }

    pub fn dword(&self, register: u8) -> u32 {
        u32::from_le_bytes(self.config(register))
    }

    pub fn set_config(&self, register: u8, data: &[u8]) {
        self.select(register);
        self.bus.write_port(0xcfc + u16::from(register & 3), data);
    }

    fn select(&self, register: u8) {
        let address = 1 << 31 | self.slot << 11 | u32::from(register & !3);
        self.bus.write_port(0xcf8, &address.to_le_bytes());
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        self.bus.read_memory(at, &mut data);
        data
    }

    pub fn write(&self, at: u64, data: &[u8]) {
        self.bus.write_memory(at, data);
    }

    pub fn common<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.read(self.common + offset)
    }

    pub fn set_common(&self, offset: u64, data: &[u8]) {
        self.write(self.common + offset, data);
    }

    pub fn status(&self) -> u8 {
        self.common::<1>(0x14)[0]
    }

    /// Sets bits of the status, and returns what it has become.
    pub fn add_status(&self, bits: u8) -> u8 {
        self.set_common(0x14, &[self.status() | bits]);
        self.status()
    }

    pub fn reset(&self) {
        self.set_common(0x14, &[0]);
        assert_eq!(self.status(), 0);
    }

    pub fn offered(&self) -> u64 {
        self.set_common(0, &0u32.to_le_bytes());
        let low = u32::from_le_bytes(self.common(4));
        self.set_common(0, &1u32.to_le_bytes());
        u64::from(low) | u64::from(u32::from_le_bytes(self.common(4))) << 32
    }

    pub fn accept(&self, features: u64) -> u8 {
        self.add_status(ACKNOWLEDGE | DRIVER);
        for half in 0..2u32 {
            self.set_common(8, &half.to_le_bytes());
            self.set_common(0xc, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.add_status(FEATURES_OK)
    }

    /// Lays a queue's rings from `at` on, one page each, and gives it `SIZE` buffers a page each after them.
    pub fn set_up_queue(&self, queue: u16, at: u64) {
        self.set_common(0x16, &queue.to_le_bytes());
        self.set_common(0x18, &SIZE.to_le_bytes());
        for (register, page) in [(0x20, 0), (0x28, 1), (0x30, 2)] {
            let address = at + page * 0x1000;
            self.set_common(register, &(address as u32).to_le_bytes());
            self.set_common(register + 4, &((address >> 32) as u32).to_le_bytes());
        }
        for n in 0..u64::from(SIZE) {
            let descriptor = GuestAddress(at + 16 * n);
            self.memory.write_obj(at + 0x3000 + n * 0x1000, descriptor).unwrap();
            self.memory.write_obj(BUFFER as u32, GuestAddress(descriptor.0 + 8)).unwrap();
            self.memory.write_obj([WRITE, 0], GuestAddress(descriptor.0 + 12)).unwrap();
            self.memory.write_obj(n as u16, GuestAddress(at + 0x1000 + 4 + 2 * n)).unwrap();
        }
        self.memory.write_obj(0u32, GuestAddress(at + 0x1000)).unwrap();
        self.memory.write_obj(0u32, GuestAddress(at + 0x2000)).unwrap();
        self.set_common(0x1c, &1u16.to_le_bytes());
    }

    /// Drives the device's only queue, whose rings are at `at`, from the beginning.
    pub fn start(&self, features: u64, at: u64) {
        self.reset();
        assert_ne!(self.accept(features) & FEATURES_OK, 0);
        self.set_up_queue(0, at);
        assert_eq!(self.add_status(DRIVER_OK) & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
    }

    /// Offers all buffers of the queue that has been used up to `used`.
    pub fn offer(&self, at: u64, used: u16) {
        self.memory.write_obj(used.wrapping_add(SIZE), GuestAddress(at + 0x1000 + 2)).unwrap();
    }

    pub fn notify(&self, queue: u16) {
        self.write(self.notify + self.stride * u64::from(queue), &queue.to_le_bytes());
    }

    pub fn used(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at + 0x2000 + 2)).unwrap()
    }

    pub fn msix_control(&self, control: u16) {
        self.set_config(self.msix + 2, &control.to_le_bytes());
    }

    /// Has vector `number` send interrupt `vector` to APIC 0, masked or not.
    pub fn set_vector(&self, number: u64, vector: u32, masked: bool) {
        let entry = self.table + 16 * number;
        self.write(entry, &0xfee0_0000u64.to_le_bytes());
        self.write(entry + 8, &vector.to_le_bytes());
        self.write(entry + 12, &u32::from(masked).to_le_bytes());
    }

    pub fn use_vectors(&self, config: u16, queue: u16) {
        self.set_common(0x10, &config.to_le_bytes());
        self.set_common(0x16, &0u16.to_le_bytes());
        self.set_common(0x1a, &queue.to_le_bytes());
    }
}
