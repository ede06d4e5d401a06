//! What a migration would cost, asked beforehand and held against what became of it.

use std::thread;

use migrated_api::{LinkSource, MigrationPlan, MigrationState, Mode, VmState};
use migrated_testkit::require;
use serde_json::{Value, json};

use crate::guest::{Workload, assert_healthy, assert_runs_only};
use crate::host::Host;
use crate::lab::Lab;

/// It writes flat out at random over most of its memory.
const BUSY: Workload<'_> = Workload {
    name: "g",
    vcpus: 2,
    memory_mib: 64,
    parameters: "hot=32M rate=max pattern=random content=random fill=8M",
};
/// What the shaped link carries, in bits a second.
const SHAPED: u64 = 100_000_000;
const PATH: &str = "/v1/vms/g/migrations/plan";

#[track_caller]
fn plan(host: &Host, request: &Value) -> MigrationPlan {
    host.api.post(PATH, request).ok()
}

/// Nothing was left of a plan, and its guest runs on.
#[track_caller]
fn assert_untouched(lab: &Lab) {
    assert_eq!((lab.a.migrations(), lab.b.migrations()), (Vec::new(), Vec::new()));
    lab.await_tidy();
    assert_runs_only("g", &lab.a, &lab.b);
}

#[test]
fn a_plan_says_what_a_migration_then_becomes() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    lab.a.netns.shape(SHAPED);
    BUSY.create(&lab.a);
    let planned = plan(&lab.a, &json!({ "to": "b", "max_downtime_ms": 50 }));
    assert!(planned.admission.is_ok() && planned.link.source == LinkSource::Probe, "{planned:#?}");
    // What a busy machine reads late may seem twice as fast, see the probe; and the bucket lets a burst pass.
    assert!(planned.link.bps < SHAPED * 5 / 2, "{:?}", planned.link);
    let pages = |mib: u64| mib << 8;
    assert!((pages(40)..pages(64)).contains(&planned.guest.nonzero_pages), "{:?}", planned.guest);
    assert!(planned.guest.writes.iter().any(|window| window.pages > 0), "{:?}", planned.guest);
    let predicted = &planned.prediction;
    assert!(!predicted.precopy.converges && predicted.postcopy.within_limits, "{planned:#?}");
    assert!(matches!(planned.recommended, Mode::Postcopy | Mode::Hybrid), "{planned:#?}");
    assert!(planned.risk.is_some(), "{planned:#?}");
    assert_untouched(&lab);

    // The same guest fits a link that drains faster than it writes, and then moves by pre-copy.
    let fast = json!({ "to": "b", "max_downtime_ms": 50, "link_bps": 100_000_000_000_u64, "rtt_us": 50 });
    let fast = plan(&lab.a, &fast);
    assert_eq!((fast.recommended, fast.link.source, fast.risk), (Mode::Precopy, LinkSource::Given, None));

    let record = lab
        .a
        .await_end(&lab.a.migrate("g", &json!({ "to": "b", "max_downtime_ms": 50, "verify": "after" })).id);
    assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
    assert_eq!((record.mode, record.verified.unwrap().mismatches), (Mode::Auto, 0));
    assert!(record.postcopy.is_some(), "{:#?}", record.decisions);
    // What was expected when it began, and when it chose, is beside what became of it.
    let beside = record.predicted.unwrap();
    assert!(beside.start.postcopy.possible && !beside.decision.unwrap().precopy.converges, "{beside:#?}");
    let sent = record.ram.pages_sent * 4096;
    assert!(sent * 10 > predicted.postcopy.bytes * 9, "{sent} bytes sent, {predicted:#?} planned");
    assert!(sent < predicted.hybrid.bytes * 11 / 10, "{sent} bytes sent, {predicted:#?} planned");
    assert_runs_only("g", &lab.b, &lab.a);
    lab.await_tidy();
}

#[test]
fn the_command_line_shows_a_plan_and_fails_when_the_guest_would_be_refused() {
    require!(Kvm, Netns);
    let mut lab = Lab::with("", "[guests]\nmemory_limit_bytes = 100663296\n");
    Workload { parameters: "hot=1M rate=1000", ..BUSY }.create(&lab.a);
    let args =
        ["migrate", "g", "--to", "b", "--plan", "--link", "1gbit", "--max-total", "60s", "--sample", "100ms"];
    let shown = lab.a.run(&args);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.status.success(), "{text}");
    for part in
        ["pre-copy", "hybrid", "post-copy", "1.00 Gbit/s (given)", "auto would move the guest by pre-copy"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let planned: MigrationPlan = serde_json::from_value(lab.a.cli(&args)).unwrap();
    assert_eq!((planned.recommended, planned.to.as_str()), (Mode::Precopy, "b"));
    assert_untouched(&lab);

    Workload { name: "other", ..BUSY }.create(&lab.b);
    let refused = lab.a.run(&args);
    let text = String::from_utf8(refused.stdout).unwrap();
    assert!(!refused.status.success() && text.contains("insufficient_memory"), "{text}");
    assert_eq!(
        lab.a.cli_refused(&["migrate", "g", "--to", "b", "--plan", "--sample", "1m"]).0,
        "invalid_request"
    );
    lab.b.kill_daemon();
    assert_eq!(lab.a.cli_refused(&["migrate", "g", "--to", "b", "--plan"]).0, "peer_unreachable");
    lab.b.start_daemon();
}

#[test]
fn a_migration_does_not_wait_for_a_guest_to_be_watched() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    Workload { parameters: "hot=4M rate=20000 content=random", ..BUSY }.create(&lab.a);
    thread::scope(|scope| {
        let watched =
            scope.spawn(|| lab.a.api.post(PATH, &json!({ "to": "b", "sample_ms": 10_000 })).problem());
        let record = lab.a.await_end(&lab.a.migrate("g", &json!({ "to": "b", "verify": "after" })).id);
        assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
        assert_eq!(record.verified.unwrap().mismatches, 0);
        // The second, where the guest had left before it was asked about.
        let (_, code) = watched.join().unwrap();
        assert!(["migration_in_progress", "vm_not_found"].contains(&code.as_str()), "{code}");
    });
    assert_runs_only("g", &lab.b, &lab.a);
}

#[test]
fn a_paused_guest_writes_nothing_and_a_destination_without_userfaultfd_gets_it_by_precopy() {
    require!(Kvm, Netns, Userfaultfd);
    let mut lab = Lab::new();
    lab.b.kill_daemon();
    lab.b.start_daemon_without_userfaultfd();
    BUSY.create(&lab.a);
    let slow = json!({ "to": "b", "link_bps": SHAPED, "max_downtime_ms": 50 });
    let unable = plan(&lab.a, &slow);
    let why = unable.admission.no_postcopy.as_deref().unwrap_or_default();
    assert!(unable.admission.is_ok() && why.contains("userfaultfd"), "{unable:#?}");
    assert!(unable.recommended == Mode::Precopy && unable.reason.contains(why), "{unable:#?}");
    assert!(!unable.prediction.precopy.converges && !unable.prediction.postcopy.possible, "{unable:#?}");

    lab.a.cli(&["vm", "pause", "g"]);
    let paused = plan(&lab.a, &slow);
    assert!(paused.guest.writes.iter().all(|window| window.pages == 0), "{:?}", paused.guest);
    assert!(paused.prediction.precopy.converges && paused.rests_on[0].contains("paused"), "{paused:#?}");
    assert_eq!(lab.a.vm("g").state, VmState::Paused);
    lab.a.cli(&["vm", "resume", "g"]);
    assert_untouched(&lab);
    assert_healthy(&lab.a, "g");
}
