use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::PciFunction;
use super::host_bridge::HostBridge;

/// CONFIG_ADDRESS and CONFIG_DATA of configuration mechanism 1 (PCI 3.0, 3.2.2.3.2), 4 bytes each.
pub(crate) const CONFIG_PORTS: Range<u16> = 0xcf8..0xd00;
/// The first port of CONFIG_DATA.
const CONFIG_DATA: u16 = 0xcfc;
/// CONFIG_ADDRESS: CONFIG_DATA accesses a configuration space.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: what is not reserved, and can be written.
const WRITABLE: u32 = ENABLE | 0x00ff_fffc;
/// Slots of a bus.
const SLOTS: usize = 32;

/// Bus 0: a host bridge in slot 0 and the devices after it.
pub(crate) struct PciBus {
    address: AtomicU32,
    slots: Vec<Arc<dyn PciFunction>>,
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl PciBus {
    /// Slots for devices.
    pub(crate) const DEVICES: usize = SLOTS - 1;

    /// A bus with those devices from slot 1 on, at most [`DEVICES`](Self::DEVICES).
    pub(crate) fn new(devices: impl IntoIterator<Item = Arc<dyn PciFunction>>) -> Self {
        let bridge: Arc<dyn PciFunction> = Arc::new(HostBridge::new());
        Self { address: AtomicU32::new(0), slots: [bridge].into_iter().chain(devices).collect() }
    }

    /// Reads from [`CONFIG_PORTS`]. CONFIG_ADDRESS answers to dwords alone: narrower accesses are another
    /// device's on real chipsets, and nobody's here.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if port == CONFIG_PORTS.start && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
        } else if let Some((function, register)) = self.selected(port, data.len()) {
            function.read_config(register, data);
        }
    }

    /// Writes to [`CONFIG_PORTS`].
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) {
        if let (0xcf8, Ok(address)) = (port, data.try_into()) {
            self.address.store(u32::from_le_bytes(address) & WRITABLE, Ordering::Relaxed);
        } else if let Some((function, register)) = self.selected(port, data.len()) {
            function.write_config(register, data);
        }
    }

    /// Reads memory that isn't RAM. Where nobody is, the bus reads as ones.
    pub(crate) fn read_memory(&self, address: u64, data: &mut [u8]) {
        if !self.slots.iter().any(|function| function.read_memory(address, data)) {
            data.fill(0xff);
        }
    }

    /// Writes memory that isn't RAM.
    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) {
        self.slots.iter().any(|function| function.write_memory(address, data));
    }

    /// CONFIG_ADDRESS, which a guest may have written and not used yet.
    pub(crate) fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// # Errors
    /// In words, when it can't be what [`address`](Self::address) gave.
    pub(crate) fn restore_address(&self, address: u32) -> Result<(), String> {
        if address & !WRITABLE != 0 {
            return Err(format!("{address:#x} has reserved bits of CONFIG_ADDRESS"));
        }
        self.address.store(address, Ordering::Relaxed);
        Ok(())
    }

    /// The function and the register that an access of `len` bytes to CONFIG_DATA is for, if it is for any.
    fn selected(&self, port: u16, len: usize) -> Option<(&dyn PciFunction, u8)> {
        let byte = usize::from(port.checked_sub(CONFIG_DATA)?);
        let address = self.address();
        let bus_and_function = address & 0x00ff_0700;
        if !matches!(len, 1 | 2 | 4) || byte + len > 4 || address & ENABLE == 0 || bus_and_function != 0 {
            return None;
        }
        let function = self.slots.get((address >> 11) as usize & (SLOTS - 1))?;
        Some((&**function, (address & 0xfc) as u8 + byte as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> PciBus {
        PciBus::new([])
    }

    fn read<const N: usize>(bus: &PciBus, port: u16) -> [u8; N] {
        let mut data = [0; N];
        bus.read_port(port, &mut data);
        data
    }

    #[test]
    fn the_bridge_is_found_as_linux_probes_for_mechanism_1() {
        let bus = bus();
        // A byte to 0xCFB is not for the address register.
        bus.write_port(0xcfb, &[1]);
        bus.write_port(0xcf8, &0x8000_0000u32.to_le_bytes());
        assert_eq!(read(&bus, 0xcf8), 0x8000_0000u32.to_le_bytes());
        assert_eq!(read(&bus, 0xcfc), 0x8086u16.to_le_bytes());
        assert_eq!(read(&bus, 0xcfe), 0x0d57u16.to_le_bytes());
        bus.write_port(0xcf8, &0x8000_0008u32.to_le_bytes());
        assert_eq!(read::<1>(&bus, 0xcff), [6], "a bridge");
        assert_eq!(read::<2>(&bus, 0xcfe), [0, 6]);
    }

    #[test]
    fn where_nobody_is_the_bus_reads_as_ones() {
        let bus = bus();
        let absent = [0, 0x8000_0800, 0x8000_0100, 0x8001_0000, 0x0000_0000u32];
        for address in absent {
            bus.write_port(0xcf8, &address.to_le_bytes());
            assert_eq!(read::<4>(&bus, 0xcfc), [0xff; 4], "{address:#x}");
            bus.write_port(0xcfc, &[0; 4]);
        }
        bus.write_port(0xcf8, &0x8000_0000u32.to_le_bytes());
        assert_eq!(read::<4>(&bus, 0xcfe), [0xff; 4], "it reaches beyond the register");
        assert_eq!(read::<3>(&bus, 0xcfc), [0xff; 3]);
        let mut data = [0; 8];
        bus.read_memory(0xc000_0000, &mut data);
        assert_eq!(data, [0xff; 8]);
    }

    #[test]
    fn the_address_is_state() {
        let bus = bus();
        bus.write_port(0xcf8, &u32::MAX.to_le_bytes());
        let other = PciBus::new([]);
        other.restore_address(bus.address()).unwrap();
        assert_eq!(other.address(), 0x80ff_fffc);
        assert!(other.restore_address(1).is_err());
    }
}
