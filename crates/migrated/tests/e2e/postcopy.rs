//! Guests that switch hosts before their memory has.

use migrated_api::{MigrationRecord, MigrationState, Mode, TransportKind, Verify, VmState};
use migrated_testkit::{require, wait_until};
use serde_json::{Value, json};

use crate::following::{GUEST, await_followed, begin_slowly};
use crate::guest::{Workload, assert_healthy, assert_runs_only, await_ready};
use crate::host::{Host, PATIENCE};
use crate::lab::Lab;
use crate::record::assert_complete;

#[test]
fn moves_by_postcopy_and_hybrid_over_tcp_lose_nothing() {
    require!(Kvm, Netns, Userfaultfd);
    back_and_forth(TransportKind::Tcp);
}

#[test]
fn moves_by_postcopy_and_hybrid_over_tls_lose_nothing() {
    require!(Kvm, Netns, Userfaultfd);
    back_and_forth(TransportKind::TcpTls);
}

/// Two guests, of one and of two vCPUs, to the other host and back again, twice in each mode.
fn back_and_forth(transport: TransportKind) {
    let lab = Lab::new();
    let guests = [("one", 1), ("two", 2)];
    for (name, vcpus) in guests {
        let parameters = "hot=16M rate=20000 content=random pattern=random fill=24M readonly=20";
        Workload { name, vcpus, memory_mib: 64, parameters }.create(&lab.a);
    }
    for mode in [Mode::Postcopy, Mode::Hybrid, Mode::Postcopy, Mode::Hybrid] {
        for there in [true, false] {
            let (from, to) = lab.pair(there);
            for (name, _) in guests {
                let more = json!({ "mode": mode, "transport": transport, "max_downtime_ms": 1 });
                let (record, theirs) = move_over(from, to, name, &more);
                assert!(record.guest_gap_us.is_some_and(|gap| gap > 0.0), "{record:#?}");
                assert_eq!((record.mode, theirs.mode), (mode, mode));
                if mode == Mode::Postcopy {
                    assert_all_followed(&record, &theirs);
                }
            }
        }
    }
    lab.await_tidy();
    for (name, _) in guests {
        let counters = assert_healthy(&lab.a, name);
        assert!(counters.passes > 0 && counters.writes > 0, "{counters:?}");
    }
    let metrics = lab.a.api.get("/metrics");
    let text = std::str::from_utf8(&metrics.body).unwrap();
    for counted in [
        "migrated_postcopy_pages_total{why=\"push\"}",
        "migrated_postcopy_faults_total",
        "migrated_postcopy_fault_seconds_count",
        "migrated_postcopy_fault_part_seconds_count{part=\"wire\"}",
        "migrated_postcopy_blocked_seconds_count{who=\"all\"}",
        "migrated_postcopy_seconds_count{mode=\"postcopy\"}",
    ] {
        assert!(text.contains(counted), "{counted} is not in {text}");
    }
}

#[test]
fn auto_switches_when_the_guest_outruns_the_link_and_only_when_it_may() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    // It writes 80 MB/s; the first link carries 12.
    let parameters = "hot=16M rate=20000 content=random pattern=random fill=24M";
    Workload { name: "g", vcpus: 1, memory_mib: 64, parameters }.create(&lab.a);
    let moved = |from: &Host, to: &Host, more: &Value| {
        let mut request = json!({ "to": to.name, "verify": "after" });
        more.as_object().unwrap().iter().for_each(|(key, value)| request[key] = value.clone());
        let record = from.await_end(&from.migrate("g", &request).id);
        assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
        assert_eq!(record.verified.as_ref().map(|verified| verified.mismatches), Some(0));
        assert_eq!(record.mode, Mode::Auto, "it is the default");
        assert!(record.predicted.as_ref().is_some_and(|predicted| predicted.decision.is_some()));
        assert_runs_only("g", to, from);
        record
    };
    let slow = moved(&lab.a, &lab.b, &json!({ "bandwidth_bps": 100_000_000, "max_downtime_ms": 5 }));
    assert!(slow.postcopy.is_some(), "{:#?}", slow.decisions);
    let kept = json!({ "allow_postcopy": false, "max_downtime_ms": 5, "on_timeout": "stop" });
    let kept = moved(&lab.b, &lab.a, &kept);
    assert_eq!(kept.postcopy, None, "{:#?}", kept.decisions);
    assert!(kept.decisions[0].reason.contains("not allowed"), "{:#?}", kept.decisions);
}

