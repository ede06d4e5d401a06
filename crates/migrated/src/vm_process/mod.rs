//! The main of a guest's VM process.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

/// Flags of the hidden subcommand.
#[derive(Debug, Args)]
pub struct VmProcessArgs {
    /// The VM's directory.
    #[arg(long)]
    dir: PathBuf,
}

/// Runs a guest until it ends.
pub fn run(args: &VmProcessArgs) -> Result<()> {
    bail!("no guest can run in {} yet", args.dir.display())
}
