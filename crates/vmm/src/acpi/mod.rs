//! What tells a stock kernel of the machine, and lets it be switched off: ACPI tables and the hardware they name.
//!
//! The machine has ACPI's *fixed hardware*, which every kernel can drive without interpreting anything: event
//! registers with a power button, a control register to sleep by, and a reset register ([`pm`]). The tables say
//! where those are (FADT), which processors and interrupt lines there are (MADT), and which devices no bus tells
//! of (DSDT). What is not there is said not to be: no legacy timer of power management, no CMOS clock (guests have
//! kvmclock), no VGA and no keyboard controller, so that no kernel waits for one of them.

mod dsdt;
pub(crate) mod pm;
mod tables;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout::ACPI_TABLES;

/// Who made the tables.
const OEM_ID: [u8; 6] = *b"MIGRTD";
/// Of which kind they are.
const OEM_TABLE_ID: [u8; 8] = *b"MIGRATED";
/// Version of our tables.
const OEM_REVISION: u32 = 1;
/// The FACS must lie on a multiple of this (ACPI 6.5, 5.2.10); for the others 16 would do.
const ALIGNMENT: u64 = 64;

/// Writes all tables for so many vCPUs into guest RAM and returns the address of the first, the RSDP.
pub(crate) fn write(memory: &impl GuestMemoryBackend, vcpus: u32) -> Result<u64, GuestMemoryError> {
    // The RSDP is the first in memory and the last to be known.
    let mut room = Room { memory, next: ACPI_TABLES + (Rsdp::len() as u64).next_multiple_of(ALIGNMENT) };
    let facs = room.put(&FACS::new())?;
    let dsdt = room.put(&dsdt::dsdt())?;
    let fadt = room.put(&tables::fadt(facs, dsdt))?;
    let madt = room.put(&tables::madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = room.put(&xsdt)?;
    memory.write_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)), GuestAddress(ACPI_TABLES))?;
    Ok(ACPI_TABLES)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Where tables are put one behind another.
struct Room<'a, M> {
    memory: &'a M,
    next: u64,
}

impl<M: GuestMemoryBackend> Room<'_, M> {
    fn put(&mut self, table: &dyn Aml) -> Result<u64, GuestMemoryError> {
        let (at, table) = (self.next, bytes(table));
        self.memory.write_slice(&table, GuestAddress(at))?;
        self.next = (at + table.len() as u64).next_multiple_of(ALIGNMENT);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::layout::HIGH_MEMORY;

    fn read(memory: &GuestMemoryMmap<()>, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn assert_sums_to_zero(bytes: &[u8]) {
        assert_eq!(bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
    }

    /// The table at `at`, which says its own length.
    fn table(memory: &GuestMemoryMmap<()>, at: u64, signature: &[u8]) -> Vec<u8> {
        let length = number(&read(memory, at + 4, 4)) as usize;
        let table = read(memory, at, length);
        assert_eq!(&table[..4], signature);
        assert!(at >= ACPI_TABLES && at + (length as u64) <= HIGH_MEMORY, "{at:#x}");
        table
    }

    #[test]
    fn each_table_is_found_from_the_first_and_adds_up() {
        for vcpus in [1, 8, 254] {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
            let rsdp = read(&memory, write(&memory, vcpus).unwrap(), 36);
            assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
            assert_sums_to_zero(&rsdp[..20]);
            assert_sums_to_zero(&rsdp);

            let xsdt = table(&memory, number(&rsdp[24..32]), b"XSDT");
            let fadt = table(&memory, number(&xsdt[36..44]), b"FACP");
            let madt = table(&memory, number(&xsdt[44..52]), b"APIC");
            let dsdt = table(&memory, number(&fadt[140..148]), b"DSDT");
            for table in [&xsdt, &fadt, &madt, &dsdt] {
                assert_sums_to_zero(table);
            }
            let facs = number(&fadt[36..40]);
            assert_eq!((table(&memory, facs, b"FACS").len(), facs % ALIGNMENT), (64, 0));

            let mut local_apics = Vec::new();
            let mut at = 44;
            while at < madt.len() {
                if madt[at] == 0 {
                    local_apics.push(u32::from(madt[at + 3]));
                }
                at += usize::from(madt[at + 1]);
            }
            assert_eq!(at, madt.len());
            assert_eq!(local_apics, (0..vcpus).collect::<Vec<_>>());
        }
    }
}
