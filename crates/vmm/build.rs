//! Builds the workload guest, a bare ELF image that the library embeds, with the compiler that cargo uses.
//!
//! The only target at hand is the host's, so the image is a static executable of that target without its
//! libraries and start files, laid out by the guest's own linker script.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=workload");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let var = |name| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
    let source = var("CARGO_MANIFEST_DIR").join("workload");
    let image = var("OUT_DIR").join("workload.elf");

    let mut rustc = Command::new(var("RUSTC"));
    rustc.arg(source.join("main.rs")).arg("-o").arg(&image);
    rustc.args(["--crate-name=workload", "--crate-type=bin", "--edition=2024"]);
    rustc.arg("--target=x86_64-unknown-linux-gnu");
    for option in [
        "opt-level=3",
        "panic=abort",
        "codegen-units=1",
        "overflow-checks=no",
        "relocation-model=static",
        "target-cpu=x86-64",
        "no-redzone=yes",
        "strip=debuginfo",
        "link-arg=-nostdlib",
        "link-arg=-nostartfiles",
        "link-arg=-static",
        "link-arg=-no-pie",
        "link-arg=-Wl,--build-id=none,-z,noexecstack",
    ] {
        rustc.args(["-C", option]);
    }
    rustc.arg("-C").arg(format!("link-arg=-Wl,-T,{}", source.join("link.ld").display()));
    // The same image whatever the directory.
    rustc.arg(format!("--remap-path-prefix={}=workload", source.display()));
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={}", PathBuf::from(linker).display()));
    }
    let output = rustc.output().unwrap_or_else(|error| panic!("can't run {rustc:?}: {error}"));
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{rustc:?} failed: {}\n{messages}", output.status);
    for line in messages.lines() {
        println!("cargo::warning={line}");
    }
}
