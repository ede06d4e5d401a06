//! Guests that move while a client talks to them.

use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use migrated_api::{MigrationRecord, MigrationState};
use migrated_testkit::require;
use migrated_witness::{Clocks, PORT, serve};
use serde_json::{Value, json};

use crate::caller::Caller;
use crate::guest::{ADDRESS, Guest, Kernel};
use crate::host::Host;
use crate::network::Network;

/// How far a move may put the guest's clock off.
const CLOCK_MOVES_MS: f64 = 10.0;
/// Page channels over the bad link, on which none gets far by itself.
const CHANNELS: u16 = 8;

#[test]
fn a_cloud_kernel_keeps_its_connections_over_a_bad_link_too() {
    require!(Lab, Kvm, Netns, Userfaultfd);
    let network = Network::new();
    let kernel = Kernel { flavor: "cloud", image: "vmlinux" };
    let guest = Guest { name: "one-vcpu", kernel, vcpus: 1 };
    let (a, b) = (&network.a, &network.b);
    let visit = Visit::begin(guest, &network);
    visit.there_and_back(a, b, &json!({ "mode": "precopy" }), &json!({ "mode": "precopy" }));
    visit.there_and_back(a, b, &json!({ "mode": "postcopy" }), &json!({ "mode": "postcopy" }));
    network.degrade();
    let visit = Visit { link: "1 % loss and 10 ms", ..visit };
    let wide = |mode: &str| json!({ "mode": mode, "channels": CHANNELS });
    let compared = json!({ "mode": "precopy", "channels": CHANNELS, "verify": "before" });
    visit.there_and_back(a, b, &compared, &wide("postcopy"));
    visit.caller.finish();
    guest.assert_content(&network.a);
}

#[test]
fn a_guest_of_two_vcpus_keeps_its_connections() {
    require!(Lab, Kvm, Netns, Userfaultfd);
    let network = Network::new();
    let kernel = Kernel { flavor: "cloud", image: "vmlinux" };
    let guest = Guest { name: "two-vcpus", kernel, vcpus: 2 };
    let (a, b) = (&network.a, &network.b);
    let visit = Visit::begin(guest, &network);
    visit.there_and_back(a, b, &json!({ "mode": "precopy" }), &json!({ "mode": "precopy" }));
    visit.there_and_back(a, b, &json!({ "mode": "postcopy" }), &json!({ "mode": "postcopy" }));
    visit.caller.finish();
    guest.assert_content(&network.a);
}

#[test]
fn a_generic_kernel_keeps_its_connections() {
    require!(Lab, Kvm, Netns, Userfaultfd);
    let network = Network::new();
    let kernel = Kernel { flavor: "generic", image: "vmlinuz" };
    let guest = Guest { name: "generic", kernel, vcpus: 1 };
    let (a, b) = (&network.a, &network.b);
    let visit = Visit::begin(guest, &network);
    visit.there_and_back(a, b, &json!({ "mode": "precopy" }), &json!({ "mode": "precopy" }));
    visit.there_and_back(a, b, &json!({ "mode": "postcopy" }), &json!({ "mode": "postcopy" }));
    visit.caller.finish();
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
            let (low, high) = caller.clock_ahead_since(begun);
            assert!(low <= 0.0 && high >= 0.0, "two clocks of one machine: {low}..{high} ms");
            eprintln!("{link} link to {address}: {:?}", caller.seen_since(begun));
            caller.finish();
        }
        if link == "good" {
            network.degrade();
        }
    }
}

/// A guest that moves while a client, on one connection, goes on asking.
struct Visit {
    guest: Guest,
    link: &'static str,
    caller: Caller,
}

impl Visit {
    /// Boots the guest on the first host, and calls it. What it has had to complain about until then no move has caused.
    fn begin(guest: Guest, network: &Network) -> Self {
        guest.create(&network.a);
        guest.await_ready(&network.a);
        let caller = Caller::new(&network.client, ADDRESS);
        guest.complaints(&network.a);
        Self { guest, link: "a good link", caller }
    }

    fn there_and_back(&self, here: &Host, other: &Host, there: &Value, back: &Value) {
        self.move_over(here, other, there);
        self.move_over(other, here, back);
    }

    /// Moves the guest, says what its client saw, and asserts that the guest's clock went on.
    fn move_over(&self, from: &Host, to: &Host, how: &Value) {
        let before = Instant::now();
        self.caller.await_answers_to_what_is_asked_now();
        let clock_before = self.caller.clock_ahead_since(before);
        let begun = Instant::now();
        let record = migrate(from, to, self.guest.name, how);
        let moved = Instant::now();
        self.caller.await_answers_to_what_is_asked_now();
        let seen = self.caller.seen_since(begun);
        let clock = self.caller.clock_ahead_since(moved);
        // What it was ahead by before is the guest's own affair: while it boots it counts ticks, of which a slow
        // machine loses some.
        let went = (clock.0 - clock_before.1, clock.1 - clock_before.0);
        eprintln!(
            "moved: {} by {:?} from {} to {} over {}: the client's longest gap {:.1} ms, the guest's {:.1} ms, \
             downtime on record {:.1} ms, all in {:.1} s; the guest's clock off by {:.1} to {:.1} ms",
            self.guest.name,
            record.mode,
            from.name,
            to.name,
            self.link,
            seen.gap.as_secs_f64() * 1e3,
            seen.guest_gap.as_secs_f64() * 1e3,
            record.downtime_us.total / 1e3,
            record.total_ms / 1e3,
            went.0,
            went.1,
        );
        assert!(went.0 < CLOCK_MOVES_MS && went.1 > -CLOCK_MOVES_MS, "the move put the guest's clock off");
    }
}

/// Moves a guest, which must work, and gives the record.
pub fn migrate(from: &Host, to: &Host, vm: &str, how: &Value) -> MigrationRecord {
    let mut request = json!({ "to": to.name, "transport": "tcp", "max_downtime_ms": 2000 });
    how.as_object().unwrap().iter().for_each(|(key, value)| request[key] = value.clone());
    let record = from.await_end(&from.migrate(vm, &request).id);
    assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
    assert_eq!(json!(record.mode), how["mode"]);
    assert!(from.find(vm).is_none(), "{vm} is on {} as well", from.name);
    record
}
