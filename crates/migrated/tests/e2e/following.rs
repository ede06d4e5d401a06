//! What goes wrong while pages follow a guest: the link, or any of the four processes.

use migrated_api::{MigrationRecord, MigrationState, VmState};
use migrated_testkit::{Rng, require, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::guest::{Workload, assert_runs_only};
use crate::host::{Host, PATIENCE};
use crate::lab::Lab;
use crate::netns::signal;

pub const GUEST: Workload<'_> = Workload {
    name: "g",
    vcpus: 2,
    memory_mib: 64,
    parameters: "hot=8M rate=2000 pattern=random content=random fill=24M",
};

/// Eight seconds for the guest's memory: long enough to do anything meanwhile.
const SLOW_BPS: u64 = 32_000_000;

/// Begins a migration and waits until the guest runs at `b` while its pages follow it slowly.
pub fn begin_slowly(lab: &Lab) -> MigrationRecord {
    let request = json!({ "to": "b", "mode": "postcopy", "bandwidth_bps": SLOW_BPS, "verify": "after" });
    let begun = lab.a.migrate("g", &request);
    await_followed(lab, &begun.id);
    begun
}

pub fn await_followed(lab: &Lab, id: &str) {
    for host in [&lab.a, &lab.b] {
        await_state(host, id, MigrationState::PostcopyActive);
    }
}

pub fn await_state(host: &Host, id: &str, state: MigrationState) {
    wait_until(state.name(), PATIENCE, || {
        let now =
            host.migrations().into_iter().find(|record| record.id == id).and_then(|record| record.state);
        assert!(now.is_none_or(|now| !now.is_final() || state.is_final()), "it is {now:?} at {}", host.name);
        now == Some(state)
    });
}

/// Waits until the migration has completed with nothing lost.
fn await_completion(lab: &Lab, id: &str) -> [MigrationRecord; 2] {
    await_arrival(lab, true, id)
}

fn await_arrival(lab: &Lab, from_a: bool, id: &str) -> [MigrationRecord; 2] {
    let (from, to) = lab.pair(from_a);
    let records = [from, to].map(|host| host.await_end(id));
    for record in &records {
        assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
    }
    assert!(records[0].verified.as_ref().is_none_or(|verified| verified.mismatches == 0), "{records:#?}");
    assert_runs_only("g", to, from);
    lab.await_tidy();
    records
}

#[test]
fn a_link_that_was_cut_and_is_back_goes_on_by_itself() {
    require!(Kvm, Netns, Userfaultfd);
    let mut lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin_slowly(&lab);
    lab.b.netns.set_link(false);
    for host in [&lab.a, &lab.b] {
        await_state(host, &begun.id, MigrationState::PostcopyPaused);
        let error = host.migration(&begun.id).error.unwrap();
        assert!(error.code == "link_lost" && error.message.contains("guest runs"), "{error:?}");
    }
    let note = lab.b.vm("g").error.unwrap();
    assert!(note.contains("waits for a to come back"), "{note}");
    assert_eq!(lab.a.api.delete("/v1/vms/g").problem(), (409, "guest_runs_elsewhere".into()));
    // A daemon that comes back finds nothing better, and loses nothing.
    lab.a.kill_daemon();
    lab.a.start_daemon();
    assert_eq!(lab.a.migration(&begun.id).state, Some(MigrationState::PostcopyPaused));
    lab.b.netns.set_link(true);
    for record in await_completion(&lab, &begun.id) {
        let recoveries = &record.postcopy.as_ref().unwrap().recoveries;
        let recovered = recoveries.iter().all(|recovery| recovery.recovered_ms > Some(recovery.lost_ms));
        assert!(!recoveries.is_empty() && recovered, "{recoveries:?}");
    }
}

/// Rounds, unless the environment's `MIGRATED_E2E_CUTS` says otherwise.
const CUTS: u64 = 8;

#[test]
fn links_cut_at_random_moments_cost_no_guest() {
    require!(Kvm, Netns, Userfaultfd);
    let rounds = std::env::var("MIGRATED_E2E_CUTS").map_or(CUTS, |rounds| rounds.parse().unwrap());
    let lab = Lab::new();
    GUEST.create(&lab.a);
    for round in 0..rounds {
        let mut rng = Rng::new(round);
        let from_a = round % 2 == 0;
        let (from, to) = lab.pair(from_a);
        let request =
            json!({ "to": to.name, "mode": "postcopy", "bandwidth_bps": 160_000_000, "verify": "after" });
        let begun = from.migrate("g", &request);
        assert!(from.api.follow(&begun.id).any(|state| state == "postcopy_active"));
        for _ in 0..rng.below(200) {
            from.migration(&begun.id);
        }
        lab.b.netns.set_link(false);
        if rng.below(2) == 0 {
            wait_until("the source has noticed, or was done", PATIENCE, || {
                from.migration(&begun.id).state != Some(MigrationState::PostcopyActive)
            });
        }
        lab.b.netns.set_link(true);
        let [record, _] = await_arrival(&lab, from_a, &begun.id);
        let losses = record.postcopy.as_ref().unwrap().recoveries.len();
        eprintln!("round {round}: {losses} losses, {:?}", record.total_ms);
    }
}

