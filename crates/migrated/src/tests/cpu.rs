//! What the API tells of CPUs, and how it refuses questions that can't be answered.

use migrated_api::{BaselineList, CpuReport, HostCpuReport, PoolBaseline, Problem};
use migrated_cpuid::{Cause, Feature, HostCpu};
use serde_json::{Value, json};

use super::cpus;
use super::host::{Host, problem};

fn dump(name: &str) -> Value {
    json!({ "dump": serde_json::from_str::<Value>(&cpus::text(name)).unwrap() })
}

fn refused(host: &Host, path: &str, request: &Value) -> (u16, String, Problem) {
    let problem = problem(host.post::<Value>(path, request));
    (problem.status, problem.code.clone(), problem)
}

#[test]
fn a_host_shows_its_cpu_as_others_would_judge_it() {
    let host = Host::with("a", super::host::four_vcpus, |config| {
        config.guests.hide_cpu_features = vec!["avx2".into()];
    });
    let report: HostCpuReport = host.get("/v1/host/cpu").unwrap();
    assert_eq!((report.simulated, report.identity.name.as_str()), (None, "a"));
    assert_eq!((report.vendor.as_str(), report.signature.family), ("GenuineIntel", 6));
    let avx2 = Feature::named("avx2").unwrap();
    assert!(report.hidden.contains(avx2) && !report.offered.contains(avx2) && report.accepted.contains(avx2));
    assert!(report.best.unwrap().starts_with("intel-ivybridge"));
    let next = report.next.unwrap();
    assert!(next.level == "intel-haswell" && next.lacks.contains(avx2), "{next:?}");
    assert!(
        report
            .withheld
            .iter()
            .all(|withheld| !withheld.why.is_empty() && !report.offered.contains(withheld.feature))
    );
    let again = HostCpu::try_from(report.dump).unwrap();
    assert_eq!((again.offered(), again.hidden), (report.offered, report.hidden));
}

#[test]
fn a_simulated_host_says_so() {
    let file = cpus::file("amd-zen3");
    let host = Host::with("a", super::host::four_vcpus, |config| {
        config.testing.simulate_cpu = Some(file.clone());
    });
    let report: HostCpuReport = host.get("/v1/host/cpu").unwrap();
    assert_eq!(
        (report.simulated, report.vendor.as_str()),
        (Some(file.display().to_string()), "AuthenticAMD")
    );
    assert_eq!(report.identity.name, "a");
    assert!(report.dump.source.unwrap().contains("simulated"));
    let vm = host.create("web", "").unwrap();
    assert!(vm.cpu.unwrap().simulated);
    assert!(!host.config.state_dir.join("host-cpu.json").exists());
}

#[test]
fn hosts_files_and_this_host_have_a_common_baseline() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let peer = format!("unix:{}", b.config.api.socket.display());
    let request = json!({ "hosts": [{ "host": "self" }, { "host": peer }, dump("intel-haswell")] });
    let pool: PoolBaseline = a.post("/v1/cpu/baseline", &request).unwrap();
    let names: Vec<_> = pool.hosts.iter().map(|cost| cost.host.as_str()).collect();
    assert_eq!(names, ["a", "b", "intel-haswell"]);
    assert!(pool.name.starts_with("intel-haswell"), "{}", pool.name);
    let adx = pool.limits.iter().find(|limit| limit.feature.name() == "adx").unwrap();
    assert_eq!(adx.hosts, ["intel-haswell"]);
    assert_eq!(pool.hosts[2].loses & pool.features, Default::default());
    assert!(pool.lost_disabled.contains(Feature::named("avx512f").unwrap()));
    assert!(pool.lost_hidden.contains(Feature::named("adx").unwrap()));
}

