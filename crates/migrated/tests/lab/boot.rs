//! Guests without a network, of which only the console tells.

use migrated_testkit::require;
use serde_json::json;

use crate::guest::{Guest, Kernel};
use crate::moves::migrate;
use crate::network::Network;

#[test]
fn a_cloud_kernel_boots_to_a_shell_that_goes_on_wherever_it_moves() {
    require!(Lab, Kvm, Netns, Userfaultfd);
    let network = Network::new();
    let kernel = Kernel { flavor: "cloud", image: "vmlinux" };
    let guest = Guest { name: "g", kernel, vcpus: 1 };
    guest.create_with(&network.a, "console=ttyS0 panic=-1", &[]);
    guest.await_ready(&network.a);
    guest.type_line(&network.a, "answer=$((6 * 7))");
    for (from, to, mode) in [(&network.a, &network.b, "precopy"), (&network.b, &network.a, "postcopy")] {
        migrate(from, to, guest.name, &json!({ "mode": mode }));
        guest.type_line(to, "echo still $answer; migrated-witness show");
        guest.await_console(to, "still 42");
        guest.await_console(to, "witness: backward_ns=0 ");
    }
    guest.assert_content(&network.a);
    network.a.cli(&["vm", "delete", guest.name]);
}