#[test]
fn whoever_knows_that_the_link_is_back_says_so() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin_slowly(&lab);
    lab.b.netns.set_link(false);
    await_state(&lab.a, &begun.id, MigrationState::PostcopyPaused);
    lab.b.netns.set_link(true);
    // It may be back by itself already, or trying at this moment.
    let output = lab.a.run(&["migration", "recover", &begun.id, "--via", crate::lab::ADDRESSES[1]]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() || said.contains("migration_not_recoverable"), "{said}");
    await_completion(&lab, &begun.id);
}

#[test]
fn a_daemon_that_is_killed_and_started_again_finds_the_migration() {
    require!(Kvm, Netns, Userfaultfd);
    for of_source in [true, false] {
        let mut lab = Lab::new();
        GUEST.create(&lab.a);
        let begun = begin_slowly(&lab);
        let daemon = if of_source { &mut lab.a } else { &mut lab.b };
        daemon.kill_daemon();
        daemon.start_daemon();
        let host = if of_source { &lab.a } else { &lab.b };
        assert_eq!(host.vm("g").migration.as_deref(), Some(&*begun.id));
        assert_eq!(host.migration(&begun.id).state, Some(MigrationState::PostcopyActive));
        await_completion(&lab, &begun.id);
    }
}

#[test]
fn both_daemons_may_be_gone_when_the_last_page_comes() {
    require!(Kvm, Netns, Userfaultfd);
    let mut lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin_slowly(&lab);
    let source = lab.a.vm("g").pid.unwrap();
    lab.a.kill_daemon();
    lab.b.kill_daemon();
    wait_until("the source's VM process is done", PATIENCE, || !lab.a.netns.pids().contains(&source));
    lab.a.start_daemon();
    lab.b.start_daemon();
    await_completion(&lab, &begun.id);
}

#[test]
fn a_source_whose_vm_process_is_killed_says_what_the_guest_lacks() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin_slowly(&lab);
    signal(lab.a.vm("g").pid.unwrap(), Signal::KILL);
    let record = lab.a.await_end(&begun.id);
    let error = record.error.as_ref().unwrap();
    assert_eq!((record.state, error.code.as_str()), (Some(MigrationState::Failed), "vm_process_died"));
    assert!(error.message.contains("runs at b without the pages"), "{error:?}");
    let vm = lab.a.vm("g");
    assert_eq!(vm.state, VmState::Failed, "{vm:?}");
    assert!(vm.error.is_some_and(|why| why.contains("signal: 9")));
    lab.a.cli(&["vm", "delete", "g"]);

    await_state(&lab.b, &begun.id, MigrationState::PostcopyPaused);
    let theirs = lab.b.vm("g");
    assert_eq!(theirs.state, VmState::Running);
    assert!(theirs.error.is_some_and(|note| note.contains("only copy")));
    let paused = lab.b.api.post_empty("/v1/vms/g/pause");
    assert_eq!(paused.status, 200, "a guest that waits for pages can be paused: {paused:?}");
    // Nothing can bring the pages; its owner ends it.
    lab.b.cli(&["vm", "delete", "g"]);
    assert_eq!(lab.b.await_end(&begun.id).state, Some(MigrationState::Failed));
    lab.await_tidy();
}

#[test]
fn a_destination_whose_vm_process_is_killed_has_lost_the_guest_and_both_say_so() {
    require!(Kvm, Netns, Userfaultfd);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let begun = begin_slowly(&lab);
    signal(lab.b.vm("g").pid.unwrap(), Signal::KILL);
    for host in [&lab.a, &lab.b] {
        let record = host.await_end(&begun.id);
        let error = record.error.as_ref().unwrap();
        assert_eq!((record.state, error.code.as_str()), (Some(MigrationState::Failed), "guest_lost"));
        assert_eq!(error.phase.map(|phase| phase.name().starts_with("postcopy")), Some(true), "{error:?}");
        wait_until("the VM is failed", PATIENCE, || host.vm("g").state == VmState::Failed);
        let vm = host.vm("g");
        assert!(vm.pid.is_none() && vm.error.is_some(), "{vm:?}");
    }
    assert_eq!(lab.a.api.post_empty("/v1/vms/g/resume").problem(), (409, "wrong_vm_state".into()));
    for host in [&lab.a, &lab.b] {
        host.cli(&["vm", "delete", "g"]);
    }
    lab.await_tidy();
}
