//! Common configuration (virtio 1.3, section 4.1.4.3): the registers by which a driver sets a device up.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::interrupts::MsixInterrupts;
use crate::virtio::DeviceMemory;
use crate::virtio::endpoint::{Endpoint, StatusChange};

/// Bytes of the registers, up to and with queue_reset.
pub(super) const BYTES: usize = 0x3c;

// Offsets of registers, with their widths in bytes where they are written.
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: usize = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: usize = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// Which of several a driver looks at, by its own choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Selectors {
    pub device_feature: u32,
    pub driver_feature: u32,
    pub queue: u16,
}

/// Whatever the common configuration is about.
pub(super) struct Common<'a> {
    pub endpoint: &'a mut Endpoint,
    pub selectors: &'a mut Selectors,
    pub interrupts: &'a MsixInterrupts,
    pub memory: &'a DeviceMemory,
}

impl Common<'_> {
    /// Reads registers, of any width and alignment. What lies past their end is zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = registers.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes a register in its own width; a 64-bit one in halves or as a whole.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> StatusChange {
        match data {
            _ if !offset.is_multiple_of(data.len() as u64) => {}
            [byte] if offset == DEVICE_STATUS => return self.set_status(*byte),
            [low, high] => self.write_word(offset, u16::from_le_bytes([*low, *high])),
            [a, b, c, d] => self.write_dword(offset, u32::from_le_bytes([*a, *b, *c, *d])),
            [low @ .., _, _, _, _] if low.len() == 4 => {
                self.write(offset, low);
                self.write(offset + 4, &data[4..]);
            }
            _ => {}
        }
        StatusChange::None
    }

    fn registers(&self) -> [u8; BYTES] {
        let mut registers = [0; BYTES];
        let mut put = |at: usize, bytes: &[u8]| registers[at..at + bytes.len()].copy_from_slice(bytes);
        let selectors = &*self.selectors;
        put(DEVICE_FEATURE_SELECT as usize, &selectors.device_feature.to_le_bytes());
        put(DEVICE_FEATURE, &half(self.endpoint.offered(), selectors.device_feature).to_le_bytes());
        put(DRIVER_FEATURE_SELECT as usize, &selectors.driver_feature.to_le_bytes());
        put(DRIVER_FEATURE as usize, &half(self.endpoint.features, selectors.driver_feature).to_le_bytes());
        put(CONFIG_MSIX_VECTOR as usize, &self.interrupts.config_vector().to_le_bytes());
        put(NUM_QUEUES, &(self.endpoint.queues.len() as u16).to_le_bytes());
        put(DEVICE_STATUS as usize, &[self.endpoint.status]);
        put(CONFIG_GENERATION, &[self.interrupts.generation()]);
        put(QUEUE_SELECT as usize, &selectors.queue.to_le_bytes());
        put(QUEUE_MSIX_VECTOR as usize, &self.interrupts.queue_vector(selectors.queue).to_le_bytes());
        // A queue that isn't there has size 0.
        if let Some(queue) = self.endpoint.queues.get(usize::from(selectors.queue)) {
            put(QUEUE_SIZE as usize, &queue.size().to_le_bytes());
            put(QUEUE_ENABLE as usize, &u16::from(queue.ready()).to_le_bytes());
            put(QUEUE_NOTIFY_OFF, &selectors.queue.to_le_bytes());
            put(QUEUE_DESC as usize, &queue.desc_table().to_le_bytes());
            put(QUEUE_DRIVER as usize, &queue.avail_ring().to_le_bytes());
            put(QUEUE_DEVICE as usize, &queue.used_ring().to_le_bytes());
        }
        registers
    }

    fn set_status(&mut self, value: u8) -> StatusChange {
        let change = self.endpoint.set_status(value);
        if change == StatusChange::Reset {
            self.interrupts.reset();
            *self.selectors = Selectors::default();
        }
        change
    }

    fn write_word(&mut self, offset: u64, value: u16) {
        let selected = self.selectors.queue;
        match offset {
            CONFIG_MSIX_VECTOR => self.interrupts.set_config_vector(value),
            QUEUE_SELECT => self.selectors.queue = value,
            // A size that can't be is ignored, and the driver reads what it was.
            QUEUE_SIZE => {
                self.configure(|queue| drop(queue.try_set_size(value)));
            }
            QUEUE_MSIX_VECTOR => self.interrupts.set_queue_vector(selected, value),
            QUEUE_ENABLE if value == 1 => self.endpoint.enable_queue(selected, self.memory, self.interrupts),
            _ => {}
        }
    }

    fn write_dword(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.selectors.device_feature = value,
            DRIVER_FEATURE_SELECT => self.selectors.driver_feature = value,
            DRIVER_FEATURE => {
                let select = self.selectors.driver_feature;
                // Features from 64 on are not offered, so a driver may only refuse them.
                if select < 2 {
                    self.endpoint.accept(with_half(self.endpoint.features, select, value));
                }
            }
            // An address that breaks a ring's alignment is ignored likewise.
            QUEUE_DESC.. if offset < QUEUE_DRIVER => self.configure(|queue| {
                let address = with_half(queue.desc_table(), select(offset), value);
                let _ = queue.try_set_desc_table_address(GuestAddress(address));
            }),
            QUEUE_DRIVER.. if offset < QUEUE_DEVICE => self.configure(|queue| {
                let address = with_half(queue.avail_ring(), select(offset), value);
                let _ = queue.try_set_avail_ring_address(GuestAddress(address));
            }),
            QUEUE_DEVICE.. if offset < QUEUE_DEVICE + 8 => self.configure(|queue| {
                let address = with_half(queue.used_ring(), select(offset), value);
                let _ = queue.try_set_used_ring_address(GuestAddress(address));
            }),
            _ => {}
        }
    }

    fn configure(&mut self, what: impl FnOnce(&mut Queue)) {
        if let Some(queue) = self.endpoint.configurable(self.selectors.queue) {
            what(queue);
        }
    }
}

/// Which half of a 64-bit register a dword at `offset` is.
const fn select(offset: u64) -> u32 {
    (offset as u32 / 4) % 2
}

/// The low (0) or high (1) 32 bits; there are no others.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// `value` with one half replaced.
const fn with_half(value: u64, select: u32, half: u32) -> u64 {
    let shift = 32 * select;
    value & !(0xffff_ffff << shift) | (half as u64) << shift
}
