//! Runs the fuzz targets of `fuzz/`, which are one for each decoder that reads bytes from elsewhere.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail, ensure};

use crate::tree::Tree;

/// How one target's run ended.
pub struct Outcome {
    pub target: String,
    pub passed: bool,
}

/// `cargo xtask fuzz`.
pub fn run(tree: &Tree, seconds: u32, target: Option<&str>) -> anyhow::Result<ExitCode> {
    if let Err(reason) = available(tree) {
        bail!(reason);
    }
    let outcomes = match target {
        Some(target) => vec![run_one(tree, seconds, target)?],
        None => run_all(tree, seconds)?,
    };
    for Outcome { target, passed } in &outcomes {
        println!("fuzz {target}: {}", if *passed { "no findings" } else { "FINDINGS, see above" });
    }
    let all = outcomes.iter().all(|outcome| outcome.passed);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether fuzzing works here, or what is missing.
pub fn available(tree: &Tree) -> Result<(), String> {
    let fuzz = cargo_fuzz(tree).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match fuzz {
        Ok(status) if status.success() => Ok(()),
        _ => Err("needs `rustup toolchain install nightly` and `cargo install cargo-fuzz`".to_owned()),
    }
}

/// Runs every target, whether or not an earlier one found something.
pub fn run_all(tree: &Tree, seconds: u32) -> anyhow::Result<Vec<Outcome>> {
    let list = cargo_fuzz(tree).arg("list").output().context("cargo fuzz list")?;
    ensure!(list.status.success(), "cargo fuzz list: {}", String::from_utf8_lossy(&list.stderr));
    let targets = String::from_utf8(list.stdout)?;
    targets.lines().map(|target| run_one(tree, seconds, target)).collect()
}

fn run_one(tree: &Tree, seconds: u32, target: &str) -> anyhow::Result<Outcome> {
    println!("fuzz {target}: {seconds} s");
    // Inputs are kept to 1 MiB and the process to 512 MiB: a decoder that allocates what a length in the
    // input asks for dies here.
    let status = cargo_fuzz(tree)
        .args(["run", target, "--"])
        .arg(format!("-max_total_time={seconds}"))
        .args(["-max_len=1048576", "-rss_limit_mb=512", "-print_final_stats=1", "-verbosity=0"])
        .status()
        .with_context(|| format!("cargo fuzz run {target}"))?;
    Ok(Outcome { target: target.to_owned(), passed: status.success() })
}

/// `cargo +nightly fuzz`, whatever toolchain built xtask.
fn cargo_fuzz(tree: &Tree) -> Command {
    let mut command = tree.cargo();
    // The pinned toolchain's own `cargo` would not understand `+nightly`; the proxy does, and it
    // prefers this variable to rust-toolchain.toml.
    command.env("RUSTUP_TOOLCHAIN", "nightly").env_remove("CARGO").env_remove("RUSTC").arg("fuzz");
    command
}
