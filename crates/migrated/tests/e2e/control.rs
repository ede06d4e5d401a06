//! What can be done with a migration under way, and what a migration keeps to.

use migrated_api::{MigrationRecord, MigrationState, Verify, VmState};
use migrated_testkit::{require, wait_until};
use serde_json::{Value, json};

use crate::guest::{Workload, assert_healthy, assert_runs_only};
use crate::host::{Host, PATIENCE};
use crate::lab::Lab;
use crate::record::assert_complete;

/// Two MiB a second: copying takes long enough for anything to be done meanwhile.
const SLOW_BPS: u64 = 16_000_000;

const GUEST: Workload<'_> =
    Workload { name: "g", vcpus: 1, memory_mib: 64, parameters: "hot=4M rate=5000 content=random fill=40M" };

fn await_state(host: &Host, id: &str, state: MigrationState) {
    wait_until(state.name(), PATIENCE, || host.migration(id).state == Some(state));
}

/// Begins a migration that will not end by itself soon.
fn begin_slowly(lab: &Lab) -> MigrationRecord {
    let begun = lab.a.migrate("g", &json!({ "to": "b", "mode": "precopy", "bandwidth_bps": SLOW_BPS }));
    await_state(&lab.a, &begun.id, MigrationState::Precopy);
    begun
}

#[test]
fn a_migration_under_way_can_be_cancelled_and_nothing_else_be_done_with_its_guest() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin_slowly(&lab);
    assert_eq!(lab.a.vm("g").migration.as_deref(), Some(&*begun.id));
    let busy = (409, "migration_in_progress".to_owned());
    assert_eq!(lab.a.api.post("/v1/vms/g/migrations", &json!({ "to": "b" })).problem(), busy);
    assert_eq!(lab.a.api.post_empty("/v1/vms/g/pause").problem(), busy);
    assert_eq!(lab.a.api.delete("/v1/vms/g").problem(), busy);
    assert_eq!(lab.a.cli_refused(&["migrate", "g", "--to", "b"]).0, busy.1);
    assert_eq!(lab.b.api.get("/v1/vms/g").problem(), (404, "vm_not_found".into()));

    let cancel = format!("/v1/migrations/{}/cancel", begun.id);
    assert_eq!(lab.a.api.post_empty(&cancel).status, 202);
    check_cancelled(&lab, &begun.id);
    assert_eq!(lab.a.api.post_empty(&cancel).problem(), (409, "migration_not_cancellable".into()));

    let begun = lab.a.cli(&["migrate", "g", "--to", "b", "--mode", "precopy", "--bandwidth", "16mbit"]);
    let id = begun["id"].as_str().unwrap();
    await_state(&lab.a, id, MigrationState::Precopy);
    lab.a.cli(&["migration", "cancel", id]);
    check_cancelled(&lab, id);
    assert_eq!(lab.a.cli_refused(&["migration", "cancel", id]).0, "migration_not_cancellable");
    assert_eq!(lab.a.cli_refused(&["migration", "cancel", "none"]).0, "migration_not_found");

    // Neither has spoilt the guest for the next.
    let record = lab.a.await_end(&lab.a.migrate("g", &json!({ "to": "b", "verify": "before" })).id);
    assert_complete(&record, Verify::Before);
    assert_runs_only("g", &lab.b, &lab.a);
}

#[track_caller]
fn check_cancelled(lab: &Lab, id: &str) {
    let record = lab.a.await_end(id);
    let error = record.error.as_ref().unwrap();
    assert_eq!((record.state, error.code.as_str()), (Some(MigrationState::Cancelled), "cancelled"));
    assert_eq!(error.phase, Some(MigrationState::Precopy));
    let theirs = lab.b.await_end(id);
    assert!(matches!(theirs.state, Some(MigrationState::Failed | MigrationState::Cancelled)), "{theirs:#?}");
    lab.await_tidy();
    assert_runs_only("g", &lab.a, &lab.b);
}

#[test]
fn the_source_may_be_cancelled_at_once_and_a_destination_gives_up_too() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    for _ in 0..5 {
        let begun = lab.a.migrate("g", &json!({ "to": "b", "mode": "precopy", "bandwidth_bps": SLOW_BPS }));
        let cancelled = lab.a.api.post_empty(&format!("/v1/migrations/{}/cancel", begun.id));
        assert_eq!(cancelled.status, 202, "{cancelled:?}");
        let record = lab.a.await_end(&begun.id);
        assert_eq!(record.state, Some(MigrationState::Cancelled), "{record:#?}");
        lab.await_tidy();
    }
    let begun = begin_slowly(&lab);
    let cancelled = lab.b.api.post_empty(&format!("/v1/migrations/{}/cancel", begun.id));
    assert_eq!(cancelled.status, 202, "{cancelled:?}");
    let theirs = lab.b.await_end(&begun.id);
    assert_eq!(theirs.state, Some(MigrationState::Cancelled), "{theirs:#?}");
    let record = lab.a.await_end(&begun.id);
    let error = record.error.unwrap();
    assert_eq!((record.state, error.code.as_str()), (Some(MigrationState::Failed), "destination_failed"));
    assert!(error.message.contains("cancelled"), "{}", error.message);
    lab.await_tidy();
    assert_runs_only("g", &lab.a, &lab.b);
}

