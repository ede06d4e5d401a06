//! The link is lost in pre-copy, while the guest runs at the source: the migration goes on by itself.

use migrated_api::{MigrationRecord, MigrationState};
use migrated_testkit::{require, wait_until};
use serde_json::json;

use crate::following::await_state;
use crate::guest::{Workload, assert_healthy, assert_runs_only};
use crate::host::PATIENCE;
use crate::lab::{ADDRESSES, Lab};

/// It writes far more slowly than the limit lets through.
const GUEST: Workload<'_> = Workload {
    name: "g",
    vcpus: 2,
    memory_mib: 64,
    parameters: "hot=2M rate=500 pattern=random content=random fill=24M",
};

/// Some three seconds for the first pass over the guest's memory.
const BPS: u64 = 64_000_000;

/// Begins a migration and waits until some of its pages are there. Of the first iteration then many are not.
fn begin(lab: &Lab, window_ms: u64) -> MigrationRecord {
    let request = json!({
        "to": "b", "mode": "precopy", "bandwidth_bps": BPS, "verify": "after", "channels": 2, "reconnect_window_ms": window_ms,
    });
    let begun = lab.a.migrate("g", &request);
    wait_until("pages flow", PATIENCE, || lab.a.migration(&begun.id).ram.pages_sent > 500);
    begun
}

fn await_pause(lab: &Lab, id: &str) {
    for host in [&lab.a, &lab.b] {
        await_state(host, id, MigrationState::PrecopyPaused);
        let error = host.migration(id).error.unwrap();
        assert!(error.code == "link_lost" && error.message.contains("guest runs"), "{error:?}");
    }
}

/// Waits until the migration has completed, and checks what both ends tell of its one lost link.
fn await_completion(lab: &Lab, id: &str) -> MigrationRecord {
    let records = [&lab.a, &lab.b].map(|host| host.await_end(id));
    for record in &records {
        assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
        let [reconnect] = record.reconnects.as_slice() else { panic!("{:?}", record.reconnects) };
        assert!(reconnect.recovered_ms > Some(reconnect.lost_ms), "{reconnect:?}");
        assert!(reconnect.missing_pages > 0, "the first iteration was interrupted: {reconnect:?}");
    }
    let [record, _] = records;
    assert_eq!(record.verified.as_ref().map(|verified| verified.mismatches), Some(0), "{record:#?}");
    let decided = |what: &str| record.decisions.iter().any(|decision| decision.decision == what);
    assert!(decided("link_lost") && decided("reconnected"), "{:#?}", record.decisions);
    assert_runs_only("g", &lab.b, &lab.a);
    lab.await_tidy();
    record
}

#[test]
fn a_link_lost_in_precopy_costs_what_was_on_its_way() {
    require!(Kvm, Netns);
    let mut lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin(&lab, 60_000);
    lab.b.netns.set_link(false);
    await_pause(&lab, &begun.id);
    // Both ends live in the VM processes.
    for source in [true, false] {
        let daemon = if source { &mut lab.a } else { &mut lab.b };
        daemon.kill_daemon();
        daemon.start_daemon();
    }
    await_pause(&lab, &begun.id);
    lab.b.netns.set_link(true);
    let record = await_completion(&lab, &begun.id);
    let iteration = &record.iterations[0];
    let left = record.reconnects[0].missing_pages;
    assert!(left + 400 < record.ram.pages, "{left} pages were left after {iteration:?}");
}

#[test]
fn a_window_that_is_over_leaves_the_guest_at_the_source() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin(&lab, 1500);
    lab.b.netns.set_link(false);
    for host in [&lab.a, &lab.b] {
        let record = host.await_end(&begun.id);
        let error = record.error.as_ref().unwrap();
        assert_eq!((record.state, error.code.as_str()), (Some(MigrationState::Failed), "link_lost"));
        assert_eq!(error.phase, Some(MigrationState::PrecopyPaused), "{error:?}");
        assert!(record.reconnects.iter().all(|reconnect| reconnect.recovered_ms.is_none()));
    }
    lab.await_tidy();
    assert_runs_only("g", &lab.a, &lab.b);
    assert!(lab.b.vms().is_empty());
}

#[test]
fn a_migration_without_a_link_can_be_cancelled_and_begun_again() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin(&lab, 600_000);
    lab.b.netns.set_link(false);
    await_pause(&lab, &begun.id);
    lab.a.cli(&["migration", "cancel", &begun.id]);
    assert_eq!(lab.a.await_end(&begun.id).state, Some(MigrationState::Cancelled));
    assert_healthy(&lab.a, "g");
    lab.b.netns.set_link(true);
    // The destination still waits for the attempt before, unless it was told by now.
    let again = lab.a.migrate("g", &json!({ "to": "b" }));
    let record = lab.a.await_end(&again.id);
    assert_eq!(record.state, Some(MigrationState::Completed), "{record:#?}");
    assert_eq!(lab.b.await_end(&begun.id).state, Some(MigrationState::Cancelled));
    assert_runs_only("g", &lab.b, &lab.a);
    lab.await_tidy();
}

#[test]
fn another_address_of_the_destination_takes_over() {
    require!(Kvm, Netns);
    let others = ["10.78.0.1", "10.78.0.2"];
    let lab = Lab::advertising(&["192.0.2.7", ADDRESSES[1], others[1]]);
    for (host, address) in [&lab.a, &lab.b].into_iter().zip(others) {
        host.netns.add_address(address);
    }
    GUEST.create(&lab.a);
    // Nobody is at the first address, which costs no more than the next one's turn.
    let begun = begin(&lab, 60_000);
    lab.b.netns.remove_address(ADDRESSES[1]);
    await_state(&lab.a, &begun.id, MigrationState::PrecopyPaused);
    // Its API is reached at the address that is gone, so only its VM process can say what became of it.
    let record = lab.a.await_end(&begun.id);
    assert_eq!(record.state, Some(MigrationState::Completed), "{record:#?}");
    assert_eq!(record.reconnects.len(), 1, "{:?}", record.reconnects);
    assert_eq!(record.verified.as_ref().map(|verified| verified.mismatches), Some(0));
    assert_runs_only("g", &lab.b, &lab.a);
    lab.await_tidy();
}
