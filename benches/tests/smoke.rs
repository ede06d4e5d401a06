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

const MATRIX: &str = r#"
[rounds]
warm_up = 1
least = 1
most = 1
[[scenario]]
name = "small"
link = "1gbit"
memory_mib = 48
hot_mib = 8
rate = [0.1, 0.3]
mode = ["precopy", "postcopy"]
transport = ["tcp", "tcp+tls"]
[[scenario.exclude]]
transport = "tcp+tls"
mode = "postcopy"
[[scenario]]
name = "other"
link = "unshaped"
memory_mib = 48
mode = "auto"
"#;

#[test]
fn a_matrix_gives_a_table_plots_and_every_run() {
    require!(Kvm, Userfaultfd, Netns);
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("m.toml"), dir.path().join("out"));
    std::fs::write(&file, MATRIX).unwrap();
    let output =
        bench(&["matrix", file.to_str().unwrap(), "--only", "small", "--out", out.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let table = std::fs::read_to_string(out.join("table.md")).unwrap();
    for part in ["### small: 1gbit, 48 MiB", "| pre-copy, tcp+tls |", "| post-copy ", "| wire ÷ RAM |"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let lines = lines(&out.join("runs.jsonl"));
    let runs: Vec<_> = lines.iter().filter(|line| line["scenario"] == "small").collect();
    assert_eq!(runs.len(), 2 * 2 * 3, "two settings, a warm-up and a round, three variants: {lines:?}");
    for run in &runs {
        assert_eq!(run["record"]["state"], "completed");
        assert_eq!(run["record"]["transport"], run["variant"]["transport"]);
        let filled = run["nonzero_bytes"].as_u64().unwrap();
        assert!(run["seen"]["cost"]["source"]["nic_sent"].as_u64().unwrap() > filled, "{run:#}");
    }
    let again = dir.path().join("again");
    let plots = ["plot", out.join("runs.jsonl").to_str().unwrap(), "--out", again.to_str().unwrap()]
        .map(str::to_owned);
    let output = bench(&plots.each_ref().map(String::as_str));
    assert!(output.status.success(), "{output:?}");
    let drawn = |dir: &Path| {
        let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
        files.filter(|file| file.extension().is_some_and(|extension| extension == "svg")).count()
    };
    assert!(drawn(&out) > 0 && drawn(&out) == drawn(&again));
}

#[test]
fn a_matrix_with_a_wrong_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, MATRIX.replace("hot_mib", "hot_mb")).unwrap();
    let output = bench(&["matrix", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("unknown field `hot_mb`"), "{said}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let output = bench(&["hot64", "--binary", "/no/migrated"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there is no /no/migrated; build it with"), "{said}");
}
