//! `migrated-bench`: what migrations cost, by commands that print it.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use migrated_bench::lab::{self, Plan};
use migrated_bench::signals;

/// Measures migrations between two daemons on this machine, in network namespaces of their own. Needs root,
/// /dev/kvm, iproute2 and nftables; iperf3 where it is there. Build `migrated` with --release before.
///
/// Every command prints a table, ends with a failure when anything was lost, and writes what each run gave with --json.
#[derive(Debug, Parser)]
#[command(name = "migrated-bench", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A guest that writes faster than the link sends: downtime, total time, what it gets done meanwhile, by mode.
    Outrun(commands::moves::OutrunArgs),
    /// 64 MiB written at 260,000 pages a second over 1 Gbit/s: the total time of auto.
    Hot64(commands::moves::Hot64Args),
    /// Post-copy on an unshaped link: how long the guest waits for a page.
    Faults(commands::faults::FaultsArgs),
    /// Post-copy of a guest that reads in sequence, or by popularity: which pages it waits for, with and without prefetch.
    Prefetch(commands::prefetch::PrefetchArgs),
    /// Pre-copy that slows a vCPU which writes at twice the link's rate: whether it ends, and what one that only
    /// reads loses.
    Throttle(commands::throttle::ThrottleArgs),
    /// Scenarios of a file: links, modes, workloads and QEMU multiplied out, until medians are certain. A table, plots and
    /// every run.
    Matrix(commands::matrix::MatrixArgs),
    /// Draw the plots of a matrix's runs again.
    Plot(commands::matrix::PlotArgs),
}

/// What all commands take.
#[derive(Debug, Args)]
struct Common {
    /// The program to measure [default: the `migrated` beside this one].
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Write what each run gave to this file, as JSON lines.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Common {
    /// A lab over a link of this rate, with these further lines of configuration.
    fn plan(&self, rate: Option<u64>, config: &str) -> Result<Plan> {
        let binary = self.binary.clone().map_or_else(lab::default_binary, Ok)?;
        Ok(Plan { binary, rate, config: config.to_owned(), certificates: false })
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    signals::run(|| match &command {
        Command::Outrun(args) => commands::moves::outrun(args),
        Command::Hot64(args) => commands::moves::hot64(args),
        Command::Faults(args) => commands::faults::run(args),
        Command::Prefetch(args) => commands::prefetch::run(args),
        Command::Throttle(args) => commands::throttle::run(args),
        Command::Matrix(args) => commands::matrix::run(args),
        Command::Plot(args) => commands::matrix::plot(args),
    })
}
