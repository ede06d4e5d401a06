//! The program as people use it: `serve` and the command line beside it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use migrated_testkit::{require, wait_until};
use serde_json::Value;
use tempfile::TempDir;

const MIGRATED: &str = env!("CARGO_BIN_EXE_migrated");
const PATIENCE: Duration = Duration::from_secs(60);

struct Host {
    root: TempDir,
    daemon: Child,
}

impl Host {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let daemon = Command::new(MIGRATED)
            .args(["serve", "--name", "a", "--allow-plain-tcp", "--state-dir"])
            .arg(root.path().join("state"))
            .arg("--socket")
            .arg(root.path().join("api.sock"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let host = Self { root, daemon };
        wait_until("the daemon answers", PATIENCE, || host.run(&["vm", "list"]).status.success());
        host
    }

    fn run(&self, args: &[&str]) -> Output {
        let socket = self.root.path().join("api.sock");
        Command::new(MIGRATED).arg(format!("--host=unix:{}", socket.display())).args(args).output().unwrap()
    }

    /// Runs a command that must fail, and gives its problem.
    fn fail(&self, args: &[&str]) -> (String, String) {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        let part = |name: &str| error["error"][name].as_str().unwrap().to_owned();
        (part("code"), part("detail"))
    }

    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.root.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    fn vm_dirs(&self) -> usize {
        std::fs::read_dir(self.root.path().join("state/vms")).unwrap().count()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let list = self.run(&["vm", "list", "--json"]);
        let list: Value = serde_json::from_slice(&list.stdout).unwrap_or_default();
        for vm in list["vms"].as_array().into_iter().flatten() {
            self.run(&["vm", "delete", vm["id"].as_str().unwrap_or_default()]);
        }
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

/// The first bytes of a 64-bit x86 ELF executable without any segment, and so without a PVH note.
fn elf_without_note() -> Vec<u8> {
    let mut elf = vec![0; 64];
    elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    (elf[16], elf[18], elf[20]) = (2, 62, 1);
    (elf[52], elf[54], elf[58]) = (64, 56, 64);
    elf
}

/// A boot sector of something else than Linux.
fn boot_sector() -> Vec<u8> {
    let mut sector = vec![0; 4096];
    sector[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn kernels_that_cant_boot_are_refused_with_what_is_wrong_and_leave_nothing() {
    require!(Kvm);
    let host = Host::new();
    let create = |kernel: &Path, memory: &str| {
        host.fail(&["vm", "create", "--name", "k", "--memory", memory, "--kernel", kernel.to_str().unwrap()])
    };
    let cases = [
        (host.root.path().join("missing"), "file_unreadable"),
        (host.root.path().to_owned(), "file_unreadable"),
        (host.file("empty", b""), "not_a_kernel"),
        (host.file("text", b"#!/bin/sh\necho no kernel\n"), "not_a_kernel"),
        (host.file("cut", &elf_without_note()[..20]), "kernel_not_elf"),
        (host.file("sector", &boot_sector()), "kernel_not_bzimage"),
        (host.file("note", &elf_without_note()), "kernel_without_pvh"),
    ];
    for (kernel, code) in cases {
        let (got, detail) = create(&kernel, "64M");
        assert_eq!(got, code, "{}: {detail}", kernel.display());
        assert_eq!(host.vm_dirs(), 0, "{}", kernel.display());
    }
    for memory in ["0", "1M", "65M", "16777217"] {
        assert_eq!(create(Path::new("/k"), memory).0, "invalid_request", "{memory}");
    }
    assert_eq!(create(Path::new("/k"), "16T").0, "insufficient_memory");
}

#[test]
fn a_guest_outlives_its_daemon_and_is_found_again() {
    require!(Kvm);
    let mut host = Host::new();
    let made =
        host.run(&["vm", "create", "--name", "web", "--workload", "hot=4M", "--memory", "32M", "--json"]);
    assert!(made.status.success(), "{made:?}");
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(
        host.fail(&["vm", "create", "--name", "web", "--workload", "hot=4M", "--memory", "32M"]).0,
        "vm_name_taken"
    );
    host.daemon.kill().unwrap();
    host.daemon.wait().unwrap();
    assert_eq!(host.fail(&["vm", "list"]).0, "peer_unreachable");
    host.daemon = Command::new(MIGRATED)
        .args(["serve", "--name", "a", "--state-dir"])
        .arg(host.root.path().join("state"))
        .arg("--socket")
        .arg(host.root.path().join("api.sock"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let show = || host.run(&["vm", "show", "web", "--json"]);
    wait_until("the new daemon answers", PATIENCE, || show().status.success());
    let passes = || {
        let shown: Value = serde_json::from_slice(&show().stdout).unwrap();
        assert_eq!((&shown["pid"], &shown["state"]), (&made["pid"], &Value::from("running")));
        assert_eq!(shown["workload"]["errors"], 0);
        shown["workload"]["heartbeat"].as_u64().unwrap()
    };
    let before = passes();
    wait_until("the guest goes on", PATIENCE, || passes() > before);
    assert!(host.run(&["vm", "delete", "web"]).status.success());
    assert_eq!(host.vm_dirs(), 0);
}

#[test]
fn a_migration_to_nowhere_fails_with_a_code_and_leaves_the_guest_running() {
    require!(Kvm);
    let host = Host::new();
    let made = host.run(&["vm", "create", "--name", "web", "--workload", "hot=4M", "--memory", "32M"]);
    assert!(made.status.success(), "{made:?}");
    let watched = host.run(&["migrate", "web", "--to", "unix:/nonexistent", "--watch", "--json"]);
    assert_eq!(watched.status.code(), Some(1));
    let record: Value = serde_json::from_slice(&watched.stdout).unwrap();
    assert_eq!((&record["state"], &record["error"]["code"]), (&"failed".into(), &"peer_unreachable".into()));
    assert_eq!(host.fail(&["migrate", "web", "--to", "elsewhere"]).0, "peer_unknown");
    let shown: Value = serde_json::from_slice(&host.run(&["vm", "show", "web", "--json"]).stdout).unwrap();
    assert_eq!(shown["state"], "running");
}

#[test]
fn a_daemon_does_not_start_with_an_open_door() {
    let root = tempfile::tempdir().unwrap();
    let started = Command::new(MIGRATED)
        .args(["serve", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(root.path())
        .output()
        .unwrap();
    assert_eq!(started.status.code(), Some(1));
    let says = String::from_utf8(started.stderr).unwrap();
    assert!(says.contains("token_file") && says.contains("open to everybody"), "{says}");
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn without_a_daemon_the_command_line_says_what_to_do() {
    let output =
        Command::new(MIGRATED).args(["--host", "unix:/nonexistent/api.sock", "vm", "list"]).output().unwrap();
    let says = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(says.contains("/nonexistent/api.sock") && says.contains("migrated serve"), "{says}");
}
