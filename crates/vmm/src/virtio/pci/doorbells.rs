use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use migrated_kernel::Event;

/// Through which a driver notifies a device's queues: a register and an eventfd each.
///
/// KVM signals the eventfd where the register is written, without an exit to us. Where it can't be told to (two
/// devices that the guest moved to the same place, for one) the write exits, and signals the same eventfd.
#[derive(Debug)]
pub(super) struct Doorbells {
    vm: Arc<VmFd>,
    events: Arc<[Event]>,
    /// Where KVM watches the register of each queue, if it does.
    registered: Vec<Option<u64>>,
}

impl Doorbells {
    /// Bytes from a queue's register to the next one's (notify_off_multiplier).
    pub(super) const STRIDE: u64 = 4;

    /// None of which KVM watches.
    pub(super) fn new(vm: Arc<VmFd>, events: Arc<[Event]>) -> Self {
        let registered = vec![None; events.len()];
        Self { vm, events, registered }
    }

    /// The registers lie from this address on now, or nowhere.
    pub(super) fn place(&mut self, base: Option<u64>) {
        for ((queue, event), registered) in (0..).zip(&*self.events).zip(&mut self.registered) {
            let wanted = base.map(|base| base + queue * Self::STRIDE);
            if *registered == wanted {
                continue;
            }
            if let Some(old) = registered.take() {
                let address = IoEventAddress::Mmio(old);
                report(self.vm.unregister_ioevent(event.eventfd(), &address, NoDatamatch));
            }
            if let Some(new) = wanted {
                let address = IoEventAddress::Mmio(new);
                let watched = report(self.vm.register_ioevent(event.eventfd(), &address, NoDatamatch));
                *registered = watched.then_some(new);
            }
        }
    }
}

/// Whether it worked. A guest can make it fail as often as it likes.
fn report(result: Result<(), kvm_ioctls::Error>) -> bool {
    if let Err(error) = &result {
        tracing::debug!("KVM_IOEVENTFD: {}", io::Error::from_raw_os_error(error.errno()));
    }
    result.is_ok()
}
