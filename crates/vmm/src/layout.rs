//! The guest's address map: what lies where in guest-physical memory.

use std::ops::Range;

/// Where PCI devices have their registers.
pub const PCI_WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;
