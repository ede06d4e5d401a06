//! The guest's address map: what lies where in guest-physical memory, which I/O ports answer, which interrupt
//! lines are whose.
//!
//! | guest-physical | what |
//! |---|---|
//! | below 0x9_fc00 | RAM; a loader's boot information lies there |
//! | 0x9_fc00..1 MiB | RAM that the memory map calls reserved: table of processors, ACPI tables |
//! | 1 MiB..3 GiB | RAM |
//! | 3 GiB..3.5 GiB | the window of PCI devices |
//! | 3.5 GiB..4 GiB | KVM's interrupt controllers, and its own pages |
//! | from 4 GiB on | RAM that found no room below |

use std::ops::Range;

/// Conventional memory ends here: firmware keeps its data area above, and kernels look for tables there.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// The ACPI tables begin here: the first place where a kernel that isn't told looks for them (ACPI 6.5, 5.2.5.1).
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Memory above the first MiB: kernels lie from here on.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// RAM below this guest-physical address; the rest of the first 4 GiB belongs to devices.
pub const LOW_RAM_END: u64 = 3 << 30;
/// RAM that found no room below goes on at this guest-physical address.
pub const HIGH_RAM_START: u64 = 4 << 30;
/// Where PCI devices have their registers.
pub const PCI_WINDOW: Range<u64> = LOW_RAM_END..0xe000_0000;
/// KVM's I/O APIC (KVM_CREATE_IRQCHIP).
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs (IA32_APIC_BASE after reset).
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// First I/O port of COM1.
pub const COM1: u16 = 0x3f8;
/// I/O ports that a 16550 has.
pub const COM1_PORTS: u16 = 8;
/// COM1's interrupt line.
pub const COM1_IRQ: u32 = 4;
/// First I/O port of power management: event registers, control register, reset register.
pub const PM_BASE: u16 = 0x600;
/// I/O ports of power management.
pub const PM_PORTS: u16 = 8;
/// The interrupt line of power management (SCI), level-triggered.
pub const SCI: u32 = 9;
