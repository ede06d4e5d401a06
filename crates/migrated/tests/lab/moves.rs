//! Guests that move while a client talks to them.

use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use migrated_api::{MigrationRecord, MigrationState, Mode};
use migrated_testkit::require;
use migrated_witness::{Clocks, PORT, serve};
use serde_json::json;

use crate::caller::Caller;
use crate::guest::{ADDRESS, Guest, Kernel};
use crate::host::Host;
use crate::network::Network;

#[test]
fn a_cloud_kernel_keeps_its_connections_over_a_bad_link_too() {
    require!(Lab, Kvm, Netns, Userfaultfd);
    let network = Network::new();
    let kernel = Kernel { flavor: "cloud", image: "vmlinux" };
    let guest = Guest { name: "one-vcpu", kernel, vcpus: 1 };
    guest.create(&network.a);
    guest.await_ready(&network.a);
    there_and_back(&network, guest, "a good link");
    network.degrade();
    there_and_back(&network, guest, "1 % loss and 10 ms");
    guest.assert_content(&network.a);
}

#[test]
fn a_guest_of_two_vcpus_keeps_its_connections() {
    require!(Lab, Kvm, Netns, Userfaultfd);
    let network = Network::new();
    let kernel = Kernel { flavor: "cloud", image: "vmlinux" };
    let guest = Guest { name: "two-vcpus", kernel, vcpus: 2 };
    guest.create(&network.a);
    guest.await_ready(&network.a);
    there_and_back(&network, guest, "a good link");
    guest.assert_content(&network.a);
}

#[test]
fn a_generic_kernel_keeps_its_connections() {
    require!(Lab, Kvm, Netns, Userfaultfd);
    let network = Network::new();
    let kernel = Kernel { flavor: "generic", image: "vmlinuz" };
    let guest = Guest { name: "generic", kernel, vcpus: 1 };
    guest.create(&network.a);
    guest.await_ready(&network.a);
    there_and_back(&network, guest, "a good link");
    guest.assert_content(&network.a);
}

/// The client and the network that the other tests rely on, with the witness on a host instead of in a guest.
#[test]
fn the_client_reaches_both_hosts_bridges() {
    require!(Lab, Kvm, Netns);
    let network = Network::new();
    for (host, address) in [(&network.a, "10.0.0.3"), (&network.b, "10.0.0.4")] {
        network.give_bridge(host, address);
        let listener = host.netns.enter(|| TcpListener::bind((address, PORT))).unwrap();
        thread::spawn(move || serve(&listener, Clocks::watch().unwrap()));
    }
    for link in ["good", "bad"] {
        for address in ["10.0.0.3", "10.0.0.4"] {
            let begun = Instant::now();
            let caller = Caller::new(&network.client, address);
            caller.assert_right_time_since(begun);
            eprintln!("{link} link to {address}: {:?}", caller.seen_since(begun));
            caller.finish();
        }
        if link == "good" {
            network.degrade();
        }
    }
}

/// Moves a guest to the other host and back, by pre-copy and by post-copy, on one connection.
fn there_and_back(network: &Network, guest: Guest, link: &str) {
    let caller = Caller::new(&network.client, ADDRESS);
    for mode in [Mode::Precopy, Mode::Postcopy] {
        for (from, to) in [(&network.a, &network.b), (&network.b, &network.a)] {
            move_over(from, to, guest, mode, link, &caller);
        }
    }
    caller.finish();
}

fn move_over(from: &Host, to: &Host, guest: Guest, mode: Mode, link: &str, caller: &Caller) {
    let begun = Instant::now();
    let record = migrate(from, to, guest.name, mode);
    let moved = Instant::now();
    caller.await_answers_to_what_is_asked_now();
    caller.assert_right_time_since(moved);
    let seen = caller.seen_since(begun);
    eprintln!(
        "moved: {} by {mode:?} from {} to {} over {link}: the client's longest gap {:.1} ms, the guest's {:.1} ms, \
         downtime on record {:.1} ms, all in {:.1} s",
        guest.name,
        from.name,
        to.name,
        seen.gap.as_secs_f64() * 1e3,
        seen.guest_gap.as_secs_f64() * 1e3,
        record.downtime_us.total / 1e3,
        record.total_ms / 1e3,
    );
}

/// Moves a guest, which must work, and gives the record.
pub fn migrate(from: &Host, to: &Host, vm: &str, mode: Mode) -> MigrationRecord {
    let request = json!({ "to": to.name, "mode": mode, "transport": "tcp", "max_downtime_ms": 2000 });
    let record = from.await_end(&from.migrate(vm, &request).id);
    assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
    assert_eq!(record.mode, mode);
    assert!(from.find(vm).is_none(), "{vm} is on {} as well", from.name);
    record
}
