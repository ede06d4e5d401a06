//! What a migration would cost, asked beforehand and held against what became of it.

use migrated_api::{LinkSource, MigrationPlan, MigrationState, Mode, VmState};
use migrated_testkit::require;
use serde_json::{Value, json};

use crate::guest::{Workload, assert_healthy, assert_runs_only};
use crate::host::Host;
use crate::lab::Lab;

/// It writes flat out at random over most of its memory.
const BUSY: Workload<'_> = Workload {
    name: "g",
    vcpus: 1,
    memory_mib: 64,
    parameters: "hot=32M rate=max pattern=random content=random fill=8M",
};
/// What the shaped link carries, in bits a second.
const SHAPED: u64 = 100_000_000;

#[track_caller]
fn plan(host: &Host, request: &Value) -> MigrationPlan {
    host.api.post("/v1/vms/g/migrations/plan", request).ok()
}

#[test]
fn a_plan_says_what_a_migration_then_becomes() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    lab.a.netns.shape(SHAPED);
    BUSY.create(&lab.a);
    let planned = plan(&lab.a, &json!({ "to": "b", "max_downtime_ms": 50 }));
    eprintln!("{planned:#?}");
    assert!(planned.admission.is_ok() && planned.link.source == LinkSource::Probe, "{planned:#?}");
    assert!((0.5..1.2).contains(&(planned.link.bps as f64 / SHAPED as f64)), "{:?}", planned.link);
    assert!((40 << 8..=64 << 8).contains(&planned.guest.nonzero_pages), "{:?}", planned.guest);
    assert!(planned.guest.writes.iter().all(|window| window.pages > 0), "{:?}", planned.guest);
    assert!(!planned.prediction.precopy.converges, "{:?}", planned.prediction);
    assert!(planned.prediction.postcopy.within_limits && planned.risk.is_some(), "{planned:#?}");
    assert!(matches!(planned.recommended, Mode::Postcopy | Mode::Hybrid), "{planned:#?}");

    let table =
        lab.a.run(&["migrate", "g", "--to", "b", "--plan", "--link", "1gbit", "--max-downtime", "50ms"]);
    assert!(table.status.success(), "{table:?}");
    eprintln!("{}", String::from_utf8_lossy(&table.stdout));
}
