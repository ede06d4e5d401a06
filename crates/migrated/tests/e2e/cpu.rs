//! Hosts of different CPU generations. Their CPUs are pretended, from dumps of real ones; what is said of each
//! pair must be what the committed files of `crates/cpuid/tests/golden` say.

use std::path::{Path, PathBuf};

use migrated_api::{CpuReport, HostCpuReport, MigrationRecord, MigrationState, PoolBaseline, Problem, Vm};
use migrated_testkit::{require, wait_until};
use serde_json::{Value, json};

use crate::guest::{Workload, assert_runs_only, await_ready};
use crate::host::{Host, PATIENCE};
use crate::lab::Lab;

const GUEST: Workload<'_> =
    Workload { name: "g", vcpus: 1, memory_mib: 32, parameters: "hot=4M rate=5000 content=random" };

fn cpuid_tests(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cpuid/tests").join(path).canonicalize().unwrap()
}

fn dump(name: &str) -> String {
    cpuid_tests(&format!("dumps/{name}.json")).to_str().unwrap().to_owned()
}

/// Two hosts that pretend to have these CPUs.
fn lab(a: &str, b: &str) -> Lab {
    let testing = |name| format!("[testing]\nsimulate_cpu = {:?}\n", dump(name));
    Lab::with(&testing(a), &testing(b))
}

fn spec(baseline: Value) -> Value {
    let mut spec = GUEST.spec();
    spec["cpu_baseline"] = baseline;
    spec
}

fn create(host: &Host, baseline: Value) {
    let _: Vm = host.api.post("/v1/vms", &spec(baseline)).ok();
    await_ready(host, "g");
}

/// Makes the guest as people do.
fn create_by_hand(host: &Host, baseline: &str) {
    let guest = ["--name", "g", "--memory", "32M", "--workload", "hot=4M"];
    host.cli(&[&["vm", "create"], &guest[..], &["--cpu-baseline", baseline]].concat());
    await_ready(host, "g");
}

/// Moves the guest, which must work.
#[track_caller]
fn moves(from: &Host, to: &Host) {
    let record = from.await_end(&from.migrate("g", &json!({ "to": to.name })).id);
    assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
    assert_runs_only("g", to, from);
}

/// Begins a migration from `a` to `b` that must be refused for the CPU before anything moved.
#[track_caller]
fn refused(lab: &Lab) -> (CpuReport, MigrationRecord) {
    let record = lab.a.await_end(&lab.a.migrate("g", &json!({ "to": "b" })).id);
    assert_eq!(record.state, Some(MigrationState::Failed), "{record:#?}");
    let error = record.error.clone().unwrap();
    assert_eq!((error.code.as_str(), error.phase), ("cpu_incompatible", Some(MigrationState::Preflight)));
    assert_eq!((record.ram.pages_sent, record.wire_bytes.sent), (0, 0), "{record:#?}");
    assert!(lab.b.find("g").is_none());
    let counters = || lab.a.vm("g").workload.expect("it counts");
    let before = counters();
    wait_until("the guest goes on", PATIENCE, || counters().heartbeat > before.heartbeat);
    assert_eq!(counters().errors, 0);
    lab.await_tidy();
    let report = serde_json::from_value(error.details.expect("details")["cpu"].clone()).unwrap();
    (report, record)
}

/// The lines of the committed file on a guest of all of `from` that goes to `to`.
fn golden(from: &str, to: &str) -> (bool, Vec<String>) {
    let text = std::fs::read_to_string(cpuid_tests(&format!("golden/pairs/{from}/{to}.txt"))).unwrap();
    let mismatches = text.lines().filter_map(|line| Some(line.strip_prefix("mismatch:")?.trim().to_owned()));
    (text.lines().next().unwrap().ends_with("admitted"), mismatches.collect())
}

fn list(report: &CpuReport) -> Vec<String> {
    report.mismatches.iter().map(ToString::to_string).collect()
}

#[test]
fn a_guest_of_an_older_cpu_moves_to_a_newer_one_and_not_back_with_more() {
    require!(Kvm, Netns);
    let lab = lab("intel-cascadelake", "intel-icelake");
    let shown: HostCpuReport = lab.a.api.get("/v1/host/cpu").ok();
    assert_eq!(shown.simulated, Some(dump("intel-cascadelake")));
    create(&lab.a, json!("host"));
    let (admitted, _) = golden("intel-cascadelake", "intel-icelake");
    assert!(admitted, "the committed file says so");
    moves(&lab.a, &lab.b);
    // It has kept its CPU, so it can go home.
    let cpu = lab.b.vm("g").cpu.expect("a VM has a CPU");
    assert!(cpu.simulated && cpu.best.is_some_and(|best| best.starts_with("intel-cascadelake")));
    moves(&lab.b, &lab.a);
}

