//! `migrated cpu` with files alone: no daemon, no KVM.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn dump(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cpuid/tests/dumps").join(name).with_extension("json")
}

/// Runs it where no daemon answers.
fn cpu(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_migrated"))
        .args(["--host", "unix:/nonexistent/api.sock", "cpu"])
        .args(args)
        .output()
        .unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn all_levels_are_listed_with_what_they_add() {
    let listed = cpu(&["baseline", "--list"]);
    let says = String::from_utf8(listed.stdout).unwrap();
    for level in ["x86-64-v4", "intel-merom", "intel-sapphirerapids", "amd-greyhound", "amd-zen5"] {
        assert!(says.contains(&format!("\n{level}: ")), "{level}: {says}");
    }
    let listed = json(&cpu(&["baseline", "--list", "--json"]).stdout);
    let haswell =
        listed["baselines"].as_array().unwrap().iter().find(|level| level["name"] == "intel-haswell");
    assert!(haswell.unwrap()["adds"].as_array().unwrap().contains(&"avx2".into()));
}

#[test]
fn a_baseline_of_files_can_be_used_as_a_file() {
    let (old, new) = (dump("intel-haswell"), dump("intel-skylake"));
    let pool = cpu(&["baseline", text(&old), text(&new)]);
    let says = String::from_utf8(pool.stdout).unwrap();
    for part in ["intel-haswell", "x86-64-v3", "NOT OFFERED BY", "truly disabled", "only hidden"] {
        assert!(says.contains(part), "{part}: {says}");
    }
    let pool = json(&cpu(&["baseline", text(&old), text(&new), "--json"]).stdout);
    assert_eq!(pool["hosts"][0]["host"], "intel-haswell");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("site.toml");
    let toml = cpu(&["baseline", text(&old), text(&new), "--toml"]);
    std::fs::write(&file, toml.stdout).unwrap();
    for to in [&old, &new] {
        let checked = cpu(&["check", text(&new), text(to), "--baseline", text(&file), "--json"]);
        let report = json(&checked.stdout);
        let fields = report["mismatches"].as_array().unwrap();
        // The frequency of the TSC is no matter of baselines.
        assert!(fields.iter().all(|mismatch| mismatch["field"] == "tsc_khz"), "{report:#}");
    }
}

#[test]
fn a_check_says_no_by_its_exit_code_and_by_a_table() {
    let (old, new) = (dump("intel-skylake"), dump("intel-icelake"));
    let refused = cpu(&["check", text(&new), text(&old)]);
    let says = String::from_utf8(refused.stdout).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{says}");
    for part in
        ["CAUSE", "gfni", "CPUID leaf 0x7 subleaf 0 ecx bit 8", "both", "--cpu-baseline intel-skylake"]
    {
        assert!(says.contains(part), "{part}: {says}");
    }
    let admitted = cpu(&["check", text(&new), text(&old), "--baseline", "intel-skylake", "--json"]);
    assert_eq!(admitted.status.code(), Some(0));
    assert_eq!(json(&admitted.stdout)["admitted"], true);
}

#[test]
fn bad_files_and_names_are_told_as_a_daemon_would() {
    let dir = tempfile::tempdir().unwrap();
    let (haswell, zen) = (dump("intel-haswell"), dump("amd-zen2"));
    let whole = std::fs::read_to_string(&haswell).unwrap();
    let write = |name: &str, contents: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    };
    let cut = write("cut.json", &whole[..whole.len() / 2]);
    let other = write("other.json", &whole.replacen("\"format\": 1", "\"format\": 2", 1));
    let avx2 = write("avx2.toml", "base = \"x86-64-v2\"\nadd = [\"avx2\"]\n");
    let (haswell, zen) = (text(&haswell), text(&zen));
    let cases: [(&[&str], &str, &str); 7] = [
        (&["baseline", haswell, zen], "no_common_baseline", "AuthenticAMD"),
        (&["baseline", text(&cut)], "invalid_cpu_dump", "cut.json"),
        (&["baseline", text(&other)], "invalid_cpu_dump", "its format is 2"),
        (
            &["check", haswell, haswell, "--baseline", "intel-hasvell"],
            "unknown_baseline",
            "did you mean intel-haswell?",
        ),
        (&["check", haswell, haswell, "--baseline", text(&avx2)], "invalid_baseline", "avx2 needs"),
        (&["check", haswell, haswell, "--baseline", "intel-skylake"], "cpu_incompatible", "intel-skylake"),
        (&["check", haswell, "host-b"], "peer_unreachable", "/nonexistent"),
    ];
    for (args, code, says) in cases {
        let refused = cpu(&[args, &["--json"]].concat());
        assert_eq!(refused.status.code(), Some(1), "{args:?}");
        let error = &json(&refused.stderr)["error"];
        assert_eq!(error["code"], code, "{error:#}");
        assert!(error["detail"].as_str().unwrap().contains(says), "{error:#}");
    }
}
