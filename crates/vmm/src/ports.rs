//! The guest's I/O ports. Nothing answers on most: reads are all ones, writes vanish.

use std::sync::Arc;

use crate::pci::{CONFIG_PORTS, PciBus};
use crate::serial::{COM1, PORTS, SerialPort};

/// The keyboard controller's command port, which PCs are reset by.
const I8042_COMMAND: u16 = 0x64;
/// The command that pulses the CPU's reset line.
const I8042_RESET: u8 = 0xfe;
/// The keyboard controller's data port.
const I8042_DATA: u16 = 0x60;

/// What a write to a port asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortWrite {
    /// Nothing more.
    Done,
    /// The guest resets itself.
    Reset,
}

/// All ports with somebody behind them.
#[derive(Debug)]
pub(crate) struct Ports {
    serial: Arc<SerialPort>,
    pci: Option<Arc<PciBus>>,
}

impl Ports {
    pub(crate) fn new(serial: Arc<SerialPort>, pci: Option<Arc<PciBus>>) -> Self {
        Self { serial, pci }
    }

    /// `data` is one access, or a string instruction's several to the same port; all devices here but
    /// PCI's configuration are a byte wide, so both are bytes one after another; nobody configures PCI by strings.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            COM1.. if port - COM1 < PORTS => {
                let register = (port - COM1) as u8;
                data.iter_mut().for_each(|byte| *byte = self.serial.read(register));
            }
            _ if CONFIG_PORTS.contains(&port) => match &self.pci {
                Some(pci) => pci.read_port(port, data),
                None => data.fill(0xff),
            },
            // No key, no output waiting, so that a reset by keyboard controller goes ahead at once.
            I8042_COMMAND | I8042_DATA => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    pub(crate) fn write(&self, port: u16, data: &[u8]) -> PortWrite {
        match port {
            COM1.. if port - COM1 < PORTS => {
                let register = (port - COM1) as u8;
                data.iter().for_each(|byte| self.serial.write(register, *byte));
                PortWrite::Done
            }
            _ if CONFIG_PORTS.contains(&port) => {
                if let Some(pci) = &self.pci {
                    pci.write_port(port, data);
                }
                PortWrite::Done
            }
            I8042_COMMAND if data.contains(&I8042_RESET) => PortWrite::Reset,
            _ => PortWrite::Done,
        }
    }
}
