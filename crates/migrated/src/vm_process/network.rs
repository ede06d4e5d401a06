use std::time::{Duration, Instant};

use migrated_vmm::Vm;

/// How long a guest that has arrived is waited for to send or get a packet. As long, its source still hands on what
/// comes to the old place, so this outlasts the first announcements; and it is well below what the source
/// waits for the summary.
const PATIENCE: Duration = Duration::from_millis(400);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// Waits until the guest has sent or got its first packet here, and says how long after its first KVM_RUN that was;
/// `None` for a guest without a network, or a silent one.
pub fn first_packet(vm: &Vm) -> Option<Duration> {
    let deadline = Instant::now() + PATIENCE;
    while vm.has_network() && vm.first_packet().is_none() && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
    vm.first_packet()
}
