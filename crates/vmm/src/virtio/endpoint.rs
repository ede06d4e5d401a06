use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::{DeviceError, DeviceKind, DeviceMemory, Interrupts, Queues, Served, VirtioDevice, Watched};

const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
/// What a driver may set.
const DRIVERS: u8 = (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FAILED) as u8
    | FEATURES_OK
    | DRIVER_OK;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// What every device offers besides its own features: they are the transport's and the rings' business.
const TRANSPORT_FEATURES: u64 = VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What writing the status register led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusChange {
    /// Nothing that others must know.
    None,
    /// The driver is ready, and the device is to be served from now on.
    Activated,
    /// The device is as at the beginning.
    Reset,
}

/// A device, and what its driver has told it: status, features, queues. Virtio calls this initialization
/// (virtio 1.3, section 3.1); a transport only carries the driver's reads and writes here.
///
/// A driver may write anything in any order. What it must not write where things stand is ignored.
pub(crate) struct Endpoint {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) queues: Vec<Queue>,
    pub(super) status: u8,
    /// What the driver has accepted so far; fixed once FEATURES_OK is set.
    pub(super) features: u64,
    /// It was restored, and has not been told yet that the guest runs here.
    has_arrived: bool,
    /// A failure was logged. A driver can cause one as often as it likes.
    complained: bool,
}

