//! Guests with baselines: made, refused, moved; and what a host loses.

use std::path::Path;

use migrated_api::{CpuReport, HostCpuReport, MigrationState, VmList, VmState};
use migrated_cpuid::{CpuDump, HostCpu};
use serde_json::{Value, json};

use super::cpus;
use super::host::{Host, four_vcpus, problem, spec};

const ENDED: &[MigrationState] =
    &[MigrationState::Completed, MigrationState::Failed, MigrationState::Cancelled];

fn with_baseline(name: &str, baseline: Value) -> Value {
    let mut spec = spec(name, "");
    spec["cpu_baseline"] = baseline;
    spec
}

fn simulated(name: &str, machine: &str) -> Host {
    Host::with(name, four_vcpus, |config| config.testing.simulate_cpu = Some(cpus::file(machine)))
}

fn metrics(host: &Host) -> String {
    host.call(host.daemon.as_ref().unwrap().render_metrics())
}

#[test]
fn a_vm_is_made_with_its_baseline_and_shows_it() {
    let a = Host::new("a");
    let vm: migrated_api::Vm = a.post("/v1/vms", &with_baseline("web", json!("intel-haswell"))).unwrap();
    let cpu = vm.cpu.unwrap();
    assert_eq!(
        (cpu.baseline.as_str(), cpu.best.as_deref(), cpu.simulated),
        ("intel-haswell", Some("intel-haswell"), false)
    );
    let custom = json!({ "name": "site", "base": "intel-haswell", "remove": ["avx2"] });
    let vm: migrated_api::Vm = a.post("/v1/vms", &with_baseline("own", custom.clone())).unwrap();
    assert_eq!(vm.cpu.unwrap().baseline, "site");
    assert_eq!(serde_json::to_value(vm.spec.cpu_baseline).unwrap(), custom);
    assert!(a.create("host", "").unwrap().cpu.unwrap().best.unwrap().starts_with("intel-skylake"));
}

#[test]
fn a_baseline_that_is_none_is_refused_with_everything_that_is_wrong_with_it() {
    let a = Host::new("a");
    let cases: [(Value, &str, &[&str], &str); 6] = [
        (json!("intel-hasvell"), "unknown_baseline", &["unknown_baseline"], "did you mean intel-haswell?"),
        (json!("intel-haswell+amx"), "unknown_baseline", &["unknown_baseline_part"], "amx"),
        (
            json!({ "base": "x86-64-v2", "add": ["avx2", "sse5"], "remove": ["avx_2"] }),
            "invalid_baseline",
            &["unknown_cpu_feature", "unknown_cpu_feature"],
            "did you mean avx2?",
        ),
        (
            json!({ "base": "x86-64-v2", "add": ["avx2"] }),
            "invalid_baseline",
            &["impossible_cpu_features"],
            "avx2 needs",
        ),
        (
            json!({ "base": "x86-64-v2", "add": ["aes"], "remove": ["aes"] }),
            "invalid_baseline",
            &["contradictory_cpu_features"],
            "both in `add` and in `remove`",
        ),
        (
            json!({ "base": "x86-64-v2", "physical_address_bits": 64 }),
            "invalid_baseline",
            &["invalid_address_bits"],
            "36 to 52",
        ),
    ];
    for (baseline, code, reasons, says) in cases {
        let refused = problem(a.post::<Value>("/v1/vms", &with_baseline("web", baseline)));
        let got: Vec<_> = refused.reasons.iter().map(|reason| reason.code.as_str()).collect();
        assert_eq!((refused.status, refused.code.as_str(), got.as_slice()), (422, code, reasons));
        assert!(refused.detail.contains(says), "{says}: {}", refused.detail);
    }
    let unknown_key = json!({ "base": "host", "added": [] });
    assert_eq!(
        problem(a.post::<Value>("/v1/vms", &with_baseline("web", unknown_key))).code,
        "invalid_request"
    );
    assert_eq!(a.get::<VmList>("/v1/vms").unwrap().vms, []);
}

#[test]
fn a_baseline_that_the_host_cant_give_is_refused_naming_every_feature() {
    let a = Host::with("a", four_vcpus, |config| config.guests.hide_cpu_features = vec!["pku".into()]);
    let refused = problem(a.post::<Value>("/v1/vms", &with_baseline("web", json!("intel-icelake"))));
    assert_eq!((refused.status, refused.code.as_str()), (422, "cpu_incompatible"));
    let report = refused.cpu.unwrap();
    for feature in ["avx512_vnni", "vaes", "gfni"] {
        assert!(report.mismatches.iter().any(|mismatch| mismatch.field == feature), "{feature}");
    }
    assert_eq!(refused.reasons.len(), report.mismatches.len());
    assert!(refused.reasons.iter().all(|reason| reason.code == "cpu_incompatible"));
    assert!(
        refused.detail.contains("intel-icelake") && refused.detail.contains("intel-skylake"),
        "{}",
        refused.detail
    );
    let hidden = json!({ "base": "intel-haswell", "add": ["pku"] });
    let refused = problem(a.post::<Value>("/v1/vms", &with_baseline("web", hidden)));
    assert!(refused.reasons[0].detail.contains("pku"), "{:?}", refused.reasons);
    assert_eq!(std::fs::read_dir(a.config.state_dir.join("vms")).unwrap().count(), 0);
    assert!(metrics(&a).contains("migrated_cpu_refusals_total{at=\"creation\"} 2\n"));
}

