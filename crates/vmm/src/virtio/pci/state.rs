use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};

use super::VirtioPci;
use super::common::Selectors;
use super::interrupts::InterruptState;

/// A device and its transport as they are saved.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VirtioState {
    /// What can be written of the PCI configuration.
    space: Vec<u8>,
    selectors: Selectors,
    interrupts: InterruptState,
    status: u8,
    features: u64,
    queues: Vec<Registers>,
    /// What the device itself has to say.
    device: Vec<u8>,
}

/// A queue: what its driver wrote, and how far the device has come.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Registers {
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    next_avail: u16,
    next_used: u16,
}

impl Registers {
    fn of(queue: &Queue) -> Self {
        let QueueState { size, ready, desc_table, avail_ring, used_ring, next_avail, next_used, .. } =
            queue.state();
        Self { size, ready, desc_table, avail_ring, used_ring, next_avail, next_used }
    }

    /// # Errors
    /// In words, when no queue of at most `max_size` entries can be so.
    fn queue(self, max_size: u16) -> Result<Queue, String> {
        let Self { size, ready, desc_table, avail_ring, used_ring, next_avail, next_used } = self;
        // What was agreed about EVENT_IDX follows from the features.
        let event_idx_enabled = false;
        let state = QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        };
        Queue::try_from(state).map_err(|error| format!("a queue can't be {self:x?}: {error}"))
    }
}

impl VirtioPci {
    /// Everything that the guest or its driver has told it. The guest must not be running.
    pub(crate) fn state(&self) -> VirtioState {
        let space = self.space.lock().space.state();
        let selectors = *self.selectors.lock();
        let interrupts = self.shared.interrupts.state();
        let endpoint = self.shared.endpoint.lock();
        VirtioState {
            space,
            selectors,
            interrupts,
            status: endpoint.status,
            features: endpoint.features,
            queues: endpoint.queues.iter().map(Registers::of).collect(),
            device: endpoint.device.save(),
        }
    }

    /// Takes it over. After an error the device is in no state that a guest could use.
    ///
    /// # Errors
    /// In words, when it can't be what [`state`](Self::state) gave of such a device.
    pub(crate) fn restore(&self, state: VirtioState) -> Result<(), String> {
        let VirtioState { space, selectors, interrupts, status, features, queues, device } = state;
        let control = {
            let mut placed = self.space.lock();
            placed.space.restore(&space)?;
            placed.follow();
            placed.space.word(self.capabilities.msix_control)
        };
        self.shared.interrupts.restore(interrupts, control)?;
        *self.selectors.lock() = selectors;
        let mut endpoint = self.shared.endpoint.lock();
        let sizes = endpoint.device.queue_sizes();
        if queues.len() != sizes.len() {
            return Err(format!("it has {} queues, this device has {}", queues.len(), sizes.len()));
        }
        let queues = queues.into_iter().zip(sizes).map(|(queue, max)| queue.queue(*max));
        let queues = queues.collect::<Result<_, _>>()?;
        endpoint.restore((status, features), queues, &device, &self.shared.memory)
    }
}
