use std::sync::Arc;

use migrated_kernel::Event;
use parking_lot::Mutex;

use super::DeviceMemory;
use super::endpoint::Endpoint;
use super::pci::MsixInterrupts;

/// What vCPUs and a device's worker have in common. Both work on the device itself with its lock held; nobody
/// holds that lock while it waits for an event.
pub(super) struct Shared {
    pub endpoint: Mutex<Endpoint>,
    pub memory: Arc<DeviceMemory>,
    pub interrupts: MsixInterrupts,
    /// Each queue's: its driver has notified it.
    pub doorbells: Arc<[Event]>,
    /// Any queue may have something, or the worker must end.
    pub wake: Arc<Event>,
}
