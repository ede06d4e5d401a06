//! DSDT: the devices that no bus tells of, and how to switch the machine off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::pm::SLEEP_TYPE_OFF;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::layout::{COM1, COM1_IRQ, COM1_PORTS, PCI_WINDOW};

/// Bytes of a table's header (ACPI 6.5, table 5.4).
const HEADER: u32 = 36;
/// From revision 2 on integers have 64 bits.
const REVISION: u8 = 6;
/// PCI's configuration ports (PCI 3.0, 3.2.2.3.2).
const PCI_CONFIG: u16 = 0xcf8;

pub(super) fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&switched_off());
    dsdt.append_slice(&bytes(&Scope::new("_SB_".into(), vec![&Raw(pci()), &Raw(com1())])));
    dsdt
}

/// What to write into the control register's SLP_TYP to switch the machine off.
fn switched_off() -> Vec<u8> {
    let reserved = 0u8;
    let package = Package::new(vec![&SLEEP_TYPE_OFF, &reserved, &reserved, &reserved]);
    bytes(&Name::new("_S5_".into(), &package))
}

/// The PCI bus 0: its configuration ports, the ports that it passes on (none are in use), its window.
fn pci() -> Vec<u8> {
    let (start, last) = (PCI_WINDOW.start as u32, (PCI_WINDOW.end - 1) as u32);
    device(
        "PCI0",
        vec![
            &name("_HID", &EISAName::new("PNP0A03")),
            &name("_UID", &0u8),
            &name("_BBN", &0u8),
            &resources(vec![
                &AddressSpace::new_bus_number(0u16, 0),
                &IO::new(PCI_CONFIG, PCI_CONFIG, 1, 8),
                &AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, last, None),
            ]),
        ],
    )
}

fn com1() -> Vec<u8> {
    device(
        "COM1",
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &0u8),
            &resources(vec![
                &IO::new(COM1, COM1, 1, COM1_PORTS as u8),
                &Interrupt::new(true, true, false, false, COM1_IRQ),
            ]),
        ],
    )
}

fn resources(resources: Vec<&dyn Aml>) -> Name {
    name("_CRS", &ResourceTemplate::new(resources))
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Vec<u8> {
    bytes(&Device::new(Path::new(name), children))
}

/// What is encoded already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}
