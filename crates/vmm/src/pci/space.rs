use std::ops::Range;

// Registers of a type 0 header (PCI 3.0, 6.1).
const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE: usize = 0x0c;
const BAR_0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where the header ends and capabilities begin.
const HEADER_END: usize = 0x40;

/// COMMAND: BARs in memory answer.
const MEMORY_ENABLE: u16 = 1 << 1;
/// COMMAND: the function may access memory. It is kept and not obeyed: rings that a driver has set up are its
/// wish already, and this bus has no bridge that would ask.
const BUS_MASTER: u16 = 1 << 2;
/// COMMAND: no INTx, of which there is none anyway.
const INTX_DISABLE: u16 = 1 << 10;
/// STATUS: there are capabilities.
const CAPABILITY_LIST: u16 = 1 << 4;

/// Bytes of a configuration space as mechanism 1 reaches it.
const BYTES: usize = 256;

/// What a function says that it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Base class, subclass, programming interface.
    pub class: u32,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// A function's configuration space: registers, and which bits of them can be written.
///
/// The sizing of a BAR needs nothing more: a BAR's bits below its size can't be written and read as zero.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    registers: [u8; BYTES],
    writable: [u8; BYTES],
    bar_size: u32,
    /// Where the next capability goes.
    free: usize,
    /// Where the place of the next capability is noted.
    link: usize,
}

