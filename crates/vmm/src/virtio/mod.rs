//! Virtio devices: what each of them does with its queues.
//!
//! A device sees its queues, its configuration space and host file descriptors, and nothing of how a driver
//! finds it. It writes guest RAM through [`DeviceMemory`] alone, so that no write escapes a migration, and it is
//! called on one thread at a time, never while the guest is paused.

mod balloon;
mod console;
mod device;
mod queues;
#[cfg(test)]
pub(crate) mod testing;

use migrated_guest::VmmWrites;
use migrated_kernel::MarkedMemory;

pub use balloon::BalloonStatus;
pub(crate) use balloon::{Balloon, BalloonControl, FreePages};
pub(crate) use console::AgentConsole;
pub(crate) use device::{DeviceError, DeviceKind, Served, VirtioDevice, Watched};
pub(crate) use queues::{Chain, Interrupts, Queues};

/// Guest RAM as devices have it: what they write is sent again by a migration under way.
pub(crate) type DeviceMemory = MarkedMemory<VmmWrites>;