#[test]
fn a_guest_can_be_sent_again_at_once() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    for (from, to) in [(&lab.a, &lab.b), (&lab.b, &lab.a), (&lab.a, &lab.b)] {
        let begun =
            from.migrate("g", &json!({ "to": to.name, "mode": "precopy", "bandwidth_bps": SLOW_BPS }));
        await_state(from, &begun.id, MigrationState::Precopy);
        assert_eq!(from.api.post_empty(&format!("/v1/migrations/{}/cancel", begun.id)).status, 202);
        assert_eq!(from.await_end(&begun.id).state, Some(MigrationState::Cancelled));
        // The destination may not have heard yet, or still be clearing up.
        let record = from.await_end(&from.migrate("g", &json!({ "to": to.name, "mode": "precopy" })).id);
        assert_complete(&record, Verify::Off);
        to.await_end(&record.id);
        assert_runs_only("g", to, from);
    }
    lab.await_tidy();
}

#[test]
fn a_paused_guest_arrives_paused_with_its_console() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    let made = lab.a.cli(&["vm", "create", "--name", "g", "--memory", "32M", "--workload", "hot=4M"]);
    crate::guest::await_ready(&lab.a, "g");
    assert_eq!(lab.a.cli(&["vm", "pause", "g"])["state"], "paused");
    let before = lab.a.vm("g");
    let said = lab.a.run(&["vm", "console", "g"]).stdout;
    assert!(!said.is_empty());

    let watched = lab.a.cli(&["migrate", "g", "--to", "b", "--watch", "--verify", "after"]);
    assert_eq!((&watched["state"], &watched["verified"]["mismatches"]), (&json!("completed"), &json!(0)));
    let after = lab.b.vm("g");
    assert_eq!((after.id.as_str(), after.state), (made["id"].as_str().unwrap(), VmState::Paused));
    let (was, is) = (before.workload.unwrap(), after.workload.unwrap());
    assert_eq!((was.heartbeat, was.writes), (is.heartbeat, is.writes), "it ran while it was paused");
    assert!(lab.b.run(&["vm", "console", "g"]).status.success());
    assert_eq!(lab.a.find("g").map(|vm| vm.state), None);

    assert_eq!(lab.b.cli(&["vm", "resume", "g"])["state"], "running");
    wait_until("the guest goes on", PATIENCE, || assert_healthy(&lab.b, "g").heartbeat > is.heartbeat);
    let back = lab.b.cli(&["migrate", "g", "--to", "a", "--watch", "--verify", "before", "--channels", "3"]);
    assert_eq!((&back["channels"], &back["state"]), (&json!(3), &json!("completed")));
    assert_runs_only("g", &lab.a, &lab.b);

    let listed = lab.b.cli(&["migration", "list"]);
    assert_eq!(listed["migrations"].as_array().unwrap().len(), 2);
    assert_eq!(lab.b.cli(&["migration", "show", back["id"].as_str().unwrap()]), back);
}

#[test]
fn the_bandwidth_limit_is_kept() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let limit = 160_000_000;
    let record = lab
        .a
        .await_end(&lab.a.migrate("g", &json!({ "to": "b", "mode": "precopy", "bandwidth_bps": limit })).id);
    assert_complete(&record, Verify::Off);
    assert!(record.throughput_bps < limit as f64 * 1.1, "{record:#?}");
    // A busy machine may make it slower, never faster: bytes sent and time taken are of one record.
    let seconds = (record.total_ms - record.setup_ms) / 1e3;
    let payload = (record.encodings.raw.bytes + record.encodings.lz4.bytes) as f64 * 8.0;
    assert!(payload / seconds < limit as f64 * 1.1, "{record:#?}");
}

#[test]
fn what_does_not_converge_ends_as_was_declared() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    let parameters = "hot=16M rate=max content=random pattern=random";
    Workload { name: "g", vcpus: 2, memory_mib: 64, parameters }.create(&lab.a);
    let base = json!({ "to": "b", "mode": "precopy", "bandwidth_bps": 200_000_000, "max_downtime_ms": 2 });
    let with = |more: &[(&str, Value)]| {
        let mut request = base.clone();
        more.iter().for_each(|(key, value)| request[key] = value.clone());
        lab.a.await_end(&lab.a.migrate("g", &request).id)
    };
    // By the stall rule, by the number of rounds, by the time.
    for limit in [vec![], vec![("max_iterations", json!(2))], vec![("timeout_s", json!(1.5))]] {
        let record = with(&limit);
        let error = record.error.as_ref().unwrap();
        assert_eq!((record.state, error.code.as_str()), (Some(MigrationState::Failed), "not_converged"));
        assert_eq!(error.phase, Some(MigrationState::Precopy), "{record:#?}");
        lab.await_tidy();
        assert_runs_only("g", &lab.a, &lab.b);
    }
    let record =
        with(&[("on_timeout", json!("stop")), ("timeout_s", json!(1.5)), ("verify", json!("before"))]);
    assert_complete(&record, Verify::Before);
    assert!(record.downtime_us.total > 2e3, "it could not converge and yet kept its limit: {record:#?}");
    assert_runs_only("g", &lab.b, &lab.a);
}
