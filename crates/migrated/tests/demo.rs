//! `migrated demo` as people run it: what it prints, how it ends, and that nothing is left of it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use migrated_testkit::require;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// An environment in which no other program is found.
const WITHOUT_PROGRAMS: [(&str, &str); 1] = [("PATH", "/nonexistent")];

/// A demo under way, with a directory of its own for whatever it makes.
struct Demo {
    files: TempDir,
    child: Child,
}

impl Demo {
    fn start(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_migrated"))
            .args(["demo", "--memory", "64M"])
            .args(args)
            .env("TMPDIR", files.path())
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { files, child }
    }

    /// Waits for its end, and sees that no file, process or namespace is left.
    fn end(self) -> Output {
        let pid = self.child.id();
        let output = self.child.wait_with_output().unwrap();
        let files: Vec<_> = std::fs::read_dir(self.files.path()).unwrap().collect();
        assert!(files.is_empty(), "{files:?}");
        assert_eq!(processes_of(self.files.path()), Vec::<String>::new());
        assert_eq!(namespaces_of(pid), Vec::<String>::new());
        output
    }
}

/// Command lines of all processes that were started on files in `dir`: daemons and VM processes.
fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("cmdline"));
    // Most entries are no processes, and processes end meanwhile.
    let lines = entries.filter_map(|file| std::fs::read_to_string(file).ok());
    lines.filter(|line| line.contains(dir)).map(|line| line.replace('\0', " ")).collect()
}

/// Network namespaces of the demo that ran as `pid`.
fn namespaces_of(pid: u32) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(&format!("mgd-{pid}-"))).collect()
}

/// The report of a demo that must have gone well, with memory compared at that time.
fn report(output: &Output, verified: &str) -> Value {
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(report["workload"]["errors"], 0);
    assert_eq!(report["workload"]["tsc_backward"], 0);
    assert!(report["workload"]["writes"].as_u64().unwrap() > 0);
    for record in report["migrations"].as_array().unwrap() {
        assert_eq!(record["state"], "completed");
        assert_eq!(record["ram"]["bytes"], 64 << 20);
        assert_eq!(record["verified"]["method"], verified);
        assert_eq!(record["verified"]["mismatches"], 0);
        assert_eq!(record["verified"]["pages"], record["ram"]["pages"]);
        // Most of the RAM holds random data: it can't have travelled as zero pages.
        let (sent, pages) = (record["ram"]["pages_sent"].as_u64(), record["ram"]["pages"].as_u64());
        assert!(sent.unwrap() > pages.unwrap() * 3 / 4, "{record:#}");
        let downtime = record["downtime_us"]["total"].as_f64().unwrap();
        assert!(downtime > 0.0 && downtime < record["total_ms"].as_f64().unwrap() * 1e3, "{record:#}");
        assert!(record["guest_gap_us"].as_f64().unwrap() > 0.0);
    }
    report
}

fn peers(report: &Value) -> Vec<&str> {
    let records = report["migrations"].as_array().unwrap();
    records.iter().map(|record| record["peer"].as_str().unwrap()).collect()
}

#[test]
fn a_guest_goes_there_and_back_between_namespaces() {
    require!(Kvm, Netns);
    let output = Demo::start(&["--json", "--rounds", "2", "--link", "10gbit"], &[]).end();
    let report = report(&output, "after");
    assert_eq!(peers(&report), ["host-b", "host-a", "host-b", "host-a"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("loopback"), "{said}");
}

#[test]
fn without_iproute2_the_hosts_are_on_loopback() {
    require!(Kvm);
    let args = ["--json", "--transport", "tcp+tls", "--vcpus", "2", "--mode", "precopy"];
    let output = Demo::start(&args, &WITHOUT_PROGRAMS).end();
    let report = report(&output, "before");
    assert_eq!(peers(&report), ["host-b", "host-a"]);
    assert_eq!(report["migrations"][0]["transport"], "tcp+tls");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("note: both hosts are on loopback"), "{said}");
}

#[test]
fn a_link_without_namespaces_is_refused() {
    require!(Kvm);
    let output = Demo::start(&["--link", "1gbit"], &WITHOUT_PROGRAMS).end();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--link needs two network namespaces"), "{said}");
}

#[test]
fn an_interrupt_amid_a_migration_leaves_nothing() {
    require!(Kvm, Netns);
    let mut demo = Demo::start(&["--rounds", "1000"], &[]);
    let mut said = BufReader::new(demo.child.stderr.take().unwrap()).lines();
    // It says so before it asks for the second migration.
    assert!(said.by_ref().any(|line| line.unwrap() == "host-b -> host-a"));
    kill_process(Pid::from_child(&demo.child), Signal::INT).unwrap();
    let last = said.last().unwrap().unwrap();
    assert!(last.starts_with("ended by a signal"), "{last}");
    let output = demo.end();
    assert_eq!(output.status.code(), Some(130));
    assert!(output.stdout.is_empty(), "{output:?}");
}
