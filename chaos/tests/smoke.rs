//! Commands in small, with the `migrated` that lies beside the program: `cargo test --workspace` builds both.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use migrated_testkit::require;
use rustix::process::{Pid, Signal, kill_process};
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

#[test]
fn an_interrupt_leaves_nothing() {
    require!(Kvm, Userfaultfd, Netns);
    let files = tempfile::tempdir().unwrap();
    let mut chaos: Child = Command::new(env!("CARGO_BIN_EXE_migrated-chaos"))
        .args(["loss", "--count", "1000", "--memory-mib", "32", "--hot-mib", "4"])
        .env("TMPDIR", files.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(chaos.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.by_ref().any(|line| line.starts_with("1 auto: ")), "a move is over, and the next under way");
    kill_process(Pid::from_child(&chaos), Signal::INT).unwrap();
    let last = said.last().unwrap();
    assert!(last.starts_with("ended by a signal"), "{last}");
    assert_eq!(chaos.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(files.path()).unwrap().count(), 0);
    let namespaces = std::fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name());
    let own = format!("mgd-{}-", chaos.id());
    assert!(namespaces.map(|name| name.into_string().unwrap()).all(|name| !name.starts_with(&own)));
}
