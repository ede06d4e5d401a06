//! Writes the API's committed OpenAPI document anew.

use std::fs;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, ensure};

use crate::tree::Tree;

const DOCUMENT: &str = "crates/api/openapi.json";

/// `cargo xtask openapi`.
pub fn run(tree: &Tree) -> anyhow::Result<ExitCode> {
    let output = tree
        .cargo()
        .args(["run", "--quiet", "--package", "migrated", "--", "openapi"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo run")?;
    ensure!(output.status.success(), "`migrated openapi` failed, see above");
    fs::write(tree.join(DOCUMENT), output.stdout).context(DOCUMENT)?;
    println!("wrote {DOCUMENT}");
    Ok(ExitCode::SUCCESS)
}