#[test]
fn a_guest_with_more_than_the_destination_is_refused_with_the_whole_list() {
    require!(Kvm, Netns);
    let lab = lab("intel-icelake", "intel-cascadelake");
    create(&lab.a, json!("host"));
    let (report, record) = refused(&lab);
    assert_eq!((report.admitted, list(&report)), golden("intel-icelake", "intel-cascadelake"));
    let message = record.error.unwrap().message;
    for baseline in [&report.guest_baseline, &report.host_baseline] {
        assert!(message.contains(baseline.as_deref().unwrap()), "{message}");
    }
    // Asked beforehand, the answer is the same; nothing is begun.
    let check = |body: Value| -> CpuReport { lab.a.api.post("/v1/cpu/check", &body).ok() };
    assert_eq!(check(json!({ "vm": "g", "to": { "host": "b" } })), report);
    let output = lab.a.run(&["cpu", "check", "--vm", "g", "--to", "b"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    for mismatch in &report.mismatches {
        assert!(text.contains(&mismatch.field), "{text}");
    }
    assert!(text.contains(report.common_baseline.as_deref().unwrap()), "{text}");
    let shown = String::from_utf8(lab.a.run(&["migration", "show", &record.id]).stdout).unwrap();
    assert!(shown.contains(&report.mismatches[0].field), "{shown}");

    // What it says to do does it.
    lab.a.cli(&["vm", "delete", "g"]);
    let common = report.common_baseline.unwrap();
    create_by_hand(&lab.a, &common);
    moves(&lab.a, &lab.b);
    assert_eq!(lab.b.vm("g").cpu.unwrap().baseline, common);
}

#[test]
fn another_generation_of_amd_s_refuses_as_its_file_says() {
    require!(Kvm, Netns);
    let lab = lab("amd-zen4", "amd-zen2");
    create(&lab.a, json!("host"));
    let (report, _) = refused(&lab);
    assert_eq!((report.admitted, list(&report)), golden("amd-zen4", "amd-zen2"));
    // The whole fleet's baseline, and the destination's own features, over the API.
    let hosts = json!({ "hosts": [{ "host": "self" }, { "host": "b" }] });
    let pool: PoolBaseline = lab.a.api.post("/v1/cpu/baseline", &hosts).ok();
    assert!(pool.name.starts_with("amd-zen2"), "{pool:#?}");
    assert!(pool.limits.iter().any(|limit| limit.feature.name() == "avx512f" && limit.hosts == ["b"]));
    assert!(pool.lost_disabled.iter().any(|feature| feature.name() == "avx512f"));
    let same = lab.a.cli(&["cpu", "baseline", "self", "b"]);
    assert_eq!(serde_json::from_value::<PoolBaseline>(same).unwrap(), pool);
}

#[test]
fn vendors_don_t_mix() {
    require!(Kvm, Netns);
    let lab = lab("intel-haswell", "amd-zen3");
    create(&lab.a, json!("x86-64-v2"));
    let (report, _) = refused(&lab);
    assert_eq!(list(&report).len(), 1);
    assert_eq!((report.mismatches[0].field.as_str(), report.common_baseline), ("vendor", None));
    let mixed =
        lab.a.api.post("/v1/cpu/baseline", &json!({ "hosts": [{ "host": "self" }, { "host": "b" }] }));
    assert_eq!(mixed.problem(), (422, "no_common_baseline".into()));
    let (code, detail) = lab.a.cli_refused(&["cpu", "baseline", &dump("intel-haswell"), "b"]);
    assert!(code == "no_common_baseline" && detail.contains("AuthenticAMD"), "{code}: {detail}");
}

#[test]
fn a_baseline_that_the_host_can_t_give_is_refused_with_every_feature() {
    require!(Kvm, Netns);
    let lab = lab("intel-haswell", "intel-haswell");
    let answer = lab.a.api.post("/v1/vms", &spec(json!("intel-skylake+pku")));
    assert_eq!(answer.problem(), (422, "cpu_incompatible".into()));
    let problem: Problem = answer.read();
    let report = problem.cpu.expect("the report");
    let missing: Vec<_> = report.mismatches.iter().map(|mismatch| mismatch.field.as_str()).collect();
    for feature in ["avx512f", "clwb", "rdseed", "smap", "xsavec", "pku"] {
        assert!(missing.contains(&feature), "{missing:?}");
    }
    assert!(report.host_baseline.is_some_and(|best| best.starts_with("intel-haswell")));
    assert!(lab.a.vms().is_empty());

    let bad = |baseline: Value| {
        let answer = lab.a.api.post("/v1/vms", &spec(baseline));
        let (status, code) = answer.problem();
        let problem: Problem = answer.read();
        let details: Vec<_> = problem.reasons.iter().map(|reason| reason.detail.clone()).collect();
        (status, code, format!("{} {}", problem.detail, details.join(" ")))
    };
    for (baseline, says) in [
        (json!("intel-hasswell"), "did you mean intel-haswell"),
        (json!("intel-haswell+nonsense"), "no part"),
        (json!({ "base": "intel-westmere", "add": ["avx2"] }), "avx2 needs avx"),
        (json!({ "base": "intel-haswell", "add": ["avx513f"] }), "did you mean avx512f"),
        (json!({ "base": "intel-haswell", "add": ["rtm"] }), "no guest gets"),
        (json!({ "base": "intel-haswell", "added": [] }), "added"),
        (json!(7), "baseline"),
    ] {
        let (status, code, text) = bad(baseline.clone());
        assert!(status == 422 && text.contains(says), "{baseline}: {status} {code} {text}");
    }
    assert!(lab.a.vms().is_empty() && lab.a.vm_dirs() == 0);
}

#[test]
fn a_site_s_own_baseline_is_a_file() {
    require!(Kvm, Netns);
    let lab = lab("intel-icelake", "intel-skylake");
    let file = lab.root.path().join("pool.toml");
    let toml = lab.a.run(&["cpu", "baseline", &dump("intel-icelake"), &dump("intel-skylake"), "--toml"]);
    assert!(toml.status.success(), "{toml:?}");
    std::fs::write(&file, &toml.stdout).unwrap();
    let file = file.to_str().unwrap();
    create_by_hand(&lab.a, file);
    moves(&lab.a, &lab.b);

    std::fs::write(file, "base = \"host\"\nadds = [\"avx\"]\n").unwrap();
    let refused = ["vm", "create", "--name", "h", "--workload", "", "--cpu-baseline", file];
    let (_, detail) = lab.a.cli_refused(&refused);
    assert!(detail.contains("adds"), "{detail}");
    let (_, detail) = lab.a.cli_refused(&[
        "vm",
        "create",
        "--name",
        "h",
        "--workload",
        "",
        "--cpu-baseline",
        "/nowhere.toml",
    ]);
    assert!(detail.contains("/nowhere.toml"), "{detail}");
}

#[test]
fn a_pretended_cpu_does_not_come_to_a_real_host() {
    require!(Kvm, Netns);
    let lab = Lab::with(&format!("[testing]\nsimulate_cpu = {:?}\n", dump("amd-zen2")), "");
    create(&lab.a, json!("x86-64-v1"));
    let record = lab.a.await_end(&lab.a.migrate("g", &json!({ "to": "b" })).id);
    let error = record.error.expect("a refusal");
    assert!(error.message.contains("testing.simulate_cpu"), "{error:?}");
    assert!(lab.b.find("g").is_none());
    lab.await_tidy();
}

/// On the CPU that is really here.
#[test]
fn a_guest_of_a_named_baseline_runs_and_moves_on_this_host() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    let shown: HostCpuReport = lab.a.api.get("/v1/host/cpu").ok();
    assert_eq!(shown.simulated, None);
    assert_eq!(lab.a.cli(&["cpu", "dump"])["host"]["name"], "a");
    let level = shown.x86_64_level.expect("a 64-bit CPU");
    create(&lab.a, json!(level));
    let cpu = lab.a.vm("g").cpu.expect("a VM has a CPU");
    assert_eq!((cpu.baseline.as_str(), cpu.simulated), (level.as_str(), false));
    moves(&lab.a, &lab.b);
    assert_eq!(lab.b.vm("g").cpu, Some(cpu));
    let foreign = if shown.vendor == "GenuineIntel" { "amd-zen" } else { "intel-haswell" };
    assert_eq!(lab.a.api.post("/v1/vms", &spec(json!(foreign))).problem(), (422, "cpu_incompatible".into()));
}

#[test]
fn files_alone_need_no_daemon() {
    let run = |args: &[&str]| {
        let nowhere = "--host=unix:/nowhere/api.sock";
        std::process::Command::new(crate::host::MIGRATED).arg(nowhere).arg("cpu").args(args).output().unwrap()
    };
    let (older, newer) = (dump("intel-cascadelake"), dump("intel-icelake"));
    assert!(run(&["check", &older, &newer]).status.success());
    let back = run(&["check", &newer, &older, "--json"]);
    assert_eq!(back.status.code(), Some(1));
    let report: CpuReport = serde_json::from_slice(&back.stdout).unwrap();
    assert_eq!((report.admitted, list(&report)), golden("intel-icelake", "intel-cascadelake"));
    assert!(run(&["check", &newer, &older, "--baseline", "intel-skylake+spec"]).status.success());
    let listed = run(&["baseline", "--list", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let names: Vec<_> =
        listed["baselines"].as_array().unwrap().iter().map(|level| level["name"].as_str()).collect();
    for name in ["x86-64-v1", "x86-64-v4", "intel-merom", "intel-graniterapids", "amd-rev-e", "amd-zen5"] {
        assert!(names.contains(&Some(name)), "{names:?}");
    }
    let cut = std::env::temp_dir().join(format!("migrated-cut-{}.json", std::process::id()));
    std::fs::write(&cut, &std::fs::read(&older).unwrap()[..1000]).unwrap();
    let refused = run(&["check", cut.to_str().unwrap(), &newer]);
    std::fs::remove_file(&cut).unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("cut off"), "{said}");
}