#[test]
fn hosts_without_anything_in_common_and_broken_dumps_are_refused() {
    let a = Host::new("a");
    let mut cut = dump("intel-haswell");
    cut["dump"]["kvm"].as_array_mut().unwrap().truncate(1);
    let mut other = dump("intel-haswell");
    (other["dump"]["format"], other["dump"]["tool"]) = (json!(9), json!("migrated 9.0"));
    let mut unknown = dump("intel-haswell");
    unknown["dump"]["colour"] = json!(1);
    let mut line = dump("intel-haswell");
    line["dump"]["kvm"][0] = json!("0 zzz");
    let cases = [
        (json!([{ "host": "self" }, dump("amd-zen2")]), 422, "no_common_baseline", "AuthenticAMD"),
        (json!([cut]), 422, "invalid_cpu_dump", "hosts[0]: it lacks CPUID leaf 0x1"),
        (
            json!([{ "host": "a" }, other]),
            422,
            "invalid_cpu_dump",
            "hosts[1]: its format is 9 (written by migrated 9.0)",
        ),
        (json!([unknown]), 422, "invalid_cpu_dump", "colour"),
        (json!([line]), 422, "invalid_cpu_dump", "0 zzz"),
        (json!([{ "dump": {} }]), 422, "invalid_cpu_dump", "format"),
        (json!([{ "host": "elsewhere" }]), 422, "peer_unknown", "elsewhere"),
        (json!([{ "host": "unix:/nonexistent" }]), 502, "peer_unreachable", "/nonexistent"),
        (json!([]), 422, "invalid_request", "no hosts"),
        (json!(vec![json!({ "host": "self" }); 257]), 422, "invalid_request", "256"),
        (json!([{ "file": "x" }]), 422, "invalid_request", "file"),
    ];
    for (hosts, status, code, says) in cases {
        let (got, got_code, problem) = refused(&a, "/v1/cpu/baseline", &json!({ "hosts": hosts }));
        assert_eq!((got, got_code.as_str()), (status, code), "{says}: {}", problem.detail);
        assert!(problem.detail.contains(says), "{says}: {}", problem.detail);
    }
    let misspelt = json!({ "hosts": [], "host": "self" });
    assert_eq!(refused(&a, "/v1/cpu/baseline", &misspelt).1, "invalid_request");
}

#[test]
fn a_check_tells_every_reason_and_is_no_error() {
    let a = Host::new("a");
    a.create("web", "").unwrap();
    let check = |request: Value| a.post::<CpuReport>("/v1/cpu/check", &request).unwrap();
    assert!(check(json!({ "vm": "web" })).admitted);
    assert!(check(json!({ "from": dump("intel-haswell"), "baseline": "intel-haswell" })).admitted);
    let mut haswell = dump("intel-haswell");
    haswell["dump"]["tsc_khz"] = json!(cpus::host("intel-skylake").tsc_khz);
    let report = check(json!({ "vm": "web", "to": haswell }));
    assert!(!report.admitted);
    let avx512f = report.mismatches.iter().find(|mismatch| mismatch.field == "avx512f").unwrap();
    assert_eq!((avx512f.cause, avx512f.disabled_by_masking), (Cause::HostLacks, Some(true)));
    assert!(report.guest_baseline.unwrap().starts_with("intel-skylake"));
    assert!(report.host_baseline.unwrap().starts_with("intel-haswell"));
    assert!(report.fix[0].contains("--cpu-baseline"), "{:?}", report.fix);
    let vendors = check(json!({ "vm": "web", "to": dump("amd-zen4") }));
    assert_eq!(vendors.mismatches[0].cause, Cause::VendorDiffers);
}

#[test]
fn a_check_that_cant_be_answered_is_an_error() {
    let a = Host::new("a");
    a.create("web", "").unwrap();
    let from = |baseline: Value| json!({ "from": dump("intel-haswell"), "baseline": baseline });
    let cases = [
        (json!({}), "invalid_request", "either `vm` or `from`"),
        (json!({ "vm": "web", "from": { "host": "self" } }), "invalid_request", "either"),
        (json!({ "vm": "web", "baseline": "host" }), "invalid_request", "`baseline` goes with `from`"),
        (json!({ "vm": "web", "too": { "host": "b" } }), "invalid_request", "too"),
        (json!({ "vm": "gone" }), "vm_not_found", "gone"),
        (from(json!("intel-hasvell")), "unknown_baseline", "did you mean intel-haswell?"),
        (from(json!("intel-haswell+amx")), "unknown_baseline", "no part \"amx\""),
        (from(json!({ "base": "host", "removes": [] })), "invalid_request", "removes"),
        (from(json!("intel-skylake")), "cpu_incompatible", "intel-haswell"),
    ];
    for (request, code, says) in cases {
        let (_, got, problem) = refused(&a, "/v1/cpu/check", &request);
        assert_eq!(got, code, "{says}: {}", problem.detail);
        assert!(problem.detail.contains(says), "{says}: {}", problem.detail);
        assert_eq!(problem.cpu.is_some(), code == "cpu_incompatible");
    }
}

#[test]
fn every_level_is_listed_with_what_it_adds() {
    let a = Host::new("a");
    let list: BaselineList = a.get("/v1/cpu/baselines").unwrap();
    let named = |name: &str| list.baselines.iter().find(|level| level.name == name).unwrap();
    for (name, feature) in [("x86-64-v3", "avx2"), ("intel-haswell", "avx2"), ("intel-skylake", "avx512f")] {
        assert!(named(name).adds.contains(Feature::named(feature).unwrap()), "{name}");
    }
    assert!(named("amd-zen").drops.contains(Feature::named("xop").unwrap()));
    assert!(named("intel-haswell").parts.contains_key("spec"));
}
