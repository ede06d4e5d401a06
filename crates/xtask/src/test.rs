//! `cargo xtask test`: everything that can be tested on this machine, and an honest account of what was not.

mod capabilities;
mod libtest;
pub mod packages;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{ExitCode, Stdio};

use anyhow::Context;

use crate::fuzz;
use crate::tree::Tree;
pub use capabilities::is_root;
use capabilities::Reports;
use libtest::Counts;

/// Names the file in which tests report the capabilities they used or lacked; as in `testkit::capability`.
const REPORT_ENV: &str = "MIGRATED_TEST_CAPABILITIES";

/// Runs all tests, then each fuzz target for `fuzz_seconds`, and sums up.
pub fn run(tree: &Tree, fuzz_seconds: u32) -> anyhow::Result<ExitCode> {
    packages::provide()?;
    let (mut counts, finished_well, reports) = workspace_tests(tree)?;

    println!();
    let fuzzed = match fuzz::available(tree) {
        _ if fuzz_seconds == 0 => "not run: --fuzz-seconds 0".to_owned(),
        Err(reason) => format!("not run: {reason}"),
        Ok(()) => {
            let outcomes = fuzz::run_all(tree, fuzz_seconds)?;
            let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
            counts.failed += failed.len() as u64;
            counts.passed += (outcomes.len() - failed.len()) as u64;
            let names: Vec<_> = failed.iter().map(|outcome| outcome.target.as_str()).collect();
            match names.is_empty() {
                true => format!("{} targets, {fuzz_seconds} s each, no findings", outcomes.len()),
                false => format!("findings in {}", names.join(", ")),
            }
        }
    };

    // libtest counts a test that returned early as passed; it was skipped.
    counts.passed = counts.passed.saturating_sub(reports.skips());
    counts.skipped += reports.skips();

    let breaches = reports.breaches();
    print!("{reports}");
    println!("fuzz: {fuzzed}");
    for breach in &breaches {
        println!("error: {breach}");
    }
    if !finished_well && counts.failed == 0 {
        println!("error: cargo test failed before or between tests, see above");
    }
    println!("{counts}");
    let fine = finished_well && counts.failed == 0 && breaches.is_empty();
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs `cargo test`, shows its output as it comes and counts along.
fn workspace_tests(tree: &Tree) -> anyhow::Result<(Counts, bool, Reports)> {
    let report_file = std::env::temp_dir().join(format!("migrated-capabilities-{}", std::process::id()));
    fs::write(&report_file, "").with_context(|| report_file.display().to_string())?;

    let mut child = tree
        .cargo()
        .args(["test", "--workspace", "--no-fail-fast", "--locked"])
        .env(REPORT_ENV, &report_file)
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test")?;
    let mut counts = Counts::default();
    let mut stdout = std::io::stdout().lock();
    for line in BufReader::new(child.stdout.take().context("cargo test's stdout")?).split(b'\n') {
        let line = line?;
        stdout.write_all(&line)?;
        stdout.write_all(b"\n")?;
        counts.add(&String::from_utf8_lossy(&line));
    }
    let finished_well = child.wait()?.success();

    let text = fs::read_to_string(&report_file).with_context(|| report_file.display().to_string())?;
    fs::remove_file(&report_file)?;
    Ok((counts, finished_well, Reports::read(&text)))
}
