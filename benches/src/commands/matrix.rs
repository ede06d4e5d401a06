//! Whole files of scenarios, and the plots of what came of them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use migrated_bench::matrix::{self, Matrix, Programs, Setting, Variant, refusals, tables};
use migrated_bench::report::{Report, say};
use migrated_bench::{facts, lab, plot, qemu, signals};

#[derive(Debug, Args)]
pub struct MatrixArgs {
    /// What is to be measured, in TOML; `benches/matrix` has some.
    file: PathBuf,
    /// Only these of its scenarios.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// The program to measure [default: the `migrated` beside this one].
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// QEMU's program [default: qemu-system-x86_64 on PATH, or in --qemu-root].
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
    /// Directory to which Debian's packages of QEMU were extracted: it has its libraries and firmware.
    #[arg(long, value_name = "DIR")]
    qemu_root: Option<PathBuf>,
    /// Leave out what QEMU would move.
    #[arg(long, conflicts_with_all = ["qemu", "qemu_root"])]
    no_qemu: bool,
    /// Write every run to this file, as JSON lines [default: runs.jsonl in --out].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Directory for table.md, plots and runs; it is made.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PlotArgs {
    /// Runs that `matrix` wrote.
    file: PathBuf,
    /// Directory for the plots and table.md; it is made.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: &MatrixArgs) -> Result<bool> {
    let matrix = Matrix::read(&args.file)?.only(&args.only)?;
    let mut settings = matrix.settings()?;
    if args.no_qemu {
        without_qemu(&mut settings);
        ensure!(!settings.is_empty(), "without QEMU nothing of {} is left", args.file.display());
    }
    let programs = Programs {
        migrated: args.binary.clone().map_or_else(lab::default_binary, Ok)?,
        qemu: qemu::Program::new(args.qemu.clone(), args.qemu_root.clone()),
    };
    if settings.iter().flat_map(|setting| &setting.variants).any(is_qemu) {
        let version = programs.qemu.version().context(
            "install qemu-system-x86, name it with --qemu or --qemu-root, or leave it out with --no-qemu",
        )?;
        say(&version);
    }
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).with_context(|| format!("can't make {}", out.display()))?;
    }
    let json = args.json.clone().or_else(|| args.out.as_ref().map(|out| out.join("runs.jsonl")));
    let mut report = Report::begin(json.as_deref())?;
    let mut runs = Vec::new();
    let mut problems = Vec::new();
    for (n, setting) in settings.iter().enumerate() {
        say(&format!("\n{} of {}: {setting}", n + 1, settings.len()));
        let mut keep = |run: &matrix::Run| {
            runs.push(run.clone());
            report.line(run)
        };
        if let Err(error) = matrix::play(setting, &matrix.rounds, &programs, &mut keep) {
            problems.push(format!("{setting}: {error:#}"));
        }
        // Each further setting would only fail.
        if signals::came() {
            break;
        }
    }
    problems.extend(refusals(&runs));
    let tables = tables(&runs);
    report.print(&tables)?;
    if let Some(out) = &args.out {
        let head = format!("{}\n\n`{}`\n", report.host(), command());
        let mut text = format!("{head}{tables}\nLoad at the end {:.2}.\n", facts::load());
        for problem in &problems {
            writeln!(text, "\nLost or wrong: {problem}")?;
        }
        write(&out.join("table.md"), &text)?;
        if problems.is_empty() {
            drawn(&plot::draw(&runs, out)?);
        }
    }
    report.end(&problems)
}

pub fn plot(args: &PlotArgs) -> Result<bool> {
    let runs = matrix::read(&args.file)?;
    ensure!(!runs.is_empty(), "{} has no runs of a matrix", args.file.display());
    let lost = refusals(&runs);
    ensure!(lost.is_empty(), "something was lost, so these runs show nothing:\n  - {}", lost.join("\n  - "));
    drawn(&plot::draw(&runs, &args.out)?);
    write(&args.out.join("table.md"), &tables(&runs))?;
    Ok(true)
}

const fn is_qemu(variant: &Variant) -> bool {
    matches!(variant, Variant::Qemu { .. })
}

fn without_qemu(settings: &mut Vec<Setting>) {
    settings.iter_mut().for_each(|setting| setting.variants.retain(|variant| !is_qemu(variant)));
    settings.retain(|setting| !setting.variants.is_empty());
}

/// This program's command line, without the directory in which it lies.
fn command() -> String {
    let words = std::env::args().skip(1);
    std::iter::once("migrated-bench".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

fn drawn(files: &[PathBuf]) {
    files.iter().for_each(|file| say(&format!("drew {}", file.display())));
}