#[test]
fn a_switch_waits_until_the_link_loses_nothing_any_more() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    let parameters = "hot=24M rate=max content=random pattern=random fill=24M";
    Workload { name: "g", vcpus: 1, memory_mib: 64, parameters }.create(&lab.a);
    lab.b.netns.lose(10);
    let request = json!({ "to": "b", "mode": "hybrid", "max_downtime_ms": 1, "verify": "after" });
    let begun = lab.a.migrate("g", &request);
    let reason = |record: &MigrationRecord, of: &str| {
        let decision = record.decisions.iter().find(|decision| decision.decision == of);
        decision.map(|decision| decision.reason.clone())
    };
    wait_until("the switch is delayed", PATIENCE, || {
        let record = lab.a.migration(&begun.id);
        assert!(record.state.is_some_and(|state| !state.is_final()), "{record:#?}");
        reason(&record, "switch_delayed").is_some_and(|why| why.contains("segments"))
    });
    lab.b.netns.lose(0);
    let record = lab.a.await_end(&begun.id);
    assert_complete(&record, Verify::After);
    assert!(record.postcopy.is_some() && reason(&record, "switch_to_postcopy").is_some(), "{record:#?}");
    assert_runs_only("g", &lab.b, &lab.a);
    lab.await_tidy();
}

/// Moves a guest and compares its memory; gives both ends' records.
#[track_caller]
fn move_over(from: &Host, to: &Host, vm: &str, more: &Value) -> (MigrationRecord, MigrationRecord) {
    let mut request = json!({ "to": to.name, "verify": "after" });
    more.as_object().unwrap().iter().for_each(|(key, value)| request[key] = value.clone());
    let record = from.await_end(&from.migrate(vm, &request).id);
    assert_complete(&record, Verify::After);
    let theirs = to.await_end(&record.id);
    assert_eq!((theirs.state, &theirs.error), (record.state, &None), "{theirs:#?}");
    assert_runs_only(vm, to, from);
    (record, theirs)
}

#[track_caller]
fn assert_all_followed(record: &MigrationRecord, theirs: &MigrationRecord) {
    let (sent, came) = (record.postcopy.as_ref().unwrap(), theirs.postcopy.as_ref().unwrap());
    assert_eq!((sent.missing_pages, came.missing_pages), (record.ram.pages, record.ram.pages));
    let by_cause = sent.pages_push + sent.pages_fault + sent.pages_prefetch;
    assert_eq!(by_cause, sent.missing_pages, "{sent:?}");
    assert!(sent.last_page_ms.is_some() && came.last_page_ms.is_some(), "{sent:?} {came:?}");
    assert!(
        came.faults > 0 && came.fault_latency.count() > 0,
        "a guest that runs touches something: {came:?}"
    );
    let wire = &came.fault_parts.wire;
    assert!(
        wire.count() <= came.fault_latency.count() && wire.sum_us <= came.fault_latency.sum_us,
        "{came:?}"
    );
    let is_vcpu = |name: &str| name.starts_with("vcpu");
    assert!(came.blocked.iter().any(|thread| is_vcpu(&thread.name) && thread.blocked_us > 0.0), "{came:?}");
    assert!(came.faults_per_second > 0.0 && came.faults_per_second_peak > 0.0, "{came:?}");
    assert!(sent.recoveries.is_empty() && came.recoveries.is_empty(), "{sent:?} {came:?}");
}

#[test]
fn a_guest_that_writes_faster_than_the_link_moves_by_postcopy_and_hybrid() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    let parameters = "hot=24M rate=max content=random pattern=random fill=24M";
    Workload { name: "g", vcpus: 2, memory_mib: 64, parameters }.create(&lab.a);
    for host in [&lab.a, &lab.b] {
        host.netns.shape(200_000_000);
    }
    let record = lab
        .a
        .await_end(&lab.a.migrate("g", &json!({ "to": "b", "mode": "precopy", "max_downtime_ms": 50 })).id);
    let code = record.error.as_ref().map(|error| error.code.as_str());
    assert_eq!(code, Some("not_converged"), "pre-copy can't do it: {record:#?}");
    lab.await_tidy();
    for (mode, there) in [(Mode::Hybrid, true), (Mode::Postcopy, false)] {
        let (from, to) = lab.pair(there);
        let (record, _) = move_over(from, to, "g", &json!({ "mode": mode, "max_downtime_ms": 50 }));
        assert!(record.postcopy.is_some(), "{record:#?}");
        assert!(record.decisions.iter().any(|d| d.decision == "switch_to_postcopy"), "{record:#?}");
    }
}

#[test]
fn a_paused_guest_moves_by_postcopy_and_stays_paused() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    lab.a.cli(&["vm", "create", "--name", "g", "--memory", "32M", "--workload", "hot=4M content=random"]);
    await_ready(&lab.a, "g");
    lab.a.cli(&["vm", "pause", "g"]);
    let before = lab.a.vm("g").workload.unwrap();
    let args = ["migrate", "g", "--to", "b", "--mode", "postcopy", "--watch", "--verify", "after"];
    let watched = lab.a.cli(&args);
    assert_eq!((&watched["state"], &watched["verified"]["mismatches"]), (&json!("completed"), &json!(0)));
    assert_eq!(lab.a.find("g").map(|vm| vm.state), None);
    let there = lab.b.vm("g");
    let after = there.workload.unwrap();
    assert_eq!(there.state, VmState::Paused);
    assert_eq!((before.heartbeat, before.writes), (after.heartbeat, after.writes), "it ran while paused");
    lab.b.cli(&["vm", "resume", "g"]);
    wait_until("the guest goes on", PATIENCE, || assert_healthy(&lab.b, "g").heartbeat > after.heartbeat);
}

