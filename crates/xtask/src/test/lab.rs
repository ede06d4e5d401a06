//! The tests that boot Linux. They run inside the lab, all in one boot of it; where no lab can be made they run here,
//! to say why they don't.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::capabilities::is_root;
use super::{Counts, REPORT_ENV, count_lines};
use crate::artifacts;
use crate::lab::{Access, Ended, Job, Lab, Share};
use crate::tree::Tree;

/// Names the folder with the guests' kernels; as in `testkit::capability`.
const GUEST_ENV: &str = "MIGRATED_LAB_GUEST";
/// What selects the tests.
const TEST: [&str; 6] = ["test", "--locked", "--package", "migrated", "--test", "lab"];
/// Longer than all tests take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// Two hosts, and guests on both, fit.
const MEMORY_MIB: u32 = 4096;

/// Whether a lab can be made here.
pub fn is_possible() -> bool {
    is_root() && cfg!(target_arch = "x86_64") && Path::new("/usr/bin/apt-get").exists()
}

/// Runs them, counts along and adds their reports to those in `report_file`. Gives whether they finished well.
pub fn run(tree: &Tree, counts: &mut Counts, report_file: &Path) -> anyhow::Result<bool> {
    if !is_possible() {
        return here(tree, counts, report_file);
    }
    inside(tree, counts, report_file, &[])
}

/// Runs those in the lab whose names contain one of these words.
pub fn run_some(tree: &Tree, names: &[String]) -> anyhow::Result<bool> {
    let report_file = std::env::temp_dir().join(format!("migrated-lab-capabilities-{}", std::process::id()));
    File::create(&report_file).with_context(|| report_file.display().to_string())?;
    let well = inside(tree, &mut Counts::default(), &report_file, names);
    fs::remove_file(&report_file)?;
    well
}

fn here(tree: &Tree, counts: &mut Counts, report_file: &Path) -> anyhow::Result<bool> {
    let mut tests = tree.cargo();
    tests.args(TEST).env(REPORT_ENV, report_file).stdout(Stdio::piped());
    let mut child = tests.spawn().context("cargo test")?;
    count_lines(child.stdout.take().context("cargo test's stdout")?, counts)?;
    Ok(child.wait()?.success())
}

fn inside(tree: &Tree, counts: &mut Counts, report_file: &Path, names: &[String]) -> anyhow::Result<bool> {
    let lab = Lab::ready(tree)?;
    let tests = lab.add_program("lab-tests", &build(tree)?)?;
    // The tests know the program that they test by the path at which it was built.
    let built = tree.target()?.join("debug");
    lab.add_program("migrated", &built.join("migrated"))?;
    let share = |tag: &str, host: PathBuf, lab: &Path, access| Share {
        tag: tag.to_owned(),
        host,
        lab: lab.display().to_string(),
        access,
    };
    let reports = std::env::temp_dir().join(format!("migrated-lab-{}", std::process::id()));
    fs::create_dir_all(&reports).with_context(|| reports.display().to_string())?;
    let job = Job {
        command: [
            "env",
            &format!("{GUEST_ENV}=/lab/guest"),
            &format!("{REPORT_ENV}=/lab/reports/capabilities"),
            &format!("/lab/bin/{}", tests.file_name().context("a program's name")?.to_string_lossy()),
            // They measure, and a test that hangs shows how far it came.
            "--test-threads=1",
            "--nocapture",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(names.iter().cloned())
        .collect(),
        timeout: TIMEOUT,
        memory_mib: MEMORY_MIB,
        shares: vec![
            share("built", lab.programs(), &built, Access::ReadOnly),
            share("guest", lab.guests(), Path::new("/lab/guest"), Access::ReadOnly),
            share("reports", reports.clone(), Path::new("/lab/reports"), Access::ReadWrite),
        ],
    };
    println!("\nin the lab:");
    let (source, mut sink) = io::pipe()?;
    let ended = std::thread::scope(|scope| {
        let counting = scope.spawn(|| count_lines(source, counts));
        let ended = lab.run(&job, move |bytes| sink.write_all(bytes));
        counting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        ended
    })?;
    if let Ok(mut reported) = File::open(reports.join("capabilities")) {
        io::copy(&mut reported, &mut File::options().append(true).open(report_file)?)?;
    }
    fs::remove_dir_all(&reports)?;
    match &ended {
        Ended::Died { console } => println!("error: the lab ended before its tests did:\n{console}"),
        ended if ended.is_timeout() => println!("error: the lab's tests took over {} s", TIMEOUT.as_secs()),
        Ended::Code(_) => {}
    }
    Ok(ended == Ended::Code(0))
}

/// Builds the tests and gives the program.
fn build(tree: &Tree) -> anyhow::Result<PathBuf> {
    let mut cargo = tree.cargo();
    cargo.args(TEST).args(["--no-run", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cargo test --no-run")?;
    ensure!(output.status.success(), "the lab's tests don't build, see above");
    let built = artifacts::executables(&output.stdout).into_iter().find(|built| built.target == "lab");
    Ok(built.context("cargo did not say where it put the lab's tests")?.path)
}
