//! The workload guest for other VMMs: its image, and its counters as another VMM saves them.

use std::process::{Command, Output};

use serde_json::Value;

fn workload(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_migrated")).arg("workload").args(args).output().unwrap()
}

#[test]
fn the_image_is_written_and_its_counters_are_said_to_be_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("guest.elf");
    let output = workload(&["build", "--json", "--vcpus", "3", "--out", image.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let built: Value = serde_json::from_slice(&output.stdout).unwrap();
    // A page of header, then one for each vCPU.
    assert_eq!(
        (built["counters_address"].as_u64(), built["counters_bytes"].as_u64()),
        (Some(0x3_0000), Some(0x4000))
    );
    assert!(std::fs::read(&image).unwrap().starts_with(b"\x7fELF"));
}

#[test]
fn where_no_guest_ran_there_are_no_counters() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved");
    let file = file.to_str().unwrap();
    std::fs::write(file, [0; 8192]).unwrap();
    let output = workload(&["counters", file, file]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), serde_json::json!([null, null]));
    let output = workload(&["counters", "/no/such/file"]);
    assert!(
        !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("/no/such/file"),
        "{output:?}"
    );
}
