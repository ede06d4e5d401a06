use rustix::event::{PollFd, Timespec, poll};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::super::{DeviceError, Queues, Served, VirtioDevice};
use super::{Interrupt, Ram, Sent};

/// Where the first queue lies, and how far apart they lie. In each the descriptors come first.
const QUEUES: u64 = 0x1_0000;
const APART: u64 = 0x2000;
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0x1000;

/// A buffer of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffer {
    Readable(u64, u32),
    Writable(u64, u32),
}

/// A guest's driver of one device, and the worker that calls the device. Its own writes to RAM are a vCPU's.
pub(crate) struct Driver<'a> {
    ram: &'a Ram,
    queues: Vec<Queue>,
    /// Per queue: descriptors that were ever used, requests that were ever given.
    given: Vec<(u16, u16)>,
    /// Per queue: answers that were seen.
    seen: Vec<u16>,
    sent: Sent,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(ram: &'a Ram, device: &mut dyn VirtioDevice) -> Self {
        let queue = |(index, size): (usize, &u16)| {
            let mut queue = Queue::new(*size).unwrap();
            let at = |part| Some((QUEUES + index as u64 * APART + part) as u32);
            queue.set_desc_table_address(at(0), None);
            queue.set_avail_ring_address(at(AVAILABLE), None);
            queue.set_used_ring_address(at(USED), None);
            queue.set_ready(true);
            queue
        };
        let queues: Vec<Queue> = device.queue_sizes().iter().enumerate().map(queue).collect();
        let (given, seen) = (vec![(0, 0); queues.len()], vec![0; queues.len()]);
        device.activate(device.features());
        Self { ram, queues, given, seen, sent: Sent::default() }
    }

    /// The same driver, which finds itself on another host with its RAM there.
    pub(crate) fn moved<'b>(&self, to: &'b Ram, device: &mut dyn VirtioDevice) -> Driver<'b> {
        let mut bytes = vec![0; to.guest.layout().total_bytes() as usize];
        self.ram.guest.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        to.guest.memory().write_slice(&bytes, GuestAddress(0)).unwrap();
        let queues = self.queues.iter().map(|queue| Queue::try_from(queue.state()).unwrap()).collect();
        device.activate(device.features());
        let (given, seen) = (self.given.clone(), self.seen.clone());
        Driver { ram: to, queues, given, seen, sent: Sent::default() }
    }

    /// Gives the device a request.
    pub(crate) fn give(&mut self, queue: usize, buffers: &[Buffer]) {
        let size = self.queues[queue].size();
        let (used, requests) = self.given[queue];
        for (n, buffer) in (0u16..).zip(buffers) {
            let slot = used.wrapping_add(n) % size;
            let next = (slot + 1) % size;
            let more = if usize::from(n) + 1 < buffers.len() { VRING_DESC_F_NEXT as u16 } else { 0 };
            let descriptor = match *buffer {
                Buffer::Readable(at, len) => Descriptor::new(at, len, more, next),
                Buffer::Writable(at, len) => Descriptor::new(at, len, more | VRING_DESC_F_WRITE as u16, next),
            };
            self.store(queue, u64::from(slot) * 16, RawDescriptor::from(descriptor));
        }
        self.store(queue, AVAILABLE + 4 + 2 * u64::from(requests % size), used % size);
        let requests = requests.wrapping_add(1);
        self.store(queue, AVAILABLE + 2, requests);
        self.given[queue] = (used.wrapping_add(buffers.len() as u16), requests);
    }

    /// Takes the answers that it has not seen: how many bytes each says were written.
    pub(crate) fn answers(&mut self, queue: usize) -> Vec<u32> {
        let size = self.queues[queue].size();
        let (from, to) = (self.seen[queue], self.load::<u16>(queue, USED + 2));
        self.seen[queue] = to;
        let slots = (0..to.wrapping_sub(from)).map(|n| u64::from(from.wrapping_add(n) % size));
        slots.map(|slot| self.load(queue, USED + 4 + 8 * slot + 4)).collect()
    }

    fn store<T: ByteValued>(&self, queue: usize, at: u64, value: T) {
        let address = GuestAddress(QUEUES + queue as u64 * APART + at);
        self.ram.guest.memory().write_obj(value, address).unwrap();
    }

    fn load<T: ByteValued>(&self, queue: usize, at: u64) -> T {
        self.ram.guest.memory().read_obj(GuestAddress(QUEUES + queue as u64 * APART + at)).unwrap()
    }

    pub(crate) fn interrupts(&self) -> Vec<Interrupt> {
        self.sent.take()
    }

    /// Notifies the device of a queue and lets it serve that once.
    pub(crate) fn notify(
        &mut self,
        device: &mut dyn VirtioDevice,
        queue: usize,
    ) -> Result<Served, DeviceError> {
        device.serve_queue(queue, &mut Queues::new(&mut self.queues, &self.ram.memory, &self.sent))
    }

    /// Tells the device that the guest runs here now.
    pub(crate) fn arrive(&mut self, device: &mut dyn VirtioDevice) {
        device.arrived(&mut Queues::new(&mut self.queues, &self.ram.memory, &self.sent)).unwrap();
    }

    /// Lets the device serve the host until nothing of that is ready any more.
    pub(crate) fn host(&mut self, device: &mut dyn VirtioDevice) {
        while self.host_once(device) {}
    }

    /// Lets the device serve what of the host is ready; whether anything was.
    pub(crate) fn host_once(&mut self, device: &mut dyn VirtioDevice) -> bool {
        let mut watched = Vec::new();
        device.watched(&mut watched);
        let mut fds: Vec<_> = watched.iter().map(|w| PollFd::new(&*w.fd, w.interest)).collect();
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (watched, _) in watched.iter().zip(&ready).filter(|(_, ready)| **ready) {
            let mut queues = Queues::new(&mut self.queues, &self.ram.memory, &self.sent);
            device.serve_host(watched.token, &mut queues).unwrap();
        }
        ready.contains(&true)
    }
}