impl Endpoint {
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let queue = |size: &u16| Queue::new(*size).expect("a device's queue sizes are powers of two");
        let queues = device.queue_sizes().iter().map(queue).collect();
        Self { device, queues, status: 0, features: 0, has_arrived: false, complained: false }
    }

    pub(super) fn kind(&self) -> DeviceKind {
        self.device.kind()
    }

    /// Features that a driver may accept.
    pub(super) fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// The driver accepts features, until FEATURES_OK.
    pub(super) fn accept(&mut self, features: u64) {
        if self.status & FEATURES_OK == 0 {
            self.features = features;
        }
    }

    /// Whether a driver can go on with what it has accepted.
    fn features_fit(&self) -> bool {
        self.features & !self.offered() == 0 && self.features & VERSION_1 != 0
    }

    /// The driver writes the status register: zero is a reset, everything else sets bits.
    pub(super) fn set_status(&mut self, value: u8) -> StatusChange {
        if value == 0 {
            self.reset();
            return StatusChange::Reset;
        }
        let mut new = value & !self.status & DRIVERS;
        if new & FEATURES_OK != 0 && !self.features_fit() {
            new &= !FEATURES_OK;
        }
        // Without agreed features no driver can be ready.
        if (self.status | new) & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.status |= new;
        if new & DRIVER_OK == 0 {
            return StatusChange::None;
        }
        self.activate();
        StatusChange::Activated
    }

    /// Forgets everything that the driver said.
    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(QueueT::reset);
        self.status = 0;
        self.features = 0;
        self.has_arrived = false;
    }

    /// Takes over what another endpoint was told, whose device has saved `device`.
    ///
    /// # Errors
    /// In words, when no driver can have brought this device there.
    pub(super) fn restore(
        &mut self,
        (status, features): (u8, u64),
        queues: Vec<Queue>,
        device: &[u8],
        memory: &DeviceMemory,
    ) -> Result<(), String> {
        // An earlier attempt of the same migration may have been here already.
        self.reset();
        self.device.restore(device)?;
        (self.status, self.features, self.queues) = (status, features, queues);
        if status & !(DRIVERS | NEEDS_RESET) != 0 || status & (FEATURES_OK | DRIVER_OK) == DRIVER_OK {
            return Err(format!("device status can't be {status:#x}"));
        }
        if status & FEATURES_OK != 0 && !self.features_fit() {
            let offered = self.offered();
            return Err(format!("its driver uses features {features:#x}, this device offers {offered:#x}"));
        }
        if let Some(queue) = self.queues.iter().position(|queue| queue.ready() && !lies_in_ram(queue, memory))
        {
            return Err(format!("queue {queue} does not lie in RAM"));
        }
        if status & DRIVER_OK != 0 {
            self.activate();
            self.has_arrived = true;
        }
        Ok(())
    }

    /// The device begins its work.
    fn activate(&mut self) {
        let event_idx = self.features & EVENT_IDX != 0;
        self.queues.iter_mut().for_each(|queue| queue.set_event_idx(event_idx));
        self.device.activate(self.features);
    }

    /// The queue of that number, if the driver may set it up now: before it is ready, and until it enables it.
    pub(super) fn configurable(&mut self, queue: u16) -> Option<&mut Queue> {
        if self.status & DRIVER_OK != 0 {
            return None;
        }
        self.queues.get_mut(usize::from(queue)).filter(|queue| !queue.ready())
    }

    /// The driver enables a queue. One that does not lie in RAM is broken at once, so that nobody has to ask
    /// that again later.
    pub(super) fn enable_queue(&mut self, queue: u16, memory: &DeviceMemory, interrupts: &dyn Interrupts) {
        let Some(configured) = self.configurable(queue) else { return };
        if lies_in_ram(configured, memory) {
            configured.set_ready(true);
        } else {
            let reason = "a ring that is not all in RAM";
            self.fail(&DeviceError::Request { queue: queue.into(), reason }, interrupts);
        }
    }

    /// Whether the device is to be served.
    pub(super) fn is_active(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// What the device waits for.
    pub(super) fn watched(&self, watched: &mut Vec<Watched>) {
        if self.is_active() {
            self.device.watched(watched);
        }
    }

    /// Tells the device that the guest runs here now, if it came from elsewhere and has not been told.
    pub(super) fn arrive(&mut self, memory: &DeviceMemory, interrupts: &dyn Interrupts) {
        if std::mem::take(&mut self.has_arrived) {
            self.attempt(memory, interrupts, |device, queues| device.arrived(queues));
        }
    }

    /// Serves what the device watches.
    pub(super) fn serve_host(&mut self, token: usize, memory: &DeviceMemory, interrupts: &dyn Interrupts) {
        self.attempt(memory, interrupts, |device, queues| device.serve_host(token, queues));
    }

    /// Serves a queue.
    pub(super) fn serve_queue(
        &mut self,
        queue: usize,
        memory: &DeviceMemory,
        interrupts: &dyn Interrupts,
    ) -> Served {
        self.attempt(memory, interrupts, |device, queues| device.serve_queue(queue, queues))
            .unwrap_or(Served::All)
    }

    /// Lets an active device do something.
    fn attempt<T>(
        &mut self,
        memory: &DeviceMemory,
        interrupts: &dyn Interrupts,
        what: impl FnOnce(&mut dyn VirtioDevice, &mut Queues<'_>) -> Result<T, DeviceError>,
    ) -> Option<T> {
        if !self.is_active() {
            return None;
        }
        let mut queues = Queues::new(&mut self.queues, memory, interrupts);
        match what(&mut *self.device, &mut queues) {
            Ok(done) => Some(done),
            Err(error) => {
                self.fail(&error, interrupts);
                None
            }
        }
    }

    /// The device can't go on until it is reset (virtio 1.3, section 2.1.2).
    fn fail(&mut self, error: &DeviceError, interrupts: &dyn Interrupts) {
        let name = self.kind().name;
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!("virtio-{name} stops until its driver resets it: {error}; said once a guest");
        }
        self.status |= NEEDS_RESET;
        if self.status & DRIVER_OK != 0 {
            interrupts.config();
        }
    }
}

/// Whether a queue's rings are RAM from end to end (virtio 1.3, section 2.7, has their sizes).
fn lies_in_ram(queue: &Queue, memory: &DeviceMemory) -> bool {
    let size = usize::from(queue.size());
    let is_ram = |address, bytes, access| memory.check_range(GuestAddress(address), bytes, access);
    is_ram(queue.desc_table(), 16 * size, Permissions::Read)
        && is_ram(queue.avail_ring(), 6 + 2 * size, Permissions::Read)
        && is_ram(queue.used_ring(), 6 + 8 * size, Permissions::Write)
}
