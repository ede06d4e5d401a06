//! Virtio devices: what each of them does with its queues, and how a driver finds it.
//!
//! A device sees its queues, its configuration space and host file descriptors, and nothing of how a driver
//! finds it. It writes guest RAM through [`DeviceMemory`] alone, so that no write escapes a migration, and it is
//! called on one thread at a time, never while the guest is paused. `endpoint` is a device with what its driver has
//! told it, `pci` carries a driver's accesses there, `worker` is the thread that serves it.

mod balloon;
mod console;
mod device;
mod devices;
mod endpoint;
pub(crate) mod net;
mod pci;
mod queues;
mod rng;
mod shared;
#[cfg(test)]
pub(crate) mod testing;
mod worker;

use migrated_guest::VmmWrites;
use migrated_kernel::MarkedMemory;

pub use balloon::BalloonStatus;
pub(crate) use balloon::FreePages;
use balloon::{Balloon, BalloonControl};
use console::AgentConsole;
pub(crate) use device::{DeviceError, DeviceKind, Served, VirtioDevice, Watched};
pub(crate) use devices::Devices;
pub(crate) use pci::VirtioPci;
pub(crate) use queues::{Chain, Interrupts, Queues};
use shared::Shared;

/// Guest RAM as devices have it: what they write is sent again by a migration under way.
pub(crate) type DeviceMemory = MarkedMemory<VmmWrites>;
