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
        Some(target) => {
            build(tree)?;
            vec![run_one(tree, seconds, target)?]
        }
        None => run_all(tree, seconds)?,
    };
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
    build(tree)?;
    let list = cargo_fuzz(tree).arg("list").output().context("cargo fuzz list")?;
    ensure!(list.status.success(), "cargo fuzz list: {}", String::from_utf8_lossy(&list.stderr));
    let targets = String::from_utf8(list.stdout)?;
    targets.lines().map(|target| run_one(tree, seconds, target)).collect()
}

/// Builds the targets, so that a run that fails afterwards has found something.
fn build(tree: &Tree) -> anyhow::Result<()> {
    let status = cargo_fuzz(tree).arg("build").status().context("cargo fuzz build")?;
    ensure!(status.success(), "the fuzz targets don't build, see above");
    Ok(())
}

fn run_one(tree: &Tree, seconds: u32, target: &str) -> anyhow::Result<Outcome> {
    // libFuzzer keeps what it finds interesting in the first folder and only reads the second.
    let corpus = tree.join("fuzz/corpus").join(target);
    std::fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
    let seeds = Some(tree.join("fuzz/seeds").join(target)).filter(|folder| folder.is_dir());
    // Inputs are kept to 1 MiB, so a decoder that allocates what a length in the input asks for, not what
    // the input holds, goes over the limit of one allocation.
    let run = cargo_fuzz(tree)
        .args(["run", target])
        .arg(&corpus)
        .args(seeds)
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .args(["-max_len=1048576", "-malloc_limit_mb=64", "-rss_limit_mb=1024"])
        .output()
        .with_context(|| format!("cargo fuzz run {target}"))?;
    let said = String::from_utf8_lossy(&run.stderr);
    if run.status.success() {
        let runs = said.lines().find(|line| line.starts_with("Done ")).unwrap_or_default();
        println!("fuzz {target}: no findings. {runs}");
    } else {
        eprint!("{said}");
        println!("fuzz {target}: FINDINGS, see above");
    }
    Ok(Outcome { target: target.to_owned(), passed: run.status.success() })
}

/// `cargo +nightly fuzz`, whatever toolchain built xtask.
fn cargo_fuzz(tree: &Tree) -> Command {
    let mut command = tree.cargo();
    // The pinned toolchain's own `cargo` would not understand `+nightly`; the proxy does, and it
    // prefers this variable to rust-toolchain.toml.
    command.env("RUSTUP_TOOLCHAIN", "nightly").env("RUSTUP_AUTO_INSTALL", "0");
    command.env_remove("CARGO").env_remove("RUSTC").arg("fuzz");
    command
}
