//! Guests that write faster than the link, slowed until they fit.

use migrated_api::{MigrationRecord, MigrationState, Verify, WriteAttribution};
use migrated_testkit::{require, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::guest::{Workload, assert_healthy, assert_runs_only};
use crate::host::{Host, PATIENCE};
use crate::lab::Lab;
use crate::netns::signal;
use crate::record::assert_complete;

/// Two vCPUs: the first writes its 32 MiB as fast as it can, the second reads as many.
const GUEST: Workload<'_> = Workload {
    name: "g",
    vcpus: 2,
    memory_mib: 96,
    parameters: "hot=64M rate=max readers=1 pattern=random content=random fill=8M",
};
/// Bits a second of the link: 12,000 pages, which the writer writes in some 50 ms.
const LINK_BPS: u64 = 400_000_000;

#[test]
fn a_guest_that_outwrites_its_link_is_slowed_and_arrives() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    for host in [&lab.a, &lab.b] {
        host.netns.shape(LINK_BPS);
    }
    let args = ["migrate", "g", "--to", "b", "--mode", "precopy", "--verify", "after", "--watch"];
    let watched = lab.a.run(&[&args[..], &["--max-downtime", "5ms"]].concat());
    assert!(!watched.status.success(), "without a slowdown it does not converge: {watched:?}");
    lab.await_tidy();
    // Long enough for the fixed costs on a machine however busy, and a tenth of what the writer writes.
    let slowed = ["--max-downtime", "100ms", "--max-slowdown", "99%"];
    let record = lab.a.cli(&[&args[..], &slowed].concat());
    let record: MigrationRecord = serde_json::from_value(record).unwrap();
    assert_complete(&record, Verify::After);
    assert_runs_only("g", &lab.b, &lab.a);
    assert_healthy(&lab.b, "g");

    let throttled = record.throttle.as_ref().unwrap();
    assert!(throttled.released_ms.is_some() && throttled.percent == 0.0, "{throttled:?}");
    let [writer, reader] = [throttled.vcpus[0], throttled.vcpus[1]];
    // A machine that is busy enough may slow the writer by itself: then it must have kept to its budget.
    let of_itself = || {
        let mut rounds = record.iterations.iter().filter(|round| round.dirty_rate_pps > 0.0);
        rounds.next_back().is_some_and(|last| last.dirty_rate_pps <= throttled.budget_pps)
    };
    let slept = writer.slept_ms > 0.0 && throttled.max_percent > 0.0;
    assert!(
        (slept || of_itself()) && throttled.max_percent <= 100.0,
        "{throttled:?} {:#?}",
        record.iterations
    );
    assert_eq!(
        record.iterations.iter().any(|round| round.throttle_percent > 0.0),
        slept,
        "{:#?}",
        record.iterations
    );
    if throttled.attribution == WriteAttribution::FaultCounters {
        assert!(reader.slept_ms == 0.0 && reader.pages < writer.pages / 10, "{throttled:?}");
    }
    assert!(record.decisions.iter().any(|d| d.decision == "throttle"), "{:#?}", record.decisions);
    let metrics = lab.a.api.get("/metrics");
    let text = std::str::from_utf8(&metrics.body).unwrap();
    for counted in
        ["migrated_throttled_vcpu_seconds_count{mode=\"precopy\"} 1\n", "migrated_throttle_ratio 0\n"]
    {
        assert!(text.contains(counted), "{counted} is not in {text}");
    }
    let shown = lab.a.run(&["migration", "show", &record.id]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("pages/s from") && shown.contains("vCPU 1 0 µs"), "{shown}");
}

/// Begins to move the guest, and waits until it is throttled. Rounds then still take seconds until it fits.
fn begin_throttled(host: &Host, on_timeout: &str) -> MigrationRecord {
    let request = json!({
        "to": "b", "mode": "precopy", "bandwidth_bps": LINK_BPS / 2, "max_downtime_ms": 50, "max_slowdown_percent": 99,
        "on_timeout": on_timeout, "reconnect_window_ms": 3000
    });
    let record = host.migrate("g", &request);
    wait_until("the throttle", PATIENCE, || {
        let record = host.migration(&record.id);
        assert!(!record.state.is_some_and(MigrationState::is_final), "{record:#?}");
        record.throttle.is_some_and(|throttled| throttled.percent > 0.0)
    });
    record
}

/// At the throttle's pace this would take longer than anybody waits.
fn await_many_writes(host: &Host) {
    let written = || assert_healthy(host, "g").writes;
    let before = written();
    wait_until("the guest to write at full speed", PATIENCE, || written() > before + 1_000_000);
}

#[test]
fn a_throttled_guest_is_let_go_when_its_migration_is_cancelled_or_fails() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    for (how, state) in [("cancelled", MigrationState::Cancelled), ("peer killed", MigrationState::Failed)] {
        let record = begin_throttled(&lab.a, "cancel");
        match state {
            MigrationState::Cancelled => _ = lab.a.cli(&["migration", "cancel", &record.id]),
            _ => signal(lab.b.vm_processes()[0], Signal::KILL),
        }
        let record = lab.a.await_end(&record.id);
        assert_eq!(record.state, Some(state), "{how}: {record:#?}");
        assert!(record.throttle.is_some_and(|throttled| throttled.released_ms.is_some()), "{how}");
        await_many_writes(&lab.a);
        lab.await_tidy();
    }
}

#[test]
fn a_throttled_guest_arrives_though_its_daemon_was_killed_meanwhile() {
    require!(Kvm, Netns);
    let mut lab = Lab::new();
    GUEST.create(&lab.a);
    // Whether and when it converges is not the matter here.
    let record = begin_throttled(&lab.a, "stop");
    lab.a.kill_daemon();
    lab.a.start_daemon();
    let record = lab.a.await_end(&record.id);
    assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
    assert!(record.throttle.is_some_and(|throttled| throttled.released_ms.is_some()));
    assert_runs_only("g", &lab.b, &lab.a);
    await_many_writes(&lab.b);
}
