//! What people and CI run on this tree: `cargo xtask lint | test | lab | fuzz | openapi | bench-compare | bench-gate`.
#![allow(clippy::print_stdout, reason = "a command-line tool: stdout is its output")]

mod artifacts;
mod bench;
mod fuzz;
mod lab;
mod lint;
mod openapi;
mod test;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::tree::Tree;

/// The project's own checks.
#[derive(Parser)]
#[command(name = "cargo xtask", about)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check what the compiler doesn't: who may use whom, file sizes, where unsafe code lives, leftovers.
    Lint,
    /// Run every test of the workspace, then the decoders' fuzz targets for a bounded time.
    Test {
        /// Seconds for each fuzz target; 0 leaves them out.
        #[arg(long, default_value_t = 10)]
        fuzz_seconds: u32,
    },
    /// A machine in software whose KVM boots real guests.
    #[command(subcommand)]
    Lab(lab::Task),
    /// Run the fuzz targets (needs a nightly toolchain and cargo-fuzz).
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Only this target; all of them when left out.
        target: Option<String>,
    },
    /// Write crates/api/openapi.json anew from the API's types.
    Openapi,
    /// Compare the micro-benchmarks of another commit with those of this tree, run in turns; fail where one is
    /// certainly slower by more than a threshold.
    BenchCompare(bench::CompareArgs),
    /// The short comparison that CI makes, with the commit where this branch left origin/main, or else HEAD~1. It
    /// fails only on a large, certain regression.
    BenchGate,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> anyhow::Result<ExitCode> {
    let tree = Tree::here()?;
    match task {
        Task::Lint => lint::run(&tree),
        Task::Test { fuzz_seconds } => test::run(&tree, *fuzz_seconds),
        Task::Lab(task) => lab::run(&tree, task),
        Task::Fuzz { seconds, target } => fuzz::run(&tree, *seconds, target.as_deref()),
        Task::Openapi => openapi::run(&tree),
        Task::BenchCompare(args) => bench::compare(&tree, args),
        Task::BenchGate => bench::gate(&tree),
    }
}