#[test]
fn ram_beyond_the_guests_addresses_is_refused() {
    let a = Host::new("a");
    let mut vast = with_baseline("web", json!({ "base": "intel-haswell", "physical_address_bits": 36 }));
    vast["memory_bytes"] = json!(64_u64 << 30);
    let refused = problem(a.post::<Value>("/v1/vms", &vast));
    assert_eq!((refused.status, refused.reasons[0].code.as_str()), (422, "invalid_memory"));
    assert!(refused.detail.contains("physical_address_bits"), "{}", refused.detail);
}

#[test]
fn a_guest_is_refused_before_anything_moves_and_one_of_a_common_baseline_goes() {
    let (new, old) = (simulated("new", "intel-icelake"), simulated("old", "intel-skylake"));
    new.create("web", "").unwrap();
    let begun = new.migrate("web", &old);
    let ended = new.wait(&begun.id, ENDED);
    let error = ended.error.unwrap();
    assert_eq!((error.code.as_str(), error.phase), ("cpu_incompatible", Some(MigrationState::Preflight)));
    assert_eq!((ended.state, ended.wire_bytes.sent), (Some(MigrationState::Failed), 0));
    for part in ["intel-icelake", "intel-skylake", "--cpu-baseline"] {
        assert!(error.message.contains(part), "{part}: {}", error.message);
    }
    let report: CpuReport = serde_json::from_value(error.details.unwrap()["cpu"].clone()).unwrap();
    assert!(report.mismatches.iter().any(|mismatch| mismatch.field == "gfni"), "{report:?}");
    new.assert_state("web", VmState::Running);
    assert_eq!(old.get::<VmList>("/v1/vms").unwrap().vms, []);
    assert!(metrics(&old).contains("migrated_cpu_refusals_total{at=\"admission\"} 1\n"));

    let common = report.common_baseline.unwrap();
    let _: migrated_api::Vm = new.post("/v1/vms", &with_baseline("movable", json!(common))).unwrap();
    let begun = new.migrate("movable", &old);
    let ended = new.wait(&begun.id, ENDED);
    assert_eq!((ended.state, ended.error), (Some(MigrationState::Completed), None));
    old.wait(&begun.id, ENDED);
    assert!(old.vm("movable").unwrap().cpu.unwrap().simulated);
}

#[test]
fn a_guest_that_is_refused_for_more_than_its_cpu_hears_all_of_it() {
    let (new, old) = (simulated("new", "intel-icelake"), simulated("old", "intel-skylake"));
    new.create("web", "").unwrap();
    old.create("web", "").unwrap();
    let begun = new.migrate("web", &old);
    let error = new.wait(&begun.id, ENDED).error.unwrap();
    assert_eq!(error.code, "admission_refused");
    assert!(
        error.message.contains("choose another name") && error.message.contains("intel-icelake"),
        "{}",
        error.message
    );
    assert!(error.details.unwrap()["cpu"]["mismatches"].is_array());
}

#[test]
fn what_the_cpu_has_lost_since_the_last_daemon_is_told() {
    let keep = |dir: &Path, host: &HostCpu| {
        std::fs::create_dir_all(dir).unwrap();
        let dump = serde_json::to_vec(&CpuDump::of(host)).unwrap();
        std::fs::write(dir.join("host-cpu.json"), dump).unwrap();
    };
    let mut host = Host::with("a", four_vcpus, |config| {
        let mut before = cpus::host("intel-cascadelake");
        before.identity.microcode = Some(0x7);
        keep(&config.state_dir, &before);
    });
    let lost = |host: &Host| host.get::<HostCpuReport>("/v1/host/cpu").unwrap().lost;
    let first = lost(&host);
    let vnni = first.iter().find(|lost| lost.feature.name() == "avx512_vnni").unwrap();
    assert_eq!(
        (vnni.microcode_then, vnni.microcode_now),
        (Some(0x7), cpus::host("intel-skylake").identity.microcode)
    );
    assert!(metrics(&host).contains(&format!("migrated_host_cpu_features_lost {}\n", first.len())));
    host.stop();
    host.start();
    assert_eq!(lost(&host), first);
    host.stop();
    // Then it comes back.
    keep(&host.config.state_dir, &cpus::host("intel-skylake"));
    host.start();
    assert_eq!(lost(&host), []);
    assert!(metrics(&host).contains("migrated_host_cpu_features_lost 0\n"));
}
