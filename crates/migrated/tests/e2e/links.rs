//! The link between the hosts is cut in the middle, or the other end falls silent, and nobody waits for it to come
//! back.

use migrated_api::{MigrationRecord, MigrationState};
use migrated_testkit::{require, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::guest::{Workload, assert_healthy, assert_runs_only};
use crate::host::{Host, PATIENCE};
use crate::lab::Lab;
use crate::netns::signal;
use crate::witness::Witness;

/// It writes faster than the limit lets through, so that stop-and-copy lasts a while as well.
const GUEST: Workload<'_> = Workload {
    name: "g",
    vcpus: 2,
    memory_mib: 32,
    parameters: "hot=4M rate=max pattern=random content=random fill=8M",
};

fn begin(from: &Host, to: &Host) -> MigrationRecord {
    let request = json!({
        "to": to.name, "mode": "precopy", "bandwidth_bps": 160_000_000, "timeout_s": 1.5, "on_timeout": "stop",
        "max_downtime_ms": 5, "reconnect_window_ms": 0,
    });
    from.migrate("g", &request)
}

/// Checks that a record says in which phase which peer was lost, and how far it had come.
#[track_caller]
fn assert_names_all(record: &MigrationRecord, codes: &[&str], phase: MigrationState, peer: &str) {
    assert_eq!(record.state, Some(MigrationState::Failed), "{record:#?}");
    let error = record.error.as_ref().unwrap();
    assert!(codes.contains(&error.code.as_str()), "{error:?}");
    assert_eq!(error.phase, Some(phase), "{error:?}");
    for part in [phase.name(), &format!("with {peer}"), "last progress"] {
        assert!(error.message.contains(part), "{part} is not in {error:?}");
    }
}

#[test]
fn a_cut_link_in_precopy_leaves_the_guest_at_the_source() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin(&lab.a, &lab.b);
    assert!(lab.a.api.follow(&begun.id).any(|state| state == "precopy"));
    lab.b.netns.set_link(false);
    let record = lab.a.await_end(&begun.id);
    assert_names_all(&record, &["peer_dead", "link_lost"], MigrationState::Precopy, "b");
    let theirs = lab.b.await_end(&begun.id);
    assert_eq!(theirs.state, Some(MigrationState::Failed), "{theirs:#?}");
    lab.await_tidy();
    assert_runs_only("g", &lab.a, &lab.b);

    lab.b.netns.set_link(true);
    let record = lab.a.await_end(&begin(&lab.a, &lab.b).id);
    assert_eq!(record.state, Some(MigrationState::Completed), "{record:#?}");
    assert_runs_only("g", &lab.b, &lab.a);
}

#[test]
fn a_link_cut_around_the_switchover_leaves_one_copy() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    for (state, looks) in [("stop_and_copy", 0), ("stop_and_copy", 40), ("switchover", 0), ("switchover", 0)]
    {
        let from_a = lab.a.find("g").is_some();
        let (from, to) = lab.pair(from_a);
        let mut witness = Witness::of(from.vm("g").pid.unwrap());
        let begun = begin(from, to);
        // One that was over before it could be told is missed: then the cut comes after the end.
        let seen = from.api.follow(&begun.id).any(|now| now == state);
        for _ in 0..looks {
            witness.look(to);
        }
        lab.b.netns.set_link(false);
        // The source has given up, or has everything that it wants, or doesn't know and asks.
        wait_until("the source has reacted", PATIENCE, || {
            witness.look(to);
            let state = from.migration(&begun.id).state.unwrap();
            state.is_final() || state == MigrationState::Indeterminate
        });
        let reacted = from.migration(&begun.id).state;
        lab.b.netns.set_link(true);
        let record = from.await_end(&begun.id);
        let theirs = to.await_end(&begun.id);
        witness.look(to);
        eprintln!("cut in {state} (seen: {seen}): {reacted:?}, then {:?}: {:?}", record.state, record.error);
        if record.state == Some(MigrationState::Completed) {
            assert_eq!(theirs.state, Some(MigrationState::Completed), "{theirs:#?}");
            assert_runs_only("g", to, from);
        } else {
            let error = record.error.as_ref().unwrap();
            assert!(error.message.contains(to.name) && error.message.contains("last progress"), "{error:?}");
            assert!(!witness.saw_it_run(), "{record:#?}");
            assert_runs_only("g", from, to);
        }
        lab.await_tidy();
    }
}

#[test]
fn a_destination_that_falls_silent_is_dead_and_stays_so() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let mut witness = Witness::of(lab.a.vm("g").pid.unwrap());
    let begun = begin(&lab.a, &lab.b);
    assert!(lab.a.api.follow(&begun.id).any(|state| state == "precopy"));
    let silent = lab.b.vm_processes()[0];
    signal(silent, Signal::STOP);
    let record = lab.a.await_end(&begun.id);
    // The kernel may find out first, that nothing is taken any more.
    assert_names_all(&record, &["peer_dead", "link_lost"], MigrationState::Precopy, "b");
    assert_runs_only("g", &lab.a, &lab.b);

    signal(silent, Signal::CONT);
    wait_until("it has noticed that it is too late", PATIENCE, || {
        witness.look(&lab.b);
        lab.b.vm_processes().is_empty()
    });
    // It finds out, or the source's daemon tells it.
    let theirs = lab.b.await_end(&begun.id).state;
    let gave_up = matches!(theirs, Some(MigrationState::Failed | MigrationState::Cancelled));
    assert!(gave_up, "{theirs:?}");
    assert!(!witness.saw_it_run());
    let before = assert_healthy(&lab.a, "g").heartbeat;
    wait_until("the guest goes on", PATIENCE, || assert_healthy(&lab.a, "g").heartbeat > before);
    lab.await_tidy();
}

#[test]
fn a_source_that_falls_silent_is_dead_to_the_destination_and_goes_on_when_it_wakes() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    let made = GUEST.create(&lab.a);
    let begun = begin(&lab.a, &lab.b);
    assert!(lab.a.api.follow(&begun.id).any(|state| state == "precopy"));
    signal(made.pid.unwrap(), Signal::STOP);
    let theirs = lab.b.await_end(&begun.id);
    assert_eq!(theirs.state, Some(MigrationState::Failed), "{theirs:#?}");
    assert_eq!(theirs.error.unwrap().code, "peer_dead");
    signal(made.pid.unwrap(), Signal::CONT);
    let record = lab.a.await_end(&begun.id);
    assert_eq!(record.state, Some(MigrationState::Failed), "{record:#?}");
    assert_runs_only("g", &lab.a, &lab.b);
    lab.await_tidy();
}
