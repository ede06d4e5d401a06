use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{DeviceError, DeviceMemory, Served};

/// A request of the driver's.
pub(crate) type Chain<'a> = DescriptorChain<&'a DeviceMemory>;

/// How a device interrupts its driver.
pub(crate) trait Interrupts: Send + Sync {
    /// About used buffers in a queue.
    fn queue(&self, queue: usize);
    /// About a changed configuration.
    fn config(&self);
}

/// A device's queues, while it is served.
pub(crate) struct Queues<'a> {
    queues: &'a mut [Queue],
    memory: &'a DeviceMemory,
    interrupts: &'a dyn Interrupts,
    /// A queue with requests that were given back since it was last decided about an interrupt, and its used
    /// index before them.
    ///
    /// `virtio_queue::Queue` decides by what it has counted itself, which leaves out those given back together:
    /// then the window that it looks at begins too late, and a driver that waits for the first one in it is never
    /// interrupted again.
    given: Option<(usize, u16)>,
}

impl<'a> Queues<'a> {
    pub(crate) fn new(
        queues: &'a mut [Queue],
        memory: &'a DeviceMemory,
        interrupts: &'a dyn Interrupts,
    ) -> Self {
        Self { queues, memory, interrupts, given: None }
    }

    /// Guest RAM.
    pub(crate) fn memory(&self) -> &'a DeviceMemory {
        self.memory
    }

    /// Whether the driver has set the queue up.
    pub(crate) fn is_ready(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(QueueT::ready)
    }

    /// The entries that the driver gave the queue.
    pub(crate) fn size(&self, queue: usize) -> u16 {
        self.queues.get(queue).map_or(0, QueueT::size)
    }

    /// Takes the next request off a queue.
    pub(crate) fn next(&mut self, queue: usize) -> Result<Option<Chain<'a>>, DeviceError> {
        if !self.is_ready(queue) {
            return Ok(None);
        }
        let mut available = self.queues[queue].iter(self.memory).map_err(|source| ring(queue, source))?;
        Ok(available.next())
    }

    /// As [`next`](Self::next); when there is none the driver will notify the queue of the next.
    pub(crate) fn take(&mut self, queue: usize) -> Result<Option<Chain<'a>>, DeviceError> {
        match self.next(queue)? {
            None if self.is_ready(queue) && self.unmute(queue)? => self.next(queue),
            other => Ok(other),
        }
    }

    /// Puts the request that was taken last back.
    pub(crate) fn put_back(&mut self, queue: usize) {
        self.queues[queue].go_to_previous_position();
    }

    /// Gives a request back to the driver, `len` bytes having been written into it.
    pub(crate) fn complete(&mut self, queue: usize, head: u16, len: u32) -> Result<(), DeviceError> {
        self.note_given(queue)?;
        self.queues[queue].add_used(self.memory, head, len).map_err(|source| ring(queue, source))
    }

    /// Gives several requests back, each with the bytes that were written into it, so that the driver sees all of
    /// them or none.
    pub(crate) fn complete_together(
        &mut self,
        queue: usize,
        requests: &[(u16, u32)],
    ) -> Result<(), DeviceError> {
        let Some(((head, len), before)) = requests.split_last() else { return Ok(()) };
        self.note_given(queue)?;
        let used = &self.queues[queue];
        let (mut next, size, at) = (used.next_used(), used.size(), used.used_ring());
        for (head, len) in before {
            // Elements of two 32-bit fields come after two 16-bit fields (virtio 1.3, section 2.7.8).
            let element = [u32::from(*head).to_le(), len.to_le()];
            self.memory
                .write_obj(element, GuestAddress(at + 4 + 8 * u64::from(next % size)))
                .map_err(|error| ring(queue, virtio_queue::Error::GuestMemory(error)))?;
            next = next.wrapping_add(1);
        }
        // Publishes those above as well.
        self.queues[queue].set_next_used(next);
        self.complete(queue, *head, *len)
    }

    /// Requests are about to be given back.
    fn note_given(&mut self, queue: usize) -> Result<(), DeviceError> {
        match self.given {
            Some((same, _)) if same == queue => return Ok(()),
            Some((other, _)) => self.interrupt(other)?,
            None => {}
        }
        self.given = Some((queue, self.queues[queue].next_used()));
        Ok(())
    }

    /// Interrupts the driver about requests given back, if it wants that.
    pub(crate) fn interrupt(&mut self, queue: usize) -> Result<(), DeviceError> {
        if let Some((_, first)) = self.given.take_if(|(given, _)| *given == queue)
            && self.is_awaited(queue, first)?
        {
            self.interrupts.queue(queue);
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt about one of the used elements from `first` on, by what
    /// VIRTIO_RING_F_EVENT_IDX lets it say (virtio 1.3, section 2.7.7).
    fn is_awaited(&self, queue: usize, first: u16) -> Result<bool, DeviceError> {
        let used = &self.queues[queue];
        if !used.event_idx_enabled() {
            return Ok(true);
        }
        let event = GuestAddress(used.avail_ring() + 4 + 2 * u64::from(used.size()));
        // What was published is seen by the driver before its wish is read.
        fence(Ordering::SeqCst);
        let event: u16 = self
            .memory
            .load(event, Ordering::Relaxed)
            .map_err(|error| ring(queue, virtio_queue::Error::GuestMemory(error)))?;
        Ok(u16::from_le(event).wrapping_sub(first) < used.next_used().wrapping_sub(first))
    }

    /// Asks the driver not to notify a queue that is being served anyway.
    pub(crate) fn mute(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.queues[queue].disable_notification(self.memory).map_err(|source| ring(queue, source))
    }

    /// Asks the driver to notify the queue again. `true` when it has put something there meanwhile.
    pub(crate) fn unmute(&mut self, queue: usize) -> Result<bool, DeviceError> {
        self.queues[queue].enable_notification(self.memory).map_err(|source| ring(queue, source))
    }

    /// Tells the driver that the configuration space has changed.
    pub(crate) fn config_changed(&self) {
        self.interrupts.config();
    }

    /// Gives each request of a queue to `handle`, which returns how many bytes it wrote into it, and gives it
    /// back to the driver. At most as many as the queue holds at a time, so that a driver which never stops
    /// can't keep the device from being paused.
    pub(crate) fn serve(
        &mut self,
        queue: usize,
        handle: impl FnMut(Chain<'a>, &'a DeviceMemory) -> Result<u32, DeviceError>,
    ) -> Result<Served, DeviceError> {
        self.serve_some(queue, self.size(queue), handle)
    }

    /// The same with at most `limit` requests at a time, for those that take long.
    pub(crate) fn serve_some(
        &mut self,
        queue: usize,
        limit: u16,
        mut handle: impl FnMut(Chain<'a>, &'a DeviceMemory) -> Result<u32, DeviceError>,
    ) -> Result<Served, DeviceError> {
        if !self.is_ready(queue) {
            return Ok(Served::All);
        }
        self.mute(queue)?;
        let mut served = Served::More;
        for _ in 0..limit {
            let Some(chain) = self.next(queue)? else {
                if self.unmute(queue)? {
                    continue;
                }
                served = Served::All;
                break;
            };
            let head = chain.head_index();
            let len = handle(chain, self.memory)?;
            self.complete(queue, head, len)?;
        }
        self.interrupt(queue)?;
        Ok(served)
    }
}

fn ring(queue: usize, source: virtio_queue::Error) -> DeviceError {
    DeviceError::Ring { queue, source }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;

    use super::super::testing::{Interrupt, Ram, Sent};
    use super::*;

    fn buffer(at: u64, len: u32) -> RawDescriptor {
        RawDescriptor::from(Descriptor::new(at, len, VRING_DESC_F_WRITE as u16, 0))
    }

    #[test]
    fn every_request_is_answered_once_and_a_busy_driver_waits_its_turn() {
        let ram = Ram::new(1 << 20);
        let sent = Sent::default();
        let driver = MockSplitQueue::new(&ram.memory, 4);
        let mut queues = [driver.create_queue::<Queue>().unwrap()];
        let mut queues = Queues::new(&mut queues, &ram.memory, &sent);
        let descs: Vec<_> = (0..4).map(|n| buffer(0x1_0000 + n * 0x1000, 8)).collect();
        driver.add_desc_chains(&descs, 0).unwrap();
        let write = |chain: Chain<'_>, memory: &DeviceMemory| {
            let at = chain.writable().next().unwrap().addr();
            memory.write_obj(u64::MAX, at).unwrap();
            Ok(8)
        };
        assert_eq!(queues.serve(0, write).unwrap(), Served::More, "as many as it holds, then others' turn");
        assert_eq!(sent.take(), [Interrupt::Queue(0)]);
        assert_eq!(queues.serve(0, write).unwrap(), Served::All);
        assert_eq!(driver.used().idx().load(), 4);
        assert_eq!(ram.memory.read_obj::<u64>(GuestAddress(0x1_3000)).unwrap(), u64::MAX);
    }

    #[test]
    fn a_ring_that_is_not_in_ram_is_an_error_and_one_that_is_not_set_up_is_empty() {
        let ram = Ram::new(1 << 20);
        let sent = Sent::default();
        let mut broken = MockSplitQueue::new(&ram.memory, 4).create_queue::<Queue>().unwrap();
        broken.set_avail_ring_address(Some(0xffff_0000), Some(0));
        let mut queues = [broken, Queue::new(4).unwrap()];
        let mut queues = Queues::new(&mut queues, &ram.memory, &sent);
        assert!(matches!(queues.next(0), Err(DeviceError::Ring { queue: 0, .. })));
        assert!(queues.next(1).unwrap().is_none());
        assert_eq!(queues.serve(1, |_, _| panic!("nothing is there")).unwrap(), Served::All);
    }

    /// Four entries, whose driver says at 0x100c, after flags, index and entries, which used element it waits for.
    fn queue_of_wishes(next_used: u16) -> Queue {
        let mut queue = Queue::new(4).unwrap();
        queue.set_avail_ring_address(Some(0x1000), Some(0));
        queue.set_used_ring_address(Some(0x2000), Some(0));
        queue.set_event_idx(true);
        queue.set_next_used(next_used);
        queue
    }

    #[test]
    fn requests_given_back_together_appear_together_and_interrupt_as_one_by_one() {
        let ram = Ram::new(1 << 20);
        let sent = Sent::default();
        let mut queues = [queue_of_wishes(3)];
        let mut queues = Queues::new(&mut queues, &ram.memory, &sent);
        let mut complete = |wish: u16, requests: &[(u16, u32)]| {
            ram.memory.write_obj(wish, GuestAddress(0x100c)).unwrap();
            queues.complete_together(0, requests).unwrap();
            queues.interrupt(0).unwrap();
            !sent.take().is_empty()
        };
        let index = || ram.memory.read_obj::<u16>(GuestAddress(0x2002)).unwrap();
        let used = |at: u64| ram.memory.read_obj::<[u32; 2]>(GuestAddress(0x2004 + 8 * at)).unwrap();
        assert!(complete(3, &[(2, 10), (0, 20), (1, 5)]), "it waits for the first of them");
        assert_eq!(index(), 6);
        assert_eq!([used(3), used(0), used(1)], [[2, 10], [0, 20], [1, 5]]);
        assert!(complete(7, &[(2, 1), (3, 1)]), "for the last");
        assert!(!complete(7, &[(0, 1), (1, 1)]), "for one that it has seen");
        assert!(!complete(20, &[(2, 1), (3, 1)]), "for one that is yet to come");
        assert!(!complete(12, &[]));
        assert_eq!(index(), 12);
    }

    #[test]
    fn a_driver_that_waits_for_any_of_a_batch_is_interrupted_once() {
        // Frames of one and of several buffers, as they come in one batch: 10, 11 to 13, 14, 15 to 16.
        let batch: [&[(u16, u32)]; 4] = [&[(0, 1)], &[(1, 1), (2, 1), (3, 1)], &[(0, 1)], &[(1, 1), (2, 1)]];
        let ram = Ram::new(1 << 20);
        let sent = Sent::default();
        for wish in 0..32u16 {
            let mut queues = [queue_of_wishes(10)];
            let mut queues = Queues::new(&mut queues, &ram.memory, &sent);
            ram.memory.write_obj(wish, GuestAddress(0x100c)).unwrap();
            batch.iter().for_each(|requests| queues.complete_together(0, requests).unwrap());
            queues.interrupt(0).unwrap();
            queues.interrupt(0).unwrap();
            let wanted: &[Interrupt] = if (10..17).contains(&wish) { &[Interrupt::Queue(0)] } else { &[] };
            assert_eq!(sent.take(), wanted, "it waits for {wish}");
        }
    }
}
