use std::sync::Arc;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::pci::{Message, Msix, MsixState};
use crate::virtio::Interrupts;

/// A driver's way of saying that an event has no vector (VIRTIO_MSI_NO_VECTOR).
const NO_VECTOR: u16 = 0xffff;
/// ISR status: a queue has used buffers.
const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration has changed.
const ISR_CONFIG: u8 = 2;
/// What is a message for a local APIC (Intel SDM 3A, 12.11.1): the upper 12 bits of 32.
const LOCAL_APIC_PREFIX: u64 = 0xfee;

/// How one device interrupts its driver: by MSI-X alone.
///
/// A message is in the local APIC when KVM_SIGNAL_MSI returns, on the thread that has cause to send it. An irqfd
/// may deliver later, from a kernel thread, and an interrupt on its way while the guest's state is being
/// saved would be lost by the migration. So what threads inside the gate have sent is state of the APIC's by
/// the time that they are out, and there is nothing in between.
pub(in crate::virtio) struct MsixInterrupts {
    vm: Arc<VmFd>,
    /// Held while a message is sent: a driver that has masked a vector gets no message of it afterwards.
    inner: Mutex<Inner>,
}

struct Inner {
    msix: Msix,
    isr: u8,
    /// How often the configuration has changed. A driver that reads it in parts compares this.
    generation: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

/// What of it must be saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InterruptState {
    msix: MsixState,
    isr: u8,
    generation: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

impl MsixInterrupts {
    /// For a device with that many queues: a vector each, and one for the configuration.
    pub(super) fn new(vm: Arc<VmFd>, queues: usize) -> Self {
        let inner = Inner {
            msix: Msix::new(vectors(queues)),
            isr: 0,
            generation: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
        };
        Self { vm, inner: Mutex::new(inner) }
    }

    /// Accesses the table and the pending bits, and sends what is due by that.
    pub(super) fn with_msix(&self, access: impl FnOnce(&mut Msix, &mut Vec<Message>)) {
        let mut inner = self.inner.lock();
        let mut due = Vec::new();
        access(&mut inner.msix, &mut due);
        due.into_iter().for_each(|message| self.send(message));
    }

    /// The driver resets the device. MSI-X itself is PCI's, and stays.
    pub(super) fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.isr = 0;
        inner.config_vector = NO_VECTOR;
        inner.queue_vectors.fill(NO_VECTOR);
    }

    /// ISR status, which reading clears.
    pub(super) fn take_isr(&self) -> u8 {
        std::mem::take(&mut self.inner.lock().isr)
    }

    pub(super) fn generation(&self) -> u8 {
        self.inner.lock().generation
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.inner.lock().config_vector
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.inner.lock().queue_vectors.get(usize::from(queue)).copied().unwrap_or(NO_VECTOR)
    }

    /// A vector that is not there reads back as none, which tells the driver so.
    pub(super) fn set_config_vector(&self, vector: u16) {
        let mut inner = self.inner.lock();
        inner.config_vector = inner.existing(vector);
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        let mut inner = self.inner.lock();
        let vector = inner.existing(vector);
        if let Some(of_queue) = inner.queue_vectors.get_mut(usize::from(queue)) {
            *of_queue = vector;
        }
    }

    pub(super) fn state(&self) -> InterruptState {
        let inner = self.inner.lock();
        InterruptState {
            msix: inner.msix.state(),
            isr: inner.isr,
            generation: inner.generation,
            config_vector: inner.config_vector,
            queue_vectors: inner.queue_vectors.clone(),
        }
    }

    /// `control` is message control of MSI-X.
    ///
    /// # Errors
    /// In words, when it can't be what [`state`](Self::state) gave.
    pub(super) fn restore(&self, state: InterruptState, control: u16) -> Result<(), String> {
        let mut inner = self.inner.lock();
        if state.queue_vectors.len() != inner.queue_vectors.len() {
            return Err(format!("it has {} queues' vectors", state.queue_vectors.len()));
        }
        let given = state.queue_vectors.iter().chain([&state.config_vector]);
        if let Some(vector) = given.copied().find(|vector| inner.existing(*vector) != *vector) {
            return Err(format!("it has no MSI-X vector {vector}"));
        }
        if state.isr & !(ISR_QUEUE | ISR_CONFIG) != 0 {
            return Err(format!("ISR status can't be {:#x}", state.isr));
        }
        inner.msix.restore(state.msix, control)?;
        inner.isr = state.isr;
        inner.generation = state.generation;
        inner.config_vector = state.config_vector;
        inner.queue_vectors = state.queue_vectors;
        Ok(())
    }

    /// A message to an address that is no local APIC's would be a write to memory on real hardware. No driver
    /// asks for that, and devices here write RAM in one way only.
    fn send(&self, message: Message) {
        if message.address >> 20 != LOCAL_APIC_PREFIX {
            return;
        }
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        if let Err(error) = self.vm.signal_msi(msi) {
            // For the driver to have caused, who alone suffers from it.
            tracing::debug!("KVM_SIGNAL_MSI {message:x?}: {error}");
        }
    }
}

impl Interrupts for MsixInterrupts {
    fn queue(&self, queue: usize) {
        let mut inner = self.inner.lock();
        inner.isr |= ISR_QUEUE;
        let vector = inner.queue_vectors[queue];
        inner.msix.trigger(vector).into_iter().for_each(|message| self.send(message));
    }

    fn config(&self) {
        let mut inner = self.inner.lock();
        inner.isr |= ISR_CONFIG;
        inner.generation = inner.generation.wrapping_add(1);
        let vector = inner.config_vector;
        inner.msix.trigger(vector).into_iter().for_each(|message| self.send(message));
    }
}

impl Inner {
    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.vectors() { vector } else { NO_VECTOR }
    }
}

/// How many vectors a device with that many queues has.
pub(super) const fn vectors(queues: usize) -> usize {
    queues + 1
}
