//! `migrated-chaos`: what becomes of a guest when the network fails while it moves.

mod cuts;
mod loss;
mod outcome;
mod trial;
mod witness;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use migrated_api::Mode;
use migrated_bench::guest::Guest;
use migrated_bench::lab::{self, Plan};
use migrated_bench::signals;

/// Moves a guest that checks its own memory between two daemons on this machine, in network namespaces of their
/// own, and breaks the link between them. Needs root, /dev/kvm, iproute2 and nftables. Build `migrated` with --release
/// before.
///
/// Every command prints a table, and ends with a failure when a guest was lost, ran twice, or found an error.
#[derive(Debug, Parser)]
#[command(name = "migrated-chaos", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Cut the link once in each move, at a random moment, and restore it after a random time.
    Cuts(cuts::CutsArgs),
    /// Move over a link that loses packets.
    Loss(loss::LossArgs),
}

/// What all commands take.
#[derive(Debug, Args)]
struct Common {
    /// The program to try [default: the `migrated` beside this one].
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Write what each move gave to this file, as JSON lines.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The link in Mbit/s.
    #[arg(long, default_value_t = 1000)]
    link_mbit: u64,
    /// Guest RAM in MiB.
    #[arg(long, default_value_t = 128)]
    memory_mib: u64,
    /// What of it is written, at random, in MiB.
    #[arg(long, default_value_t = 48)]
    hot_mib: u64,
    /// Pages that are written a second, or `max`.
    #[arg(long, default_value = "20000")]
    rate: String,
}

impl Common {
    fn plan(&self) -> Result<Plan> {
        let binary = self.binary.clone().map_or_else(lab::default_binary, Ok)?;
        Ok(Plan {
            binary,
            rate: Some(self.link_mbit * 1_000_000),
            config: String::new(),
            certificates: false,
        })
    }

    /// A guest that also checks as much RAM again that it never writes.
    fn guest(&self) -> Guest {
        let mut guest = Guest::writing(self.memory_mib, self.hot_mib, "random", &self.rate);
        guest.workload +=
            &format!(" fill={}M", self.hot_mib.min(self.memory_mib.saturating_sub(self.hot_mib + 8)));
        guest
    }
}

/// All modes, for commands that mix them.
const MODES: [Mode; 4] = [Mode::Auto, Mode::Precopy, Mode::Postcopy, Mode::Hybrid];

/// A mode's name in the API.
const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Precopy => "precopy",
        Mode::Postcopy => "postcopy",
        Mode::Hybrid => "hybrid",
        Mode::Auto => "auto",
    }
}

/// One mode, or all of them in turn.
fn modes(name: &str) -> Result<Vec<Mode>, String> {
    if name == "mix" {
        return Ok(MODES.into());
    }
    let known = MODES.into_iter().find(|mode| mode_name(*mode) == name);
    known
        .map(|mode| vec![mode])
        .ok_or_else(|| format!("{name:?} is no mode; there is auto, precopy, postcopy, hybrid, and mix"))
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    signals::run(|| match &command {
        Command::Cuts(args) => cuts::run(args),
        Command::Loss(args) => loss::run(args),
    })
}