impl ConfigSpace {
    /// One without capabilities and BARs, in which nothing can be written.
    pub(crate) fn new(identity: Identity) -> Self {
        let mut space = Self {
            registers: [0; BYTES],
            writable: [0; BYTES],
            bar_size: 0,
            free: HEADER_END,
            link: CAPABILITIES,
        };
        space.put(VENDOR, &identity.vendor.to_le_bytes());
        space.put(DEVICE, &identity.device.to_le_bytes());
        space.put(REVISION, &[identity.revision]);
        space.put(CLASS, &identity.class.to_le_bytes()[..3]);
        space.put(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        space.put(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        space
    }

    /// Gives it BAR 0, in memory, for `size` bytes, a power of two, at `address` to begin with. It answers
    /// from the beginning, as firmware would leave it.
    pub(crate) fn with_bar(mut self, address: u32, size: u32) -> Self {
        debug_assert!(size.is_power_of_two() && address.is_multiple_of(size));
        self.bar_size = size;
        self.put(BAR_0, &address.to_le_bytes());
        self.writable[BAR_0..BAR_0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
        self.put(COMMAND, &MEMORY_ENABLE.to_le_bytes());
        let command = MEMORY_ENABLE | BUS_MASTER | INTX_DISABLE;
        self.writable[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
        self.writable[CACHE_LINE] = 0xff;
        self.writable[INTERRUPT_LINE] = 0xff;
        self
    }

    /// Adds a capability: `body` is what follows its id and the link to the next, `writable` says which bits of
    /// it can be written, none past its end. Returns the register of its id.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.free;
        self.registers[self.link] = at as u8;
        self.put(STATUS, &CAPABILITY_LIST.to_le_bytes());
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at as u8
    }

    pub(crate) fn read(&self, register: u8, data: &mut [u8]) {
        let register = usize::from(register);
        data.copy_from_slice(&self.registers[register..register + data.len()]);
    }

    /// Writes what can be written of it.
    pub(crate) fn write(&mut self, register: u8, data: &[u8]) {
        for (at, value) in (usize::from(register)..).zip(data) {
            self.write_byte(at, *value);
        }
    }

    /// A 16-bit register.
    pub(crate) fn word(&self, register: u8) -> u16 {
        let mut bytes = [0; 2];
        self.read(register, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// A 32-bit register.
    pub(crate) fn dword(&self, register: u8) -> u32 {
        let mut bytes = [0; 4];
        self.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The addresses at which BAR 0 answers now.
    pub(crate) fn bar(&self) -> Option<Range<u64>> {
        let base = u64::from(self.dword(BAR_0 as u8));
        let enabled = self.word(COMMAND as u8) & MEMORY_ENABLE != 0;
        (enabled && self.bar_size > 0).then(|| base..base + u64::from(self.bar_size))
    }

    /// The bytes of which something can be written: all of its state.
    pub(crate) fn state(&self) -> Vec<u8> {
        self.variable().map(|at| self.registers[at]).collect()
    }

    /// # Errors
    /// In words, when it can't be what [`state`](Self::state) gave.
    pub(crate) fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let variable: Vec<_> = self.variable().collect();
        if variable.len() != state.len() {
            return Err(format!(
                "{} bytes of PCI configuration can be written, not {}",
                variable.len(),
                state.len()
            ));
        }
        for (at, value) in variable.into_iter().zip(state) {
            if (self.registers[at] ^ value) & !self.writable[at] != 0 {
                return Err(format!("PCI configuration byte {at:#x} can't be {value:#x}"));
            }
            self.registers[at] = *value;
        }
        Ok(())
    }

    fn variable(&self) -> impl Iterator<Item = usize> {
        (0..BYTES).filter(|at| self.writable[*at] != 0)
    }

    fn write_byte(&mut self, at: usize, value: u8) {
        let mask = self.writable[at];
        self.registers[at] = self.registers[at] & !mask | value & mask;
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.registers[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: 0x02_0001,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        ConfigSpace::new(identity).with_bar(0xc000_8000, 0x8000)
    }

    #[test]
    fn a_bar_is_sized_and_moved_as_pci_has_it() {
        let mut space = space();
        assert_eq!(space.bar(), Some(0xc000_8000..0xc001_0000));
        space.write(COMMAND as u8, &[0, 0]);
        assert_eq!(space.bar(), None, "memory is switched off");
        space.write(BAR_0 as u8, &u32::MAX.to_le_bytes());
        assert_eq!(space.dword(BAR_0 as u8), 0xffff_8000, "it is 32 KiB large");
        space.write(BAR_0 as u8, &0xd001_2345u32.to_le_bytes());
        space.write(COMMAND as u8, &[0xff, 0xff]);
        assert_eq!(space.word(COMMAND as u8), 0x406, "what can be written of it");
        assert_eq!(space.bar(), Some(0xd001_0000..0xd001_8000));
        space.write(BAR_0 as u8 + 3, &[0xff]);
        assert_eq!(space.bar(), Some(0xff01_0000..0xff01_8000), "by single bytes, too");
        for absent in 1..6 {
            space.write((BAR_0 + 4 * absent) as u8, &u32::MAX.to_le_bytes());
            assert_eq!(space.dword((BAR_0 + 4 * absent) as u8), 0);
        }
    }

    #[test]
    fn identity_can_be_read_and_not_written() {
        let mut space = space();
        for register in (0..16).chain(SUBSYSTEM_VENDOR as u8..CAPABILITIES as u8) {
            if ![4, 5, 6, 7, 12].contains(&register) {
                space.write(register, &[0xaa]);
            }
        }
        assert_eq!((space.word(0), space.word(2)), (0x1af4, 0x1041));
        assert_eq!(space.dword(8), 0x0200_0101);
        assert_eq!((space.word(0x2c), space.word(0x2e)), (0x1af4, 0x1100));
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        assert_eq!(space.word(STATUS as u8), 0);
        let first = space.add_capability(0x11, &[1, 2, 3], &[0xff]);
        let second = space.add_capability(0x09, &[4; 14], &[]);
        assert_eq!(space.word(STATUS as u8), CAPABILITY_LIST);
        assert_eq!((space.word(CAPABILITIES as u8), first, second), (0x40, 0x40, 0x48));
        assert_eq!((space.word(first), space.word(second)), (0x4811, 0x0009));
        space.write(first, &[0; 8]);
        assert_eq!(space.dword(first), 0x0200_4811);
    }

    #[test]
    fn what_can_be_written_is_its_state() {
        let mut space = space();
        space.add_capability(0x11, &[1, 0x80], &[0, 0xc0]);
        space.write(BAR_0 as u8, &0xd000_0000u32.to_le_bytes());
        space.write(INTERRUPT_LINE as u8, &[7]);
        space.write(0x43, &[0xff]);
        let mut other = self::space();
        other.add_capability(0x11, &[1, 0x80], &[0, 0xc0]);
        other.restore(&space.state()).unwrap();
        assert_eq!(other.registers, space.registers);
        assert!(other.restore(&space.state()[1..]).unwrap_err().contains("bytes"));
        for at in 0..space.state().len() {
            let mut state = space.state();
            state[at] ^= 0xff;
            match other.restore(&state) {
                Ok(()) => assert_eq!(other.state(), state),
                Err(reason) => assert!(reason.contains("can't be"), "{reason}"),
            }
        }
    }
}
