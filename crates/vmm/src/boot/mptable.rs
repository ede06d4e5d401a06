//! The table that tells a kernel without ACPI of its processors and interrupt lines: Intel's MultiProcessor
//! Specification 1.4, chapter 4.
//!
//! It describes what KVM's in-kernel interrupt controllers are: a local APIC per vCPU whose id is the vCPU's index,
//! an I/O APIC whose inputs are the 16 ISA interrupts, and the PIC behind the first local APIC.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::Memory;
use crate::MAX_VCPUS;
use crate::layout::{CONVENTIONAL_END, IO_APIC, LOCAL_APIC};

/// Where kernels look first: the last KiB of conventional memory.
const FLOATING_POINTER: u64 = CONVENTIONAL_END;
const TABLE: u64 = FLOATING_POINTER + 16;
const HEADER_SIZE: usize = 44;
/// Version that KVM's local APIC reports.
const APIC_VERSION: u8 = 0x14;
/// Version that KVM's I/O APIC reports.
const IO_APIC_VERSION: u8 = 0x11;
const ISA_INTERRUPTS: u8 = 16;

/// Entry types of section 4.3.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC_ENTRY: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// Interrupt types of table 4-10.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// Writes the table for so many vCPUs, at most [`MAX_VCPUS`].
pub(super) fn write(memory: &Memory, vcpus: u32) -> Result<(), GuestMemoryError> {
    let table = table(vcpus.min(MAX_VCPUS) as u8);
    memory.write_slice(&table, GuestAddress(TABLE))?;
    memory.write_slice(&floating_pointer(), GuestAddress(FLOATING_POINTER))
}

fn floating_pointer() -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(TABLE as u32).to_le_bytes());
    pointer[8] = 1; // length in paragraphs
    pointer[9] = 4; // version 1.4
    pointer[10] = checksum(&pointer);
    pointer
}

fn table(processors: u8) -> Vec<u8> {
    let io_apic_id = processors;
    let mut entries: Vec<Vec<u8>> = (0..processors).map(processor).collect();
    entries.push([&[BUS, 0][..], b"ISA   "].concat());
    entries.push([&[IO_APIC_ENTRY, io_apic_id, IO_APIC_VERSION, 1][..], &IO_APIC.to_le_bytes()].concat());
    entries.extend((0..ISA_INTERRUPTS).map(|irq| vec![IO_INTERRUPT, INT, 0, 0, 0, irq, io_apic_id, irq]));
    entries.push(vec![LOCAL_INTERRUPT, EXT_INT, 0, 0, 0, 0, 0, 0]);
    entries.push(vec![LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, 0xff, 1]);

    let count = entries.len() as u16;
    let length = HEADER_SIZE + entries.iter().map(Vec::len).sum::<usize>();
    let mut table = Vec::with_capacity(length);
    table.extend(b"PCMP");
    table.extend((length as u16).to_le_bytes());
    table.extend([4, 0]); // version 1.4, checksum
    table.extend(b"MIGRATED");
    table.extend(b"VM          ");
    table.extend([0; 6]); // no table of the manufacturer's own
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]); // no extended table
    table.extend(entries.concat());
    table[7] = checksum(&table);
    table
}

fn processor(id: u8) -> Vec<u8> {
    const ENABLED: u8 = 1;
    const BOOTSTRAP: u8 = 2;
    /// Family 6: kernels ask CPUID for the truth.
    const SIGNATURE: u32 = 0x600;
    /// FPU and APIC, as in CPUID leaf 1 EDX.
    const FEATURES: u32 = 0x201;
    let flags = if id == 0 { ENABLED | BOOTSTRAP } else { ENABLED };
    let mut entry = vec![PROCESSOR, id, APIC_VERSION, flags];
    entry.extend(SIGNATURE.to_le_bytes());
    entry.extend(FEATURES.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// What makes all bytes add up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn lengths_counts_and_checksums_agree() {
        assert_eq!(sum(&floating_pointer()), 0);
        for processors in [1, 2, 254] {
            let table = table(processors);
            assert_eq!(sum(&table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            let mut entries = 0;
            let mut at = HEADER_SIZE;
            while at < table.len() {
                at += if table[at] == PROCESSOR { 20 } else { 8 };
                entries += 1;
            }
            assert_eq!(at, table.len());
            assert_eq!(entries, u16::from_le_bytes([table[34], table[35]]));
            // Below the BIOS, where kernels would take it for another.
            assert!(TABLE + (table.len() as u64) < 0xf_0000);
        }
    }
}
