//! FADT: the fixed hardware. MADT: processors and interrupt controllers.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::{Aml, AmlSink};
use zerocopy::{Immutable, IntoBytes};

use super::pm::{CONTROL, EVENT, RESET, RESET_VALUE};
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::MAX_VCPUS;
use crate::layout::{IO_APIC, LOCAL_APIC, SCI};

/// IA-PC boot architecture flags (ACPI 6.5, table 5.11): there is no VGA, and no CMOS clock. Bit 1 is clear as well:
/// there is no keyboard controller to probe (that its port can reset the machine needs no probing).
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;
/// Bytes of the event block, status and enable registers of two bytes each, and of the control block.
const EVENT_LENGTH: u8 = 4;
const CONTROL_LENGTH: u8 = 2;

/// `facs` and `dsdt` are guest-physical addresses.
///
/// There is no SMI command port: the machine is always in ACPI mode.
pub(super) fn fadt(facs: u64, dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        // Both fit: the tables lie below 1 MiB.
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is fixed hardware (its flag is clear); there is no such button for sleep, nor a clock
        // that wakes.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = (SCI as u16).into();
    fadt.pm1a_evt_blk = u32::from(EVENT).into();
    fadt.pm1_evt_len = EVENT_LENGTH;
    fadt.x_pm1a_evt_blk = port(EVENT, EVENT_LENGTH * 8, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(CONTROL).into();
    fadt.pm1_cnt_len = CONTROL_LENGTH;
    fadt.x_pm1a_cnt_blk = port(CONTROL, CONTROL_LENGTH * 8, AccessSize::WordAccess);
    fadt.reset_reg = port(RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    // Larger than what any C2 and C3 may take: there is neither.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.finalize()
}

fn port(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}

/// A local APIC for each vCPU, whose id is the vCPU's index; the I/O APIC with the 16 ISA interrupts as its first
/// inputs, which is how KVM wires them.
pub(super) fn madt(vcpus: u32) -> MADT {
    let local = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    for id in 0..vcpus.min(MAX_VCPUS) as u8 {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt.add_structure(Structure::interrupt_override(SCI as u8));
    madt.add_structure(Structure::nmi());
    madt
}

/// Structures of the MADT that the crate has not.
#[derive(Clone, Copy, Immutable, IntoBytes)]
#[repr(transparent)]
struct Structure<const LENGTH: usize>([u8; LENGTH]);

impl Structure<10> {
    /// That ISA interrupt is active high and level-triggered, which others are not (ACPI 6.5, table 5.25 and 5.26).
    const fn interrupt_override(irq: u8) -> Self {
        const ACTIVE_HIGH: u8 = 0b01;
        const LEVEL: u8 = 0b11 << 2;
        Self([2, 10, 0, irq, irq, 0, 0, 0, ACTIVE_HIGH | LEVEL, 0])
    }
}

impl Structure<6> {
    /// NMI arrives at LINT1 of all local APICs (ACPI 6.5, table 5.28).
    const fn nmi() -> Self {
        Self([4, 6, 0xff, 0, 0, 1])
    }
}

impl<const LENGTH: usize> Aml for Structure<LENGTH> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}
