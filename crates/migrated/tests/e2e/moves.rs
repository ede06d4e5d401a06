//! Back and forth, over every transport.

use migrated_api::{MigrationRecord, TransportKind, Verify};
use migrated_testkit::require;
use serde_json::json;

use crate::guest::{Workload, assert_healthy, assert_runs_only};
use crate::host::Host;
use crate::lab::Lab;
use crate::record::assert_complete;

const ROUNDS: usize = 10;

#[test]
fn twenty_moves_over_tcp_lose_nothing() {
    require!(Kvm, Netns);
    back_and_forth(TransportKind::Tcp);
}

#[test]
fn twenty_moves_over_tls_lose_nothing() {
    require!(Kvm, Netns);
    back_and_forth(TransportKind::TcpTls);
}

/// Two guests, of one and of two vCPUs, to the other host and back again, ten times.
fn back_and_forth(transport: TransportKind) {
    let lab = Lab::new();
    let guests = [("one", 1), ("two", 2)];
    for (name, vcpus) in guests {
        let parameters = "hot=16M rate=20000 content=random pattern=random fill=24M readonly=20";
        Workload { name, vcpus, memory_mib: 64, parameters }.create(&lab.a);
    }
    for round in 0..ROUNDS {
        let verify = [Verify::Before, Verify::Before, Verify::After, Verify::Off][round % 4];
        for there in [true, false] {
            let (from, to) = lab.pair(there);
            for (name, _) in guests {
                let record = move_over(from, to, name, transport, verify);
                assert_complete(&record, verify);
                assert!(record.guest_gap_us.is_some_and(|gap| gap > 0.0), "{record:#?}");
                assert_runs_only(name, to, from);
            }
        }
    }
    lab.await_tidy();
    for (name, _) in guests {
        let counters = assert_healthy(&lab.a, name);
        assert!(counters.passes > 0 && counters.writes > 0, "{counters:?}");
        lab.a.cli(&["vm", "delete", name]);
    }
    lab.await_tidy();
}

fn move_over(from: &Host, to: &Host, vm: &str, transport: TransportKind, verify: Verify) -> MigrationRecord {
    let begun = from.migrate(
        vm,
        &json!({
            "to": to.name, "mode": "precopy", "transport": transport, "verify": verify, "max_downtime_ms": 1000,
        }),
    );
    let record = from.await_end(&begun.id);
    let theirs = to.await_end(&begun.id);
    assert_eq!((theirs.state, &theirs.error), (record.state, &None), "{theirs:#?}");
    record
}

#[test]
fn a_guest_with_ram_above_the_hole_moves_there_and_back() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    // 3 GiB below the hole, the rest from 4 GiB on, where its working set then lies. Hardly any of it is touched.
    let parameters = "hot=32M rate=20000 content=random pattern=random";
    let guest = Workload { name: "g", vcpus: 2, memory_mib: 3_584, parameters };
    guest.create(&lab.a);
    for there in [true, false] {
        let (from, to) = lab.pair(there);
        let record = move_over(from, to, "g", TransportKind::Tcp, Verify::Before);
        assert_complete(&record, Verify::Before);
        assert_eq!(record.ram.bytes, guest.memory_mib << 20);
        assert!(
            record.ram.pages_zero > (3 << 30) / 4096 && record.ram.pages_sent >= (32 << 20) / 4096,
            "{record:#?}"
        );
        assert_runs_only("g", to, from);
    }
    let counters = assert_healthy(&lab.a, "g");
    assert!(counters.passes > 0 && counters.writes > 0, "{counters:?}");
    lab.a.cli(&["vm", "delete", "g"]);
    lab.await_tidy();
}

#[test]
fn pages_that_shrink_travel_compressed_over_a_slow_link_unless_that_is_not_wanted() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    let parameters = "hot=4M rate=1000 content=compressible pattern=random fill=24M";
    Workload { name: "g", vcpus: 1, memory_mib: 64, parameters }.create(&lab.a);
    for (there, compression) in [(true, "auto"), (false, "off")] {
        let (from, to) = lab.pair(there);
        let command = format!(
            "migrate g --to {} --mode precopy --bandwidth 100mbit --verify before --compression {compression} --watch",
            to.name
        );
        let shown = from.cli(&command.split(' ').collect::<Vec<_>>());
        let record: MigrationRecord = serde_json::from_value(shown).unwrap();
        assert_complete(&record, Verify::Before);
        let counts = &record.encodings;
        match compression {
            "auto" => assert!(counts.lz4.pages > counts.raw.pages && counts.saved_bytes > 0, "{record:#?}"),
            _ => assert_eq!(counts.lz4.pages, 0, "{record:#?}"),
        }
        assert_runs_only("g", to, from);
    }
    assert_healthy(&lab.a, "g");
}
