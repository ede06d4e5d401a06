//! Commands in small, with the `migrated` that lies beside the program: `cargo test --workspace` builds both.

use std::process::{Command, Output};

use migrated_testkit::require;
use serde_json::Value;

fn chaos(args: &[&str]) -> Output {
    let small = ["--memory-mib", "48", "--hot-mib", "16", "--link-mbit", "400"];
    Command::new(env!("CARGO_BIN_EXE_migrated-chaos")).args(args).args(small).output().unwrap()
}

#[test]
fn a_guest_survives_a_cut() {
    require!(Kvm, Userfaultfd, Netns);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("moves");
    let args =
        ["cuts", "--count", "2", "--mode", "postcopy", "--how", "mix", "--down", "0..0.5", "--seed", "1"];
    let output = chaos(&[&args[..], &["--json", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("seed 1\n") && said.contains("nothing was lost"), "{said}");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let moves: Vec<_> = lines.iter().filter(|line| line["cut"].is_object()).collect();
    assert_eq!(moves.len(), 2, "{text}");
    for made in moves {
        assert_ne!(made["outcome"], "lost", "{made:#}");
        assert!(made["cut"]["down_s"].as_f64().unwrap() <= 0.5);
    }
}

#[test]
fn a_guest_moves_over_a_link_that_loses_packets() {
    require!(Kvm, Userfaultfd, Netns);
    let output = chaos(&["loss", "--count", "1", "--mode", "precopy", "--percent", "1"]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("| precopy | 1     | 1         | 0         | 0               | 0    |"), "{said}");
}
