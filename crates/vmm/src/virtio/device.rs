use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::PollFlags;
use thiserror::Error;

use super::Queues;

/// What a device is, as far as everybody must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceKind {
    /// Virtio's number of the device (virtio 1.3, section 5), as VIRTIO_ID_NET.
    pub id: u16,
    /// Short name, for state sections, threads and logs: `net`.
    pub name: &'static str,
    /// PCI class code (base class, subclass, programming interface): 0x020000 is an Ethernet controller.
    pub pci_class: u32,
    /// Version of what [`VirtioDevice::save`] gives *and* of the features, queues and configuration layout that
    /// a guest sees. Two hosts whose versions differ refuse to move a guest to each other.
    pub version: u16,
}

/// Whether a queue has been served to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// It is empty, or the device can't go on with it now; it is served again when the driver or the host calls.
    All,
    /// There is more, but others shall have a turn (a pause, for one): serve it again soon.
    More,
}

/// Why a device can't go on. The driver is told that the device needs a reset.
#[derive(Debug, Error)]
pub(crate) enum DeviceError {
    /// The driver broke a ring.
    #[error("queue {queue}: {source}")]
    Ring {
        /// Which queue.
        queue: usize,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// The driver asked for what no driver may.
    #[error("queue {queue}: {reason}")]
    Request {
        /// Which queue.
        queue: usize,
        /// What was asked for.
        reason: &'static str,
    },
    /// The host refused.
    #[error("{operation}: {source}")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A file descriptor of the host's that a device waits for.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// The descriptor.
    pub fd: Arc<OwnedFd>,
    /// What it waits for.
    pub interest: PollFlags,
    /// The device's own name for it, in [`VirtioDevice::serve_host`].
    pub token: usize,
}

/// A virtio device.
///
/// Features of the transport (VIRTIO_F_VERSION_1, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX) are the
/// transport's business. All methods but those that say otherwise are called by the device's worker, which runs
/// only while the guest does.
pub(crate) trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> DeviceKind;

    /// The features that it offers, the same on every host and for the whole life of a guest.
    fn features(&self) -> u64;

    /// The most entries that each queue may have: a power of two each.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space. What lies past its end reads as zero. Called by vCPUs.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space; what can't be written is ignored. Called by vCPUs.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready (DRIVER_OK) and has accepted `features`. Called by a vCPU, and once more after
    /// [`restore`](Self::restore) where the saved device was active.
    fn activate(&mut self, features: u64);

    /// The driver resets the device, which forgets all that it was told. Called by a vCPU.
    fn reset(&mut self);

    /// Serves a queue: the driver notified it, or it may have while nobody looked.
    ///
    /// # Errors
    /// [`DeviceError`]; the device is then served no more until it is reset.
    fn serve_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Served, DeviceError>;

    /// Adds the descriptors that it waits for now. Asked again after each time it was served; called only
    /// while it is active.
    fn watched(&self, watched: &mut Vec<Watched>) {
        let _ = watched;
    }

    /// One of its watched descriptors is ready, or was a moment ago: the driver may have reset the device since.
    ///
    /// # Errors
    /// As [`serve_queue`](Self::serve_queue).
    fn serve_host(&mut self, token: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let _ = (token, queues);
        Ok(())
    }

    /// The guest has just begun to run on this host, having come from another.
    ///
    /// # Errors
    /// As [`serve_queue`](Self::serve_queue).
    fn arrived(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let _ = queues;
        Ok(())
    }

    /// Its own state, without queues, features and what else the transport knows. Called while the guest is
    /// paused. Reading changes nothing.
    fn save(&self) -> Vec<u8>;

    /// Takes what another's [`save`](Self::save) gave. Called before the guest runs.
    ///
    /// # Errors
    /// In words, when the state can't be this device's.
    fn restore(&mut self, data: &[u8]) -> Result<(), String>;
}
