//! Commands in small, with the `migrated` that lies beside the program: `cargo test --workspace` builds both.

use std::path::Path;
use std::process::{Command, Output};

use migrated_testkit::require;
use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_migrated-bench")).args(args).output().unwrap()
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_guest_that_writes_flat_out_is_measured() {
    require!(Kvm, Userfaultfd, Netns);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("runs");
    let small =
        ["outrun", "--runs", "1", "--modes", "auto,postcopy", "--memory-mib", "64", "--hot-mib", "16"];
    let output = bench(&[&small[..], &["--json", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    for part in [
        "| gap the guest saw, ms  | auto      | 1 |",
        "| total ÷ lower bound    | post-copy |",
        "nothing was lost",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let lines = lines(&file);
    let runs: Vec<_> = lines.iter().filter(|line| line["run"] == 1).collect();
    assert_eq!(runs.len(), 2, "{lines:?}");
    for run in runs {
        assert_eq!(run["record"]["state"], "completed");
        assert_eq!(run["arrival"]["role"], "destination");
        for part in ["downtime_ms", "gap_ms", "stall_ms", "total_s", "before_pps", "during_pps"] {
            assert!(run["seen"][part].as_f64().unwrap() > 0.0, "{part}: {run:#}");
        }
    }
    assert!(
        lines[0]["host"]["kernel"].is_string() && lines.last().unwrap()["problems"] == serde_json::json!([])
    );
}

#[test]
fn waits_for_pages_are_measured_with_and_without_prefetch() {
    require!(Kvm, Userfaultfd, Netns);
    let small = ["--runs", "1", "--patterns", "seq", "--memory-mib", "48", "--hot-mib", "16"];
    let output = bench(&[&["prefetch"], &small[..]].concat());
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let ahead = |variant: &str| {
        let row =
            said.lines().find(|line| line.contains("sent by prefetch") && line.contains(variant)).unwrap();
        row.split('|').nth(6).unwrap().trim().parse::<f64>().unwrap()
    };
    assert!(ahead("seq, with ") > 0.0, "{said}");
    assert!(ahead("seq, without") == 0.0, "{said}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let output = bench(&["hot64", "--binary", "/no/migrated"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there is no /no/migrated; build it with"), "{said}");
}
