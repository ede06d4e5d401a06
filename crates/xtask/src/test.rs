//! `cargo xtask test`: everything that can be tested on this machine, and an honest account of what was not.

mod capabilities;
pub mod lab;
mod libtest;
pub mod packages;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::Context;

use crate::fuzz;
use crate::tree::Tree;
use capabilities::Reports;
pub use capabilities::is_root;
use libtest::Counts;

/// Names the file in which tests report the capabilities they used or lacked; as in `testkit::capability`.
const REPORT_ENV: &str = "MIGRATED_TEST_CAPABILITIES";

/// Runs all tests, then each fuzz target for `fuzz_seconds`, and sums up.
pub fn run(tree: &Tree, fuzz_seconds: u32) -> anyhow::Result<ExitCode> {
    packages::provide()?;
    let report_file = std::env::temp_dir().join(format!("migrated-capabilities-{}", std::process::id()));
    fs::write(&report_file, "").with_context(|| report_file.display().to_string())?;
    let mut counts = Counts::default();
    let mut finished_well = workspace_tests(tree, &mut counts, &report_file)?;
    // What keeps the lab from running is told like what a test found, after all that did run.
    match lab::run(tree, &mut counts, &report_file) {
        Ok(well) => finished_well &= well,
        Err(error) => {
            println!("error: the lab's tests did not run: {error:#}");
            finished_well = false;
        }
    }
    let reports = fs::read_to_string(&report_file).with_context(|| report_file.display().to_string())?;
    let reports = Reports::read(&reports);
    fs::remove_file(&report_file)?;

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
        println!("error: tests failed before or between tests, see above");
    }
    println!("{counts}");
    let fine = finished_well && counts.failed == 0 && breaches.is_empty();
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs `cargo test`, shows its output as it comes and counts along.
fn workspace_tests(tree: &Tree, counts: &mut Counts, report_file: &Path) -> anyhow::Result<bool> {
    let mut child = tree
        .cargo()
        .args(["test", "--workspace", "--no-fail-fast", "--locked"])
        .env(REPORT_ENV, report_file)
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test")?;
    count_lines(child.stdout.take().context("cargo test's stdout")?, counts)?;
    Ok(child.wait()?.success())
}

/// Shows lines as they come and counts what they sum up.
fn count_lines(from: impl Read, counts: &mut Counts) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    for line in BufReader::new(from).split(b'\n') {
        let line = line?;
        stdout.write_all(&line)?;
        stdout.write_all(b"\n")?;
        counts.add(&String::from_utf8_lossy(&line));
    }
    Ok(())
}
