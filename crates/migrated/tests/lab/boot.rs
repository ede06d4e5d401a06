//! Guests that only boot.

use migrated_testkit::require;

use crate::guest::{Guest, Kernel};
use crate::network::Network;

#[test]
fn a_cloud_kernel_boots_to_a_shell() {
    require!(Lab, Kvm, Netns);
    let network = Network::new();
    let kernel = Kernel { flavor: "cloud", image: "vmlinux" };
    let guest = Guest { name: "g", kernel, vcpus: 1 };
    guest.create_with(&network.a, "console=ttyS0 panic=-1", &[]);
    guest.await_ready(&network.a);
    guest.type_line(&network.a, "echo $((6 * 7)) is what the shell says");
    guest.await_console(&network.a, "42 is what the shell says");
    guest.assert_content(&network.a);
    network.a.cli(&["vm", "delete", "g"]);
}