#[test]
fn while_pages_follow_the_source_keeps_its_copy_and_the_owner_has_the_guest_at_the_destination() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let mode = json!({ "to": "b", "mode": "teleport" });
    assert_eq!(lab.a.api.post("/v1/vms/g/migrations", &mode).problem(), (422, "invalid_request".into()));
    let before = json!({ "to": "b", "mode": "postcopy", "verify": "before" });
    assert_eq!(lab.a.api.post("/v1/vms/g/migrations", &before).problem(), (422, "invalid_request".into()));

    let begun = lab.a.cli(&["migrate", "g", "--to", "b", "--mode", "postcopy", "--bandwidth", "32mbit"]);
    assert!(begun["risk"].as_str().unwrap().contains("depends on both hosts"), "{begun}");
    let id = begun["id"].as_str().unwrap();
    await_followed(&lab, id);

    let refused = |code: &str| (409, code.to_owned());
    for host in [&lab.a, &lab.b] {
        let cancel = host.api.post_empty(&format!("/v1/migrations/{id}/cancel"));
        assert_eq!(cancel.problem(), refused("migration_not_cancellable"));
        assert_eq!(host.cli_refused(&["migration", "recover", id]).0, "migration_not_recoverable");
        let to = json!({ "to": if host.name == "a" { "b" } else { "a" } });
        assert_eq!(host.api.post("/v1/vms/g/migrations", &to).problem(), refused("migration_in_progress"));
        let shown = host.run(&["migration", "show", id]).stdout;
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("postcopy_active") && shown.contains("pages followed the guest"), "{shown}");
    }
    assert_eq!(lab.a.cli_refused(&["migration", "recover", id, "--via", "nowhere"]).0, "invalid_request");
    assert_eq!(lab.a.api.post_empty("/v1/vms/g/pause").problem(), refused("guest_runs_elsewhere"));
    assert_eq!(lab.a.api.post_empty("/v1/vms/g/resume").problem(), refused("guest_runs_elsewhere"));
    let (code, detail) = lab.a.cli_refused(&["vm", "delete", "g"]);
    assert!(code == "guest_runs_elsewhere" && detail.contains("would be lost"), "{code}: {detail}");
    let (here, there) = (lab.a.vm("g"), lab.b.vm("g"));
    assert_eq!((here.state, there.state, there.error), (VmState::Paused, VmState::Running, None));
    assert!(here.error.is_some_and(|note| note.contains("the guest runs at b")));

    lab.b.cli(&["vm", "pause", "g"]);
    assert_eq!(lab.b.vm("g").state, VmState::Paused);
    lab.b.cli(&["vm", "resume", "g"]);
    let record = lab.a.await_end(id);
    assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
    lab.b.await_end(id);
    assert_runs_only("g", &lab.b, &lab.a);
    lab.await_tidy();
}

#[test]
fn an_owner_may_delete_a_guest_whose_pages_still_follow_it() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin_slowly(&lab);
    lab.b.cli(&["vm", "delete", "g"]);
    for host in [&lab.a, &lab.b] {
        let record = host.await_end(&begun.id);
        let code = record.error.as_ref().map(|error| error.code.as_str());
        assert_eq!((record.state, code), (Some(MigrationState::Failed), Some("guest_lost")), "{record:#?}");
    }
    wait_until("the source has given its copy up", PATIENCE, || lab.a.vm("g").state == VmState::Failed);
    lab.a.cli(&["vm", "delete", "g"]);
    lab.await_tidy();
}

#[test]
fn a_destination_that_may_not_take_page_faults_refuses_before_anything_moves() {
    require!(Kvm, Netns, Userfaultfd);
    let mut lab = Lab::new();
    GUEST.create(&lab.a);
    lab.b.kill_daemon();
    lab.b.start_daemon_without_userfaultfd();
    for mode in ["postcopy", "hybrid"] {
        let record = lab.a.await_end(&lab.a.migrate("g", &json!({ "to": "b", "mode": mode })).id);
        let error = record.error.as_ref().unwrap();
        assert_eq!((record.state, error.code.as_str()), (Some(MigrationState::Failed), "preflight_refused"));
        assert!(error.message.contains("userfaultfd"), "{error:?}");
        assert_eq!((record.ram.pages_sent, record.downtime_us.total), (0, 0.0), "{record:#?}");
        lab.await_tidy();
        assert_runs_only("g", &lab.a, &lab.b);
    }
    let (record, _) = move_over(&lab.a, &lab.b, "g", &json!({ "mode": "precopy" }));
    assert!(record.postcopy.is_none(), "{record:#?}");
}
