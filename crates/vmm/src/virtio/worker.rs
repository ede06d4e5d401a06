use std::mem;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Served, Shared, Watched};
use crate::gate::Gate;

/// The thread that serves one device.
///
/// It waits for events outside the gate and serves inside, as a vCPU runs inside: so whoever has stopped the
/// guest can be sure that no device touches RAM, and what happens meanwhile waits in descriptors. Each time
/// that the gate opens, all queues are looked at: a notification may have been given to the process
/// that the guest came from.
pub(super) struct Worker {
    shared: Arc<Shared>,
    /// Which queues are to be served.
    due: Vec<bool>,
    /// What the device waits for.
    watched: Vec<Watched>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let due = vec![false; shared.doorbells.len()];
        Self { shared, due, watched: Vec::new() }
    }

    /// The life of its thread; `number` is the gate's for it.
    pub(super) fn run(mut self, gate: &Gate, number: usize) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    let name = self.shared.endpoint.lock().kind().name;
                    tracing::error!("virtio-{name} is no longer served: poll(2) failed: {error}");
                    return;
                }
            };
            if !gate.enter_worker(number) {
                return;
            }
            self.serve(&ready);
            gate.leave_worker(number);
        }
    }

    /// Waits until there is something to do, and returns which of the device's own descriptors are ready.
    pub(super) fn wait(&mut self) -> Result<Vec<usize>, Errno> {
        let Shared { doorbells, wake, .. } = &*self.shared;
        let mut fds: Vec<_> = [&**wake].into_iter().chain(&**doorbells).map(input).collect();
        fds.extend(self.watched.iter().map(|watched| PollFd::new(&watched.fd, watched.interest)));
        // What is left over from the last time doesn't wait, and others' events are not forgotten over it.
        let at_once = self.due.contains(&true).then(Timespec::default);
        poll(&mut fds, at_once.as_ref())?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let (own, watched) = ready.split_at(1 + doorbells.len());
        // Taken back before the queue is looked at: what comes later signals anew.
        if own[0] && wake.take() {
            self.due.fill(true);
        }
        for ((due, doorbell), rung) in self.due.iter_mut().zip(&**doorbells).zip(&own[1..]) {
            *due |= *rung && doorbell.take();
        }
        Ok(self.watched.iter().zip(watched).filter(|(_, ready)| **ready).map(|(w, _)| w.token).collect())
    }

    /// Serves what is due. Bounded, since [`serve_queue`](super::VirtioDevice::serve_queue) is: a pause waits for it.
    pub(super) fn serve(&mut self, ready: &[usize]) {
        let Shared { endpoint, memory, interrupts, .. } = &*self.shared;
        let mut endpoint = endpoint.lock();
        endpoint.arrive(memory, interrupts);
        for token in ready {
            endpoint.serve_host(*token, memory, interrupts);
        }
        for (queue, due) in self.due.iter_mut().enumerate() {
            if mem::take(due) {
                *due = endpoint.serve_queue(queue, memory, interrupts) == Served::More;
            }
        }
        self.watched.clear();
        endpoint.watched(&mut self.watched);
    }
}

fn input(event: &migrated_kernel::Event) -> PollFd<'_> {
    PollFd::new(event, PollFlags::IN)
}
