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

#[cfg(test)]
mod tests {
    use migrated_testkit::require;

    use super::*;
    use crate::HostKvm;

    #[test]
    fn kvm_watches_the_registers_where_they_are_and_nowhere_else() {
        require!(Kvm);
        let vm = HostKvm::open().unwrap().create_vm().unwrap();
        let events: Arc<[_]> = [Event::new().unwrap(), Event::new().unwrap()].into();
        let mut doorbells = Doorbells::new(vm.clone(), events);
        // KVM takes no second one for an address that it watches.
        let watched = |at: u64| {
            let (event, address) = (Event::new().unwrap(), IoEventAddress::Mmio(at));
            let free = vm.register_ioevent(event.eventfd(), &address, NoDatamatch);
            let freed = vm.unregister_ioevent(event.eventfd(), &address, NoDatamatch);
            assert_eq!(free.is_ok(), freed.is_ok());
            free.is_err()
        };
        let places = || [0x1000, 0x1004, 0x1008, 0x2000, 0x2004].map(watched);
        assert_eq!(places(), [false; 5]);
        doorbells.place(Some(0x1000));
        assert_eq!(places(), [true, true, false, false, false]);
        doorbells.place(Some(0x2000));
        assert_eq!(places(), [false, false, false, true, true]);
        doorbells.place(None);
        assert_eq!(places(), [false; 5]);
    }

    #[test]
    fn a_place_that_is_taken_is_tried_again_and_no_error() {
        require!(Kvm);
        let vm = HostKvm::open().unwrap().create_vm().unwrap();
        let events = || -> Arc<[Event]> { [Event::new().unwrap()].into() };
        let (mut first, mut second) =
            (Doorbells::new(vm.clone(), events()), Doorbells::new(vm.clone(), events()));
        first.place(Some(0x1000));
        second.place(Some(0x1000));
        assert_eq!((first.registered[0], second.registered[0]), (Some(0x1000), None));
        first.place(None);
        second.place(Some(0x1000));
        assert_eq!((first.registered[0], second.registered[0]), (None, Some(0x1000)));
    }
}
